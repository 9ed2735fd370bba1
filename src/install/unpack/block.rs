//! One block of an `.xz` member. Blocks are decoded at the same time, but the archive in them can only be read in their
//! order; and a decoded megabyte should be written while it is still in the processor's cache, which costs a tenth of
//! writing it later. So each piece is given on at once where that is possible: where it is the block's turn, and also
//! before, where the file whose content comes next is so large that the piece is a part of it. What is left waits.

use std::fs::File;
use std::sync::Arc;

use super::pool::{Chunk, Held, Reserved};
use super::{Job, Memory, Piece, Shared, Staged, Trouble, WINDOW, lock, xz};

/// A piece that came out before its turn.
pub(super) enum Early {
    /// It waits.
    Bytes(Arc<Piece>),
    /// So many bytes are in their file already.
    Placed(u64),
}

impl Shared {
    /// Decodes a block, gives on what can be given on, and ends the package if it was the last one.
    pub(super) fn block(
        &self,
        package: usize,
        blocks: &xz::Blocks,
        number: usize,
        reserved: Reserved,
    ) -> Result<(), Trouble> {
        let block = &blocks.list[number];
        let memory = Arc::new(Held::new(reserved, self.pool.clone()));
        let file = File::open(&self.packages[package].package.file).map_err(Trouble::reading)?;
        let mut packed = self.pool.buffer(usize::try_from(block.packed).unwrap_or(usize::MAX));
        let decoder = blocks.decoder(&file, block, &mut packed);
        let early = decoder.and_then(|decoder| self.decode((package, number), block.start, decoder, &memory));
        self.pool.keep(packed);
        match early? {
            Some(early) => self.block_ended((package, number), early),
            None => Ok(()),
        }
    }

    /// What has to wait for the block's turn; `None` where nobody wants it any more.
    fn decode(
        &self,
        place: (usize, usize),
        mut at: u64,
        mut decoder: xz::Decoder<'_>,
        memory: &Arc<Memory>,
    ) -> Result<Option<Vec<Early>>, Trouble> {
        let mut early = Vec::new();
        loop {
            let mut buffer = self.pool.buffer(WINDOW);
            let length = decoder.read(&mut buffer[..WINDOW])?;
            let piece = Arc::new(Chunk::new(buffer, length, memory.clone()));
            if length == 0 {
                return Ok(Some(early));
            }
            if !self.give_on(place, at, piece, &mut early)? {
                return Ok(None);
            }
            at += length as u64;
            self.write_what_waits();
            if self.pool.stopped() {
                return Ok(None);
            }
        }
    }

    /// A piece that begins at `at` of the archive; whether anybody wants more.
    fn give_on(
        &self,
        (package, number): (usize, usize),
        at: u64,
        piece: Arc<Piece>,
        early: &mut Vec<Early>,
    ) -> Result<bool, Trouble> {
        let length = piece.bytes().len() as u64;
        self.count_unpacked(length);
        let mut guard = lock(&self.packages[package].job);
        let Some(job) = guard.as_mut() else { return Ok(false) };
        if job.next == number {
            self.feed_early(package, job, std::mem::take(early))?;
            self.feed(package, job, &piece)?;
            return Ok(true);
        }
        let Some((file, offset)) = job.file_of(at, length) else {
            early.push(Early::Bytes(piece));
            return Ok(true);
        };
        drop(guard);
        early.push(Early::Placed(length));
        self.put(&file, piece.bytes(), offset)?;
        Ok(true)
    }

    /// The block's turn may have come meanwhile, and with it that of others that wait.
    fn block_ended(&self, (package, number): (usize, usize), early: Vec<Early>) -> Result<(), Trouble> {
        let mut guard = lock(&self.packages[package].job);
        let Some(job) = guard.as_mut() else { return Ok(()) };
        job.early.insert(number, early);
        while let Some(early) = job.early.remove(&job.next) {
            job.next += 1;
            self.feed_early(package, job, early)?;
        }
        if job.next < job.blocks {
            return Ok(());
        }
        job.splitter.finish()?;
        drop(guard);
        self.one_less(package)
    }

    fn feed_early(&self, package: usize, job: &mut Job, early: Vec<Early>) -> Result<(), Trouble> {
        early.into_iter().try_for_each(|early| match early {
            Early::Bytes(piece) => self.feed(package, job, &piece),
            Early::Placed(bytes) => {
                job.fed += bytes;
                job.splitter.pass(bytes)
            }
        })
    }
}

impl Job {
    /// The file that all of the `length` bytes at `at` of the archive belong to, and where in it, if it is the one whose
    /// content comes next.
    fn file_of(&self, at: u64, length: u64) -> Option<(Arc<Staged>, u64)> {
        let (offset, left) = self.splitter.content_ahead()?;
        let from = at.checked_sub(self.fed)?;
        let is_within = from.checked_add(length)? <= left;
        is_within.then(|| Some((self.current.clone()?, offset + from)))?
    }
}
