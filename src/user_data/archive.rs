//! `#cloud-config-archive`: a YAML list of parts, each a text, or a mapping with `content`, `type` and `filename`. Stricter
//! than cloud-init, which passes over what it does not understand: that would be half of a user-data.

use std::str::from_utf8;

use super::{ARCHIVE, INCLUDES, type_by_beginning};
use crate::text;
use crate::yaml::{Node, Place, Problem, Value, parse};

const KEYS: [&str; 3] = ["content", "type", "filename"];
/// What begins like nothing that is known.
const DEFAULT_TYPE: &str = "text/cloud-config";

/// One part of the list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) content_type: String,
    pub(super) filename: Option<String>,
    pub(super) bytes: Vec<u8>,
}

/// Every part, or what is wrong and where.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    entries(bytes)
        .map_err(|Problem { at: (line, column), text }| format!("line {line}, column {column}: {text}"))
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>, Problem> {
    let text = from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
        Problem { at: text::position(&good, good.len()), text: "this is not UTF-8 text".into() }
    })?;
    let Some(document) = parse(text)? else { return Ok(Vec::new()) };
    match document.value {
        Value::List(nodes) => nodes.into_iter().map(entry).collect(),
        Value::Null => Ok(Vec::new()),
        _ => wrong(document.at, format!("an archive is a list of parts, and this is {}", document.kind())),
    }
}

fn entry(node: Node) -> Result<Entry, Problem> {
    let (at, kind) = (node.at, node.kind());
    let (mut content, mut content_type, mut filename) = (String::new(), None, None);
    match node.value {
        Value::Text(text) => content = text,
        Value::Map(entries) => {
            for (key, value) in entries {
                let name = key.python().unwrap_or_default();
                let (at, kind) = (value.at, value.kind());
                let text = match value.value {
                    Value::Text(text) => text,
                    _ if KEYS.contains(&name.as_str()) => {
                        return wrong(at, format!("{name} takes a text, and this is {kind}"));
                    }
                    _ => String::new(),
                };
                match name.as_str() {
                    "content" => content = text,
                    "type" if is_type(&text) => content_type = Some(text.to_lowercase()),
                    "type" => {
                        return wrong(
                            at,
                            format!("{text:?} is no type; write one such as text/cloud-config"),
                        );
                    }
                    "filename" => filename = Some(text).filter(|name| !name.is_empty()),
                    _ => {
                        let supported = KEYS.join(", ");
                        return wrong(key.at, format!("{name} is not supported; supported are {supported}"));
                    }
                }
            }
        }
        _ => return wrong(at, format!("a part is a text, or a mapping with content, and this is {kind}")),
    }
    let by_beginning = || type_by_beginning(content.as_bytes()).unwrap_or(DEFAULT_TYPE).to_owned();
    let content_type = content_type.unwrap_or_else(by_beginning);
    if content_type == ARCHIVE || INCLUDES.contains(&content_type.as_str()) {
        return wrong(
            at,
            "neither cloud-init nor gpu-bootstrap opens what stands in an archive once more".into(),
        );
    }
    Ok(Entry { content_type, filename, bytes: content.into_bytes() })
}

fn is_type(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_word(kind) && is_word(subtype))
}

fn wrong<T>(at: Place, text: String) -> Result<T, Problem> {
    Err(Problem { at, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_mappings_are_parts() {
        let text = "#cloud-config-archive\n- |\n  #!/bin/sh\n  x\n- {type: text/x-A, content: y, filename: n}\n- content: 'k: 1'\n";
        let entry = |content_type: &str, filename: Option<&str>, content: &str| Entry {
            content_type: content_type.into(),
            filename: filename.map(Into::into),
            bytes: content.into(),
        };
        assert_eq!(
            read(text.as_bytes()).unwrap(),
            [
                entry("text/x-shellscript", None, "#!/bin/sh\nx\n"),
                entry("text/x-a", Some("n"), "y"),
                entry("text/cloud-config", None, "k: 1"),
            ]
        );
        assert_eq!(read(b"#cloud-config-archive\n").unwrap(), []);
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, words) in [
            ("a: 1", "line 1, column 1: an archive is a list of parts, and this is a mapping"),
            (
                "- x\n- 5",
                "line 2, column 3: a part is a text, or a mapping with content, and this is a number",
            ),
            ("- {content: 5}", "line 1, column 13: content takes a text, and this is a number"),
            (
                "- {content: x, launch-index: 1}",
                "line 1, column 16: launch-index is not supported; supported are content",
            ),
            ("- {type: script}", "line 1, column 10: \"script\" is no type"),
            ("- x\n- '#include'", "line 2, column 3: neither cloud-init nor gpu-bootstrap opens"),
            ("- {type: text/cloud-config-archive}", "line 1, column 3: neither cloud-init"),
            ("- ['", "line "),
            ("- \u{fc}", ""),
        ] {
            let found = read(text.as_bytes());
            assert_eq!(found.is_err(), !words.is_empty(), "{text} {found:?}");
            assert!(found.err().unwrap_or_default().starts_with(words), "{text}");
        }
        assert!(read(b"- x\n- \xff").unwrap_err().starts_with("line 2, column 3: this is not UTF-8"));
    }
}
