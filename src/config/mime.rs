//! The parts of a MIME message (RFC 2045 and 2046), as far as user-data needs them: headers, nested multiparts,
//! base64 and quoted-printable. [`super::user_data`] calls this. Written here because the parser crates either
//! panic on hostile bytes or bring a library of character sets, and a part of ours is UTF-8 or an error.

use std::collections::BTreeMap;

use super::user_data::decode_base64;

/// Multiparts inside multiparts that are followed.
const MAX_DEPTH: usize = 8;

/// One leaf of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// `type/subtype` in lower case, without parameters.
    pub content_type: String,
    /// The bytes, with the transfer encoding taken off; `None` when they are not what it says.
    pub body: Option<Vec<u8>>,
}

/// The leaves of the message, in order; empty if its boundary is nowhere.
pub(super) fn parts(message: &[u8]) -> Vec<Part> {
    let mut found = Vec::new();
    collect(message, 0, &mut found);
    found
}

fn collect(bytes: &[u8], depth: usize, found: &mut Vec<Part>) {
    let (headers, body) = headers(bytes);
    let full_type = headers.get("content-type").map_or("text/plain", String::as_str);
    let content_type = full_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if content_type.starts_with("multipart/") {
        if let Some(boundary) = parameter(full_type, "boundary").filter(|b| !b.is_empty())
            && depth < MAX_DEPTH
        {
            for part in split(body, boundary.as_bytes()) {
                collect(part, depth + 1, found);
            }
        }
        return;
    }
    let encoding = headers.get("content-transfer-encoding").map(|e| e.trim().to_ascii_lowercase());
    let body = match encoding.as_deref() {
        Some("base64") => decode_base64(body),
        Some("quoted-printable") => Some(decode_quoted_printable(body)),
        _ => Some(body.to_vec()),
    };
    found.push(Part { content_type, body });
}

/// The headers (names in lower case, folded lines joined, the first of each name) and what follows the empty line.
fn headers(bytes: &[u8]) -> (BTreeMap<String, String>, &[u8]) {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    let mut current = None;
    let mut rest = bytes;
    while let Some((line, after)) = next_line(rest) {
        let text = String::from_utf8_lossy(line);
        if text.trim().is_empty() {
            rest = after;
            // Line breaks before the first header do not end the headers.
            if headers.is_empty() {
                continue;
            }
            break;
        }
        if text.starts_with([' ', '\t']) {
            if let Some(value) = current.as_ref().and_then(|name| headers.get_mut(name)) {
                value.push(' ');
                value.push_str(text.trim());
            }
        } else if let Some((name, value)) = text.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            headers.entry(name.clone()).or_insert_with(|| value.trim().to_owned());
            current = Some(name);
        } else {
            // Not a header: the body begins without an empty line.
            break;
        }
        rest = after;
    }
    (headers, rest)
}

/// The first line with its line break, and the rest; `None` at the end.
fn next_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.is_empty() {
        return None;
    }
    let end = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |i| i + 1);
    Some(bytes.split_at(end))
}

/// A parameter of a header's value: `boundary` in `multipart/mixed; boundary="=_x"`.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (content, after) = parameter_value(after.trim_start());
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(content);
        }
        rest = after.split_once(';')?.1;
    }
}

/// A quoted string or a bare word, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut content = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (content, &quoted[at + 1..]),
            '\\' => content.extend(chars.next().map(|(_, escaped)| escaped)),
            c => content.push(c),
        }
    }
    (content, "")
}

/// The parts between the delimiter lines. A last part without a closing delimiter counts.
fn split<'a>(body: &'a [u8], boundary: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut start = None;
    let mut rest = body;
    while let Some((line, after)) = next_line(rest) {
        let at = body.len() - rest.len();
        rest = after;
        let Some(tail) = line.strip_prefix(b"--").and_then(|l| l.strip_prefix(boundary)) else { continue };
        let tail = tail.trim_ascii_end();
        if !tail.is_empty() && tail != b"--" {
            continue;
        }
        if let Some(start) = start.take() {
            parts.push(without_line_break(&body[start..at]));
        }
        if tail == b"--" {
            return parts;
        }
        start = Some(body.len() - rest.len());
    }
    parts.extend(start.map(|s| &body[s..]));
    parts
}

/// The line break before a delimiter belongs to the delimiter.
fn without_line_break(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// Quoted-printable; what is not an escape stays as it is.
fn decode_quoted_printable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'=' {
            out.push(byte);
            continue;
        }
        // A soft line break: `=`, perhaps blanks, and the end of the line.
        let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
        if rest.get(blanks).is_none_or(|b| *b == b'\n') {
            rest = rest.get(blanks + 1..).unwrap_or_default();
            continue;
        }
        match rest {
            [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            _ => out.push(b'='),
        }
    }
    out
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[Part]) -> Vec<(&str, &str)> {
        parts
            .iter()
            .map(|p| (p.content_type.as_str(), std::str::from_utf8(p.body.as_ref().unwrap()).unwrap()))
            .collect()
    }

    #[test]
    fn nested_multiparts_are_flattened_in_order() {
        let message = "Content-Type: multipart/mixed;\n boundary=outer\nMIME-Version: 1.0\n\npreamble\n--outer\n\nfirst\n\
                       --outer\nContent-Type: Multipart/Alternative; charset=x; boundary=\"in \\\"ner\"\n\n--in \"ner\n\
                       Content-Type: TEXT/X-a\n\nsecond\n--in \"ner--\nepilogue\n--outer--\nepilogue\n";
        let wanted = [("text/plain", "first"), ("text/x-a", "second")];
        assert_eq!(text(&parts(message.as_bytes())), wanted);
        assert_eq!(text(&parts(message.replace('\n', "\r\n").as_bytes())), wanted);
    }

    #[test]
    fn a_boundary_is_a_whole_line() {
        let message =
            b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n--bc\nx --b\n--b  \n\ny\n--b--\n--b\n\nz";
        assert_eq!(text(&parts(message)), [("text/plain", "--bc\nx --b"), ("text/plain", "y")]);
    }

    #[test]
    fn damaged_messages_give_what_is_there() {
        assert_eq!(
            text(&parts(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nno end")),
            [("text/plain", "no end")]
        );
        assert!(parts(b"Content-Type: multipart/mixed; boundary=b\n\nnothing").is_empty());
        assert!(parts(b"Content-Type: multipart/mixed\n\n--\n\nx").is_empty());
        assert!(parts(b"Content-Type: multipart/mixed; boundary=\"").is_empty());
        assert_eq!(text(&parts(b"MIME-Version: 1.0\n\nsingle")), [("text/plain", "single")]);
    }

    #[test]
    fn quoted_printable() {
        for (from, to) in [
            ("a=3Db=C3=BC", "a=bü"),
            ("soft=\nbreak= \r\nend=", "softbreakend"),
            ("=zz=3", "=zz=3"),
            ("=3d", "="),
        ] {
            assert_eq!(decode_quoted_printable(from.as_bytes()), to.as_bytes(), "{from}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let mut message = b"deep".to_vec();
        for n in 0..40 {
            let mut outer = format!("Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n").into_bytes();
            outer.extend(message);
            message = outer;
        }
        assert!(parts(&message).is_empty());
    }
}
