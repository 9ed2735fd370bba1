//! Takes a tar stream apart as it comes, in pieces of any size: what a [`Sink`] wants to place itself is replaced in
//! the stream by a hard link to where it will lie; everything else goes on unchanged, byte by byte, so that dpkg
//! sees the same entries in the same order with the same owners, modes and times.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Trouble;

/// Bytes of a header, and what contents are padded to.
pub(super) const BLOCK: usize = 512;
/// Longer paths than the kernel takes are no paths.
const MOST_NAME: u64 = 8 << 10;
/// tar pads an archive with zeros to ten kilobytes by default; more than this is something else.
const MOST_TAIL: usize = 1 << 20;
/// Where a header's fields lie.
const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const PREFIX: Range<usize> = 345..500;

/// A regular file, before its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Absolute.
    pub(super) path: PathBuf,
    /// Permission bits, with set-id bits.
    pub(super) mode: u32,
    /// Bytes.
    pub(super) size: u64,
}

/// Who takes what comes out.
pub(super) trait Sink {
    /// Bytes of the stream that goes on.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Trouble>;
    /// Asked for each regular file. `Some`: its content comes by [`Sink::place`], and the path (relative to the root,
    /// shorter than 100 bytes) is where it will lie.
    fn wants(&mut self, entry: &Entry) -> Result<Option<String>, Trouble>;
    /// A part of the wanted file's content: `range` of the piece given to [`Splitter::feed`], to lie at `offset`.
    fn place(&mut self, offset: u64, range: Range<usize>) -> Result<(), Trouble>;
}

/// Between two pieces of the stream.
#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    /// A GNU long name, for the next header.
    long_name: Option<Vec<u8>>,
    /// The next entry has a pax header: its path is not looked at here.
    extended: bool,
}

#[derive(Debug)]
enum State {
    Header(Vec<u8>),
    /// Content and padding of an entry that goes on.
    Keep(u64),
    /// The content of a GNU long name, which goes on, too.
    LongName {
        name: Vec<u8>,
        left: u64,
        padding: u64,
    },
    Place {
        offset: u64,
        left: u64,
        padding: u64,
    },
    Skip(u64),
    /// Behind the first block of zeros.
    Tail(usize),
}

impl Splitter {
    pub(super) fn new() -> Self {
        Self { state: State::Header(Vec::with_capacity(BLOCK)), long_name: None, extended: false }
    }

