//! Debian's control format (deb822): stanzas of `Field: value`, with continuation lines.
//!
//! [`parse`] is for small files that people write (sources, preferences, Release); [`stream`] reads an index of
//! ten thousand stanzas in little memory and keeps the wanted fields only.

use std::io::BufRead;

/// A stanza of a small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stanza {
    /// Line of its first field, from 1.
    pub(crate) line: usize,
    /// Name and value of each field; continuation lines are joined by newlines.
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// The value of a field; names are compared without case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All fields, in order.
    pub(crate) fn fields(&self) -> &[(String, String)] {
        &self.fields
    }
}

/// Parses a small file; lines that begin with `#` are comments. The error names the line.
pub(crate) fn parse(text: &str) -> Result<Vec<Stanza>, String> {
    let mut stanzas: Vec<Stanza> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            open = false;
            continue;
        }
        if line.starts_with([' ', '\t']) {
            let last = stanzas.last_mut().filter(|_| open).and_then(|s| s.fields.last_mut());
            let (_, value) = last.ok_or(format!("line {number} continues no field"))?;
            value.push('\n');
            value.push_str(line.trim());
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(format!("line {number} is no field"))?;
        if !open {
            stanzas.push(Stanza { line: number, fields: Vec::new() });
            open = true;
        }
        if let Some(stanza) = stanzas.last_mut() {
            stanza.fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    Ok(stanzas)
}

/// Reads stanza by stanza and gives `each` the line of the stanza's beginning and the values of `wanted`, in that
/// order (empty when absent). The error names the line.
pub(crate) fn stream<const N: usize>(
    mut reader: impl BufRead,
    wanted: [&str; N],
    each: impl FnMut(usize, &[String; N]) -> Result<(), String>,
) -> Result<(), String> {
    let values = std::array::from_fn(|_| String::new());
    let mut parser = Parser { wanted, each, values, number: 0, begin: 0, current: None };
    // The beginning of a line whose end is not in the buffer yet. All others are parsed where they lie: an index has
    // a quarter of a million lines, and every check reads it.
    let mut carry = Vec::new();
    loop {
        let chunk = reader.fill_buf().map_err(|e| format!("line {}: {e}", parser.number + 1))?;
        let size = chunk.len();
        if size == 0 {
            parser.line(&carry)?;
            return parser.finish_stanza();
        }
        let mut rest = chunk;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            if carry.is_empty() {
                parser.line(&rest[..at])?;
            } else {
                carry.extend_from_slice(&rest[..at]);
                parser.line(&carry)?;
                carry.clear();
            }
            rest = &rest[at + 1..];
        }
        carry.extend_from_slice(rest);
        reader.consume(size);
    }
}

struct Parser<'a, const N: usize, F> {
    wanted: [&'a str; N],
    each: F,
    values: [String; N],
    /// Line that was read last, from 1.
    number: usize,
    /// First line of the stanza; 0 between stanzas.
    begin: usize,
    /// Which wanted field a continuation line belongs to.
    current: Option<usize>,
}

impl<const N: usize, F: FnMut(usize, &[String; N]) -> Result<(), String>> Parser<'_, N, F> {
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        self.number += 1;
        let text = line.trim_ascii_end();
        match text.first() {
            None => self.finish_stanza(),
            Some(b' ' | b'\t') => self.continuation(text),
            Some(_) => self.field(text),
        }
    }

    fn finish_stanza(&mut self) -> Result<(), String> {
        if self.begin > 0 {
            (self.each)(self.begin, &self.values)?;
            self.values.iter_mut().for_each(String::clear);
        }
        self.begin = 0;
        self.current = None;
        Ok(())
    }

    fn continuation(&mut self, text: &[u8]) -> Result<(), String> {
        if self.begin == 0 {
            return Err(format!("line {} continues no field", self.number));
        }
        if let Some(at) = self.current {
            self.values[at].push('\n');
            self.values[at].push_str(utf8(text, self.number)?.trim_start());
        }
        Ok(())
    }

    fn field(&mut self, text: &[u8]) -> Result<(), String> {
        let colon = memchr::memchr(b':', text).filter(|at| *at > 0);
        let colon = colon.ok_or_else(|| format!("line {} is no field", self.number))?;
        if self.begin == 0 {
            self.begin = self.number;
        }
        self.current = self.wanted.iter().position(|w| w.as_bytes().eq_ignore_ascii_case(&text[..colon]));
        if let Some(at) = self.current {
            if !self.values[at].is_empty() {
                return Err(format!("line {}: {} is there twice", self.number, self.wanted[at]));
            }
            self.values[at].push_str(utf8(&text[colon + 1..], self.number)?.trim());
        }
        Ok(())
    }
}

fn utf8(bytes: &[u8], number: usize) -> Result<&str, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(format!("line {number} is not text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_have_comments_and_continuations() {
        let stanzas = parse("# c\nA: 1\n 2\n\n\nb:x:y\n#d\nC:\n z\n").unwrap();
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].get("a"), Some("1\n2"));
        assert_eq!(
            (stanzas[1].line, stanzas[1].get("B"), stanzas[1].get("c")),
            (6, Some("x:y"), Some("\nz"))
        );
        assert_eq!(parse("x\n").unwrap_err(), "line 1 is no field");
        assert_eq!(parse("A: 1\n\n b\n").unwrap_err(), "line 3 continues no field");
    }

    #[test]
    fn streaming_keeps_wanted_fields_only() {
        let text = "Package: a\nX: y\n z\nDepends: b,\n c\n\n\nPackage: d\n";
        let mut seen = Vec::new();
        stream(text.as_bytes(), ["Package", "Depends"], |line, v| {
            seen.push((line, v[0].clone(), v[1].clone()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(1, "a".into(), "b,\nc".into()), (8, "d".into(), String::new())]);
    }

    #[test]
    fn a_torn_index_is_an_error_with_its_line() {
        let read = |t: &[u8]| stream(t, ["Package"], |_, _| Ok(())).unwrap_err();
        assert_eq!(read(b"Package: a\n\n<html>\n"), "line 3 is no field");
        assert_eq!(read(b"Package: a\0\0\n"), "line 1 is not text");
        assert_eq!(read(b"Package: a\nPackage: b\n"), "line 2: Package is there twice");
    }
}
