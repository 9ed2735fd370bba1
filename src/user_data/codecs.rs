//! base64, quoted-printable and gzip with the tolerances of Python's `binascii` and `gzip`, which cloud-init reads
//! user-data with: where bytes are damaged, what is done with them is part of the rule. [`super::parts`] calls this.

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Why gzip cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unpacking {
    /// Not gzip, damaged, cut off, or followed by something else.
    Damaged,
    /// Unpacks to more than the limit.
    TooLong,
}

/// The bytes if all of `bytes` is base64, without any white space: `b64decode(validate=True)`.
pub(super) fn strict_base64(bytes: &[u8]) -> Option<Vec<u8>> {
    base64(bytes, true)
}

/// A MIME body in base64. What does not belong is skipped, padding may be missing; a body with one digit too many is
/// returned as it is.
pub(super) fn lenient_base64(bytes: &[u8]) -> Vec<u8> {
    let mut packed: Vec<u8> = bytes.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let length = packed.len();
    packed.resize(length.next_multiple_of(4), b'=');
    if let Some(decoded) = base64(&packed, true) {
        return decoded;
    }
    packed.truncate(length);
    if let Some(decoded) = base64(&packed, false) {
        return decoded;
    }
    packed.extend_from_slice(b"==");
    base64(&packed, false).unwrap_or_else(|| {
        packed.truncate(length);
        packed
    })
}

/// `binascii.a2b_base64`. A complete padding ends the data; what follows it is an error only if `strict`.
fn base64(bytes: &[u8], strict: bool) -> Option<Vec<u8>> {
    if strict && bytes.first() == Some(&b'=') {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3 + 3);
    let (mut position, mut pads, mut left) = (0_u8, 0_u8, 0_u8);
    let mut is_padding = false;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'=' {
            is_padding = true;
            if position >= 2 {
                pads += 1;
                if position + pads >= 4 {
                    return (!strict || at + 1 == bytes.len()).then_some(out);
                }
            }
            continue;
        }
        let Some(value) = base64_digit(*byte) else {
            if strict {
                return None;
            }
            continue;
        };
        if strict && is_padding {
            return None;
        }
        pads = 0;
        match position {
            0 => {}
            1 => out.push(left << 2 | value >> 4),
            2 => out.push((left & 0x0f) << 4 | value >> 2),
            _ => out.push((left & 0x03) << 6 | value),
        }
        left = value;
        position = (position + 1) % 4;
    }
    (position == 0).then_some(out)
}

fn base64_digit(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// `binascii.a2b_qp`: damaged escapes stay as they are, and blanks before a line's end belong to the text.
pub(super) fn quoted_printable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'=' {
            out.push(byte);
            continue;
        }
        match rest {
            [] => {}
            // A soft line break. A lone carriage return takes the rest of the line with it.
            [b'\n' | b'\r', ..] => {
                let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
                rest = &rest[end..];
            }
            [b'=', after @ ..] => {
                out.push(b'=');
                rest = after;
            }
            [high, low, after @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    rest = after;
                }
                _ => out.push(b'='),
            },
            [_] => out.push(b'='),
        }
    }
    out
}

/// The value of a hexadecimal digit.
pub(super) fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// What gzip unpacks to: members in a row, perhaps with zeroes between and after them. Nothing at all is valid, too.
/// Both checksums are compared; a header's own one is not.
pub(super) fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Unpacking> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let body = member_body(rest).ok_or(Unpacking::Damaged)?;
        let start = out.len();
        rest = inflate(body, limit, &mut out)?;
        let (trailer, after) = rest.split_at_checked(8).ok_or(Unpacking::Damaged)?;
        let mut crc = Crc::new();
        crc.update(&out[start..]);
        let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
        if trailer != [crc.sum().to_le_bytes(), length.to_le_bytes()].concat() {
            return Err(Unpacking::Damaged);
        }
        let zeroes = after.iter().take_while(|b| **b == 0).count();
        rest = &after[zeroes..];
    }
    Ok(out)
}