    /// The next piece of the stream.
    pub(super) fn feed(&mut self, piece: &[u8], sink: &mut impl Sink) -> Result<(), Trouble> {
        let mut at = 0;
        while at < piece.len() {
            let rest = &piece[at..];
            at += match &mut self.state {
                State::Header(header) => {
                    let n = rest.len().min(BLOCK - header.len());
                    header.extend_from_slice(&rest[..n]);
                    if header.len() == BLOCK {
                        let header = std::mem::take(header);
                        self.state = self.entry(&header, sink)?;
                    }
                    n
                }
                State::Keep(left) => {
                    let n = up_to(rest, *left);
                    sink.keep(&rest[..n])?;
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::Header(Vec::with_capacity(BLOCK));
                    }
                    n
                }
                State::LongName { name, left, padding } => {
                    let n = up_to(rest, *left);
                    name.extend_from_slice(&rest[..n]);
                    sink.keep(&rest[..n])?;
                    *left -= n as u64;
                    if *left == 0 {
                        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
                        name.truncate(end);
                        self.long_name = Some(std::mem::take(name));
                        self.state = keep(*padding);
                    }
                    n
                }
                State::Place { offset, left, padding } => {
                    let n = up_to(rest, *left);
                    sink.place(*offset, at..at + n)?;
                    *offset += n as u64;
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = skip(*padding);
                    }
                    n
                }
                State::Skip(left) => {
                    let n = up_to(rest, *left);
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::Header(Vec::with_capacity(BLOCK));
                    }
                    n
                }
                State::Tail(seen) => {
                    *seen += rest.len();
                    if *seen > MOST_TAIL {
                        return Err(Trouble::unsuitable("data behind the end of its archive"));
                    }
                    sink.keep(rest)?;
                    rest.len()
                }
            };
        }
        Ok(())
    }

    /// The wanted file's content that comes next: the offset in it, and bytes. `None` where something else does.
    pub(super) fn content_ahead(&self) -> Option<(u64, u64)> {
        match self.state {
            State::Place { offset, left, .. } => Some((offset, left)),
            _ => None,
        }
    }

    /// Passes over `bytes` of the content that comes next: somebody has put them where they belong.
    pub(super) fn pass(&mut self, bytes: u64) -> Result<(), Trouble> {
        let State::Place { offset, left, padding } = &mut self.state else {
            return Err(Trouble::unsuitable("content without a file"));
        };
        *offset += bytes;
        *left =
            left.checked_sub(bytes).ok_or_else(|| Trouble::unsuitable("content behind its file's end"))?;
        if *left == 0 {
            self.state = skip(*padding);
        }
        Ok(())
    }

    /// The stream is over. An error if that was in the middle of an entry.
    pub(super) fn finish(&self) -> Result<(), Trouble> {
        match &self.state {
            State::Tail(_) => Ok(()),
            State::Header(partial) if partial.is_empty() => Ok(()),
            _ => Err(Trouble::unsuitable("its archive ends in the middle of an entry")),
        }
    }

    fn entry(&mut self, header: &[u8], sink: &mut impl Sink) -> Result<State, Trouble> {
        if header.iter().all(|b| *b == 0) {
            sink.keep(header)?;
            return Ok(State::Tail(BLOCK));
        }
        let parsed = parse(header)?;
        let padding = parsed.size.next_multiple_of(BLOCK as u64) - parsed.size;
        match header[TYPE] {
            b'L' => {
                if parsed.size > MOST_NAME {
                    return Err(Trouble::unsuitable("a name that is too long"));
                }
                sink.keep(header)?;
                Ok(match parsed.size {
                    0 => State::Header(Vec::with_capacity(BLOCK)),
                    left => State::LongName { name: Vec::new(), left, padding },
                })
            }
            kind @ (b'K' | b'x' | b'g') => {
                self.extended |= kind != b'K';
                sink.keep(header)?;
                Ok(keep(parsed.size + padding))
            }
            b'0' | 0 => {
                let name = self.long_name.take().unwrap_or(parsed.name);
                let extended = std::mem::take(&mut self.extended);
                let path = absolute(&name).filter(|_| !extended && parsed.size > 0);
                let link = match path {
                    Some(path) => sink.wants(&Entry { path, mode: parsed.mode, size: parsed.size })?,
                    None => None,
                };
                let Some(link) = link else {
                    sink.keep(header)?;
                    return Ok(keep(parsed.size + padding));
                };
                sink.keep(&hard_link(header, &link)?)?;
                Ok(State::Place { offset: 0, left: parsed.size, padding })
            }
            // Links, directories, devices: no content follows, whatever their size field says.
            b'1'..=b'6' => {
                self.long_name = None;
                self.extended = false;
                sink.keep(header)?;
                Ok(State::Header(Vec::with_capacity(BLOCK)))
            }
            other => {
                Err(Trouble::unsuitable(format!("an entry of type {}", char::from(other).escape_default())))
            }
        }
    }
}

fn up_to(rest: &[u8], left: u64) -> usize {
    rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))
}

fn keep(bytes: u64) -> State {
    if bytes == 0 { State::Header(Vec::with_capacity(BLOCK)) } else { State::Keep(bytes) }
}

fn skip(bytes: u64) -> State {
    if bytes == 0 { State::Header(Vec::with_capacity(BLOCK)) } else { State::Skip(bytes) }
}

struct Header {
    name: Vec<u8>,
    mode: u32,
    size: u64,
}

