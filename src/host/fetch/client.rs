//! The HTTP client itself: TLS, the certificates that are trusted, and what the resolver cannot read.

use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Once};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Code, Error, Result};

/// A builder with our TLS and the given roots. HTTP/1.1, because parallel downloads over one HTTP/2 connection
/// would share one connection's throughput.
pub(crate) fn builder(roots: RootCertStore) -> Result<reqwest::ClientBuilder> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Fetch, "cannot set up TLS").because(e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .referer(false)
        .user_agent(concat!("gpu-bootstrap/", env!("CARGO_PKG_VERSION"))))
}

/// A builder for a client of plain http only: no certificate is trusted, and none is read.
pub(crate) fn client_without_roots() -> Result<reqwest::ClientBuilder> {
    builder(RootCertStore::empty())
}

/// webpki's roots, the system's where there are any, and those of `extra`. A bare instance may lack
/// ca-certificates; a company's own authority is in the system's store or in the extra file.
pub(crate) fn roots(extra: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let native = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(native.certs);
    for e in native.errors {
        warn_once(&e);
    }
    let Some(path) = extra else { return Ok(store) };
    let unusable = |why| {
        Error::new(Code::Fetch, format!("cannot use the certificates in {}", path.display()))
            .with_hint("correct or unset AWS_CA_BUNDLE")
            .because(why)
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(Box::<dyn StdError + Send + Sync>::from(e.to_string())))?;
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(unusable("it holds no certificate in PEM form".into()));
    }
    Ok(store)
}

/// The resolver cannot read a search domain outside ASCII ([`parse_url`] says why), and then asks public servers instead
/// of the machine's own.
pub(super) fn warn_of_search_domains() {
    const FILE: &str = "/etc/resolv.conf";
    if fs::read(FILE).is_ok_and(|text| has_foreign_search_domain(&text)) {
        tracing::warn!(
            "{FILE} names a search domain that is not in ASCII, so public name servers are asked; write it as xn--…"
        );
    }
}

fn has_foreign_search_domain(resolv_conf: &[u8]) -> bool {
    let names_one = |line: &[u8]| line.starts_with(b"search") || line.starts_with(b"domain");
    resolv_conf.split(|byte| *byte == b'\n').any(|line| names_one(line.trim_ascii()) && !line.is_ascii())
}

fn warn_once(e: &rustls_native_certs::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| tracing::warn!(error = %e, "cannot read all of the system's root certificates"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_domain_outside_ascii_is_noticed() {
        assert!(has_foreign_search_domain("nameserver 10.0.0.2\n search bücher.example\n".as_bytes()));
        let ascii =
            "# für xn--bcher-kva.example\nsearch ec2.internal xn--bcher-kva.example\nnameserver 10.0.0.2\n";
        assert!(!has_foreign_search_domain(ascii.as_bytes()));
    }

    #[test]
    fn an_empty_bundle_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let e = roots(Some(file.path())).unwrap_err();
        assert!(e.message().contains(&file.path().display().to_string()));
        assert!(roots(Some(Path::new("/nonexistent/bundle.pem"))).is_err());
    }
}
