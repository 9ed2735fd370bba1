//! Which URLs may be written in a configuration or on the command line.

use reqwest::Url;

use crate::text::parse_url;

/// What is wrong with `text` as an `http` or `https` URL, with the mend; `Ok` with the parsed URL if nothing is.
/// Stricter than the URL standard, which drops line breaks silently: what is accepted here also stands in
/// apt's source files and in a shell script.
pub fn check(text: &str) -> Result<Url, String> {
    let host = text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    if host.is_some_and(|host| host.chars().any(|c| !c.is_ascii() && !c.is_control() && !c.is_whitespace())) {
        return Err("a host name is written in ASCII; write this one as xn--…".into());
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || r#""'<>\`{}|^"#.contains(*c)) {
        return Err(format!(
            "a URL cannot contain {}; write it percent-encoded",
            match bad {
                ' ' => "a space".to_owned(),
                '\n' | '\r' => "a line break".to_owned(),
                c if c.is_control() => format!("the control character {}", c.escape_unicode()),
                c => format!("the character {c}"),
            }
        ));
    }
    let Some((scheme, _)) = text.split_once("://") else {
        return Err("this is not a URL; write it in full, with https:// in front".into());
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => parse_url(text).map_err(|e| format!("this is not a URL ({e})")),
        "s3" => {
            Err("s3:// is not available in this version; use https://, a pre-signed URL for example".into())
        }
        other => Err(format!("the scheme {other}:// is not supported; use https:// (or http://)")),
    }
}

/// The URL without user, password, query and fragment, for messages and logs: these can hold secrets.
pub fn redacted(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Both fail only for URLs without a host, which `check` does not let through.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_urls_pass_and_the_rest_says_why_not() {
        for good in [
            "https://example.com/a_1%2B2.deb?X-Amz-Signature=1&b=2",
            "http://[::1]:8080/x",
            "HTTPS://EXAMPLE.com",
            "https://xn--bcher-kva.example/x",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for (bad, says) in [
            ("ftp://example.com/x", "scheme ftp://"),
            ("file:///etc/passwd", "scheme file://"),
            ("s3://bucket/key", "s3:// is not available"),
            ("example.com/x", "https:// in front"),
            ("https://", "not a URL"),
            ("https://exa mple.com", "a space"),
            ("https://example.com/\nx", "a line break"),
            ("https://example.com/'x", "the character '"),
            ("https://example.com/\u{7}", "control character"),
            ("https://example.com/ü", "the character ü"),
            ("https://bücher.example/x", "xn--…"),
            ("https://user:word@bücher.example:8443?x", "xn--…"),
            ("https://b%C3%BCcher.example/x", "xn--…"),
            ("", "not a URL"),
        ] {
            let e = check(bad).unwrap_err();
            assert!(e.contains(says), "{bad:?}: {e}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = check("https://user:word@example.com:8443/a?token=1#f").unwrap();
        assert_eq!(redacted(&url), "https://example.com:8443/a");
    }
}