fn parse(header: &[u8]) -> Result<Header, Trouble> {
    let damaged = || Trouble::unsuitable("a damaged tar header");
    if checksum(header) != number(&header[CHECKSUM]).ok_or_else(damaged)? {
        return Err(damaged());
    }
    let mut name = text(&header[NAME]).to_vec();
    // dpkg reads the prefix only where the magic is POSIX's; GNU's archives have other things there.
    if &header[MAGIC] == b"ustar\x0000" && header[PREFIX.start] != 0 {
        name = [text(&header[PREFIX]), b"/", &name].concat();
    }
    let mode = number(&header[MODE]).and_then(|m| u32::try_from(m).ok()).ok_or_else(damaged)?;
    let size = number(&header[SIZE]).filter(|s| *s < 1 << 50).ok_or_else(damaged)?;
    Ok(Header { name, mode, size })
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// Octal digits, or 64 bits binary behind a set highest bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let low: [u8; 8] = field.get(field.len() - 8..)?.try_into().ok()?;
        return Some(u64::from_be_bytes(low) & !(0x80 << 56)).filter(|_| field[0] == 0x80);
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The sum of all bytes, the checksum's own counted as spaces.
fn checksum(header: &[u8]) -> u64 {
    let all: u64 = header.iter().map(|b| u64::from(*b)).sum();
    let own: u64 = header[CHECKSUM].iter().map(|b| u64::from(*b)).sum();
    all - own + CHECKSUM.len() as u64 * u64::from(b' ')
}

/// `./usr/lib/x` → `/usr/lib/x`; `None` for what leads elsewhere.
fn absolute(name: &[u8]) -> Option<PathBuf> {
    let relative = name.strip_prefix(b"./").or_else(|| name.strip_prefix(b"/")).unwrap_or(name);
    let path = Path::new(OsStr::from_bytes(relative));
    let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    (plain && !relative.is_empty()).then(|| Path::new("/").join(path))
}

/// The header of a hard link with everything else as in `header`.
fn hard_link(header: &[u8], to: &str) -> Result<Vec<u8>, Trouble> {
    if to.len() >= LINK_NAME.len() {
        return Err(Trouble::unsuitable("the stage's path is too long"));
    }
    let mut link = header.to_vec();
    link[TYPE] = b'1';
    link[SIZE].copy_from_slice(b"00000000000\0");
    link[LINK_NAME].fill(0);
    link[LINK_NAME.start..LINK_NAME.start + to.len()].copy_from_slice(to.as_bytes());
    let sum = format!("{:06o}\0 ", checksum(&link));
    link[CHECKSUM].copy_from_slice(sum.as_bytes());
    Ok(link)
}

/// A file's name as written, and its content.
type Named<'a> = (Vec<u8>, &'a [u8]);

