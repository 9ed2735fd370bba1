//! A package file through all of its readers, for `crate::fuzz`: whether it is decoded by blocks or as a stream, and in
//! which pieces the archive comes, must not matter.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use super::archive::Archive;
use super::control::Control;
use super::tar::{Entry, Sink, Splitter};
use super::{Trouble, stream, xz};

/// More is not decoded: the targets look for what breaks, not for what takes long.
const MOST: u64 = 1 << 20;

/// `size`: the file's, bytes.
pub(crate) fn package(file: &File, size: u64) {
    let Ok(archive) = Archive::read(file, size) else { return };
    let _ = Control::read(file, archive.control);
    let Ok(decoder) = stream::open(file, archive.data) else { return };
    let mut data = Vec::new();
    let is_whole = decoder.take(MOST + 1).read_to_end(&mut data).is_ok() && data.len() as u64 <= MOST;
    if is_whole && let Some(by_blocks) = by_blocks(file, &archive) {
        assert!(by_blocks == data, "blocks and stream give different bytes");
    }
    assert_eq!(split(&data, data.len()), split(&data, 1), "the pieces matter");
}

/// All blocks, one after the other; `None` where there is no list or one of them cannot be decoded.
fn by_blocks(file: &File, archive: &Archive) -> Option<Vec<u8>> {
    let blocks = xz::blocks(file, archive.data).ok()??;
    let mut all = Vec::new();
    for block in &blocks.list {
        if block.unpacked > MOST || all.len() as u64 > MOST {
            return None;
        }
        let mut packed = vec![0; usize::try_from(block.packed).ok()?];
        let mut decoder = blocks.decoder(file, block, &mut packed).ok()?;
        let mut piece = [0; 4096];
        while let n @ 1.. = decoder.read(&mut piece).ok()? {
            all.extend_from_slice(&piece[..n]);
        }
    }
    Some(all)
}

/// What came of an archive: whether it is one, what stays in the stub, and what is placed beside it.
fn split(data: &[u8], piece: usize) -> (bool, Vec<u8>, Vec<u8>) {
    let (mut splitter, mut kept, mut placed) = (Splitter::new(), Vec::new(), Vec::new());
    for piece in data.chunks(piece.max(1)) {
        let mut sink = Taken { piece, kept: &mut kept, placed: &mut placed };
        if splitter.feed(piece, &mut sink).is_err() {
            // How far it came before that depends on the pieces.
            return (false, Vec::new(), Vec::new());
        }
    }
    (splitter.finish().is_ok(), kept, placed)
}

struct Taken<'a> {
    piece: &'a [u8],
    kept: &'a mut Vec<u8>,
    placed: &'a mut Vec<u8>,
}

impl Sink for Taken<'_> {
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    fn wants(&mut self, entry: &Entry) -> Result<Option<String>, Trouble> {
        assert!(
            entry.path.is_absolute()
                && !entry.path.components().any(|c| c == std::path::Component::ParentDir)
        );
        Ok((entry.size >= 1000).then(|| "/var/lib/gpu-bootstrap/stage/files/0".to_owned()))
    }

    fn place(&mut self, _offset: u64, range: Range<usize>) -> Result<(), Trouble> {
        self.placed.extend_from_slice(&self.piece[range]);
        Ok(())
    }
}
