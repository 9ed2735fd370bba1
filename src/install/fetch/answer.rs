//! What the head of an answer promises, and whether its bytes may be trusted.

use std::ops::Range;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use reqwest::{StatusCode, Url};

use crate::error::{Code, Error};
use crate::host::fetch::{Failed, content_range, shown};

/// What to do about a size that is not the package list's.
const SIZE_HINT: &str =
    "the mirror is being updated, or a cache on the way is out of date; run `apt-get update` and try again";
/// What to do about ranges that cannot be trusted.
const RANGES_HINT: &str =
    "the server or a proxy on the way mistreats range requests; try another mirror or proxy";

/// What was asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The bytes.
    pub(super) range: Range<u64>,
    /// Whether only these were asked for, with a `Range` header.
    pub(super) ranged: bool,
    /// The file's size, as the package list has it.
    pub(super) size: u64,
}

/// A trustworthy answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// It has the bytes that were asked for.
    AsAsked,
    /// It has the whole file, though a part was asked for.
    WholeInstead,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt may do better, after the time that the server asks for.
    Retry(Error, Option<Duration>, Trouble),
    /// This server's ranges cannot be trusted for this file; the whole file may do better.
    Ranges(Error),
    /// No other attempt at this address would do better.
    Final(Error),
    /// It is this machine that cannot (a full disk).
    Local(Error),
}

/// Whether the number of connections is to blame, possibly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No.
    None,
    /// A connection could not be made, or it broke.
    Broken,
    /// The server asks for less.
    Busy,
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Maybe(error, wait) => Self::Retry(error, wait, Trouble::Broken),
            Failed::Surely(error) => Self::Final(error),
        }
    }
}

/// How the server tells one version of a file from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    etag: Option<String>,
    modified: Option<String>,
}

impl Version {
    /// Of an answer's head.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Self { etag: text(ETAG), modified: text(LAST_MODIFIED) }
    }

    /// Whether two answers certainly are of different versions: what only one of them says proves nothing.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        differ(&self.etag, &other.etag) || differ(&self.modified, &other.modified)
    }
}

