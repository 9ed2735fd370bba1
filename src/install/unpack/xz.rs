//! The `.xz` container: an index at its end says where each block begins and how long it will be. Blocks do not
//! depend on each other, so each core can take one. `xz -T0`, which builds Debian's packages, makes one for every
//! 24 MiB; `xz -T1` makes one in all.

use std::fs::File;
use std::os::unix::fs::FileExt;

use liblzma::stream::{Action, Status, Stream};

use super::Trouble;
use super::archive::Member;

const HEADER: usize = 12;
const FOOTER: usize = 12;
/// Both.
const ENDS: u64 = (HEADER + FOOTER) as u64;
const MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: &[u8] = b"YZ";
/// More than the index of any package has: a hundred thousand blocks.
const MOST_INDEX: u64 = 2 << 20;

/// What a decoder may use for its dictionary. `xz -9e` takes 64 MiB.
pub(super) const MEMORY: u64 = 192 << 20;

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Offset in the package file.
    pub(super) at: u64,
    /// Compressed bytes, with header, padding and check.
    pub(super) packed: u64,
    /// Bytes that come out.
    pub(super) unpacked: u64,
    /// Where they begin in all that comes out of the member.
    pub(super) start: u64,
}

/// The stream's header, which every block is decoded with, and all blocks.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    header: [u8; HEADER],
    pub(super) list: Vec<Block>,
}

/// The blocks of a member; `None` where it is not one plain stream (several, or padding): then it is decoded from
/// its beginning to its end.
pub(super) fn blocks(file: &File, member: Member) -> Result<Option<Blocks>, Trouble> {
    if member.size < ENDS {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    let mut footer = [0; FOOTER];
    let end = member.at + member.size;
    file.read_exact_at(&mut header, member.at).map_err(Trouble::reading)?;
    file.read_exact_at(&mut footer, end - FOOTER as u64).map_err(Trouble::reading)?;
    if !header.starts_with(MAGIC) || !footer.ends_with(FOOTER_MAGIC) {
        return Ok(None);
    }
    let backward = u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]]);
    let index_size = (u64::from(backward) + 1) * 4;
    if index_size > MOST_INDEX || index_size + ENDS > member.size {
        return Ok(None);
    }
    let mut index = vec![0; usize::try_from(index_size).unwrap_or_default()];
    file.read_exact_at(&mut index, end - FOOTER as u64 - index_size).map_err(Trouble::reading)?;
    let Some(sizes) = read_index(&index) else { return Ok(None) };
    let mut at = member.at + HEADER as u64;
    let mut start = 0u64;
    let mut list = Vec::with_capacity(sizes.len());
    for (unpadded, unpacked) in sizes {
        let packed = unpadded.checked_next_multiple_of(4).filter(|n| *n <= member.size);
        let Some(packed) = packed else { return Ok(None) };
        list.push(Block { at, packed, unpacked, start });
        at += packed;
        let Some(end) = start.checked_add(unpacked) else { return Ok(None) };
        start = end;
    }
    // Where the blocks fill the stream exactly, there is no second stream before or behind.
    Ok((at == end - FOOTER as u64 - index_size).then_some(Blocks { header, list }))
}

/// Pairs of block size without padding and size of what comes out.
fn read_index(index: &[u8]) -> Option<Vec<(u64, u64)>> {
    let body = &index[..index.len().checked_sub(4)?];
    let (indicator, mut rest) = body.split_first()?;
    if *indicator != 0 {
        return None;
    }
    let count = number(&mut rest)?;
    // Each takes two bytes at least.
    if count > rest.len() as u64 / 2 {
        return None;
    }
    (0..count).map(|_| Some((number(&mut rest)?, number(&mut rest)?))).collect()
}

/// Seven bits a byte, the lowest first.
fn number(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Blocks {
    /// Begins to decode a block. `packed` is a buffer of at least its length: the compressed bytes are given to the
    /// decoder all at once, which is a twentieth faster than in small pieces.
    pub(super) fn decoder<'a>(
        &self,
        file: &File,
        block: &Block,
        packed: &'a mut [u8],
    ) -> Result<Decoder<'a>, Trouble> {
        let length = usize::try_from(block.packed).map_err(|_| damaged())?;
        let packed = packed.get_mut(..length).ok_or_else(damaged)?;
        file.read_exact_at(packed, block.at).map_err(Trouble::reading)?;
        // A stream of which only this block is given: its decoder asks for no more until the block is checked.
        let mut stream = Stream::new_stream_decoder(MEMORY, 0).map_err(unsuitable)?;
        stream.process(&self.header, &mut [], Action::Run).map_err(unsuitable)?;
        Ok(Decoder { stream, packed, left: block.unpacked })
    }
}

/// A block that is being decoded.
pub(super) struct Decoder<'a> {
    stream: Stream,
    packed: &'a [u8],
    left: u64,
}

