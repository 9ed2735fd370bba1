//! Placing: which files of a package go into the stage, and writing them there.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stub::Stub;
use super::system::{reserve, start_writeback, thread_time};
use super::tar::{Entry, Sink};
use super::{Piece, Shared, Trouble};
use crate::host::fault::{self, Kind};

/// Files from this size on are placed by us. 398 of the 4,906 files of the CUDA 11.8 toolkit are that big, and hold
/// 99.4 % of its bytes; dpkg takes longer to link a file than to write a smaller one.
const MIN_STAGED: u64 = 64 << 10;

/// Big files that may go into a stub for all that. With more, the stub would take the place of the whole unpacked
/// package on the stage's file system, which is another one than the files' then: dpkg gets the package as it came.
const MOST_INLINE: u64 = 16 << 20;

/// A part of a staged file that is to be written.
#[derive(Debug)]
pub(super) struct Write_ {
    pub(super) package: usize,
    pub(super) file: Arc<Staged>,
    pub(super) offset: u64,
    pub(super) piece: Arc<Piece>,
    pub(super) range: Range<usize>,
}

/// A file in the stage.
#[derive(Debug)]
pub(super) struct Staged {
    file: File,
    left: AtomicU64,
}

/// Puts what comes out of a package's archive where it belongs.
pub(super) struct Placer<'a> {
    pub(super) shared: &'a Shared,
    pub(super) package: usize,
    pub(super) stub: &'a mut Stub,
    pub(super) conffiles: &'a HashSet<PathBuf>,
    pub(super) current: &'a mut Option<Arc<Staged>>,
    pub(super) inline: &'a mut u64,
    pub(super) piece: &'a Arc<Piece>,
}

impl Sink for Placer<'_> {
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.stub.add(bytes)
    }

    fn wants(&mut self, entry: &Entry) -> Result<Option<String>, Trouble> {
        const SET_ID: u32 = 0o6000;
        if entry.size < MIN_STAGED {
            return Ok(None);
        }
        if entry.mode & SET_ID != 0
            || entry.path.starts_with("/etc")
            || self.conffiles.contains(&entry.path)
            || self.shared.policy.special.contains(&entry.path)
            || !self.shared.policy.mounts.reach(&entry.path).map_err(Trouble::Broken)?
        {
            *self.inline += entry.size;
            if *self.inline > MOST_INLINE {
                return Err(Trouble::unsuitable("most of it cannot be linked from the stage's file system"));
            }
            return Ok(None);
        }
        let broken = |e| Trouble::writing(self.shared.stage.outside(), e);
        let (file, link) = self.shared.stage.new_file().map_err(broken)?;
        fault::point(Kind::Write, &link).and_then(|()| reserve(&file, entry.size)).map_err(broken)?;
        *self.current = Some(Arc::new(Staged { file, left: AtomicU64::new(entry.size) }));
        Ok(Some(link))
    }

    fn place(&mut self, offset: u64, range: Range<usize>) -> Result<(), Trouble> {
        let Some(file) = self.current.as_ref() else {
            return Err(Trouble::unsuitable("content without a file"));
        };
        self.shared.packages[self.package].outstanding.fetch_add(1, Ordering::AcqRel);
        self.shared.pool.push_write(Write_ {
            package: self.package,
            file: file.clone(),
            offset,
            piece: self.piece.clone(),
            range,
        });
        Ok(())
    }
}

impl Shared {
    pub(super) fn write(&self, write: Write_) {
        let Write_ { package, file, offset, piece, range } = write;
        let written = self.put(&file, &piece.bytes()[range], offset);
        // Closed before the package is ready: the kernel executes no file that is open for writing, and a maintainer
        // script may want to at once.
        drop((piece, file));
        if let Err(trouble) = written.and_then(|()| self.one_less(package)) {
            self.give_up(package, trouble);
        }
    }

    pub(super) fn put(&self, file: &Staged, bytes: &[u8], offset: u64) -> Result<(), Trouble> {
        let began = thread_time();
        let length = bytes.len() as u64;
        let written = fault::point(Kind::Write, self.stage.outside())
            .and_then(|()| file.file.write_all_at(bytes, offset));
        if written.is_ok() && file.left.fetch_sub(length, Ordering::AcqRel) == length {
            start_writeback(&file.file);
        }
        let spent = thread_time().saturating_sub(began);
        WRITING.set(WRITING.get() + spent);
        self.write_ns.fetch_add(spent, Ordering::Relaxed);
        written.map_err(|e| Trouble::writing(self.stage.outside(), e))?;
        self.linked.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }
}

thread_local! {
    /// Processor time that this thread has spent writing, nanoseconds: it is no decoding.
    static WRITING: Cell<u64> = const { Cell::new(0) };
}

/// Processor time that this thread has spent writing so far, nanoseconds.
pub(super) fn time_spent_writing() -> u64 {
    WRITING.get()
}
