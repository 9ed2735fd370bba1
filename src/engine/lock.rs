//! One run at a time: a flock held for the whole run, in a file that names its holder.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};
use crate::host::files::Files;
use crate::host::paths;

/// How often, and how long apart, the lock is tried for.
const GLANCES: u32 = 5;
const GLANCE: Duration = Duration::from_millis(10);

/// The lock; released when dropped (or when the process ends, however it ends).
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

/// Takes the lock, or says who holds it (`locked`, exit code 4).
pub fn acquire(files: &Files) -> Result<Lock> {
    let file = files.open_rw(paths::LOCK)?;
    fault::point(Kind::Lock, paths::LOCK).map_err(|e| Error::io("lock", paths::LOCK, e))?;
    match take(file) {
        Ok(mut held) => {
            let line = format!("pid {}\n", std::process::id());
            let written = fault::point(Kind::Write, paths::LOCK)
                .and_then(|()| held.set_len(0))
                .and_then(|()| held.rewind())
                .and_then(|()| held.write_all(line.as_bytes()));
            written.map_err(|e| Error::io("write", paths::LOCK, e))?;
            Ok(Lock { _held: held })
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let holder = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
                _ => "a process that has not yet written its name".into(),
            };
            Err(Error::new(Code::Locked, format!("another run is going on: {holder} holds {}", paths::LOCK))
                .with_hint("`gpu-bootstrap status --wait` waits for it"))
        }
        Err((_, errno)) => Err(Error::io("lock", paths::LOCK, errno.into())),
    }
}

/// Tries for a moment: `status` looks by taking a shared lock, which it drops at once.
fn take(mut file: File) -> std::result::Result<Flock<File>, (File, nix::errno::Errno)> {
    for _ in 0..GLANCES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            other => return other,
        }
        std::thread::sleep(GLANCE);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

/// Whether somebody holds the lock.
pub fn is_held(files: &Files) -> Result<bool> {
    if !files.exists(paths::LOCK)? {
        return Ok(false);
    }
    let path = files.outside(paths::LOCK)?;
    let file = File::open(&path).map_err(|e| Error::io("open", paths::LOCK, e))?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(Error::io("lock", paths::LOCK, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_path_buf());
        assert!(!is_held(&files).unwrap());
        let held = acquire(&files).unwrap();
        let refused = acquire(&files).unwrap_err();
        assert_eq!(refused.code(), Code::Locked);
        assert!(refused.message().contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(is_held(&files).unwrap());
        drop(held);
        acquire(&files).unwrap();
    }

    #[test]
    fn a_glance_at_the_lock_is_no_other_run() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_path_buf());
        let file = files.open_rw(paths::LOCK).unwrap();
        let glance = Flock::lock(file, FlockArg::LockSharedNonblock).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(15));
            drop(glance);
        });
        acquire(&files).unwrap();
        ends.join().unwrap();
    }
}
