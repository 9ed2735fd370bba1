//! What could not be delivered, on the disk: a file for each channel and run, written whole. Whoever delivers next takes
//! over what others left; a lock lets only one do that, and asks the one before to make room.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths;

const SUFFIX: &str = ".json";
/// How long a deliverer that was there before may take for the answers that it waits for.
const PATIENCE: Duration = Duration::from_secs(100);
/// No service takes what is older.
const KEPT: SignedDuration = SignedDuration::from_hours(15 * 24);
const GLANCE: Duration = Duration::from_millis(50);

/// The directory, seen by one run's deliverer.
pub(super) struct Spool {
    files: Files,
    /// In the names of this run's files.
    run: String,
    held: RefCell<Option<Flock<File>>>,
}

/// What an earlier run left for a channel.
pub(super) struct Left<T> {
    path: String,
    pub(super) kept: T,
}

impl Spool {
    pub(super) fn new(files: Files, run: Timestamp) -> Self {
        Self { files, run: run.as_microsecond().to_string(), held: RefCell::default() }
    }

    fn path(&self, channel: &str) -> String {
        format!("{}/{}.{}{SUFFIX}", paths::SPOOL_DIR, file_name(channel), self.run)
    }

    /// Keeps what a channel has.
    pub(super) fn write<T: Serialize>(&self, channel: &str, kept: &T) -> Result<()> {
        self.hold();
        let path = self.path(channel);
        let json = serde_json::to_vec(kept)
            .map_err(|e| Error::new(Code::Io, format!("cannot write {path}")).because(e))?;
        self.files.write(path, &json, 0o600)
    }

    /// Everything of a channel was delivered.
    pub(super) fn remove(&self, channel: &str) {
        if let Err(e) = self.files.remove(self.path(channel)) {
            tracing::warn!("{e}");
        }
    }

    /// What earlier runs left for a channel, oldest first. A file that cannot be read is of no use to anybody.
    pub(super) fn left<T: DeserializeOwned>(&self, channel: &str) -> Vec<Left<T>> {
        let prefix = format!("{}.", file_name(channel));
        let mut all = Vec::new();
        for name in self.files_of_others().iter().filter(|name| name.starts_with(&prefix)) {
            let path = format!("{}/{name}", paths::SPOOL_DIR);
            let bytes = self.files.read(&path).ok().flatten().unwrap_or_default();
            match serde_json::from_slice(&bytes) {
                Ok(kept) => all.push(Left { path, kept }),
                Err(e) => {
                    tracing::warn!("{path} cannot be understood and is removed: {e}");
                    let _ = self.files.remove(&path);
                }
            }
        }
        all
    }

    /// How many files of earlier runs there are.
    pub(super) fn count(&self) -> usize {
        self.files_of_others().len()
    }

    /// Removes what nobody would take any more, of channels that are no longer configured, too.
    pub(super) fn sweep(&self) {
        let oldest = i128::from(Timestamp::now().as_microsecond()) - KEPT.as_micros();
        for name in self.files_of_others() {
            let made =
                name.strip_suffix(SUFFIX).and_then(|stem| stem.rsplit('.').next()?.parse::<i128>().ok());
            if made.is_some_and(|made| made < oldest)
                && let Err(e) = self.files.remove(format!("{}/{name}", paths::SPOOL_DIR))
            {
                tracing::warn!("{e}");
            }
        }
    }

    /// Removes a file whose content is kept elsewhere by now.
    pub(super) fn forget<T>(&self, left: &Left<T>) {
        if let Err(e) = self.files.remove(&left.path) {
            tracing::warn!("{e}");
        }
    }

    /// Becomes the one that may take over what others left, where they left anything. `false` when there is nothing, or when
    /// the one before does not make room.
    pub(super) async fn claim(&self) -> bool {
        if self.files_of_others().is_empty() {
            return false;
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut asked = None;
        while !self.hold() {
            let holder = self.holder();
            if holder != asked
                && let Some(pid) = holder
            {
                // Whoever holds the lock lives, so the number is still its own.
                let _ = kill(Pid::from_raw(pid), Signal::SIGUSR1);
                asked = holder;
            }
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(GLANCE).await;
        }
        true
    }

    /// Takes the lock, until this process ends; `false` when somebody else has it. Whoever has something on the disk holds
    /// it, so that nobody takes for left what is being worked on.
    fn hold(&self) -> bool {
        let mut held = self.held.borrow_mut();
        if held.is_some() {
            return true;
        }
        let Ok(file) = self.files.open_rw(paths::SPOOL_LOCK).inspect_err(|e| tracing::warn!("{e}")) else {
            return false;
        };
        let Ok(mut lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return false };
        let line = format!("{}\n", std::process::id());
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(line.as_bytes()));
        // Without the line the next one waits instead of asking.
        drop(written.inspect_err(|e| tracing::warn!("{}: {e}", paths::SPOOL_LOCK)));
        *held = Some(lock);
        true
    }

    fn holder(&self) -> Option<i32> {
        let text = self.files.read_text(paths::SPOOL_LOCK).ok()??;
        text.trim().parse().ok().filter(|pid| *pid > 1)
    }

    /// Files of every channel that are not this run's.
    fn files_of_others(&self) -> Vec<String> {
        let own = format!(".{}{SUFFIX}", self.run);
        let mut names = self.files.list(paths::SPOOL_DIR).unwrap_or_default();
        names.retain(|name| name.ends_with(SUFFIX) && !name.ends_with(&own) && !name.starts_with('.'));
        names.sort();
        names
    }
}

fn file_name(channel: &str) -> String {
    channel.replace(' ', "-")
}
