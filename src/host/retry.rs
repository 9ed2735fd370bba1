//! Waiting between attempts: exponential backoff with jitter, and what a server's `Retry-After` asks for. Used
//! by downloads, by the metadata client and by the CloudWatch report.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// Doubles the wait with each attempt. Each wait is drawn between half of its value and all of it, so that a
/// fleet that boots together does not knock together.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Waits of `first`, twice as long each time, never longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// How long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        wait.mul_f64(0.5 + 0.5 * random_fraction())
    }
}

/// What `Retry-After` asks for: seconds, or an HTTP date seen from `now`. `None` when it is neither; a date in
/// the past is no wait at all.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = http_date(value)?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// An HTTP date (`Sun, 06 Nov 1994 08:49:37 GMT`).
pub fn http_date(value: &str) -> Option<Timestamp> {
    static PARSER: DateTimeParser = DateTimeParser::new();
    PARSER.parse_timestamp(value).ok()
}

/// A number in 0..1. The standard library seeds its hash maps from the kernel's random numbers; jitter needs no better.
fn random_fraction() -> f64 {
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_vary() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(300));
        for expected in [50, 100, 200, 300, 300] {
            let wait = backoff.next_wait();
            let full = Duration::from_millis(expected);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} is not within {full:?}/2..{full:?}");
        }
        let drawn: std::collections::BTreeSet<_> = (0..16)
            .map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_wait())
            .collect();
        assert!(drawn.len() > 1, "sixteen waits without any jitter");
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now: Timestamp = "2026-11-23T15:00:00Z".parse().unwrap();
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Mon, 23 Nov 2026 15:00:09 GMT", now), Some(Duration::from_secs(9)));
        assert_eq!(retry_after("Mon, 23 Nov 2026 14:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-3", now), None);
    }
}
