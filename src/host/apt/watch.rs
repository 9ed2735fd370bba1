//! Watching apt and dpkg at work: progress read from what they print, downloads that do not get on, and scripts that hang.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};
use crate::report::event::{Progress, Unit};

/// Silences after which apt's downloads are ended. apt tries four times at each of a hundred files, which takes hours
/// where the server never answers.
const SILENCES: u32 = 10;

/// How often it is looked whether a program is stuck.
const LOOK: Duration = Duration::from_secs(1);

/// How a call is watched while it runs.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    host: &'a Host,
    bytes: Option<u64>,
    silence: Option<Duration>,
}

impl<'a> Watch<'a> {
    /// Passes progress on, and ends downloads that do not get on.
    pub(super) fn new(host: &'a Host) -> Self {
        Self { host, bytes: None, silence: None }
    }

    /// What is going to be downloaded, if that is known; apt itself only says how many percent of it are there.
    pub(super) fn downloading(mut self, bytes: Option<u64>) -> Self {
        self.bytes = bytes;
        self
    }

    /// Ends the call when it, and everything that the host does meanwhile (dpkg waits for packages that we fetch),
    /// shows no sign of life for so long.
    pub(super) fn silent_for(mut self, limit: Duration) -> Self {
        self.silence = Some(limit);
        self
    }

    /// Runs the call to its end.
    pub(super) async fn run(&self, call: &Call) -> Result<Output> {
        let downloads = Downloads::new(self.host.fetch.patience().silence * SILENCES);
        let life =
            Life { began: Instant::now(), heard: Cell::new(Instant::now()), doing: RefCell::default() };
        let run = self.host.exec.stream(call, |line| {
            life.note(line);
            if let Some(progress) = status_line(line, self.bytes) {
                downloads.note(line, Instant::now());
                self.host.progress(progress);
            }
        });
        tokio::select! {
            output = run => output,
            error = downloads.stuck() => Err(error),
            error = life.lost(self.host, self.silence) => Err(error),
        }
    }
}

/// Signs of life of an installation.
struct Life {
    began: Instant,
    heard: Cell<Instant>,
    /// What apt said last that dpkg is doing.
    doing: RefCell<String>,
}

impl Life {
    fn note(&self, line: &str) {
        self.heard.set(Instant::now());
        let doing = line.strip_prefix("pmstatus:").and_then(|l| l.splitn(3, ':').nth(2));
        // dpkg called by itself has no status lines.
        let doing = doing.or_else(|| line.starts_with("Setting up ").then_some(line));
        let doing = doing.or_else(|| line.starts_with("Processing triggers ").then_some(line));
        if let Some(doing) = doing {
            doing.trim_end_matches([' ', '.']).clone_into(&mut self.doing.borrow_mut());
        }
    }

    /// Ends when there has been no sign for `limit`; never where there is none.
    async fn lost(&self, host: &Host, limit: Option<Duration>) -> Error {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let heard = self.heard.get().max(host.last_progress().unwrap_or(self.began));
            let left = limit.saturating_sub(heard.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
        let doing = self.doing.borrow();
        let what = if doing.is_empty() { "the package installation" } else { doing.as_str() };
        let text = format!("no sign of life for {} s from \"{what}\": its script hangs", limit.as_secs());
        Error::new(Code::ExecTimeout, text).with_hint(
            "`dpkg --configure -a` shows by hand where it hangs; [install] script-timeout gives a slow one more time",
        )
    }
}

/// Whether apt's downloads get on. Whatever it does besides downloading takes its time.
struct Downloads {
    limit: Duration,
    /// What was said last, and since when.
    said: Cell<Option<Instant>>,
    percent: Cell<f64>,
}

impl Downloads {
    fn new(limit: Duration) -> Self {
        Self { limit, said: Cell::new(None), percent: Cell::new(-1.0) }
    }

    /// Takes note of a status line.
    fn note(&self, line: &str, now: Instant) {
        let percent: Option<f64> =
            line.strip_prefix("dlstatus:").and_then(|l| l.split(':').nth(1)?.parse().ok());
        match percent.filter(|p| *p < 100.0) {
            // It falls, too: an index that is there may name further files.
            Some(percent) if percent.to_bits() != self.percent.get().to_bits() => {
                self.percent.set(percent);
                self.said.set(Some(now));
            }
            Some(_) => {}
            None => self.said.set(None),
        }
    }

