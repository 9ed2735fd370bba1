//! One item: which of its bytes are in place, given out or missing, and how often it may still be tried.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use reqwest::Url;
use sha2::{Digest, Sha256};

use super::Item;
use super::answer::Version;
use super::job::{Host, host_of};
use crate::error::{Code, Error, Result};
use crate::host::fetch::{self, FIRST_WAIT, LONGEST_WAIT, PROOF};
use crate::host::retry::Backoff;
use crate::text::parse_url;

/// A rest that is not worth a request of its own.
pub(super) const CRUMB: u64 = 256 << 10;

/// The state of one item.
#[derive(Debug)]
pub(super) struct State {
    pub(super) size: u64,
    pub(super) sha256: String,
    pub(super) path: PathBuf,
    /// The address of the package list.
    pub(super) original: Url,
    /// Where it led to.
    pub(super) at: Url,
    /// The index of that one's host.
    pub(super) host: usize,
    pub(super) end: Option<End>,
    /// Counts the attempts at the file as a whole; bytes of an earlier one are void.
    pub(super) generation: u32,
    pub(super) mode: Mode,
    pub(super) place: Place,
    /// Whether there ever was a file of ours.
    pub(super) was_created: bool,
    pub(super) origin: Origin,
    /// Whether a byte of this generation has been claimed.
    pub(super) is_touched: bool,
    /// What the first answer of this generation said.
    pub(super) version: Option<Version>,
    /// Bytes from here on have never been given out.
    pub(super) next: u64,
    /// Bytes before that which came back, in order.
    pub(super) gaps: Vec<Range<u64>>,
    /// How often a connection has lost its segment of it.
    pub(super) losses: u32,
    /// How often it changed on its server.
    pub(super) changes: u32,
    pub(super) budget: Budget,
    /// Bytes that `sum` covers.
    pub(super) hashed: u64,
    /// `None` while a thread has it.
    pub(super) sum: Option<Sha256>,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Verified,
    Failed,
}

/// Where an item's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// That has yet to be said.
    Unsaid,
    /// From its file, which was there before anything was fetched.
    Given,
    /// From its address.
    Address,
}

/// How an item is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In parts.
    Ranges,
    /// In one piece.
    Whole,
    /// In one piece, and no cache on the way shall answer: the last attempt after a wrong sum.
    PastCaches,
}

/// The file of an item.
#[derive(Clone, Debug)]
pub(super) enum Place {
    None,
    /// A worker is creating it.
    Opening,
    Open(Arc<File>),
}

impl Place {
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        if let Self::Open(file) = self { Some(file) } else { None }
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self, Self::Opening)
    }
}

