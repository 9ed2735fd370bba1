//! One run at a time: a flock held for the whole run, in a file that names its holder.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};
use crate::host::files::Files;
use crate::host::paths;

/// How long the lock is tried for before another run counts as going on: `status` looks by taking a shared lock, which it
/// drops at once; and a run that was killed lets go only when each of its threads has come back from the disk.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same where the holder can be seen to be dying.
const PATIENCE_WITH_THE_DYING: Duration = Duration::from_mins(1);
/// How often it is tried.
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
            let holder = holder(&mut file).unwrap_or("a process that has not yet written its name".into());
            Err(Error::new(Code::Locked, format!("another run is going on: {holder} holds {}", paths::LOCK))
                .with_hint("`gpu-bootstrap status --wait` waits for it"))
        }
        Err((_, errno)) => Err(Error::io("lock", paths::LOCK, errno.into())),
    }
}

/// Tries for a while.
fn take(mut file: File) -> std::result::Result<Flock<File>, (File, nix::errno::Errno)> {
    let began = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            other => return other,
        }
        let waited = began.elapsed();
        let is_over = waited >= PATIENCE
            && (waited >= PATIENCE_WITH_THE_DYING
                || !holder(&mut file).is_some_and(|holder| is_dying(&holder)));
        if is_over {
            return Err((file, nix::errno::Errno::EWOULDBLOCK));
        }
        std::thread::sleep(GLANCE);
    }
}

/// What the holder wrote into the file (`pid 42`).
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Whether the process was killed and has not quite ended: its first thread is gone, or SIGKILL waits for it.
fn is_dying(holder: &str) -> bool {
    let pid = holder.strip_prefix("pid ").and_then(|pid| pid.parse::<u32>().ok());
    let Some(pid) = pid else { return false };
    // The /proc of our own process namespace, whatever the root.
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_dying_by(&status))
}

/// The same, from a process's `status` in `/proc` (proc(5)).
fn is_dying_by(status: &str) -> bool {
    const SIGKILL: u64 = 1 << (nix::libc::SIGKILL - 1);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_waited_for = |name: &str| {
        field(name)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask & SIGKILL != 0)
    };
    field("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
        || is_waited_for("ShdPnd:")
        || is_waited_for("SigPnd:")
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
    fn a_killed_process_is_told_from_one_that_works() {
        let status = |state: &str, pending: &str| {
            format!("Name:\tgpu-bootstrap\nState:\t{state}\nSigPnd:\t0000000000000000\nShdPnd:\t{pending}\n")
        };
        assert!(!is_dying_by(&status("D (disk sleep)", "0000000000000000")));
        assert!(!is_dying_by(&status("S (sleeping)", "0000000000000002")), "SIGINT is no SIGKILL");
        assert!(is_dying_by(&status("D (disk sleep)", "0000000000000100")));
        assert!(is_dying_by(&status("Z (zombie)", "0000000000000000")));
        assert!(!is_dying_by(""));
        assert!(!is_dying(&format!("pid {}", std::process::id())) && !is_dying("pid x"));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let holder = format!("pid {}", child.id());
        while !is_dying(&holder) {
            std::thread::sleep(GLANCE); // it ends, and nobody has asked how
        }
        child.wait().unwrap();
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
