//! The threads that hash what has arrived.
//!
//! They read it back from the page cache. The alternative, hashing the bytes on their way, would bind the network
//! to the hash, because most bytes arrive before those in front of them have; the copy that it saves is a small
//! part of what the hash costs (see the module's documentation).

use std::io;
use std::os::unix::fs::FileExt;

use sha2::Digest;

use super::Shared;
use super::plan::HashWork;
use crate::error::Error;

/// What is read at once: it fits into a core's second-level cache, so that the hash does not wait for memory.
const PIECE: usize = 256 << 10;

/// Hashes until the fetch is over.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; PIECE];
    while let Some(mut work) = shared.wait_for_hash_work() {
        match add(&mut work, &mut buffer) {
            Ok(()) => shared.change(|plan| plan.hashed(work)),
            Err(e) => shared.change(|plan| {
                let path = plan.creation(work.item).path;
                plan.fail(work.item, Error::io("read the download", path, e));
            }),
        }
    }
}

fn add(work: &mut HashWork, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = work.range.start;
    while at < work.range.end {
        let length = usize::try_from(work.range.end - at).unwrap_or(PIECE).min(PIECE);
        work.file.read_exact_at(&mut buffer[..length], at)?;
        work.sum.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(())
}
