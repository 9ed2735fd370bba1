//! A job: the bytes of one item that one worker fetches by one request; and the host that it asks.

use std::time::{Duration, Instant};

use reqwest::Url;

use super::answer::Asked;
use super::pace::as_f64;

/// Rates are taken over this time, at least.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What a host is known for.
#[derive(Debug)]
pub(super) struct Host {
    /// Scheme, name and port, because each has its own connections.
    pub(super) name: String,
    /// Whether it answers ranges with ranges, once known.
    pub(super) ranges: Option<bool>,
    /// Jobs at once.
    pub(super) limit: usize,
    /// When the limit was last changed.
    pub(super) trouble: Option<Instant>,
    /// It wants to be left alone until then.
    pub(super) not_before: Option<Instant>,
    pub(super) received: u64,
    pub(super) requests: u64,
}

/// The index of a URL's host, a new one if need be.
pub(super) fn host_of(url: &Url, hosts: &mut Vec<Host>, per_host: usize) -> usize {
    let name = url.origin().ascii_serialization();
    if let Some(index) = hosts.iter().position(|h| h.name == name) {
        return index;
    }
    let (trouble, not_before) = (None, None);
    hosts.push(Host { name, ranges: None, limit: per_host, trouble, not_before, received: 0, requests: 0 });
    hosts.len() - 1
}

/// What one worker is doing.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ticket: u64,
    pub(super) item: usize,
    pub(super) generation: u32,
    pub(super) url: Url,
    pub(super) asked: Asked,
    /// Up to where bytes have been claimed (absolute, as all places here).
    pub(super) claimed: u64,
    /// Up to where they have been written.
    pub(super) written: u64,
    /// Where it ends now; others may have taken the rest.
    pub(super) end: u64,
    pub(super) is_taken_away: bool,
    /// Whether its answer has begun.
    pub(super) has_begun: bool,
    pub(super) began: Instant,
    /// When anything was last received.
    pub(super) heard: Instant,
    /// Times and places between which the rate is taken, the earlier one first.
    marks: [(Instant, u64); 2],
}

impl Job {
    /// A job that has just been given out.
    pub(super) fn new(
        ticket: u64,
        item: usize,
        generation: u32,
        url: Url,
        asked: Asked,
        now: Instant,
    ) -> Self {
        let (start, end) = (asked.range.start, asked.range.end);
        Self {
            ticket,
            item,
            generation,
            url,
            asked,
            claimed: start,
            written: start,
            end,
            is_taken_away: false,
            has_begun: false,
            began: now,
            heard: now,
            marks: [(now, start); 2],
        }
    }

    /// The answer has begun.
    pub(super) fn begins(&mut self, now: Instant) {
        self.has_begun = true;
        self.heard = now;
        self.marks = [(now, self.written); 2];
    }

    /// The answer has the whole file instead of a part: nothing of it is in place yet.
    pub(super) fn becomes(&mut self, asked: Asked, generation: u32) {
        self.generation = generation;
        (self.claimed, self.written, self.end) = (asked.range.start, asked.range.start, asked.range.end);
        self.marks = [(self.heard, self.written); 2];
        self.asked = asked;
    }

    /// Claimed bytes have been written.
    pub(super) fn wrote(&mut self, count: u64, now: Instant) {
        self.written += count;
        if now.saturating_duration_since(self.marks[1].0) >= RATE_WINDOW {
            self.marks = [self.marks[1], (now, self.written)];
        }
    }

    /// Bytes per second lately, once there is enough to tell.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let (at, bytes) = self.marks[0];
        let elapsed = now.saturating_duration_since(at);
        let is_enough = self.has_begun && elapsed >= RATE_WINDOW / 4;
        is_enough.then(|| as_f64(self.written - bytes) / elapsed.as_secs_f64())
    }

    /// Bytes per second from the request on.
    pub(super) fn overall_rate(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.began).max(Duration::from_micros(1));
        as_f64(self.received()) / elapsed.as_secs_f64()
    }

    /// Bytes that have come.
    pub(super) fn received(&self) -> u64 {
        self.written - self.asked.range.start
    }

    /// Bytes that have not.
    pub(super) fn rest(&self) -> u64 {
        self.end - self.claimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_late() {
        let began = Instant::now();
        let at = |millis: u64| began + Duration::from_millis(millis);
        let asked = Asked { range: 1000..1_000_000, ranged: true, size: 1_000_000 };
        let mut job = Job::new(1, 0, 0, Url::parse("http://host/").unwrap(), asked, began);
        assert_eq!(job.rate(at(900)), None, "it has not begun");
        job.begins(at(1000));
        job.wrote(100, at(1100));
        assert_eq!(job.rate(at(1100)), None, "too early to tell");
        assert_eq!(job.rate(at(1500)), Some(200.0));
        for tick in 0..30 {
            job.wrote(1000, at(2000 + 100 * tick));
        }
        let rate = job.rate(at(4900)).unwrap();
        assert!((9_000.0..12_000.0).contains(&rate), "{rate}");
        assert_eq!(job.received(), 30_100);
        assert!(job.rate(at(60_000)).unwrap() < 1000.0, "silence shows");
    }
}
