//! What an installation was and what it took, for the status files, for `analyze` and for benchmarks.

use serde::{Deserialize, Serialize};

use super::fetch;
use super::rung::Rung;
pub use super::unpack::Work;

/// How an installation was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The way that was taken.
    pub install: Rung,
    /// Why not a faster one; empty for the fastest.
    pub why: String,
    /// Threads that may unpack.
    pub threads: usize,
    /// Packages that apt installed.
    pub packages: usize,
    /// Bytes of package files.
    pub download_bytes: u64,
    /// Bytes by which the installed system grew, by apt's reckoning.
    pub installed_bytes: u64,
    /// Seconds that apt needed to plan.
    pub plan_seconds: f64,
    /// Seconds from then until apt had ended.
    pub install_seconds: f64,
    /// Seconds until everything was on the disk.
    pub sync_seconds: f64,
    /// What the agent did besides.
    #[serde(flatten)]
    pub prepared: Prepared,
}

/// What the agent did for an installation, besides apt and dpkg.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Prepared {
    /// What fetching took; `None` where nothing was fetched.
    pub fetched: Option<fetch::Stats>,
    /// Seconds from the beginning until every package was verified.
    pub verified_seconds: Option<f64>,
    /// Seconds from the beginning until every package was ready for dpkg.
    pub ready_seconds: Option<f64>,
    /// What unpacking took; `None` where dpkg unpacked everything.
    pub unpacked: Option<Work>,
    /// Packages that dpkg got as they came although others were unpacked here: file and reason.
    pub originals: Vec<(String, String)>,
    /// Bytes of package files that came while earlier steps of the run were at work.
    #[serde(default)]
    pub ahead: u64,
    /// Bytes of package files that lay in a cache: apt's own, or ours since an earlier run.
    #[serde(default)]
    pub cached: u64,
}

/// What an installation waited for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// Package files came no faster.
    Link,
    /// All cores were decoding.
    Cores,
    /// Bringing the files to the disk.
    Disk,
    /// dpkg and the packages' own scripts, one after the other.
    Dpkg,
    /// apt's planning.
    Plan,
}

impl Bottleneck {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Link => "the link",
            Self::Cores => "the cores",
            Self::Disk => "the disk",
            Self::Dpkg => "dpkg and the packages' scripts",
            Self::Plan => "apt's planning",
        }
    }

    /// The part of an installation that waits for it, for people.
    pub fn part(self) -> &'static str {
        match self {
            Self::Link => "fetching",
            Self::Cores => "unpacking",
            Self::Disk => "to the disk",
            Self::Dpkg => "apt and dpkg",
            Self::Plan => "planning",
        }
    }
}

impl Report {
    /// For people: `install: pipeline: 94 packages (1.64 GB) in 37.2 s`.
    pub fn sentence(&self) -> String {
        let why = if self.why.is_empty() { String::new() } else { format!(", because {}", self.why) };
        let seconds = self.seconds();
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        let gigabytes = self.download_bytes as f64 / 1e9;
        format!(
            "install: {}: {} packages ({gigabytes:.2} GB) in {seconds:.1} s{why}",
            self.install, self.packages
        )
    }

    /// Seconds in all.
    pub fn seconds(&self) -> f64 {
        self.plan_seconds + self.install_seconds + self.sync_seconds
    }

    /// The parts that follow each other, with what each waits for and its seconds. Plain apt is not looked into: all that
    /// it does after planning is one part.
    pub fn parts(&self) -> [(Bottleneck, f64); 5] {
        let verified = self.prepared.verified_seconds.unwrap_or_default();
        let ready = self.prepared.ready_seconds.unwrap_or(verified).max(verified);
        [
            (Bottleneck::Plan, self.plan_seconds),
            (Bottleneck::Link, verified),
            (Bottleneck::Cores, ready - verified),
            (Bottleneck::Dpkg, (self.install_seconds - ready).max(0.0)),
            (Bottleneck::Disk, self.sync_seconds),
        ]
    }

    /// What it waited for most: the longest of its parts. `None` for plain apt.
    pub fn bottleneck(&self) -> Option<Bottleneck> {
        self.prepared.verified_seconds?;
        self.parts().into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(what, _)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(plan: f64, verified: f64, ready: f64, install: f64, sync: f64) -> Report {
        Report {
            install: Rung::Pipeline,
            why: String::new(),
            threads: 2,
            packages: 94,
            download_bytes: 1_637_000_000,
            installed_bytes: 5_608_000_000,
            plan_seconds: plan,
            install_seconds: install,
            sync_seconds: sync,
            prepared: Prepared {
                verified_seconds: Some(verified),
                ready_seconds: Some(ready),
                ..Prepared::default()
            },
        }
    }

    #[test]
    fn the_longest_part_is_the_bottleneck() {
        let of = |r: Report| r.bottleneck().unwrap();
        assert_eq!(of(report(2.0, 3.0, 30.0, 33.0, 1.0)), Bottleneck::Cores);
        assert_eq!(of(report(2.0, 60.0, 62.0, 64.0, 1.0)), Bottleneck::Link);
        assert_eq!(of(report(2.0, 3.0, 8.0, 12.0, 40.0)), Bottleneck::Disk);
        assert_eq!(of(report(2.0, 3.0, 5.0, 300.0, 1.0)), Bottleneck::Dpkg);
        let plain = Report { prepared: Prepared::default(), ..report(1.0, 0.0, 0.0, 80.0, 1.0) };
        assert_eq!(plain.bottleneck(), None);
    }

    #[test]
    fn the_sentence_says_how_much_how_fast_and_why_no_faster() {
        let fast = report(2.0, 3.0, 30.0, 33.0, 1.0);
        assert_eq!(fast.sentence(), "install: pipeline: 94 packages (1.64 GB) in 36.0 s");
        let slow = Report { install: Rung::Apt, why: "install.method asks for it".into(), ..fast };
        assert!(slow.sentence().ends_with("in 36.0 s, because install.method asks for it"));
    }
}
