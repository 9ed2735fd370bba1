//! Fault points: every effect on the world outside this process passes one just before it happens. Built with the
//! feature `fault-points`, for tests, the program can be told to die or to fail at any of them, and lists those that it
//! passes; without it, as in every release, a point is nothing at all.
//!
//! A point is known by its kind, its place in the source, what it is about (a path, a command line, an address), and a
//! count: the how-manieth time it is passed in one process. Threads change the order of points, and none of these.
//! What is only looked at has no point, and neither have standard output and standard error.

#[cfg(feature = "fault-points")]
pub(crate) use armed::{child, exec, keep_from, pass_on, point};
#[cfg(not(feature = "fault-points"))]
pub(crate) use disarmed::{child, exec, keep_from, pass_on, point};

/// Kinds of effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "fault-points"), allow(dead_code, reason = "nobody asks which kind it is"))]
pub(crate) enum Kind {
    /// A file is made or opened for writing.
    Create,
    /// Bytes are written, or room is reserved for them.
    Write,
    /// Something is brought to the disk.
    Sync,
    /// A name is changed.
    Rename,
    /// A directory is made.
    MakeDir,
    /// A file, link or directory is removed.
    Remove,
    /// Permission bits are changed.
    Mode,
    /// A hard or symbolic link is made.
    Link,
    /// A server is asked for something.
    Fetch,
    /// A program is started.
    Exec,
    /// A lock is taken.
    Lock,
    /// A socket is made or used.
    Socket,
}

#[cfg(not(feature = "fault-points"))]
mod disarmed {
    use std::io;
    use std::path::Path;

    use super::Kind;
    use crate::host::exec::Call;

