//! How many connections: more for as long as more of them are faster.

use std::time::{Duration, Instant};

/// Connections to begin with: enough to see a server's limit per connection, few enough for a small mirror.
const FIRST: usize = 4;
/// The rate is measured over this time; shorter, and one slow chunk looks like a trend.
const STEP: Duration = Duration::from_millis(250);
/// New connections may take this long to show what they add (name, TCP, TLS, slow start).
const PATIENCE: Duration = Duration::from_millis(750);
/// More connections have to add this much, or they are only more load for the server.
const GROWTH: f64 = 1.1;
/// After a vain attempt the next one waits this long; links and neighbours change.
const HOLD: Duration = Duration::from_secs(5);

/// The number of connections that may be used at once. Doubled while that makes the whole faster by a tenth, taken
/// back if not.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    most: usize,
    mark: Mark,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No attempt before this time.
    Hold(Instant),
    /// More connections are being tried.
    Trial { began: Instant, rate_before: f64, limit_before: usize },
}

impl Pace {
    /// Begins with a few connections; never more than `most`.
    pub(super) fn new(most: usize, now: Instant) -> Self {
        let most = most.max(1);
        Self { limit: FIRST.min(most), most, mark: Mark { at: now, bytes: 0 }, phase: Phase::Hold(now) }
    }

    /// How many connections may be used.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Looks at the `bytes` received so far and at how many connections are `busy`, and decides anew. To be called
    /// more often than four times a second.
    pub(super) fn look(&mut self, now: Instant, bytes: u64, busy: usize) {
        let elapsed = now.saturating_duration_since(self.mark.at);
        if elapsed < STEP {
            return;
        }
        let rate = as_f64(bytes.saturating_sub(self.mark.bytes)) / elapsed.as_secs_f64();
        self.mark = Mark { at: now, bytes };
        // Where there is not enough work for the connections there are, their number says nothing.
        if busy < self.limit || rate <= 0.0 {
            return;
        }
        match self.phase {
            Phase::Hold(until) if now >= until => self.try_more(now, rate),
            Phase::Trial { rate_before, .. } if rate >= rate_before * GROWTH => self.try_more(now, rate),
            Phase::Trial { began, limit_before, .. } if now.saturating_duration_since(began) >= PATIENCE => {
                self.limit = limit_before;
                self.phase = Phase::Hold(now + HOLD);
            }
            Phase::Hold(_) | Phase::Trial { .. } => {}
        }
    }

    fn try_more(&mut self, now: Instant, rate: f64) {
        if self.limit == self.most {
            self.phase = Phase::Hold(now + HOLD);
            return;
        }
        self.phase = Phase::Trial { began: now, rate_before: rate, limit_before: self.limit };
        self.limit = (self.limit * 2).min(self.most);
    }
}

/// Bytes as a number to divide by; nothing here is larger than 2^52.
#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
pub(super) fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit after `seconds` on a link that carries `link` bytes per second, `each` per connection.
    fn after(seconds: u64, most: usize, link: f64, each: f64) -> usize {
        let began = Instant::now();
        let mut pace = Pace::new(most, began);
        let mut bytes = 0.0;
        for tick in 1..=seconds * 20 {
            let connections = f64::from(u32::try_from(pace.limit()).unwrap());
            bytes += (connections * each).min(link) / 20.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "positive and small"
            )]
            pace.look(began + Duration::from_millis(50 * tick), bytes as u64, pace.limit());
        }
        pace.limit()
    }

    #[test]
    fn connections_are_added_while_they_help() {
        assert_eq!(after(3, 32, 1e12, 60e6), 32, "each connection is limited, the link is not");
        assert_eq!(after(3, 32, 600e6, 60e6), 16, "ten connections fill the link");
        assert_eq!(after(3, 20, 1e12, 60e6), 20, "the most is the most");
        assert_eq!(after(3, 2, 1e12, 60e6), 2);
    }

    #[test]
    fn connections_that_do_not_help_are_given_up() {
        assert_eq!(after(3, 32, 100e6, 60e6), 4, "two connections fill the link");
    }

    #[test]
    fn too_little_work_says_nothing() {
        let began = Instant::now();
        let mut pace = Pace::new(32, began);
        for tick in 1..100_u32 {
            pace.look(began + STEP * tick, u64::from(tick) * 1000, 3);
        }
        assert_eq!(pace.limit(), 4);
    }

    #[test]
    fn a_vain_attempt_is_repeated_later() {
        let began = Instant::now();
        let mut pace = Pace::new(8, began);
        let mut bytes = 0;
        let mut seen = Vec::new();
        for tick in 1..40_u32 {
            bytes += if tick > 12 && pace.limit() == 8 { 2000 } else { 1000 };
            pace.look(began + STEP * tick, bytes, pace.limit());
            seen.push(pace.limit());
        }
        assert_eq!(seen[..5], [8, 8, 8, 4, 4], "tried, and taken back after {PATIENCE:?}");
        assert_eq!(seen.last(), Some(&8), "the link became faster, and a later attempt found out");
    }
}