    fn is_stuck(&self, now: Instant) -> bool {
        self.said.get().is_some_and(|at| now.saturating_duration_since(at) >= self.limit)
    }

    /// Ends when they are stuck.
    async fn stuck(&self) -> Error {
        while !self.is_stuck(Instant::now()) {
            tokio::time::sleep(Duration::from_secs(1).min(self.limit)).await;
        }
        let seconds = self.limit.as_secs();
        Error::new(Code::AptFailed, format!("apt's downloads have not got on for {seconds} s"))
            .with_hint(super::failure::ROUTE_HINT)
    }
}

/// Reads `dlstatus:`/`pmstatus:` lines (`kind:item:percent:text`).
pub(super) fn status_line(line: &str, bytes: Option<u64>) -> Option<Progress> {
    let mut parts = line.splitn(4, ':');
    let kind = parts.next().filter(|k| matches!(*k, "dlstatus" | "pmstatus"))?;
    let item = parts.next()?;
    let percent: f64 = parts.next()?.parse().ok()?;
    let text = parts.next()?;
    if !(0.0..=100.0).contains(&percent) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 0 to 100")]
    let fraction = (percent * 100.0).round() as u64;
    let (what, item) = match (kind, item) {
        // For downloads the item is only a number, and apt guesses the time: the bar does, too.
        ("dlstatus", _) => ("downloading packages", text.split(" (").next().unwrap_or_default()),
        (_, "dpkg-exec") => ("installing packages", ""),
        (_, package) => ("installing packages", package),
    };
    let (done, total, unit) = match bytes.filter(|_| kind == "dlstatus") {
        Some(bytes) => (bytes / 10_000 * fraction + bytes % 10_000 * fraction / 10_000, bytes, Unit::Bytes),
        None => (fraction, 10_000, Unit::Fraction),
    };
    Some(Progress { what: what.into(), item: item.into(), done, total: Some(total), unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_become_progress_and_other_lines_do_not() {
        let p = status_line("pmstatus:libcuda1:40.5000:Unpacking libcuda1 (amd64)", Some(9)).unwrap();
        assert_eq!((p.what.as_str(), p.item.as_str()), ("installing packages", "libcuda1"));
        assert_eq!((p.done, p.total, p.unit), (4050, Some(10_000), Unit::Fraction));
        let line = "dlstatus:1:12.5000:Retrieving file 1 of 75 (3min 2s remaining)";
        let p = status_line(line, Some(1_600_000_000)).unwrap();
        assert_eq!(p.item, "Retrieving file 1 of 75");
        assert_eq!((p.done, p.total, p.unit), (200_000_000, Some(1_600_000_000), Unit::Bytes));
        assert_eq!(status_line(line, None).unwrap().unit, Unit::Fraction);
        for line in ["Setting up hello (2.10-3) ...", "pmstatus:x", "pmstatus:x:many:y", "pmstatus:x:900:y"] {
            assert!(status_line(line, None).is_none(), "{line}");
        }
    }

    #[test]
    fn only_downloads_that_do_not_get_on_are_stuck() {
        let (downloads, began) = (Downloads::new(Duration::from_mins(5)), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(!downloads.is_stuck(at(9999)), "apt has not begun");
        downloads.note("dlstatus:1:0.0000:Retrieving file 1 of 6", at(0));
        downloads.note("dlstatus:1:0.0000:Retrieving file 2 of 6", at(200));
        assert!(!downloads.is_stuck(at(299)) && downloads.is_stuck(at(300)));
        downloads.note("dlstatus:1:0.0001:Retrieving file 2 of 6", at(299));
        assert!(!downloads.is_stuck(at(598)));
        downloads.note("pmstatus:dpkg-exec:0.0000:Running dpkg", at(500));
        assert!(!downloads.is_stuck(at(9999)), "dpkg is never cut off");
        downloads.note("dlstatus:6:100.0000:Retrieving file 6 of 6", at(10_000));
        assert!(!downloads.is_stuck(at(99_999)), "all are there");
    }
}
