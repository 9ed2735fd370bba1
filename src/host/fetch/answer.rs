//! What servers say: which answers are final, which are worth another attempt, and which redirects are followed.

use std::error::Error as StdError;
use std::io;
use std::ops::Range;
use std::time::Duration;

use reqwest::header::{ETAG, HeaderMap, HeaderValue, LAST_MODIFIED, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use super::address::shown;
use crate::error::{Code, Error, Result};
use crate::host::retry::retry_after;
use crate::text::UrlError;

/// Why an attempt failed.
pub(crate) enum Failed {
    /// Another attempt may do better, after the time that the server asks for.
    Maybe(Error, Option<Duration>),
    /// No other attempt would do better.
    Surely(Error),
}

/// The answer if it is a success (for a rest: or about it), otherwise what its status means.
pub(super) fn accept(url: &Url, response: Response, is_rest: bool) -> Result<Response, Failed> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if is_rest => Ok(response),
        _ => Err(refused(url, &response)),
    }
}

/// What an answer that is no success means.
pub(crate) fn refused(url: &Url, response: &Response) -> Failed {
    let status = response.status();
    let failed = |code| Error::new(code, format!("{} answered {status}", shown(url)));
    match status.as_u16() {
        401 | 403 => Failed::Surely(failed(Code::FetchDenied).with_hint(
            "the server wants a login, or a signed URL has expired; put the file where this machine may read it",
        )),
        407 => Failed::Surely(failed(Code::FetchDenied).with_hint(
            "the proxy wants a login: put it into https_proxy (http://user:password@proxy:port)",
        )),
        404 | 410 => Failed::Surely(Error::new(
            Code::Fetch,
            format!("{} does not exist ({status})", shown(url)),
        )),
        408 | 425 | 429 | 500..=599 => {
            let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
            let asked = asked.and_then(|v| retry_after(v, jiff::Timestamp::now()));
            Failed::Maybe(failed(Code::Fetch), asked)
        }
        _ => Failed::Surely(failed(Code::Fetch)),
    }
}

/// Where a redirect leads, if the answer is one.
pub(crate) fn redirect_target(from: &Url, response: &Response) -> Result<Option<Url>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let next = match location.map(|l| from.join(l)) {
        Some(Ok(next)) => next,
        Some(Err(UrlError::IdnaError)) => {
            return Err(Error::new(
                Code::Fetch,
                format!("{} was redirected to a host name that is not in ASCII", shown(from)),
            )
            .with_hint("name the final address in the configuration, with the host name as xn--…"));
        }
        Some(Err(_)) | None => {
            return Err(Error::new(Code::Fetch, format!("{} was redirected to nowhere", shown(from))));
        }
    };
    check_redirect(from, &next)?;
    Ok(Some(next))
}

fn check_redirect(from: &Url, to: &Url) -> Result<()> {
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(()),
        ("https", "http") => Err(Error::new(
            Code::InsecureRedirect,
            format!("{} was redirected to {}, which is not encrypted", shown(from), shown(to)),
        )
        .with_hint("name the final https address in the configuration, or ask who runs the mirror")),
        (_, other) => {
            Err(Error::new(Code::Fetch, format!("{} was redirected to a {other} address", shown(from))))
        }
    }
}

/// `bytes 0-99/1000` as the range and the total, which may be unknown (`*`).
pub(crate) fn content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

/// What names a version of a file for certain: a strong `ETag`, or the time of its last change.
pub(super) fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    strong.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

/// A connection that failed or broke. reqwest's own text is kept as cause, without the URL, which may hold secrets.
pub(crate) fn broken(url: &Url, e: reqwest::Error) -> Failed {
    let e = e.without_url();
    let error = Error::new(Code::Fetch, format!("cannot download {}", shown(url)));
    if is_certificate_problem(&e) {
        return Failed::Surely(error.because(e).with_hint(
            "check the clock; where a proxy inspects TLS, name its certificate by AWS_CA_BUNDLE or SSL_CERT_FILE",
        ));
    }
    Failed::Maybe(error.because(e), None)
}

/// A request that did not even leave this machine.
pub(crate) fn unsent(url: &Url, e: io::Error) -> Failed {
    Failed::Maybe(Error::new(Code::Fetch, format!("cannot download {}", shown(url))).because(e), None)
}

/// Whether the other side's certificate was refused, which no other attempt will change.
fn is_certificate_problem(e: &(dyn StdError + 'static)) -> bool {
    if let Some(tls) = e.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An io::Error does not name the error it wraps as its source, but that error's source.
    let wrapped = e.downcast_ref::<io::Error>().and_then(|io| io.get_ref());
    match (wrapped, e.source()) {
        (Some(inner), _) => is_certificate_problem(inner),
        (None, Some(source)) => is_certificate_problem(source),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encryption_is_never_lost_on_the_way() {
        let url = |u: &str| Url::parse(u).unwrap();
        assert!(check_redirect(&url("http://a/"), &url("http://b/")).is_ok());
        assert!(check_redirect(&url("http://a/"), &url("https://b/")).is_ok());
        assert!(check_redirect(&url("https://a/"), &url("https://b/")).is_ok());
        let e = check_redirect(&url("https://a/x?s=geheim"), &url("http://b/?s=geheim")).unwrap_err();
        assert_eq!(e.code(), Code::InsecureRedirect);
        assert!(!e.message().contains("geheim"));
        assert_eq!(
            check_redirect(&url("https://a/"), &url("file:///etc/shadow")).unwrap_err().code(),
            Code::Fetch
        );
    }

    #[test]
    fn a_refused_certificate_is_found_below_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let outer = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(is_certificate_problem(&outer));
        assert!(!is_certificate_problem(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
