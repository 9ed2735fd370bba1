//! The files that the bytes go to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};

/// Creates the file for `size` bytes at `path` (outside path), readable by its owner only, with its room reserved
/// where the file system can: a disk that is too small says so before the first byte is asked for. A file that is
/// there already is an error unless it is an earlier attempt of ours, which is replaced: by another file, so that a
/// write still on its way cannot reach the new one.
pub(super) fn create(path: &Path, size: u64, replaces: bool) -> Result<File> {
    if replaces {
        remove(path);
    }
    let file = fault::point(Kind::Create, path)
        .and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path))
        .map_err(|e| full_hint(Error::io("create", path, e), path))?;
    match fault::point(Kind::Write, path).and_then(|()| reserve(&file, size)) {
        Ok(()) => Ok(file),
        Err(e) => {
            remove(path);
            Err(no_room(path, size, e))
        }
    }
}

/// Opens a file that is there already, if it has the right size.
pub(super) fn open(path: &Path, size: u64) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    Ok((meta.is_file() && meta.len() == size).then_some(file))
}

/// Removes a file of ours; the caller has an error to tell already, or is going to replace it.
pub(super) fn remove(path: &Path) {
    if let Err(e) = fault::point(Kind::Remove, path).and_then(|()| fs::remove_file(path))
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), error = %e, "cannot remove an unfinished download");
    }
}

/// A failed write, with what to do about a full disk.
pub(super) fn write_failed(path: &Path, e: io::Error) -> Error {
    full_hint(Error::io("write the download", path, e), path)
}

fn reserve(file: &File, size: u64) -> io::Result<()> {
    let Ok(length) = i64::try_from(size) else { return Err(io::ErrorKind::FileTooLarge.into()) };
    if length == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(size),
        Err(e) => Err(e.into()),
    }
}

fn no_room(path: &Path, size: u64, e: io::Error) -> Error {
    let error = Error::io("reserve room for the download", path, e);
    if error.code() != Code::DiskFull {
        return error;
    }
    let text = format!("there is no room for the {size} bytes of {}", path.display());
    full_hint(Error::new(Code::DiskFull, text), path)
}

fn full_hint(e: Error, path: &Path) -> Error {
    if e.code() != Code::DiskFull {
        return e;
    }
    let place = path.parent().unwrap_or(path).display();
    e.with_hint(format!("make room where {place} lies, or use a larger root volume"))
}
