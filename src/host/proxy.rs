//! Proxies that the HTTP client could not use. It would pass them by without a word: what the environment or apt's
//! configuration says about the way out is either followed or refused here. Used by `host::fetch` and `install::fetch`.

use std::ffi::OsString;

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use super::fetch::redact_url;
use crate::error::{Code, Error, Result};

/// The variables that the client reads; of each pair the first that is set.
const VARIABLES: [[&str; 2]; 3] =
    [["ALL_PROXY", "all_proxy"], ["HTTP_PROXY", "http_proxy"], ["HTTPS_PROXY", "https_proxy"]];

/// Refuses a proxy of the environment that could not be used, with the name of its variable. An empty one is none.
pub(crate) fn check_environment() -> Result<()> {
    check_variables(|name| std::env::var_os(name))
}

fn check_variables(lookup: impl Fn(&str) -> Option<OsString>) -> Result<()> {
    for pair in VARIABLES {
        let Some((name, value)) = pair.iter().find_map(|name| Some((name, lookup(name)?))) else { continue };
        // What is not UTF-8 is not ASCII either.
        let value = value.to_string_lossy();
        if !value.is_empty() {
            check(name, &value)?;
        }
    }
    Ok(())
}

/// Refuses a proxy that the client could not use; `place` is where it is written. Neither user nor password is shown.
pub(crate) fn check(place: &str, proxy: &str) -> Result<()> {
    let Some(why) = unusable(proxy) else { return Ok(()) };
    Err(Error::new(
        Code::Fetch,
        format!("cannot use the proxy {} that {place} names: {why}", redact_url(proxy)),
    )
    .with_hint("write it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, or unset it"))
}

/// Why, with the mend. The client's own parser is asked.
fn unusable(proxy: &str) -> Option<&'static str> {
    let anywhere = Uri::from_static("http://host/");
    let parsed = Matcher::builder().http(proxy.to_owned()).build().intercept(&anywhere);
    match parsed.as_ref().map(|p| p.uri().scheme_str()) {
        Some(Some("http" | "https")) => None,
        Some(_) => Some("only proxies that speak http can be used"),
        None if !proxy.is_ascii() => {
            Some("it is not in ASCII; write the host name as xn--…, and user and password percent-encoded")
        }
        None => Some(
            "it is not the URL of an http proxy; in user and password, special characters are percent-encoded",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(variables: &[(&str, &str)]) -> Result<()> {
        check_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
    }

    #[test]
    fn usable_proxies_pass() {
        for proxy in [
            "http://proxy:3128",
            "https://proxy.example/",
            "proxy:3128",
            "10.0.0.1:3128",
            "http://[fd00::1]:3128",
            "http://user:p%40ss@proxy:3128",
            "http://xn--bcher-kva.example:3128",
            "",
        ] {
            assert!(checked(&[("https_proxy", proxy)]).is_ok(), "{proxy}");
        }
        assert!(checked(&[]).is_ok());
        // The client takes the first, and the others are nothing to it.
        assert!(checked(&[("HTTP_PROXY", "http://proxy"), ("http_proxy", "http://bücher.example")]).is_ok());
    }

    #[test]
    fn what_would_be_passed_by_is_refused_by_its_name() {
        for (proxy, says) in [
            ("http://bücher.example:3128", "xn--…"),
            ("http://user:geheim@bücher.example:3128", "xn--…"),
            ("http://user:geheim^@proxy:3128", "percent-encoded"),
            ("http://proxy:3128 ", "not the URL"),
            ("http://", "not the URL"),
            ("ftp://proxy:21", "not the URL"),
            ("socks5h://proxy:1080", "speak http"),
        ] {
            for name in VARIABLES.concat() {
                let error = checked(&[(name, proxy)]).unwrap_err();
                assert_eq!(error.code(), Code::Fetch);
                assert!(error.message().contains(name) && error.message().contains(says), "{error}");
                assert!(!error.message().contains("geheim"), "{error}");
            }
        }
    }

    #[test]
    fn a_variable_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let lookup =
            |name: &str| (name == "http_proxy").then(|| OsString::from_vec(b"http://b\xfccher".to_vec()));
        assert!(check_variables(lookup).unwrap_err().message().contains("xn--…"));
    }
}