    #[expect(clippy::unnecessary_wraps, reason = "where points are armed, they fail")]
    #[inline]
    pub(crate) fn point(_: Kind, _: impl AsRef<Path>) -> io::Result<()> {
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "where points are armed, they fail")]
    #[inline]
    pub(crate) fn exec(_: &Call) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    pub(crate) fn child(_: Option<u32>) {}

    #[inline]
    pub(crate) fn pass_on(call: Call) -> Call {
        call
    }

    #[inline]
    pub(crate) fn keep_from(_: &mut std::process::Command) {}
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::{self, Write};
    use std::panic::Location;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    use nix::libc;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Kind;
    use crate::host::exec::Call;
    use crate::host::files::TEMPORARY;

    /// The file that every point passed is appended to, a line each: kind, place, count and what it is about, with tabs
    /// between. Beside it, with `.fired` behind its name, lies what the fault that was asked for hit.
    const LIST: &str = "GPU_BOOTSTRAP_FAULT_LIST";
    /// What shall happen and where: an action, a tab, and a line of the list.
    const WISH: &str = "GPU_BOOTSTRAP_FAULT";

    /// Milliseconds after which the next child is killed; this is none.
    const NOT_DOOMED: u64 = u64::MAX;

    static POINTS: LazyLock<Points> = LazyLock::new(Points::from_environment);
    static DOOMED: AtomicU64 = AtomicU64::new(NOT_DOOMED);

    struct Points {
        list: Option<(String, File)>,
        wish: Option<(Action, String)>,
        passed: Mutex<HashMap<String, u32>>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Action {
        /// SIGKILL: no destructor, no last word.
        Kill,
        /// The effect fails with this number.
        Fail(i32),
        /// The program that is started here is killed after so many milliseconds.
        Child(u64),
    }

    impl Action {
        fn named(name: &str) -> Option<Self> {
            Some(match name {
                "kill" => Self::Kill,
                "ENOSPC" => Self::Fail(libc::ENOSPC),
                "EIO" => Self::Fail(libc::EIO),
                "EROFS" => Self::Fail(libc::EROFS),
                "EMFILE" => Self::Fail(libc::EMFILE),
                other => Self::Child(other.strip_prefix("child:")?.parse().ok()?),
            })
        }
    }

    impl Points {
        #[expect(clippy::panic, reason = "a test that asks for nonsense must not pass")]
        fn from_environment() -> Self {
            let list = std::env::var(LIST).ok().map(|path| {
                let file = File::options().append(true).create(true).open(&path);
                let file = file.unwrap_or_else(|e| panic!("cannot open {path}: {e}"));
                (path, file)
            });
            let wish = std::env::var(WISH).ok().map(|wish| {
                let parts = wish.split_once('\t').and_then(|(action, at)| Some((Action::named(action)?, at)));
                let (action, at) = parts.unwrap_or_else(|| panic!("{WISH} cannot be understood: {wish}"));
                (action, at.to_owned())
            });
            Self { list, wish, passed: Mutex::default() }
        }

        fn pass(&self, kind: Kind, place: &Location<'_>, what: &str) -> io::Result<()> {
            if self.list.is_none() && self.wish.is_none() {
                return Ok(());
            }
            let what = without_chance(&what.replace(['\n', '\t'], " "));
            let key = format!("{kind:?}\t{}:{}\t{what}", place.file(), place.line());
            let count = {
                let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
                let count = passed.entry(key).or_default();
                *count += 1;
                *count
            };
            let line = format!("{kind:?}\t{}:{}\t{count}\t{what}", place.file(), place.line());
            if let Some((_, file)) = &self.list {
                // One write: lines of threads and of other processes do not mix.
                (&*file).write_all(format!("{line}\n").as_bytes())?;
            }
            match &self.wish {
                Some((action, at)) if *at == line && self.is_first(&line) => act(*action),
                _ => Ok(()),
            }
        }

        /// Whether no other process has met its fault yet.
        fn is_first(&self, line: &str) -> bool {
            let Some((path, _)) = &self.list else { return true };
            File::create_new(format!("{path}.fired")).is_ok_and(|mut f| f.write_all(line.as_bytes()).is_ok())
        }
    }

    /// Names of unfinished files have six letters of chance in them: with those, no run would pass another's points.
    fn without_chance(what: &str) -> String {
        const CHANCE: usize = 6;
        let mut parts = what.split(TEMPORARY);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let is_chance = part.bytes().take_while(u8::is_ascii_alphanumeric).count() == CHANCE;
            out.extend([
                TEMPORARY,
                if is_chance { "*" } else { "" },
                if is_chance { &part[CHANCE..] } else { part },
            ]);
        }
        out
    }

    fn act(action: Action) -> io::Result<()> {
        match action {
            Action::Kill => loop {
                let _ = kill(Pid::this(), Signal::SIGKILL); // it cannot fail
            },
            Action::Fail(number) => Err(io::Error::from_raw_os_error(number)),
            Action::Child(milliseconds) => {
                DOOMED.store(milliseconds, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    /// An effect of this kind on `what` is about to happen; the error is the one to fail with.
    #[track_caller]
    pub(crate) fn point(kind: Kind, what: impl AsRef<Path>) -> io::Result<()> {
        POINTS.pass(kind, Location::caller(), &what.as_ref().to_string_lossy())
    }

    /// The same for a program.
    #[track_caller]
    pub(crate) fn exec(call: &Call) -> io::Result<()> {
        POINTS.pass(Kind::Exec, Location::caller(), &call.line())
    }

    /// The program was started as this process; it alone is killed, if that is its fate.
    pub(crate) fn child(pid: Option<u32>) {
        let milliseconds = DOOMED.swap(NOT_DOOMED, Ordering::SeqCst);
        let Some(pid) = pid.and_then(|p| i32::try_from(p).ok()) else { return };
        if milliseconds != NOT_DOOMED {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(milliseconds));
                kill(Pid::from_raw(pid), Signal::SIGKILL)
            });
        }
    }

    /// Lets the stand-ins, which are this program, too, have points of their own.
    pub(crate) fn pass_on(call: Call) -> Call {
        let known = [LIST, WISH].into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)));
        known.fold(call, |call, (name, value)| call.env(name, value))
    }

    /// What is meant for this process is not meant for that one.
    pub(crate) fn keep_from(command: &mut std::process::Command) {
        command.env_remove(LIST).env_remove(WISH);
    }

    #[cfg(test)]
    mod tests {
        use super::without_chance;

        #[test]
        fn chance_is_no_part_of_a_name() {
            let call = "apt-get -o Dir::State::status=/var/lib/gpu-bootstrap/.gpu-bootstrap-2S1TGI -o x";
            let wanted = "apt-get -o Dir::State::status=/var/lib/gpu-bootstrap/.gpu-bootstrap-* -o x";
            assert_eq!(without_chance(call), wanted);
            assert_eq!(without_chance("/opt/.gpu-bootstrap-trial-77"), "/opt/.gpu-bootstrap-trial-77");
            assert_eq!(without_chance("/usr"), "/usr");
        }
    }
}
