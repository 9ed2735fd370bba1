//! Small questions about text that several rooms ask.

use std::fmt::Write as _;
use std::str::FromStr;

use reqwest::Url;

/// Why a text is no URL, as the parser has it.
pub(crate) type UrlError = <Url as FromStr>::Err;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A path of a URI without its percent signs.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        if let Some(byte) = digits.filter(|_| first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            out.push(byte);
            rest = &after[2..];
        } else {
            out.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Line and column (from 1) of a byte offset.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// A URL, or why it is none, with the mend. Host names outside ASCII are not translated: their tables would make the
/// binary bigger (docs/decisions/0009-size.md).
pub(crate) fn parse_url(url: &str) -> Result<Url, String> {
    Url::parse(url).map_err(|e| match e {
        UrlError::IdnaError => "the host name is not in ASCII; write it as xn--…".to_owned(),
        e => e.to_string(),
    })
}

/// Numbers that look random, the same in every run: what tests damage their inputs by.
#[cfg(test)]
pub(crate) fn noise() -> impl FnMut() -> usize {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_undone_once() {
        assert_eq!(percent_decoded("pool/g%2b%2b_1%253a2%zz%4"), "pool/g++_1%3a2%zz%4");
    }

    #[test]
    fn positions_count_from_one() {
        assert_eq!(position("ab\ncd", 0), (1, 1));
        assert_eq!(position("ab\ncd", 4), (2, 2));
        assert_eq!(position("ab", 99), (1, 3));
    }
}