/// What follows a member's header; RFC 1952, section 2.3.
fn member_body(bytes: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = bytes.split_at_checked(10)?;
    if header[..3] != [0x1f, 0x8b, 8] {
        return None;
    }
    let flags = header[3];
    if flags & 4 != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    // A name and a comment, each ended by a zero or by the end of the bytes.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|b| *b == 0).map_or(rest.len(), |at| at + 1);
            rest = &rest[end..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// Appends what a deflate stream unpacks to, at most to `limit` bytes in all, and returns what follows the stream.
fn inflate<'a>(bytes: &'a [u8], limit: usize, out: &mut Vec<u8>) -> Result<&'a [u8], Unpacking> {
    let mut stream = Decompress::new(false);
    let mut chunk = vec![0; 16 << 10];
    let (mut read, mut written) = (0, 0);
    loop {
        let status = stream
            .decompress(&bytes[read..], &mut chunk, FlushDecompress::None)
            .map_err(|_| Unpacking::Damaged)?;
        let all_read = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        let all_written = usize::try_from(stream.total_out()).unwrap_or(usize::MAX);
        let (took, made) = (all_read - read, all_written - written);
        (read, written) = (all_read, all_written);
        out.extend_from_slice(&chunk[..made]);
        if out.len() > limit {
            return Err(Unpacking::TooLong);
        }
        match status {
            Status::StreamEnd => return Ok(&bytes[read..]),
            _ if took == 0 && made == 0 => return Err(Unpacking::Damaged),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn strict_base64_has_no_white_space_and_forgives_what_python_forgives() {
        for (text, wanted) in [
            ("", Some("")),
            ("YQ==", Some("a")),
            ("YR==", Some("a")),
            ("YWE=", Some("aa")),
            ("YWFh=", Some("aaa")),
            ("YQ==\n", None),
            ("YQ", None),
            ("YQ=", None),
            ("YQ==YQ==", None),
            ("=YQ=", None),
            ("Y=Q=", None),
            ("Y-Q=", None),
        ] {
            assert_eq!(strict_base64(text.as_bytes()).as_deref(), wanted.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn lenient_base64_takes_what_it_can() {
        for (text, wanted) in [
            ("YWFh\r\nYmJi\n", "aaabbb"),
            ("YQ", "a"),
            ("Y Q = =", "a"),
            ("YQ==YWFh", "a"),
            ("YW!Fh", "aaa"),
            ("YWFhY", "YWFhY"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(lenient_base64(text.as_bytes())).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn quoted_printable_leaves_damage_as_it_is() {
        for (from, to) in [
            ("a=3Db=C3=BC", "a=bü"),
            ("soft=\nbreak=\r\nend=", "softbreakend"),
            ("blanks= \nstay", "blanks= \nstay"),
            ("=zz=3", "=zz=3"),
            ("a==3Db", "a=3Db"),
            ("lone=\rgone\nback", "loneback"),
            ("=3d=3D", "=="),
        ] {
            assert_eq!(quoted_printable(from.as_bytes()), to.as_bytes(), "{from}");
        }
    }

    #[test]
    fn gzip_members_zeroes_and_damage() {
        let one = gzip(b"one");
        let joined = |parts: &[&[u8]]| gunzip(&parts.concat(), 1 << 20);
        assert_eq!(gunzip(b"", 9), Ok(Vec::new()));
        assert_eq!(joined(&[&one, &gzip(b"two")]), Ok(b"onetwo".to_vec()));
        assert_eq!(joined(&[&one, b"\0\0\0", &one, b"\0"]), Ok(b"oneone".to_vec()));
        assert_eq!(joined(&[&one, b"x"]), Err(Unpacking::Damaged));
        assert_eq!(joined(&[&one, b"\x1f"]), Err(Unpacking::Damaged));
        for end in 1..one.len() {
            assert_eq!(gunzip(&one[..end], 9), Err(Unpacking::Damaged), "{end}");
        }
        assert_eq!(gunzip(&one, 2), Err(Unpacking::TooLong));
        let mut wrong = one.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(gunzip(&wrong, 9), Err(Unpacking::Damaged));
        // With an extra field, a name, a comment and a checksum of the header that nobody compares.
        let mut full = vec![0x1f, 0x8b, 8, 30, 0, 0, 0, 0, 0, 3, 2, 0, b'x', b'y'];
        full.extend_from_slice(b"name\0comment\0zz");
        full.extend_from_slice(&one[10..]);
        assert_eq!(gunzip(&full, 9), Ok(b"one".to_vec()));
    }
}
