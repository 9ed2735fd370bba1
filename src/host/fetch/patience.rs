//! How long servers are waited for, and how often they are asked.

use std::time::{Duration, Instant};

use reqwest::Url;

use super::address::shown;
use super::answer::Failed;
use crate::error::{Code, Error, Result};
use crate::host::retry::Backoff;
use crate::report::event::{Progress, Unit};

/// Attempts at one download without getting on.
pub(crate) const ATTEMPTS: u32 = 5;

/// So many further bytes prove that a download gets on: its failures are forgotten. Firewalls that count bytes cut
/// connections at 64 KiB.
pub(crate) const PROOF: u64 = 32 << 10;

/// A connection that brings less than this in [`Patience::trickle`] counts as dead.
const TRICKLE: u64 = 16 << 10;

/// Waits between attempts.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(250);
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The longest `Retry-After` that is waited for; a server that asks for more is as good as down.
pub(crate) const LONGEST_ASKED_WAIT: Duration = Duration::from_mins(1);

/// How long a server is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a connection is made.
    pub connect: Duration,
    /// Silence after which a connection counts as dead.
    pub silence: Duration,
    /// A connection that brings next to nothing in this time counts as dead, too.
    pub trickle: Duration,
    /// A download with all its attempts; for packages, all of them together.
    pub total: Duration,
}

impl Default for Patience {
    /// Far servers behind slow proxies still answer in these times; the whole is apt's limit for an installation.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            trickle: Duration::from_mins(1),
            total: Duration::from_hours(3),
        }
    }
}

/// Attempts left, and the wait before the next.
pub(super) struct Budget {
    left: u32,
    backoff: Backoff,
    /// The most bytes that were ever there.
    reached: u64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: ATTEMPTS - 1, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), reached: 0 }
    }

    /// Waits if there is to be another attempt, and tells `say` what for; returns the error if not. `reached` is the
    /// number of bytes that need not be fetched again.
    pub(super) async fn wait_after(
        &mut self,
        failed: Failed,
        reached: u64,
        say: impl Fn(Progress),
    ) -> Result<()> {
        let (error, asked) = match failed {
            Failed::Surely(error) => return Err(error),
            Failed::Maybe(error, asked) => (error, asked),
        };
        if reached >= self.reached + PROOF {
            *self = Self { reached, ..Self::new() };
        }
        let wait = asked.unwrap_or_else(|| self.backoff.next_wait());
        if self.left == 0 || wait > LONGEST_ASKED_WAIT {
            return Err(error);
        }
        self.left -= 1;
        tracing::info!(error = %error, wait_ms = wait.as_millis(), "trying the download again");
        say(waiting(error.message(), wait));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What is said while a server is given time; `why` names it.
pub(crate) fn waiting(why: &str, wait: Duration) -> Progress {
    Progress {
        what: "waiting to try again".into(),
        item: why.to_owned(),
        done: 0,
        total: Some(wait.as_secs()),
        unit: Unit::Seconds,
    }
}

/// Tells a body that trickles from one that is only slow.
pub(crate) struct Trickle {
    limit: Duration,
    since: Instant,
    bytes: u64,
}

impl Trickle {
    /// Nothing has come yet.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), bytes: 0 }
    }

    /// Takes note of bytes that have come from `url`; fails where next to none have for too long.
    pub(crate) fn add(&mut self, url: &Url, count: usize) -> Result<(), Failed> {
        self.bytes += count as u64;
        if self.since.elapsed() < self.limit {
            return Ok(());
        }
        let came = std::mem::take(&mut self.bytes);
        self.since = Instant::now();
        if came >= TRICKLE {
            return Ok(());
        }
        let text = format!("{} brought {came} bytes in {} s", shown(url), self.limit.as_secs_f64());
        Err(Failed::Maybe(Error::new(Code::Fetch, text), None))
    }
}

/// The end of every patience.
pub(crate) fn out_of_time(what: &str, limit: Duration) -> Error {
    Error::new(Code::Fetch, format!("{what} was not there after {} s", limit.as_secs_f64()))
        .with_hint("use a nearer mirror, or see what slows the network down; then run again")
}
