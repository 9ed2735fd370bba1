//! URLs: which are fetched, and what may be shown of them.

use reqwest::Url;

use crate::error::{Code, Error, Result};
use crate::text::parse_url;

/// The URL, if it is one that can be fetched.
pub(crate) fn parse(url: &str) -> Result<Url> {
    let parsed = parse_url(url)
        .map_err(|why| Error::new(Code::Fetch, format!("{} is not a URL: {why}", redact_url(url))))?;
    if matches!(parsed.scheme(), "http" | "https") {
        return Ok(parsed);
    }
    Err(Error::new(Code::Fetch, format!("{} is neither http nor https", shown(&parsed))))
}

pub(crate) fn shown(url: &Url) -> String {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    // Both fail only for URLs that cannot have a user part.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.to_string()
}

/// The URL as it may be shown: without user, password, query and fragment, any of which may be a secret.
pub fn redact_url(url: &str) -> String {
    // `user:password@host` without a scheme parses as scheme `user`, so only hierarchical URLs count as parsed.
    if let Ok(parsed) = Url::parse(url)
        && parsed.has_host()
    {
        return shown(&parsed);
    }
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    match bare.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://"));
            format!("{scheme}{host}")
        }
        None => bare.to_owned(),
    }
}

/// A text with every URL in it as it may be shown.
pub(crate) fn redact_text(text: &str) -> String {
    let word = |word: &str| {
        // `--from=https://…`, `"https://…",`
        let begin = word.find("://").map(|at| {
            let before = word[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
            before.map_or(0, |at| at + word[at..].chars().next().map_or(0, char::len_utf8))
        });
        begin.map_or_else(|| word.to_owned(), |at| format!("{}{}", &word[..at], redact_url(&word[at..])))
    };
    text.split_inclusive(char::is_whitespace)
        .flat_map(|part| {
            let bare = part.trim_end_matches(char::is_whitespace);
            [word(bare), part[bare.len()..].to_owned()]
        })
        .collect()
}

/// What a download is called while it goes on: by the file's name, or else the host's.
pub(crate) fn downloading(url: &Url) -> String {
    let name = url.path_segments().and_then(|mut s| s.next_back()).filter(|n| !n.is_empty());
    format!("downloading {}", name.or(url.host_str()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_urls_hold_no_secret() {
        for (url, expected) in [
            ("https://user:geheim@host/p/x.deb?X-Amz-Signature=geheim#geheim", "https://host/p/x.deb"),
            ("https://host:8443/x.deb", "https://host:8443/x.deb"),
            ("//user:geheim@host/x?geheim", "host/x"),
            ("http://user:geheim@[bad/x?geheim", "http://[bad/x"),
            ("user:geheim@host/x.deb", "host/x.deb"),
            ("x.deb", "x.deb"),
        ] {
            assert_eq!(redact_url(url), expected);
        }
    }

    #[test]
    fn urls_in_a_text_hold_no_secret() {
        let text = "fetch  --from=https://user:geheim@host/a?geheim\n(http://host/b) done: 3://";
        assert_eq!(redact_text(text), "fetch  --from=https://host/a\n(http://host/b) done: 3://");
    }

    #[test]
    fn a_host_name_outside_ascii_is_refused_with_the_mend() {
        for url in ["https://bücher.example/x", "https://b%C3%BCcher.example/x"] {
            assert_eq!(parse_url(url).unwrap_err(), "the host name is not in ASCII; write it as xn--…");
            assert!(parse(url).unwrap_err().message().contains("write it as xn--…"));
        }
        let ascii = parse("https://xn--bcher-kva.example/%C3%BC").unwrap();
        assert_eq!(ascii.as_str(), "https://xn--bcher-kva.example/%C3%BC");
    }

    #[test]
    fn only_http_is_fetched() {
        assert_eq!(parse("ftp://host/x").unwrap_err().code(), Code::Fetch);
        assert_eq!(parse("/etc/passwd").unwrap_err().code(), Code::Fetch);
    }
}