impl Decoder<'_> {
    /// Fills `out` as far as there is something left; 0 once everything came out and the block's own check (CRC or
    /// SHA-256) was right. What comes out before that may be wrong only if the package file is.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Trouble> {
        let wanted = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut written = 0;
        while written < wanted || (self.left == 0 && !self.packed.is_empty()) {
            let before = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(self.packed, &mut out[written..wanted], Action::Run);
            let status = status.map_err(unsuitable)?;
            let taken = usize::try_from(self.stream.total_in() - before.0).map_err(|_| damaged())?;
            let given = usize::try_from(self.stream.total_out() - before.1).map_err(|_| damaged())?;
            self.packed = &self.packed[taken..];
            written += given;
            if taken == 0 && given == 0 || matches!(status, Status::StreamEnd) {
                return Err(damaged());
            }
        }
        self.left -= written as u64;
        Ok(written)
    }
}

fn damaged() -> Trouble {
    Trouble::unsuitable("an xz block is not as long as the index says")
}

fn unsuitable(e: liblzma::stream::Error) -> Trouble {
    Trouble::unsuitable(format!("xz: {e}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::install::unpack::archive::Compression;

    fn xz(data: &[u8], args: &[&str]) -> Vec<u8> {
        let mut child = Command::new("xz")
            .args(["-c", "-1"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let data = data.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&data));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(out.status.success());
        out.stdout
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut x = 1u32;
        (0..length)
            .map(|i| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i % 3 == 0 { x.to_le_bytes()[3] } else { 7 }
            })
            .collect()
    }

    fn member_of(packed: &[u8]) -> (File, Member) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(packed).unwrap();
        file.write_all(b"behind").unwrap();
        (file, Member { at: 6, size: packed.len() as u64, compression: Compression::Xz })
    }

    fn decode_all(file: &File, blocks: &Blocks) -> Result<Vec<u8>, Trouble> {
        let mut all = Vec::new();
        for block in &blocks.list {
            let mut packed = vec![0; usize::try_from(block.packed).unwrap()];
            let mut decoder = blocks.decoder(file, block, &mut packed)?;
            let mut piece = [0; 1000];
            assert_eq!(all.len() as u64, block.start);
            loop {
                match decoder.read(&mut piece)? {
                    0 => break,
                    n => all.extend(&piece[..n]),
                }
            }
        }
        Ok(all)
    }

    #[test]
    fn blocks_decode_on_their_own_with_and_without_sizes_in_their_headers() {
        let data = noise(300_000);
        for args in [&["-T2", "--block-size=65536"] as &[&str], &["-T1", "--block-size=100000"], &["-T1"]] {
            for check in ["crc32", "crc64", "sha256"] {
                let packed = xz(&data, &[args, &[&format!("--check={check}")]].concat());
                let (file, member) = member_of(&packed);
                let blocks = blocks(&file, member).unwrap().unwrap();
                assert_eq!(
                    blocks.list.len(),
                    if args.len() == 1 {
                        1
                    } else {
                        300_000usize.div_ceil(if args[0] == "-T2" { 65_536 } else { 100_000 })
                    }
                );
                assert_eq!(decode_all(&file, &blocks).unwrap(), data, "{args:?} {check}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_by_the_block_s_check() {
        let packed = xz(&noise(200_000), &["-T2", "--block-size=65536"]);
        for at in (40..packed.len() - 60).step_by(997) {
            let mut bad = packed.clone();
            bad[at] ^= 4;
            let (file, member) = member_of(&bad);
            let Some(blocks) = blocks(&file, member).unwrap() else { continue };
            assert!(decode_all(&file, &blocks).is_err(), "bit flipped at {at}");
        }
    }

    #[test]
    fn several_streams_and_padding_have_no_block_list() {
        let packed = xz(b"one", &[]);
        for bytes in
            [[&packed[..], &packed[..]].concat(), [&packed[..], &[0; 4]].concat(), packed[..20].to_vec()]
        {
            let (file, member) = member_of(&bytes);
            assert!(blocks(&file, member).unwrap().is_none());
        }
    }

    #[test]
    fn garbage_in_the_index_is_no_list() {
        let packed = xz(&noise(200_000), &["-T2", "--block-size=65536"]);
        for at in packed.len() - 60..packed.len() {
            for bit in 0..8 {
                let mut bad = packed.clone();
                bad[at] ^= 1 << bit;
                let (file, member) = member_of(&bad);
                // Whatever it says, nothing panics and nothing wrong comes out.
                if let Some(blocks) = blocks(&file, member).unwrap()
                    && blocks.list.iter().all(|b| b.unpacked < 1 << 20)
                    && let Ok(out) = decode_all(&file, &blocks)
                {
                    assert_eq!(out, noise(200_000));
                }
            }
        }
    }
}
