//! How every apt and dpkg program is called: the options and the environment that no configuration of the
//! machine may override, time limits, and progress read while it runs. Called by the rest of `host::apt`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};
use crate::report::event::{Progress, Unit};

/// `apt-get update`: full indexes are 60 MB; a line of 100 kB/s needs ten minutes for them.
pub(super) const UPDATE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// `apt-get install`: 4 GB at 1 MB/s take 70 minutes, and a kernel module built by DKMS ten more. Killing dpkg
/// half-way is costly, so the limit only has to end what would never end.
pub(super) const INSTALL_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// Simulations only compute: two seconds for a full-size index, minutes on an instance without CPU credits.
pub(super) const SIMULATE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Options that keep signatures in force whatever `/etc/apt/apt.conf.d` says. A source's own `trusted=yes` is
/// not an option; [`super::sources`] deals with it.
const SIGNATURES_ON: [&str; 8] = [
    "APT::Get::AllowUnauthenticated=0",
    "APT::Get::Force-Yes=0",
    "Acquire::AllowInsecureRepositories=0",
    "Acquire::AllowDowngradeToInsecureRepositories=0",
    "Acquire::AllowWeakRepositories=0",
    "APT::Authentication::TrustCDROM=0",
    "APT::Get::allow-remove-essential=0",
    "APT::Ignore-Hold=0",
];

/// Options of behaviour: no question is ever asked, and a changed configuration file stays as it is.
const BEHAVIOUR: [&str; 8] = [
    "Acquire::Retries=3",
    "Dpkg::Use-Pty=0",
    // Progress comes on standard output among other lines: a descriptor of its own would have to be inherited
    // by every maintainer script.
    "APT::Status-Fd=3",
    "APT::Color=0",
    "APT::Install-Suggests=0",
    "APT::Get::AutomaticRemove=0",
    "DPkg::Options::=--force-confdef",
    "DPkg::Options::=--force-confold",
];

/// A call of `apt-get` with everything that holds for each of them.
pub(super) fn apt_get(limit: Duration) -> Call {
    let options = SIGNATURES_ON.iter().chain(&BEHAVIOUR).flat_map(|o| ["-o".to_owned(), (*o).to_owned()]);
    quiet(Call::new("apt-get")).status_descriptor().args(["-q", "-y"]).args(options).limit(limit)
}

/// A call of another program of the family (`dpkg`, `apt-mark`), with the same silent environment.
pub(super) fn program(name: &str, limit: Duration) -> Call {
    quiet(Call::new(name)).limit(limit)
}

/// What apt's methods read of the environment.
const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];

/// The environment in which neither debconf, nor a configuration file, nor a service restart asks anything.
fn quiet(call: Call) -> Call {
    // The one thing of the caller's environment that apt needs: the way out. Downloads of ours take it, too.
    let proxies = PROXIES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    let call = proxies.fold(call, |call, (name, value)| call.env(name, value));
    call.env("DEBIAN_FRONTEND", "noninteractive")
        .env("DEBCONF_NONINTERACTIVE_SEEN", "true")
        .env("DEBCONF_NOWARNINGS", "yes")
        .env("UCF_FORCE_CONFFOLD", "1")
        .env("NEEDRESTART_MODE", "l")
        .env("NEEDRESTART_SUSPEND", "1")
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("APT_LISTBUGS_FRONTEND", "none")
}

/// Silences after which apt's downloads are ended. apt tries four times at each of a hundred files, which takes hours
/// where the server never answers.
const SILENCES: u32 = 10;

/// Runs a call and passes apt's progress on. `bytes`: what it is going to download, when that is known; apt itself
/// only says how many percent of it are there.
pub(super) async fn run_with_progress(host: &Host, call: &Call, bytes: Option<u64>) -> Result<Output> {
    let downloads = Downloads::new(host.fetch.patience().silence * SILENCES);
    let run = host.exec.stream(call, |line| {
        if let Some(progress) = status_line(line, bytes) {
            downloads.note(line, Instant::now());
            host.progress(progress);
        }
    });
    tokio::select! {
        output = run => output,
        error = downloads.stuck() => Err(error),
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
        let (downloads, began) = (Downloads::new(Duration::from_secs(300)), Instant::now());
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

    #[test]
    fn every_call_forces_signatures_and_asks_nothing() {
        let line = apt_get(UPDATE_LIMIT).line();
        for option in SIGNATURES_ON.iter().chain(&BEHAVIOUR) {
            assert!(line.contains(option), "{option} in {line}");
        }
    }
}