impl State {
    /// `Err` says why the item cannot be fetched at all.
    pub(super) fn new(item: &Item, hosts: &mut Vec<Host>, per_host: usize) -> Result<Self> {
        if item.sha256.len() != 64 || !item.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            let url = fetch::redact_url(&item.uri);
            let text = format!("the sha256 given for {url} is not 64 lower-case hexadecimal digits");
            return Err(Error::new(Code::Fetch, text));
        }
        // A bundle's files are supplied, never fetched; their address only names them.
        let url = match item.uri.strip_prefix("file:") {
            Some(_) => parse_url(&item.uri).map_err(|why| Error::new(Code::Fetch, why))?,
            None => fetch::parse(&item.uri)?,
        };
        Ok(Self {
            size: item.size,
            sha256: item.sha256.clone(),
            path: item.path.clone(),
            host: host_of(&url, hosts, per_host),
            original: url.clone(),
            at: url,
            end: None,
            generation: 0,
            mode: Mode::Ranges,
            place: Place::None,
            was_created: false,
            origin: Origin::Address,
            is_touched: false,
            version: None,
            next: 0,
            gaps: Vec::new(),
            losses: 0,
            changes: 0,
            budget: Budget::new(),
            hashed: 0,
            sum: Some(Sha256::new()),
        })
    }

    /// Whether it is fetched in one piece.
    pub(super) fn is_whole(&self) -> bool {
        self.mode != Mode::Ranges
    }

    /// From now on in one piece.
    pub(super) fn make_whole(&mut self) {
        if self.mode == Mode::Ranges {
            self.mode = Mode::Whole;
        }
    }

    /// Voids every byte of this attempt.
    pub(super) fn restart(&mut self) {
        self.generation += 1;
        self.place = Place::None;
        self.is_touched = false;
        self.version = None;
        self.next = 0;
        self.gaps.clear();
        self.hashed = 0;
        self.sum = Some(Sha256::new());
    }

    /// Takes bytes back that had been given out.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let at = self.gaps.partition_point(|g| g.start < range.start);
        self.gaps.insert(at, range);
    }

    /// Bytes that nobody is fetching.
    pub(super) fn left(&self) -> u64 {
        self.size - self.next + self.gaps.iter().map(|g| g.end - g.start).sum::<u64>()
    }

    /// The lowest bytes that nobody is fetching, at most `size` of them (and a crumb), now given out.
    pub(super) fn give_out(&mut self, size: u64) -> Range<u64> {
        let end = |range: Range<u64>| {
            let is_little = range.end - range.start <= size.saturating_add(CRUMB);
            if is_little { range.end } else { range.start + size }
        };
        if let Some(gap) = self.gaps.first_mut() {
            let range = gap.start..end(gap.clone());
            gap.start = range.end;
            if gap.is_empty() {
                self.gaps.remove(0);
            }
            return range;
        }
        let range = self.next..end(self.next..self.size);
        self.next = range.end;
        range
    }
}

/// Attempts left at an item. Failures of requests that were on their way together count once.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) failures: u32,
    /// When the last failure was counted.
    pub(super) counted: Option<Instant>,
    /// The next attempt may not be earlier.
    pub(super) not_before: Option<Instant>,
    pub(super) backoff: Backoff,
    /// Bytes since then.
    pub(super) received_since: u64,
}

impl Budget {
    fn new() -> Self {
        Self {
            failures: 0,
            counted: None,
            not_before: None,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            received_since: 0,
        }
    }

    /// Takes note of bytes that need not be fetched again.
    pub(super) fn received(&mut self, bytes: u64) {
        self.received_since += bytes;
        if self.failures > 0 && self.received_since >= PROOF {
            self.failures = 0;
            self.backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        }
    }
}

/// Whether a time has come.
pub(super) fn is_due(not_before: Option<Instant>, now: Instant) -> bool {
    not_before.is_none_or(|at| now >= at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(size: u64) -> State {
        let item =
            Item { uri: "http://host/x".into(), size, sha256: "0".repeat(64), path: "/nowhere".into() };
        State::new(&item, &mut Vec::new(), 1).unwrap()
    }

    #[test]
    fn what_comes_back_goes_out_first_and_lowest() {
        let mut item = state(100 << 20);
        let size = 10 << 20;
        let (first, second) = (item.give_out(size), item.give_out(size));
        assert_eq!((first.clone(), second.clone()), (0..size, size..2 * size));
        item.give_back(second.clone());
        item.give_back(first.clone());
        item.give_back(7..7);
        assert_eq!(item.left(), 100 << 20);
        assert_eq!((item.give_out(size), item.give_out(size)), (first, second));
        assert_eq!(item.give_out(size), 2 * size..3 * size);
    }

    #[test]
    fn no_crumb_is_left_for_a_request_of_its_own() {
        let mut item = state((2 << 20) + CRUMB);
        assert_eq!(item.give_out(1 << 20), 0..1 << 20);
        assert_eq!(item.give_out(1 << 20), 1 << 20..(2 << 20) + CRUMB);
        assert_eq!(item.left(), 0);
        assert_eq!(state(5).give_out(u64::MAX), 0..5);
    }

    #[test]
    fn failures_are_forgotten_after_enough_bytes() {
        let mut budget = Budget::new();
        budget.failures = 3;
        budget.received(PROOF - 1);
        assert_eq!(budget.failures, 3);
        budget.received(1);
        assert_eq!(budget.failures, 0);
    }
}
