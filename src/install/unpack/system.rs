//! What the kernel is asked for besides reading and writing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::time::{ClockId, clock_gettime};

/// Asks for the space at once: a full disk shows before the first byte, and the file lies in one piece.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        // Not every file system can; then writing will tell.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Lets the kernel write the file to the disk now, and does not wait: maintainer scripts that sync would otherwise
/// wait for gigabytes at the end.
#[expect(unsafe_code, reason = "sync_file_range has no safe binding")]
pub(super) fn start_writeback(file: &File) {
    // SAFETY: a system call on an open descriptor. Its failure costs time only.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Lowers this thread's priority.
#[expect(unsafe_code, reason = "nice has no safe binding for one thread")]
pub(in crate::install) fn be_nice(by: i32) {
    // SAFETY: on Linux it changes the calling thread only. Refused, it costs time only.
    unsafe { libc::nice(by) };
}

/// Processor time of this thread so far, nanoseconds.
pub(super) fn thread_time() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |t| u64::try_from(Duration::from(t).as_nanos()).unwrap_or_default())
}
