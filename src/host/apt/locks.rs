//! The four locks of apt and dpkg: who holds them, and waiting until nobody does.
//!
//! `DPkg::Lock::Timeout` exists from apt 1.9.11 on and covers only dpkg's frontend lock, so the agent waits by
//! itself: the same way on every version, for all four, and with the holder's name shown.

use std::fmt;
use std::fs::File;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fault::{self, Kind};
use crate::report::event::{Progress, Unit};

/// How often the locks are looked at. Short enough not to be noticed, long enough to cost nothing.
const POLL: Duration = Duration::from_millis(200);

/// dpkg's frontend lock first: whoever installs anything holds that one longest.
const LOCKS: [&str; 4] = [
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
];

/// A held lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    path: &'static str,
    pid: i32,
    name: Option<String>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is held by ", self.path)?;
        match (&self.name, self.pid) {
            (Some(name), pid) => write!(f, "{name} (process {pid})"),
            (None, pid @ 1..) => write!(f, "process {pid}"),
            // The kernel gives no usable id for holders outside our pid namespace and for locks of open files.
            (None, _) => f.write_str("a process that is not visible from here"),
        }
    }
}

/// Waits until no lock is held, until `deadline`. Shows the holder while it waits.
pub(crate) async fn wait(host: &Host, deadline: Instant) -> Result<()> {
    let started = Instant::now();
    let mut shown = None;
    while let Some(held) = first_held(host)? {
        if Instant::now() >= deadline {
            return Err(gave_up(&held.to_string(), started.elapsed()));
        }
        if shown.as_ref() != Some(&held) {
            host.notice(format!("waiting: {held}"));
            shown = Some(held.clone());
        }
        let waited = started.elapsed().as_secs();
        let total = Some(waited + deadline.saturating_duration_since(Instant::now()).as_secs());
        host.progress(Progress {
            what: "waiting for a lock".into(),
            item: held.to_string(),
            done: waited,
            total,
            unit: Unit::Seconds,
        });
        tokio::time::sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
    Ok(())
}

/// dpkg's frontend lock, held by us: nobody installs anything meanwhile.
#[derive(Debug)]
pub(crate) struct Frontend(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

/// Waits for dpkg's frontend lock until `deadline` and takes it; then no dpkg is at work, not even one that outlived
/// the apt that started it. Where dpkg has no directory there is nothing to lock.
pub(crate) async fn frontend(host: &Host, deadline: Instant) -> Result<Option<Frontend>> {
    let [path, dpkg, ..] = LOCKS;
    if !host.files.exists("/var/lib/dpkg")? {
        return Ok(None);
    }
    let started = Instant::now();
    loop {
        let file = host.files.open_rw(path)?;
        fault::point(Kind::Lock, path).map_err(|e| Error::io("lock", path, e))?;
        let in_the_way = match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => holder(host, dpkg)?.map(|pid| (dpkg, pid)),
            Err(Errno::EAGAIN | Errno::EACCES) => Some((path, holder(host, path)?.unwrap_or_default())),
            Err(e) => return Err(Error::io("lock", path, e.into())),
        };
        let Some((path, pid)) = in_the_way else { return Ok(Some(Frontend(file))) };
        if Instant::now() >= deadline {
            let held = Held { path, pid, name: process_name(pid) };
            return Err(gave_up(&held.to_string(), started.elapsed()));
        }
        drop(file);
        tokio::time::sleep(POLL).await;
    }
}

/// The error after which nothing more is tried.
pub(super) fn gave_up(who: &str, waited: Duration) -> Error {
    Error::new(Code::AptLocked, format!("{who}; gave up after {} s", waited.as_secs()))
        .with_hint("let the other program finish (systemctl status apt-daily-upgrade.service; cloud-init status), then run again; [install] lock-timeout is how long it is waited for")
}

fn first_held(host: &Host) -> Result<Option<Held>> {
    for path in LOCKS {
        if let Some(pid) = holder(host, path)? {
            return Ok(Some(Held { path, pid, name: process_name(pid) }));
        }
    }
    Ok(None)
}

/// The process that holds the lock; `None` when nobody does, or when the lock file does not exist yet.
fn holder(host: &Host, path: &str) -> Result<Option<i32>> {
    let file = match File::open(host.files.outside(path)?) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut query = whole_file();
    fcntl(&file, FcntlArg::F_GETLK(&mut query)).map_err(|e| Error::io("query the lock", path, e.into()))?;
    Ok((i32::from(query.l_type) != libc::F_UNLCK).then_some(query.l_pid))
}

/// A write lock on all of a file, as apt and dpkg take it.
#[expect(clippy::cast_possible_truncation, reason = "small constants, of another type than the field")]
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The holder's program name, from the /proc that belongs to our pid namespace (never the root's own).
fn process_name(pid: i32) -> Option<String> {
    if pid <= 0 {
        return None;
    }
    // Gone, or hidden by hidepid: then the number has to do.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned()).filter(|n| !n.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_without_a_visible_process_is_still_a_sentence() {
        let held =
            |pid, name: Option<&str>| Held { path: LOCKS[0], pid, name: name.map(Into::into) }.to_string();
        assert!(held(0, None).ends_with("held by a process that is not visible from here"));
        assert!(held(-1, None).ends_with("held by a process that is not visible from here"));
        assert!(held(7, None).ends_with("held by process 7"));
        assert!(held(7, Some("apt-get")).ends_with("held by apt-get (process 7)"));
    }

    #[tokio::test]
    async fn free_and_missing_locks_do_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        wait(&host, Instant::now()).await.unwrap();
        host.files.write("/var/lib/dpkg/lock-frontend", b"", 0o640).unwrap();
        wait(&host, Instant::now()).await.unwrap();
    }
}
