//! The headers of a MIME message and the parameters in them (RFC 2045, 2231), read as Python's `email` does: the first
//! header of a name counts, quotes may be missing, what cannot be read is kept. [`super::message`] calls this.

use std::collections::BTreeMap;

use super::codecs::hex;

/// Names as written, values with their folded lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Headers(Vec<(String, String)>);

/// A parameter's value. Extended ones name a character set, if they are well-formed.
enum Value {
    Plain(String),
    Extended { charset: Option<String>, text: String },
}

impl Headers {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn push(&mut self, name: String, value: String) {
        self.0.push((name, value));
    }

    /// All headers of that name go.
    pub(super) fn replace(&mut self, name: &str, value: String) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.push(name.to_owned(), value);
    }

    /// `type/subtype` in lower case; `default` without a header, and plain text for what is no type.
    pub(super) fn content_type(&self, default: &str) -> String {
        let Some(value) = self.get("content-type") else { return default.to_owned() };
        let content_type = strip(value.split(';').next().unwrap_or_default()).to_lowercase();
        if content_type.matches('/').count() == 1 { content_type } else { "text/plain".into() }
    }

    pub(super) fn boundary(&self) -> Option<String> {
        self.parameter("content-type", "boundary").map(|b| b.trim_end_matches(is_space).to_owned())
    }

    pub(super) fn filename(&self) -> Option<String> {
        let name = self.parameter("content-disposition", "filename");
        name.or_else(|| self.parameter("content-type", "name")).map(|n| strip(&n).to_owned())
    }

    pub(super) fn set_filename(&mut self, name: &str) {
        let value = if name.is_ascii() {
            format!("attachment; filename=\"{}\"", quote(name))
        } else {
            let escaped: String = name.bytes().map(percent).collect();
            format!("attachment; filename*=utf-8''{escaped}")
        };
        self.replace("Content-Disposition", value);
    }

    fn parameter(&self, header: &str, wanted: &str) -> Option<String> {
        let (_, value) =
            parameters(self.get(header)?).into_iter().find(|(n, _)| n.to_lowercase() == wanted)?;
        Some(match value {
            Value::Plain(text) => unquote(&unquote(&text)),
            Value::Extended { charset, text } => {
                let text = unquote(&text);
                decode_charset(charset.as_deref().unwrap_or("us-ascii"), &text)
                    .unwrap_or_else(|| unquote(&text))
            }
        })
    }
}

/// White space to Python's `str.strip`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn percent(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

fn quote(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn unquote(text: &str) -> String {
    if text.len() > 1 {
        if let Some(inside) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            return inside.replace("\\\\", "\\").replace("\\\"", "\"");
        }
        if let Some(inside) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
            return inside.to_owned();
        }
    }
    text.to_owned()
}

/// Everything between semicolons as name and value, the header's own value included; what RFC 2231 spread over several
/// parameters is put together and stands at the end.
fn parameters(value: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let mut pieces: BTreeMap<String, Vec<(Option<u128>, String, bool)>> = BTreeMap::new();
    let mut order = Vec::new();
    for (at, piece) in split_parameters(value).into_iter().enumerate() {
        let (name, value) = piece.split_once('=').unwrap_or((&piece, ""));
        let (name, value) = (strip(name).to_owned(), strip(value).to_owned());
        if at == 0 {
            found.push((name, Value::Plain(value)));
            continue;
        }
        let value = unquote(&value);
        match continuation(&name) {
            Some((name, number, is_encoded)) => {
                if !pieces.contains_key(&name) {
                    order.push(name.clone());
                }
                pieces.entry(name).or_default().push((number, value, is_encoded));
            }
            None => found.push((name, Value::Plain(format!("\"{}\"", quote(&value))))),
        }
    }
    for name in order {
        let mut pieces = pieces.remove(&name).unwrap_or_default();
        pieces.sort();
        let is_extended = pieces.iter().any(|(_, _, is_encoded)| *is_encoded);
        let joined: String =
            pieces.into_iter().map(|(_, text, coded)| if coded { unescape(&text) } else { text }).collect();
        let joined = quote(&joined);
        let value = if is_extended {
            let mut fields = joined.splitn(3, '\'');
            let (charset, language) = (fields.next(), fields.next());
            match (charset, language, fields.next()) {
                (Some(charset), Some(_), Some(text)) => {
                    Value::Extended { charset: Some(charset.to_owned()), text: format!("\"{text}\"") }
                }
                _ => Value::Extended { charset: None, text: format!("\"{joined}\"") },
            }
        } else {
            Value::Plain(format!("\"{joined}\""))
        };
        found.push((name, value));
    }
    found
}

/// A semicolon between quotes does not end a parameter. Takes time in proportion to the text, whatever its quotes.
fn split_parameters(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut piece, mut is_quoted) = (String::new(), false);
    for between in value.split(';') {
        if is_quoted {
            piece.push(';');
        }
        piece.push_str(between);
        is_quoted ^= !(between.matches('"').count() + between.matches("\\\"").count()).is_multiple_of(2);
        if !is_quoted {
            found.push(normalized(&piece));
            piece.clear();
        }
    }
    if is_quoted {
        found.push(normalized(&piece));
    }
    found
}

