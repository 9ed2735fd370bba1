//! What becomes of a job that has ended badly, and of its item.

use std::time::{Duration, Instant};

use reqwest::Url;

use super::super::Event;
use super::super::answer::{Fault, Trouble, too_short};
use super::super::item::{Mode, Place};
use super::super::job::{Job, host_of};
use super::{HASH_FROM, Plan};
use crate::error::{Code, Error};
use crate::host::fetch::{ATTEMPTS, FIRST_WAIT, LONGEST_ASKED_WAIT, shown};

/// Waits that somebody should be told of.
const WORTH_SAYING: Duration = Duration::from_secs(1);
/// How often a file may change on its server before it is fetched in one piece.
const CHANGES: u32 = 2;

impl Plan {
    /// Takes note that a worker is done with its job, well or not.
    pub(in super::super) fn ended(
        &mut self,
        worker: usize,
        ticket: u64,
        outcome: Result<(), Fault>,
        now: Instant,
    ) {
        let Some(job) = self.jobs[worker].take_if(|j| j.ticket == ticket) else { return };
        self.effects.work = true;
        if job.received() >= HASH_FROM {
            self.rates[worker] = Some(job.overall_rate(now));
        }
        let is_live = self.is_live(&job);
        let item = &mut self.items[job.item];
        if item.generation == job.generation && item.place.is_opening() {
            item.place = Place::None;
        }
        if !is_live || job.is_taken_away {
            return;
        }
        let rest = job.written..job.end;
        let fault = match outcome {
            Ok(()) if rest.is_empty() => return,
            Ok(()) => {
                let range = &job.asked.range;
                too_short(&job.url, job.written - range.start, range.end - range.start)
            }
            Err(fault) => fault,
        };
        self.items[job.item].give_back(rest);
        self.failed(&job, fault, now);
    }

    fn failed(&mut self, job: &Job, fault: Fault, now: Instant) {
        let index = job.item;
        let item = &mut self.items[index];
        match fault {
            Fault::Retry(error, asked, trouble) => {
                self.slow_down(job, trouble, asked, now);
                let resumes = trouble == Trouble::Broken && job.written > job.asked.range.start;
                if self.count(index, error, job.began, asked, now) {
                    self.again(index, resumes);
                }
            }
            // Ranges failed: the whole file in one piece is another way, but there is only one such way.
            Fault::Ranges(error) => {
                let is_new = !item.is_whole();
                item.make_whole();
                if self.count(index, error, job.began, None, now) {
                    if is_new {
                        self.items[index].budget.not_before = None;
                    }
                    self.start_over(index);
                }
            }
            // An address that a redirect gave may have expired; the original one may lead elsewhere now.
            Fault::Final(error) if job.url != item.original => {
                item.at = item.original.clone();
                item.host = host_of(&item.at, &mut self.hosts, self.per_host);
                if self.count(index, error, job.began, None, now) {
                    self.again(index, false);
                }
            }
            Fault::Final(error) | Fault::Local(error) => self.fail(index, error),
        }
    }

    /// Another attempt at what is missing: at once where a connection broke that had brought something, because
    /// another one goes on where it ended.
    fn again(&mut self, index: usize, resumes: bool) {
        let item = &mut self.items[index];
        if item.is_whole() {
            if item.is_touched {
                self.start_over(index);
            } else {
                item.next = 0;
                item.gaps.clear();
            }
        } else if resumes && item.budget.failures <= 1 {
            item.budget.not_before = None;
        }
    }

    /// Counts a failure and sets when the next attempt may be; fails the item when there is none.
    fn count(
        &mut self,
        index: usize,
        error: Error,
        began: Instant,
        asked: Option<Duration>,
        now: Instant,
    ) -> bool {
        let budget = &mut self.items[index].budget;
        let is_too_long = asked.is_some_and(|wait| wait > LONGEST_ASKED_WAIT);
        // Requests that were on their way together tell of the same event.
        if budget.counted.is_some_and(|at| began < at) && !is_too_long {
            budget.not_before = budget.not_before.max(asked.map(|wait| now + wait));
            self.counts.retries += 1;
            return true;
        }
        budget.failures += 1;
        if budget.failures >= ATTEMPTS || is_too_long {
            self.fail(index, error);
            return false;
        }
        let wait = asked.unwrap_or_else(|| budget.backoff.next_wait());
        tracing::info!(error = %error, wait_ms = wait.as_millis(), "trying the download again");
        if wait >= WORTH_SAYING {
            self.effects.events.push(Event::Waiting { why: error.message().to_owned(), wait });
        }
        (budget.counted, budget.not_before, budget.received_since) = (Some(now), Some(now + wait), 0);
        self.counts.retries += 1;
        true
    }

    fn slow_down(&mut self, job: &Job, trouble: Trouble, asked: Option<Duration>, now: Instant) {
        let index = self.items[job.item].host;
        let used = self.jobs.iter().flatten().filter(|j| self.items[j.item].host == index).count() + 1;
        let host = &mut self.hosts[index];
        if trouble == Trouble::Busy {
            let wait = asked.unwrap_or(FIRST_WAIT).min(LONGEST_ASKED_WAIT);
            host.not_before = host.not_before.max(Some(now + wait));
        }
        if host.trouble.is_some_and(|at| job.began < at) {
            return;
        }
        match trouble {
            Trouble::None => return,
            Trouble::Broken => host.limit = host.limit.min((used * 3 / 4).max(1)),
            Trouble::Busy => host.limit = host.limit.min((used / 2).max(1)),
        }
        host.trouble = Some(now);
    }

