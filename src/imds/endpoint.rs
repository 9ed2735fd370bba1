//! Where the metadata service is: EC2's link-local addresses, unless the environment says otherwise by the
//! names that the AWS SDKs use. That is also how the rehearsal and the tests bring their own service.

use crate::error::{Code, Error, Result};
use crate::host::fetch::redact_url;
use crate::text::parse_url;

/// EC2's IPv4 address of the service.
const V4: &str = "http://169.254.169.254";
/// EC2's IPv6 address of the service; on Nitro instances where it has been switched on.
const V6: &str = "http://[fd00:ec2::254]";

/// Base URLs of the service, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Either address may answer; the first to do so is kept.
    Race {
        /// Asked at once.
        v4: String,
        /// Asked when the other fails, or is slow.
        v6: String,
    },
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` chose one of EC2's addresses.
    Fixed(String),
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT` names a service, which is asked even off EC2.
    Explicit(String),
}

impl Endpoint {
    /// Reads the SDKs' environment names through `lookup`; `None` when `AWS_EC2_METADATA_DISABLED` is true.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let set = |name| lookup(name).filter(|v| !v.trim().is_empty());
        if set("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.trim().eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        if let Some(url) = set("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
            return explicit(url.trim()).map(Some);
        }
        match set("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").as_deref().map(str::trim) {
            None => Ok(Some(Self::ec2())),
            Some(mode) if mode.eq_ignore_ascii_case("ipv4") => Ok(Some(Self::Fixed(V4.into()))),
            Some(mode) if mode.eq_ignore_ascii_case("ipv6") => Ok(Some(Self::Fixed(V6.into()))),
            Some(mode) => Err(Error::new(
                Code::MetadataEndpoint,
                format!("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE is {mode:?}"),
            )
            .with_hint("set it to IPv4 or IPv6, or unset it to try both")),
        }
    }

    /// EC2's own two addresses.
    pub fn ec2() -> Self {
        Self::Race { v4: V4.into(), v6: V6.into() }
    }

    /// Whether the environment names the service itself.
    pub fn is_explicit(&self) -> bool {
        matches!(self, Self::Explicit(_))
    }

    /// For messages, before it is known which address answers.
    pub fn describe(&self) -> String {
        match self {
            Self::Race { v4, v6 } => format!("{v4} or {v6}"),
            Self::Fixed(url) | Self::Explicit(url) => url.clone(),
        }
    }
}

fn explicit(url: &str) -> Result<Endpoint> {
    let refuse = |why: &str| {
        Error::new(
            Code::MetadataEndpoint,
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT is {}, {why}", redact_url(url)),
        )
        .with_hint("set it to a URL such as http://169.254.169.254, or unset it")
    };
    let parsed = parse_url(url).map_err(|why| refuse(&format!("which is no URL: {why}")))?;
    if parsed.scheme() != "http" {
        return Err(refuse("but the metadata service speaks plain http only"));
    }
    if !parsed.username().is_empty() || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(refuse("but it may hold a host, a port and a path only"));
    }
    Ok(Endpoint::Explicit(parsed.as_str().trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Endpoint>> {
        let owned: Vec<_> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Endpoint::from_lookup(move |name| owned.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn an_empty_environment_races_ec2s_two_addresses() {
        assert_eq!(read(&[]).unwrap(), Some(Endpoint::ec2()));
        assert_eq!(read(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")]).unwrap(), Some(Endpoint::ec2()));
        assert_eq!(read(&[("AWS_EC2_METADATA_DISABLED", "false")]).unwrap(), Some(Endpoint::ec2()));
    }

    #[test]
    fn the_sdks_names_are_honoured() {
        assert_eq!(read(&[("AWS_EC2_METADATA_DISABLED", "True")]).unwrap(), None);
        assert_eq!(
            read(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")]).unwrap(),
            Some(Endpoint::Fixed(V6.into()))
        );
        assert_eq!(
            read(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ipv4")]).unwrap(),
            Some(Endpoint::Fixed(V4.into()))
        );
        let both = [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[::1]:1338/"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv4"),
        ];
        assert_eq!(read(&both).unwrap(), Some(Endpoint::Explicit("http://[::1]:1338".into())));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (name, value) in [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "https://169.254.169.254"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://bücher.example"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://user:geheim@host/"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "dual"),
        ] {
            let e = read(&[(name, value)]).unwrap_err();
            assert_eq!(e.code(), Code::MetadataEndpoint);
            assert!(e.message().contains(name), "{e}");
            assert!(!e.message().contains("geheim"), "{e}");
        }
    }
}
