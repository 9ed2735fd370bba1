//! A `.deb` is an `ar` archive: `debian-binary`, `control.tar.*`, `data.tar.*`. Read where it lies; only the headers.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Trouble;

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;

/// How a member is compressed, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// One member's content within the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Offset of the first byte.
    pub(super) at: u64,
    /// Bytes.
    pub(super) size: u64,
    pub(super) compression: Compression,
}

/// The two members that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    pub(super) control: Member,
    pub(super) data: Member,
    /// Offset of the data member's header: everything before it goes into a stub as it is.
    pub(super) data_header_at: u64,
}

impl Archive {
    /// Reads the headers of a package file of `size` bytes.
    pub(super) fn read(file: &File, size: u64) -> Result<Self, Trouble> {
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0).map_err(Trouble::reading)?;
        if magic != MAGIC {
            return Err(Trouble::unsuitable("it is no ar archive"));
        }
        let mut at = MAGIC.len() as u64;
        let mut control = None;
        loop {
            let mut header = [0; HEADER];
            file.read_exact_at(&mut header, at).map_err(Trouble::reading)?;
            let (name, length) = parse(&header).ok_or_else(|| Trouble::unsuitable("a damaged ar header"))?;
            let start = at + HEADER as u64;
            let end = start.checked_add(length).filter(|end| *end <= size);
            let end = end.ok_or_else(|| Trouble::unsuitable("a member that is longer than the file"))?;
            if let Some(suffix) = name.strip_prefix("control.tar") {
                control = Some(Member { at: start, size: length, compression: compression(suffix)? });
            } else if let Some(suffix) = name.strip_prefix("data.tar") {
                let control = control.ok_or_else(|| Trouble::unsuitable("data before control"))?;
                let data = Member { at: start, size: length, compression: compression(suffix)? };
                return Ok(Self { control, data, data_header_at: at });
            }
            at = end + length % 2;
        }
    }
}

/// Name and size out of a member's header.
fn parse(header: &[u8; HEADER]) -> Option<(&str, u64)> {
    if &header[58..] != b"`\n" {
        return None;
    }
    let name = std::str::from_utf8(&header[..16]).ok()?.trim_end().trim_end_matches('/');
    let size = std::str::from_utf8(&header[48..58]).ok()?.trim_end().parse().ok()?;
    Some((name, size))
}

fn compression(suffix: &str) -> Result<Compression, Trouble> {
    Ok(match suffix {
        "" => Compression::None,
        ".gz" => Compression::Gzip,
        ".xz" => Compression::Xz,
        ".zst" => Compression::Zstd,
        other => return Err(Trouble::unsuitable(format!("its compression {other} is left to dpkg"))),
    })
}

/// The header of the last member of a stub.
pub(super) fn data_header(size: u64) -> [u8; HEADER] {
    let text = format!("{:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", "data.tar", 0, 0, 0, "100644");
    let mut header = [b' '; HEADER];
    header.copy_from_slice(&text.as_bytes()[..HEADER]);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(members: &[(&str, &[u8])]) -> (File, u64) {
        let mut bytes = MAGIC.to_vec();
        for (name, content) in members {
            bytes.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", content.len()).bytes(),
            );
            bytes.extend(*content);
            bytes.resize(bytes.len() + content.len() % 2, b'\n');
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes.len() as u64)
    }

    #[test]
    fn members_are_found_behind_odd_lengths() {
        let (file, size) =
            file(&[("debian-binary", b"2.0\n"), ("control.tar.xz/", b"abc"), ("data.tar.zst", b"defg")]);
        let archive = Archive::read(&file, size).unwrap();
        assert_eq!(archive.control, Member { at: 132, size: 3, compression: Compression::Xz });
        assert_eq!(archive.data, Member { at: 196, size: 4, compression: Compression::Zstd });
        assert_eq!(archive.data_header_at, 136);
    }

    #[test]
    fn what_is_no_package_is_left_to_dpkg() {
        for names in
            [&["debian-binary"] as &[_], &["data.tar.xz", "control.tar.xz"], &["control.tar.bz2", "data.tar"]]
        {
            let members: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, b"abc" as &[u8])).collect();
            let (file, size) = file(&members);
            assert!(matches!(Archive::read(&file, size), Err(Trouble::Unsuitable(_))), "{names:?}");
        }
        let (file, size) = file(&[("control.tar", b"abc"), ("data.tar", b"abcdef")]);
        assert!(Archive::read(&file, size - 1).is_err());
    }

    #[test]
    fn a_stub_s_header_is_one() {
        let header = data_header(1_234_567_890);
        assert_eq!(parse(&header), Some(("data.tar", 1_234_567_890)));
    }
}