    /// The server has another file by now than when the first bytes of it were fetched.
    pub(super) fn changed(&mut self, worker: usize, index: usize, url: &Url, now: Instant) {
        let error = Error::new(Code::Fetch, format!("{} changed while it was being downloaded", shown(url)))
            .with_hint("the mirror is being updated; run `apt-get update` and try again");
        let began = self.jobs[worker].as_ref().map_or(now, |j| j.began);
        self.items[index].changes += 1;
        if self.items[index].changes >= CHANGES {
            self.items[index].make_whole();
        }
        if self.count(index, error, began, None, now) {
            self.start_over(index);
        }
    }

    /// A wrong sum may be the fault of a cache on the way or of its ranges: once, the whole file is fetched anew.
    pub(super) fn mismatch(&mut self, index: usize, digest: &str) {
        let item = &mut self.items[index];
        if item.mode == Mode::PastCaches {
            let url = shown(&item.original);
            let text = format!("sha256 of {url} is {digest}, expected {}; nothing was kept", item.sha256);
            let error = Error::new(Code::ChecksumMismatch, text)
                .with_hint("the mirror or a proxy on the way is out of date or damaged; run `apt-get update` and try again");
            self.fail(index, error);
            return;
        }
        tracing::warn!(
            url = shown(&item.at),
            digest,
            expected = item.sha256,
            "wrong sum; fetching the file once more"
        );
        (item.mode, item.at) = (Mode::PastCaches, item.original.clone());
        item.host = host_of(&item.at, &mut self.hosts, self.per_host);
        self.counts.retries += 1;
        self.start_over(index);
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Simulation;
    use super::*;

    const MB: u64 = 1 << 20;

    fn broken() -> Fault {
        Fault::Retry(Error::new(Code::Fetch, "it broke"), None, Trouble::Broken)
    }

    fn busy(seconds: u64) -> Fault {
        let wait = Some(Duration::from_secs(seconds));
        Fault::Retry(Error::new(Code::Fetch, "it is busy"), wait, Trouble::Busy)
    }

    #[test]
    fn what_broke_is_asked_for_again_at_once_from_where_it_broke() {
        let mut s = Simulation::new(&[100 * MB], 2);
        let order = s.begin(0);
        s.receive(0, &order, 12_345).unwrap();
        s.plan.ended(0, order.ticket, Err(broken()), s.now);
        assert_eq!(s.take(0).unwrap().asked.range.start, 12_345);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let mut s = Simulation::new(&[1000 * MB], 20);
        let orders: Vec<_> = (0..20).map(|worker| s.begin(worker)).collect();
        s.pass(10);
        for (worker, order) in orders.iter().enumerate() {
            s.plan.ended(worker, order.ticket, Err(broken()), s.now);
        }
        assert_eq!(s.plan.items[0].budget.failures, 1);
        assert_eq!(s.plan.counts().retries, 20);
        assert_eq!(s.plan.hosts[0].limit, 15, "and take connections once");
        assert!(s.take(0).is_none());
        s.pass(250);
        assert!(s.take(0).is_some(), "after a wait");
    }

    #[test]
    fn attempts_have_an_end() {
        let mut s = Simulation::new(&[100 * MB], 1);
        for attempt in 1..=ATTEMPTS {
            s.pass(10_000);
            let waits = |e: &Event| matches!(e, Event::Waiting { .. });
            assert!(s.plan.effects().events.iter().all(waits), "{attempt}");
            let order = s.take(0).unwrap();
            s.plan.ended(0, order.ticket, Err(broken()), s.now);
        }
        let effects = s.plan.effects();
        assert!(matches!(&effects.events[..], [Event::Failed { item: 0, .. }]));
        assert_eq!(effects.remove.len(), 1);
        assert!(s.plan.is_over());
    }

    #[test]
    fn a_busy_host_is_left_alone_by_all_and_gets_fewer() {
        let mut s = Simulation::new(&[100 * MB; 8], 8);
        let orders: Vec<_> = (0..8).map(|worker| s.begin(worker)).collect();
        s.pass(10);
        s.plan.ended(0, orders[0].ticket, Err(busy(20)), s.now);
        assert_eq!(s.plan.hosts[0].limit, 4);
        for (worker, order) in orders.iter().enumerate().skip(1) {
            s.finish(worker, order);
        }
        s.pass(19_000);
        assert!(s.take(1).is_none());
        s.pass(1000);
        assert!(s.take(1).is_some());
    }

    #[test]
    fn a_server_that_asks_for_too_long_a_wait_is_as_good_as_down() {
        let mut s = Simulation::new(&[100 * MB], 1);
        let order = s.take(0).unwrap();
        s.plan.ended(0, order.ticket, Err(busy(LONGEST_ASKED_WAIT.as_secs() + 1)), s.now);
        assert!(s.plan.is_over());
    }

    #[test]
    fn ranges_that_lie_lead_to_one_piece_at_once() {
        let mut s = Simulation::new(&[100 * MB], 2);
        let (first, second) = (s.begin(0), s.begin(1));
        s.receive(0, &first, 1000).unwrap();
        let fault = Fault::Ranges(Error::new(Code::Fetch, "it lies"));
        s.plan.ended(1, second.ticket, Err(fault), s.now);
        s.plan.ended(0, first.ticket, Ok(()), s.now);
        let whole = s.take(0).unwrap();
        assert_eq!((whole.asked.range, whole.asked.ranged, whole.past_caches), (0..100 * MB, false, false));
    }
}