/// The regular files of a whole archive in memory: name as written, content. Anything else is passed over.
pub(super) fn files(archive: &[u8]) -> Result<Vec<Named<'_>>, Trouble> {
    let mut found = Vec::new();
    let mut rest = archive;
    while let Some((header, after)) = rest.split_at_checked(BLOCK) {
        if header.iter().all(|b| *b == 0) {
            break;
        }
        let parsed = parse(header)?;
        let has_content = !matches!(header[TYPE], b'1'..=b'6');
        let size = if has_content { parsed.size } else { 0 };
        let padded = usize::try_from(size.next_multiple_of(BLOCK as u64)).unwrap_or(usize::MAX);
        let (content, after) =
            after.split_at_checked(padded).ok_or_else(|| Trouble::unsuitable("its control data is cut"))?;
        if matches!(header[TYPE], b'0' | 0) {
            found.push((parsed.name, &content[..usize::try_from(size).unwrap_or_default()]));
        }
        rest = after;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::process::Command;

    use super::*;

    /// Wants files of a thousand bytes and more.
    #[derive(Default)]
    struct Taken {
        kept: Vec<u8>,
        placed: BTreeMap<PathBuf, Vec<u8>>,
        current: PathBuf,
        piece: Vec<u8>,
    }

    impl Sink for Taken {
        fn keep(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
            self.kept.extend(bytes);
            Ok(())
        }
        fn wants(&mut self, entry: &Entry) -> Result<Option<String>, Trouble> {
            self.current.clone_from(&entry.path);
            Ok((entry.size >= 1000).then(|| format!("./stage/{}", self.placed.len())))
        }
        fn place(&mut self, offset: u64, range: Range<usize>) -> Result<(), Trouble> {
            let file = self.placed.entry(self.current.clone()).or_default();
            assert_eq!(file.len() as u64, offset);
            file.extend(&self.piece[range]);
            Ok(())
        }
    }

    fn split(archive: &[u8], piece: usize) -> Taken {
        let (mut taken, mut splitter) = (Taken::default(), Splitter::new());
        for part in archive.chunks(piece) {
            taken.piece = part.to_vec();
            splitter.feed(part, &mut taken).unwrap();
        }
        splitter.finish().unwrap();
        taken
    }

    fn archive(format: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("usr/share/{}", "long-name/".repeat(15));
        std::fs::create_dir_all(dir.path().join(&long)).unwrap();
        for (name, size) in [
            ("usr/small", 3),
            ("usr/empty", 0),
            ("usr/big", 123_457),
            ("usr/exact", 1024),
            (&*format!("{long}big"), 5000),
            (&*format!("{long}small"), 5),
        ] {
            std::fs::write(dir.path().join(name), vec![name.as_bytes()[4]; size]).unwrap();
        }
        std::fs::hard_link(dir.path().join("usr/big"), dir.path().join("usr/same")).unwrap();
        std::os::unix::fs::symlink("big", dir.path().join("usr/link")).unwrap();
        let out = Command::new("tar")
            .args([&format!("--format={format}"), "--sort=name", "-cf", "-", "-C"])
            .arg(dir.path())
            .arg("./usr")
            .output()
            .unwrap();
        assert!(out.status.success());
        out.stdout
    }

    #[test]
    fn big_files_are_placed_and_the_rest_is_an_archive_of_links_and_small_files() {
        let whole = archive("gnu");
        for piece in [1, 511, 512, 513, 10_000, usize::MAX >> 1] {
            let taken = split(&whole, piece.min(whole.len()));
            let sizes: Vec<_> = taken.placed.values().map(Vec::len).collect();
            assert_eq!(sizes, [123_457, 1024, 5000], "{piece}");
            assert!(taken.placed.keys().last().unwrap().to_string_lossy().ends_with("long-name/big"));
            let listing = list(&taken.kept);
            assert!(listing.contains("./usr/big link to ./stage/0"), "{listing}");
            assert!(listing.contains("./usr/same link to ./usr/big"), "{listing}");
            assert!(listing.contains("long-name/big link to ./stage/2"), "{listing}");
            let plain = list(&whole);
            let name = |l: &str| {
                l.split(" link to ").next().unwrap().split_ascii_whitespace().next_back().unwrap().to_owned()
            };
            assert_eq!(
                plain.lines().map(name).collect::<Vec<_>>(),
                listing.lines().map(name).collect::<Vec<_>>()
            );
        }
    }

    fn list(archive: &[u8]) -> String {
        let mut child = Command::new("tar")
            .args(["-tv", "--quoting-style=literal", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let archive = archive.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&archive));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn posix_prefixes_are_read_and_pax_entries_go_on_unchanged() {
        let ustar = split(&archive("ustar"), 700);
        assert_eq!(ustar.placed.len(), 3);
        let pax = archive("pax");
        let taken = split(&pax, 700);
        assert!(taken.placed.is_empty());
        assert!(taken.kept == pax);
    }

    #[test]
    fn a_cut_or_damaged_archive_is_left_to_dpkg() {
        let whole = archive("gnu");
        let mut splitter = Splitter::new();
        splitter
            .feed(&whole[..2000], &mut Taken { piece: whole[..2000].to_vec(), ..Taken::default() })
            .unwrap();
        assert!(splitter.finish().is_err());
        let mut bad = whole.clone();
        bad[0] ^= 1;
        assert!(Splitter::new().feed(&bad, &mut Taken::default()).is_err());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        assert_eq!(absolute(b"./usr/x"), Some("/usr/x".into()));
        for name in [b"./" as &[u8], b"", b"../x", b"./a/../../x"] {
            assert_eq!(absolute(name), None);
        }
    }
}
