//! `#include`: a list of URLs of further user-data. Each has to say what it should be, in a place that cloud-init passes
//! over: `https://host/file#sha256=…`. What a URL without a sum brings could be anybody's. Lines are cloud-init's.

use reqwest::Url;

use crate::config::{check_sha256, url};
use crate::host::fetch::redact_url;

/// What a URL is followed by.
const SUM: &str = "sha256=";

/// One URL and what must be found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Without the sum.
    pub(crate) url: Url,
    /// In small letters.
    pub(crate) sha256: String,
}

/// Every link of a part, in order, or what is wrong and in which line.
pub(crate) fn links(bytes: &[u8]) -> Result<Vec<Link>, String> {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let mut found = Vec::new();
    for (number, line) in text.split(['\n', '\r']).enumerate() {
        if let Some(link) = link(line).map_err(|why| format!("line {}: {why}", number + 1))? {
            found.push(link);
        }
    }
    Ok(found)
}

fn link(line: &str) -> Result<Option<Link>, String> {
    let after = |word: &str| {
        line.get(..word.len()).filter(|w| w.eq_ignore_ascii_case(word)).map(|_| &line[word.len()..])
    };
    let rest = after("#include-once").or_else(|| after("#include"));
    let text = rest.map_or(line, str::trim_start);
    if text.starts_with('#') || text.trim().is_empty() {
        return Ok(None);
    }
    let text = text.trim();
    let (address, sum) = text.split_once('#').unwrap_or((text, ""));
    let url = url::check(address).map_err(|why| format!("{}: {why}", redact_url(address)))?;
    let Some(sum) = sum.strip_prefix(SUM) else {
        let shown = url::redacted(&url);
        return Err(format!(
            "{shown} says nothing of what should be there; write its SHA-256 behind it, as {shown}#{SUM}…, which cloud-init \
             passes over"
        ));
    };
    check_sha256(sum).map_err(|why| format!("{}: {why}", url::redacted(&url)))?;
    Ok(Some(Link { url, sha256: sum.to_ascii_lowercase() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    #[test]
    fn lines_are_cloud_inits() {
        let text = format!(
            "#include-once https://a.b/1#sha256={SHA}\r\n# a word\n\n  https://a.b/2?x=y#sha256={}  \n#INCLUDE\thttp://a.b/3#sha256={SHA}\n#include\n",
            SHA.to_uppercase()
        );
        let found = links(text.as_bytes()).unwrap();
        let urls: Vec<_> = found.iter().map(|link| link.url.as_str()).collect();
        assert_eq!(urls, ["https://a.b/1", "https://a.b/2?x=y", "http://a.b/3"]);
        assert!(found.iter().all(|link| link.sha256 == SHA));
        assert_eq!(links(b"#include\n# nothing\n").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_has_its_line_and_no_secret() {
        let sum = format!("#sha256={SHA}");
        for (line, words) in [
            (
                "https://a.b/x?token=geheim".into(),
                "line 2: https://a.b/x says nothing of what should be there; write its SHA-256",
            ),
            ("https://a.b/x#sha256=12".into(), "line 2: https://a.b/x: "),
            ("https://a.b/x#md5=12".into(), "line 2: https://a.b/x says nothing"),
            (format!("s3://a/x{sum}"), "line 2: s3://a/x: s3:// is not available"),
            (format!("file:///etc/shadow{sum}"), "line 2: "),
            (format!("https://a.b/x {sum}"), "line 2: "),
            (" #include https://a.b/x".into(), "line 2: "),
        ] {
            let why = links(format!("#include\n{line}\n").as_bytes()).unwrap_err();
            assert!(why.starts_with(words) && !why.contains("geheim"), "{line}: {why}");
        }
    }
}