/// Whether the answer (200, 206 or 416) has what was asked for.
pub(super) fn judge(
    url: &Url,
    asked: &Asked,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Body, Fault> {
    match status {
        StatusCode::OK => judge_whole(url, asked, headers),
        StatusCode::PARTIAL_CONTENT => judge_part(url, asked, headers),
        _ => Err(judge_unsatisfiable(url, asked, headers)),
    }
}

fn judge_whole(url: &Url, asked: &Asked, headers: &HeaderMap) -> Result<Body, Fault> {
    if let Some(length) = content_length(headers)
        && length != asked.size
    {
        return Err(wrong_size(url, length, asked.size));
    }
    Ok(if asked.ranged { Body::WholeInstead } else { Body::AsAsked })
}

fn judge_part(url: &Url, asked: &Asked, headers: &HeaderMap) -> Result<Body, Fault> {
    let wanted = format!("bytes {}-{}", asked.range.start, asked.range.end.saturating_sub(1));
    let said = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let wrong = |got: String| {
        let text = format!("{} answered with {got} where {wanted} were asked for", shown(url));
        Err(Fault::Ranges(Error::new(Code::Fetch, text).with_hint(RANGES_HINT)))
    };
    let Some(said) = said else { return wrong("a part that it does not name".to_owned()) };
    let Some((range, total)) = content_range(said) else {
        return wrong(format!("\"{}\"", said.escape_debug()));
    };
    if !asked.ranged || range != asked.range {
        return wrong(format!("bytes {}-{}", range.start, range.end.saturating_sub(1)));
    }
    if let Some(total) = total
        && total != asked.size
    {
        return Err(wrong_size(url, total, asked.size));
    }
    match content_length(headers) {
        Some(length) if length != range.end - range.start => wrong(format!("{length} bytes")),
        _ => Ok(Body::AsAsked),
    }
}

fn judge_unsatisfiable(url: &Url, asked: &Asked, headers: &HeaderMap) -> Fault {
    let said = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let total = said.and_then(|s| s.trim().strip_prefix("bytes */")).and_then(|t| t.parse().ok());
    match total {
        Some(total) if total != asked.size => wrong_size(url, total, asked.size),
        _ => Fault::Ranges(Error::new(Code::Fetch, format!("{} refuses a part of itself (416)", shown(url)))),
    }
}

fn wrong_size(url: &Url, got: u64, expected: u64) -> Fault {
    let text = format!("{} has {got} bytes, expected {expected}", shown(url));
    Fault::Retry(Error::new(Code::Fetch, text).with_hint(SIZE_HINT), None, Trouble::None)
}

/// A body that ended before what it promised.
pub(super) fn too_short(url: &Url, got: u64, expected: u64) -> Fault {
    let text = format!("{} ended after {got} of {expected} bytes", shown(url));
    Fault::Retry(Error::new(Code::Fetch, text).with_hint(SIZE_HINT), None, Trouble::Broken)
}

/// A body that goes on after the range that was asked for.
pub(super) fn too_long(url: &Url, asked: &Asked) -> Fault {
    let length = asked.range.end - asked.range.start;
    let text = format!("{} answered with more than the {length} bytes that were asked for", shown(url));
    Fault::Ranges(Error::new(Code::Fetch, text).with_hint(RANGES_HINT))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Any headers at all, for `crate::fuzz`: bytes are accepted only where the answer names exactly those that were asked
/// for.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(url) = Url::parse("http://host/x.deb") else { return };
    let mut headers = HeaderMap::new();
    let lines = bytes.split(|b| *b == b'\n').filter_map(|line| {
        let at = line.iter().position(|b| *b == b':')?;
        Some((HeaderName::from_bytes(&line[..at]).ok()?, line[at + 1..].try_into().ok()?))
    });
    headers.extend(lines);
    for status in [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE] {
        for ranged in [false, true] {
            let asked = Asked { range: if ranged { 100..200 } else { 0..1000 }, ranged, size: 1000 };
            if let Ok(Body::AsAsked) = judge(&url, &asked, status, &headers) {
                assert!(
                    status != StatusCode::RANGE_NOT_SATISFIABLE
                        && ranged == (status == StatusCode::PARTIAL_CONTENT)
                );
            }
        }
    }
    let version = Version::of(&headers);
    assert!(!version.differs(&version));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        Url::parse("http://user:geheim@host/x.deb?geheim").unwrap()
    }

    fn judged(status: u16, headers: &[(HeaderName, &str)], ranged: bool) -> Result<Body, Fault> {
        let asked = Asked { range: if ranged { 100..200 } else { 0..1000 }, ranged, size: 1000 };
        let headers = headers.iter().map(|(n, v)| (n.clone(), v.parse().unwrap())).collect();
        judge(&url(), &asked, StatusCode::from_u16(status).unwrap(), &headers)
    }

    fn text(fault: Fault) -> String {
        let (Fault::Retry(e, ..) | Fault::Ranges(e) | Fault::Final(e) | Fault::Local(e)) = fault;
        assert!(!format!("{e:?}").contains("geheim"), "{e:?}");
        e.message().to_owned()
    }

    #[test]
    fn what_was_asked_for_is_accepted() {
        assert!(matches!(judged(206, &[(CONTENT_RANGE, "bytes 100-199/1000")], true), Ok(Body::AsAsked)));
        assert!(matches!(judged(206, &[(CONTENT_RANGE, "bytes 100-199/*")], true), Ok(Body::AsAsked)));
        assert!(matches!(judged(200, &[(CONTENT_LENGTH, "1000")], false), Ok(Body::AsAsked)));
        assert!(matches!(judged(200, &[], false), Ok(Body::AsAsked)));
        assert!(matches!(judged(200, &[(CONTENT_LENGTH, "1000")], true), Ok(Body::WholeInstead)));
    }

    #[test]
    fn another_part_is_not_trusted() {
        for (headers, expected) in [
            (vec![], "a part that it does not name"),
            (vec![(CONTENT_RANGE, "bytes 0-99/1000")], "with bytes 0-99 where bytes 100-199 were asked for"),
            (vec![(CONTENT_RANGE, "bytes 100-198/1000")], "with bytes 100-198"),
            (vec![(CONTENT_RANGE, "bytes 199-100/1000")], "\"bytes 199-100/1000\""),
            (vec![(CONTENT_RANGE, "100-199")], "\"100-199\""),
            (vec![(CONTENT_RANGE, "bytes 100-18446744073709551615/*")], "18446744073709551615/*\""),
            (vec![(CONTENT_RANGE, "bytes 100-199/1000"), (CONTENT_LENGTH, "99")], "with 99 bytes"),
        ] {
            let fault = judged(206, &headers, true).unwrap_err();
            assert!(matches!(fault, Fault::Ranges(_)), "{fault:?}");
            let text = text(fault);
            assert!(text.contains(expected) && text.starts_with("http://host/x.deb "), "{text}");
        }
        assert!(matches!(judged(206, &[(CONTENT_RANGE, "bytes 0-999/1000")], false), Err(Fault::Ranges(_))));
    }

    #[test]
    fn another_size_is_said_to_be_one() {
        for (status, header) in [
            (206, (CONTENT_RANGE, "bytes 100-199/999")),
            (200, (CONTENT_LENGTH, "999")),
            (416, (CONTENT_RANGE, "bytes */999")),
        ] {
            let fault = judged(status, &[header], true).unwrap_err();
            assert!(matches!(fault, Fault::Retry(_, None, Trouble::None)), "{fault:?}");
            assert_eq!(text(fault), "http://host/x.deb has 999 bytes, expected 1000");
        }
        assert!(matches!(judged(416, &[], true), Err(Fault::Ranges(_))));
    }

    #[test]
    fn versions_differ_only_where_both_say_so() {
        let version = |etag: Option<&str>, modified: Option<&str>| Version {
            etag: etag.map(str::to_owned),
            modified: modified.map(str::to_owned),
        };
        assert!(!version(None, Some("Mon")).differs(&version(Some("\"a\""), None)));
        assert!(!version(Some("\"a\""), Some("Mon")).differs(&version(Some("\"a\""), Some("Mon"))));
        assert!(version(Some("\"a\""), None).differs(&version(Some("\"b\""), None)));
        assert!(version(Some("\"a\""), Some("Mon")).differs(&version(Some("\"a\""), Some("Tue"))));
    }
}