/// A parameter without blanks around it and its parts, the name in lower case.
fn normalized(piece: &str) -> String {
    match piece.split_once('=') {
        Some((name, value)) => strip(&format!("{}={}", strip(name).to_lowercase(), strip(value))).to_owned(),
        None => strip(piece).to_owned(),
    }
}

/// `name*`, `name*0` and `name*0*`: the name, the number, and whether the value has escapes.
fn continuation(name: &str) -> Option<(String, Option<u128>, bool)> {
    let is_encoded = name.ends_with('*');
    let (stem, number) = name.split_once('*')?;
    if stem.is_empty() || !stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    let digits = number.strip_suffix('*').unwrap_or(number);
    match digits {
        "" if number.is_empty() => Some((stem.to_owned(), None, is_encoded)),
        _ if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((stem.to_owned(), Some(digits.parse().unwrap_or(u128::MAX)), is_encoded))
        }
        _ => None,
    }
}

/// `%41` becomes the character of that number; damaged escapes stay.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let [high, low, ..] = rest.as_bytes()
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(char::from(high << 4 | low));
            rest = &rest[2..];
        } else {
            out.push('%');
        }
    }
    out + rest
}

/// `text` holds one octet in each character. `None` for a character set that is not known.
fn decode_charset(charset: &str, text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            n @ 0..=0xff => octets.push(u8::try_from(n).unwrap_or_default()),
            n @ 0x100..=0xffff => octets.extend_from_slice(format!("\\u{n:04x}").as_bytes()),
            n => octets.extend_from_slice(format!("\\U{n:08x}").as_bytes()),
        }
    }
    match charset.to_lowercase().replace(['-', ' '], "_").as_str() {
        "utf_8" | "utf8" => Some(String::from_utf8_lossy(&octets).into_owned()),
        "us_ascii" | "ascii" => {
            Some(octets.iter().map(|b| if b.is_ascii() { char::from(*b) } else { '\u{fffd}' }).collect())
        }
        "iso_8859_1" | "iso8859_1" | "latin_1" | "latin1" => {
            Some(octets.iter().map(|b| char::from(*b)).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(header: &str, name: &str) -> Option<String> {
        let mut headers = Headers::default();
        headers.push("Content-Type".into(), header.into());
        headers.parameter("content-type", name)
    }

    #[test]
    fn parameters_with_and_without_quotes() {
        for (header, wanted) in [
            ("multipart/mixed; boundary=b", Some("b")),
            ("multipart/mixed;boundary = \"a;b\" ; x=y", Some("a;b")),
            ("multipart/mixed; BOUNDARY=\"a\\\"b\\\\c\"", Some("a\"b\\c")),
            ("multipart/mixed; boundary=<b>", Some("b")),
            ("boundary=b", Some("b")),
            ("multipart/mixed; boundary", Some("")),
            ("multipart/mixed; boundary=\"open; x", Some("\"open; x")),
            ("multipart/mixed;\n boundary=\"folded\"", Some("folded")),
            ("multipart/mixed; bound=b", None),
        ] {
            assert_eq!(parameter(header, "boundary").as_deref(), wanted, "{header}");
        }
    }

    #[test]
    fn parameters_of_rfc_2231() {
        for (header, wanted) in [
            ("a/b; name*=utf-8''%C3%BC.sh", "ü.sh"),
            ("a/b; name*=iso-8859-1'de'%FC.sh", "ü.sh"),
            ("a/b; name*=us-ascii''%FC", "\u{fffd}"),
            ("a/b; name*=no-such''%41", "A"),
            ("a/b; name*=plain", "plain"),
            ("a/b; name*1=two; name*0=one-", "one-two"),
            ("a/b; name*0*=utf-8''%C3; name*1*=%BC", "ü"),
            ("a/b; name*=utf-8''%zz%4", "%zz%4"),
        ] {
            assert_eq!(parameter(header, "name").as_deref(), Some(wanted), "{header}");
        }
    }

    #[test]
    fn many_semicolons_between_quotes_take_no_time() {
        let header = format!("a/b; x=\"{}; boundary=b", ";\"".repeat(300_001));
        let start = std::time::Instant::now();
        assert_eq!(parameter(&header, "boundary").as_deref(), Some("b"));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    #[test]
    fn a_filename_that_was_set_is_read_again() {
        for name in ["part-001", "a \"quoted\" \\ name", "grün.sh", "a;b=c"] {
            let mut headers = Headers::default();
            headers.set_filename(name);
            assert_eq!(headers.filename().as_deref(), Some(name));
        }
    }

    #[test]
    fn types() {
        for (value, wanted) in [
            (" TEXT/X-Shellscript ; x", "text/x-shellscript"),
            ("", "text/plain"),
            ("cloud-config", "text/plain"),
            ("a/b/c", "text/plain"),
        ] {
            let mut headers = Headers::default();
            headers.push("CONTENT-TYPE".into(), value.into());
            headers.push("Content-Type".into(), "second/one".into());
            assert_eq!(headers.content_type("x/y"), wanted);
        }
        assert_eq!(Headers::default().content_type("x/y"), "x/y");
    }
}
