//! Who fetches which bytes: pure bookkeeping, without sockets, files or clocks of its own.
//!
//! Every worker has at most one job: a range of one item. A job's bytes are *claimed* before they are written and
//! *written* after, so that a job's rest can be taken away at any time without two workers writing the same place.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use reqwest::Url;
use sha2::{Digest, Sha256};

use super::answer::{Asked, Body, Version};
use super::item::{End, Mode, Origin, Place, State, is_due};
use super::job::{Host, Job, host_of};
use super::{Event, HostStats, Item};
use crate::error::Error;
use crate::host::fetch::shown;

mod balance;
mod failures;
mod supply;

/// Sizes of a segment: below, the round trip per request begins to count; above, nothing is saved any more.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 32 << 20;
/// The size of the first segments, before a connection's rate is known.
const FIRST_SIZE: u64 = 2 << 20;
/// Towards an item's end segments shrink, but not below this share of a second's worth.
const SMALLEST_SHARE: f64 = 1.0 / 16.0;
/// Hashing waits for so many bytes, and takes so many at a time.
const HASH_FROM: u64 = 256 << 10;
const HASH_UP_TO: u64 = 4 << 20;
/// The state of all items, hosts and jobs.
#[derive(Debug)]
pub(super) struct Plan {
    items: Vec<State>,
    hosts: Vec<Host>,
    /// By worker.
    jobs: Vec<Option<Job>>,
    /// By worker: bytes per second of its last job.
    rates: Vec<Option<f64>>,
    /// Workers that may take jobs: those below this number.
    allowed: usize,
    per_host: usize,
    tickets: u64,
    heard: Option<Instant>,
    effects: Effects,
    counts: Counts,
}

/// What a change of the plan asks for outside of it.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// There may be work for idle workers.
    pub(super) work: bool,
    /// There may be something to hash.
    pub(super) hash: bool,
    /// Workers whose jobs have been taken away.
    pub(super) lost: Vec<usize>,
    /// Files to remove.
    pub(super) remove: Vec<PathBuf>,
    /// What to tell the caller, after that.
    pub(super) events: Vec<Event>,
}

/// What has been counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Body bytes received and written, those of failed attempts too.
    pub(super) received: u64,
    /// Jobs begun.
    pub(super) requests: u64,
    /// Failures after which there was another attempt.
    pub(super) retries: u64,
    /// Rests of segments that other connections got.
    pub(super) stolen: u64,
    /// Most jobs at once.
    pub(super) most_at_once: usize,
}

/// What a worker shall do.
#[derive(Debug)]
pub(super) enum Take {
    /// A job.
    Job(Order),
    /// Wait for a change.
    Wait,
    /// Go: every item has ended.
    Over,
}

/// A job as its worker sees it.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Names the job in all calls; never used again.
    pub(super) ticket: u64,
    /// Index of the item.
    pub(super) item: usize,
    /// Where to ask.
    pub(super) url: Url,
    /// What to ask for.
    pub(super) asked: Asked,
    /// Whether caches on the way shall be passed by.
    pub(super) past_caches: bool,
    /// Where the bytes go; a worker that gets none creates the file first.
    pub(super) file: Option<Arc<File>>,
}

/// How to create an item's file.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// Whether an earlier attempt's file lies there.
    pub(super) replaces: bool,
}

/// What becomes of an answer.
#[derive(Debug)]
pub(super) enum Heard {
    /// Its bytes are wanted: these, into this file (or into one that is to be created).
    Wanted(Asked, Option<Arc<File>>),
    /// Nobody wants it.
    Lost,
}

/// Bytes to hash.
#[derive(Debug)]
pub(super) struct HashWork {
    pub(super) item: usize,
    generation: u32,
    pub(super) file: Arc<File>,
    pub(super) range: Range<u64>,
    pub(super) sum: Sha256,
}

impl Plan {
    /// The plan for `items`, fetched by so many `workers`, so many of them at one host.
    pub(super) fn new(items: &[Item], workers: usize, per_host: usize) -> Self {
        let (mut hosts, mut states, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        // An item that cannot be fetched needs a state as well, because items are known by their index.
        let nowhere =
            || Item { uri: "http://localhost/".into(), size: 0, sha256: "0".repeat(64), path: "".into() };
        for (index, item) in items.iter().enumerate() {
            match State::new(item, &mut hosts, per_host) {
                Ok(state) => states.push(state),
                Err(error) => {
                    refused.push((index, error));
                    states.extend(State::new(&nowhere(), &mut Vec::new(), per_host));
                }
            }
        }
        let mut plan = Self {
            items: states,
            hosts,
            jobs: (0..workers).map(|_| None).collect(),
            rates: vec![None; workers],
            allowed: 0,
            per_host,
            tickets: 0,
            heard: None,
            effects: Effects::default(),
            counts: Counts::default(),
        };
        for (index, error) in refused {
            plan.fail(index, error);
        }
        plan
    }

    /// What has to be done outside since the last call.
    pub(super) fn effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// What has been counted so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// By host.
    pub(super) fn host_stats(&self) -> BTreeMap<String, HostStats> {
        let stats = |h: &Host| HostStats { ranges: h.ranges, requests: h.requests, bytes: h.received };
        self.hosts.iter().map(|h| (h.name.clone(), stats(h))).collect()
    }

    /// Whether every item has ended.
    pub(super) fn is_over(&self) -> bool {
        self.items.iter().all(|i| i.end.is_some())
    }

    /// Jobs at the moment.
    pub(super) fn busy(&self) -> usize {
        self.jobs.iter().flatten().count()
    }

    /// Bytes of all items that are in place (those of verified ones, and of the current attempt at others).
    pub(super) fn bytes(&self) -> u64 {
        let missing: u64 = self.live().map(|j| j.end - j.written).sum();
        let given: u64 = self
            .items
            .iter()
            .map(|i| match i.end {
                None => i.size - i.left(),
                Some(End::Verified) => i.size,
                Some(End::Failed) => 0,
            })
            .sum();
        given - missing
    }

    /// Files of items that have not been verified.
    pub(super) fn unfinished_files(&self) -> Vec<PathBuf> {
        let unfinished = |i: &&State| i.was_created && i.end != Some(End::Verified);
        self.items.iter().filter(unfinished).map(|i| i.path.clone()).collect()
    }

    /// Sets how many workers may take jobs.
    pub(super) fn allow(&mut self, workers: usize) {
        self.effects.work |= workers > self.allowed;
        self.allowed = workers;
    }

    /// A job for a worker that has none.
    pub(super) fn take(&mut self, worker: usize, now: Instant) -> Take {
        if self.is_over() {
            return Take::Over;
        }
        if worker >= self.allowed {
            return Take::Wait;
        }
        let found = (0..self.items.len()).find_map(|item| self.offer(item, worker, now).map(|r| (item, r)));
        let Some((item, range)) = found.or_else(|| self.split(worker, now)) else { return Take::Wait };
        self.begin(worker, item, range, now)
    }

    /// The next bytes of an item, if there are any that may be asked for now.
    fn offer(&mut self, index: usize, worker: usize, now: Instant) -> Option<Range<u64>> {
        let item = &self.items[index];
        let is_all_out = item.left() == 0 && (item.size > 0 || item.place.file().is_some());
        let is_out =
            item.end.is_some() || item.origin == Origin::Unsaid || item.place.is_opening() || is_all_out;
        if is_out || !is_due(item.budget.not_before, now) {
            return None;
        }
        if !self.has_room(item.host, now) {
            return None;
        }
        let is_first = item.version.is_none();
        // Until the first answer nobody knows whether there are ranges, or where the address leads.
        if is_first && self.live().any(|j| j.item == index) {
            return None;
        }
        let size = self.segment_size(index, worker);
        let item = &mut self.items[index];
        Some(item.give_out(if item.is_whole() { item.size } else { size }))
    }

    fn has_room(&self, host: usize, now: Instant) -> bool {
        let used = self.jobs.iter().flatten().filter(|j| self.items[j.item].host == host).count();
        used < self.hosts[host].limit && is_due(self.hosts[host].not_before, now)
    }

    /// About what the worker receives in a second; less towards the item's end, so that its connections (and its
    /// hash) end together.
    fn segment_size(&self, item: usize, worker: usize) -> u64 {
        let item = &self.items[item];
        let rate = self.rates[worker].or_else(|| self.mean_rate());
        let second = rate.map_or(FIRST_SIZE, to_bytes);
        let smallest = rate.map_or(SMALLEST, |r| to_bytes(r * SMALLEST_SHARE));
        let share = item.left() / (2 * self.allowed.max(1) as u64);
        second.min(share.max(smallest)).clamp(SMALLEST, LARGEST)
    }

    fn mean_rate(&self) -> Option<f64> {
        let known: Vec<f64> = self.rates.iter().flatten().copied().collect();
        let count = u32::try_from(known.len()).ok().filter(|n| *n > 0)?;
        Some(known.iter().sum::<f64>() / f64::from(count))
    }

    fn begin(&mut self, worker: usize, index: usize, range: Range<u64>, now: Instant) -> Take {
        self.tickets += 1;
        let item = &mut self.items[index];
        let ranged = !item.is_whole() && range != (0..item.size);
        let asked = Asked { range, ranged, size: item.size };
        let order = Order {
            ticket: self.tickets,
            item: index,
            url: item.at.clone(),
            asked: asked.clone(),
            past_caches: item.mode == Mode::PastCaches,
            file: item.place.file().cloned(),
        };
        if order.file.is_none() {
            item.place = Place::Opening;
        }
        let url = item.at.clone();
        self.jobs[worker] = Some(Job::new(self.tickets, index, item.generation, url, asked, now));
        if item.size > 0 {
            self.counts.requests += 1;
            self.hosts[item.host].requests += 1;
        }
        self.counts.most_at_once = self.counts.most_at_once.max(self.busy());
        Take::Job(order)
    }

    /// How to create the file of an item.
    pub(super) fn creation(&self, item: usize) -> Creation {
        let item = &self.items[item];
        Creation { path: item.path.clone(), size: item.size, replaces: item.was_created }
    }

    /// Takes note of the file that a worker has created for its job; `false` if nobody wants it any more.
    pub(super) fn opened(&mut self, worker: usize, ticket: u64, file: &Arc<File>) -> bool {
        if !self.is_wanted(worker, ticket) {
            return false;
        }
        let Some(job) = self.job(worker, ticket) else { return false };
        let index = job.item;
        let item = &mut self.items[index];
        item.place = Place::Open(Arc::clone(file));
        item.was_created = true;
        self.effects.work = true;
        self.effects.hash |= item.size == 0;
        true
    }

    /// Whether a worker's job still is one.
    pub(super) fn is_wanted(&self, worker: usize, ticket: u64) -> bool {
        self.jobs[worker].as_ref().is_some_and(|j| j.ticket == ticket && !j.is_taken_away && self.is_live(j))
    }

    fn is_live(&self, job: &Job) -> bool {
        let item = &self.items[job.item];
        item.end.is_none() && item.generation == job.generation
    }

    /// Jobs whose bytes count.
    fn live(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().flatten().filter(|j| self.is_live(j))
    }

    fn job(&mut self, worker: usize, ticket: u64) -> Option<&mut Job> {
        self.jobs[worker].as_mut().filter(|j| j.ticket == ticket)
    }

    /// Takes note of a trustworthy answer from `url`.
    pub(super) fn answered(
        &mut self,
        worker: usize,
        ticket: u64,
        body: Body,
        url: &Url,
        version: Version,
        now: Instant,
    ) -> Heard {
        if !self.is_wanted(worker, ticket) {
            return Heard::Lost;
        }
        let host = host_of(url, &mut self.hosts, self.per_host);
        let Some(job) = self.jobs[worker].as_mut() else { return Heard::Lost };
        job.begins(now);
        let (index, ranged) = (job.item, job.asked.ranged);
        let item = &mut self.items[index];
        (item.at, item.host) = (url.clone(), host);
        self.effects.work = true;
        if ranged && body == Body::WholeInstead {
            self.hosts[host].ranges.get_or_insert(false);
            return self.whole_instead(worker, index, version);
        }
        if ranged {
            self.hosts[host].ranges = Some(true);
        }
        let differs = item.version.as_ref().is_some_and(|first| first.differs(&version));
        if differs && !item.is_whole() {
            self.changed(worker, index, url, now);
            return Heard::Lost;
        }
        item.version.get_or_insert(version);
        let file = item.place.file().cloned();
        self.job(worker, ticket).map_or(Heard::Lost, |j| Heard::Wanted(j.asked.clone(), file))
    }

    /// The server sends the whole file where a part was asked for: then this is the attempt at the whole file.
    fn whole_instead(&mut self, worker: usize, index: usize, version: Version) -> Heard {
        let item = &mut self.items[index];
        let untouched = if item.is_touched { None } else { item.place.file().cloned() };
        self.start_over(index);
        let item = &mut self.items[index];
        item.make_whole();
        (item.version, item.next) = (Some(version), item.size);
        item.place = untouched.clone().map_or(Place::Opening, Place::Open);
        let asked = Asked { range: 0..item.size, ranged: false, size: item.size };
        let Some(job) = self.jobs[worker].as_mut() else { return Heard::Lost };
        job.becomes(asked.clone(), item.generation);
        Heard::Wanted(asked, untouched)
    }

    fn start_over(&mut self, index: usize) {
        self.lose_jobs(index);
        self.items[index].restart();
        self.effects.work = true;
    }

    fn lose_jobs(&mut self, index: usize) {
        let jobs = self.jobs.iter().enumerate();
        let of_item = jobs.filter(|(_, j)| j.as_ref().is_some_and(|j| j.item == index));
        self.effects.lost.extend(of_item.map(|(worker, _)| worker));
    }

    /// How many of `length` received bytes the worker shall write, and where; `None` if nobody wants the job any
    /// more. Fewer than there are means that the rest is not its own (see [`Plan::is_more_than_asked`]).
    pub(super) fn claim(
        &mut self,
        worker: usize,
        ticket: u64,
        length: usize,
        now: Instant,
    ) -> Option<(u64, usize)> {
        if !self.is_wanted(worker, ticket) {
            return None;
        }
        self.heard = Some(now);
        let job = self.jobs[worker].as_mut()?;
        job.heard = now;
        let (at, count) = (job.claimed, job.rest().min(length as u64));
        job.claimed += count;
        let index = job.item;
        self.items[index].is_touched |= count > 0;
        Some((at, usize::try_from(count).unwrap_or(length)))
    }

    /// Whether a job that has all its bytes has all that its request asked for: then a further byte is one too many.
    pub(super) fn is_more_than_asked(&self, worker: usize, ticket: u64) -> bool {
        self.jobs[worker].as_ref().is_some_and(|j| j.ticket == ticket && j.end == j.asked.range.end)
    }

    /// Takes note of claimed bytes that have been written. Returns whether the job has all its bytes.
    pub(super) fn wrote(&mut self, worker: usize, ticket: u64, count: usize, now: Instant) -> bool {
        let Some(job) = self.job(worker, ticket) else { return true };
        let was_at = job.written;
        job.wrote(count as u64, now);
        let (index, is_full) = (job.item, job.written == job.end);
        self.counts.received += count as u64;
        let Some(job) = self.jobs[worker].as_ref() else { return true };
        if !self.is_live(job) {
            return true;
        }
        let prefix = self.prefix(index);
        let item = &mut self.items[index];
        self.hosts[item.host].received += count as u64;
        if !item.is_whole() {
            item.budget.received(count as u64);
        }
        // Only bytes that close the gap behind what is hashed give the hash something to do.
        let closes = prefix > was_at;
        self.effects.hash |= closes && (prefix == item.size || prefix - item.hashed >= HASH_FROM);
        is_full
    }

    /// Up to where an item's bytes are in place.
    fn prefix(&self, index: usize) -> u64 {
        let item = &self.items[index];
        let begun = self.live().filter(|j| j.item == index && j.written < j.end).map(|j| j.written);
        let gap = item.gaps.first().map(|g| g.start);
        begun.chain(gap).min().unwrap_or(item.next).min(item.next)
    }

    /// Ends an item without success. Its file goes.
    pub(super) fn fail(&mut self, index: usize, error: Error) {
        self.lose_jobs(index);
        let item = &mut self.items[index];
        if item.end.is_some() {
            return;
        }
        item.end = Some(End::Failed);
        item.place = Place::None;
        if item.was_created {
            self.effects.remove.push(item.path.clone());
        }
        self.effects.events.push(Event::Failed { item: index, error });
        self.effects.work = true;
        self.effects.hash = true;
    }

    /// Ends every item that has not ended; `why` is given its address.
    pub(super) fn give_up(&mut self, why: impl Fn(&str) -> Error) {
        for index in 0..self.items.len() {
            let error = why(&shown(&self.items[index].original));
            self.fail(index, error);
        }
    }

    /// Something to hash: of the first item that has enough.
    pub(super) fn next_hash(&mut self) -> Option<HashWork> {
        (0..self.items.len()).find_map(|index| self.hash_of(index))
    }

    fn hash_of(&mut self, index: usize) -> Option<HashWork> {
        let item = &self.items[index];
        if item.end.is_some() || item.sum.is_none() || item.place.file().is_none() {
            return None;
        }
        let prefix = self.prefix(index);
        let is_enough = prefix == item.size || prefix - item.hashed >= HASH_FROM;
        if !is_enough {
            return None;
        }
        let item = &mut self.items[index];
        let range = item.hashed..prefix.min(item.hashed + HASH_UP_TO);
        let file = Arc::clone(item.place.file()?);
        Some(HashWork { item: index, generation: item.generation, file, range, sum: item.sum.take()? })
    }

    /// Takes a sum back that now covers the work's bytes; at the item's end it decides.
    pub(super) fn hashed(&mut self, work: HashWork) {
        let item = &mut self.items[work.item];
        if item.end.is_some() || item.generation != work.generation {
            return;
        }
        item.hashed = work.range.end;
        if item.hashed < item.size {
            item.sum = Some(work.sum);
            // Its next bytes may have come in the meantime.
            self.effects.hash = true;
            return;
        }
        let digest = format!("{:x}", work.sum.finalize());
        if digest == item.sha256 {
            item.end = Some(End::Verified);
            item.place = Place::None;
            self.effects.events.push(Event::Verified { item: work.item });
            self.effects.work = true;
            self.effects.hash = true;
        } else if item.origin == Origin::Given {
            self.refuse(work.item, &format!("its sha256 is {digest}"));
        } else {
            self.mismatch(work.item, &digest);
        }
    }
}

/// A positive number of bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, as is meant here"
)]
fn to_bytes(bytes: f64) -> u64 {
    bytes as u64
}

/// What the tests of this module and of those below it build on.
#[cfg(test)]
mod simulation {
    use std::time::Duration;

    use super::*;

    /// A plan whose clock is moved by hand.
    pub(super) struct Simulation {
        pub(super) plan: Plan,
        pub(super) now: Instant,
        file: Arc<File>,
    }

    impl Simulation {
        /// Items of these sizes, all at one host, and so many workers, all allowed.
        pub(super) fn new(sizes: &[u64], workers: usize) -> Self {
            let item = |(index, size): (usize, &u64)| Item {
                uri: format!("http://host/{index}"),
                size: *size,
                sha256: "0".repeat(64),
                path: "/nowhere".into(),
            };
            let items: Vec<_> = sizes.iter().enumerate().map(item).collect();
            let mut plan = Plan::new(&items, workers, workers);
            plan.allow(workers);
            Self { plan, now: Instant::now(), file: Arc::new(tempfile::tempfile().unwrap()) }
        }

        pub(super) fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }

        /// The worker's next job, with its file created; `None` if it has to wait.
        pub(super) fn take(&mut self, worker: usize) -> Option<Order> {
            let Take::Job(order) = self.plan.take(worker, self.now) else { return None };
            if order.file.is_none() {
                assert!(self.plan.opened(worker, order.ticket, &self.file));
            }
            Some(order)
        }

        /// A job whose answer has begun.
        pub(super) fn begin(&mut self, worker: usize) -> Order {
            let order = self.take(worker).unwrap();
            self.answer(worker, &order);
            order
        }

        pub(super) fn answer(&mut self, worker: usize, order: &Order) {
            let (url, version) = (order.url.clone(), Version::default());
            let heard = self.plan.answered(worker, order.ticket, Body::AsAsked, &url, version, self.now);
            assert!(matches!(heard, Heard::Wanted(..)));
        }

        /// So many bytes come; returns how many of them are the job's, `None` if it is nobody's any more.
        pub(super) fn receive(&mut self, worker: usize, order: &Order, count: u64) -> Option<u64> {
            let count = usize::try_from(count).unwrap();
            let (_, count) = self.plan.claim(worker, order.ticket, count, self.now)?;
            self.plan.wrote(worker, order.ticket, count, self.now);
            Some(count as u64)
        }

        /// All the rest comes, and the job ends.
        pub(super) fn finish(&mut self, worker: usize, order: &Order) {
            self.receive(worker, order, u64::from(u32::MAX)).unwrap();
            self.plan.ended(worker, order.ticket, Ok(()), self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::simulation::Simulation;
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn workers_go_to_the_earliest_item_that_can_use_them() {
        let mut s = Simulation::new(&[100 * MB, 100 * MB, 5], 4);
        let first = s.take(0).unwrap();
        assert_eq!((first.item, first.asked.range.start), (0, 0));
        let others = [s.take(1).unwrap().item, s.take(2).unwrap().item];
        assert_eq!(others, [1, 2], "until its first answer an item has one request");
        assert!(s.take(3).is_none());
        s.answer(0, &first);
        let second = s.take(3).unwrap();
        assert_eq!((second.item, second.asked.range.start), (0, first.asked.range.end));
    }

    #[test]
    fn a_small_file_is_asked_for_whole_and_a_large_one_in_parts() {
        let mut s = Simulation::new(&[MB, 100 * MB], 2);
        assert!(!s.take(0).unwrap().asked.ranged);
        assert!(s.take(1).unwrap().asked.ranged);
    }

    #[test]
    fn segments_follow_the_rate_and_shrink_towards_the_end() {
        let mut s = Simulation::new(&[1000 * MB], 1);
        let mut sizes = Vec::new();
        loop {
            let order = s.take(0);
            let Some(order) = order else { break };
            s.answer(0, &order);
            let size = order.asked.range.end - order.asked.range.start;
            sizes.push(size);
            // 16 MiB per second.
            s.pass(size * 1000 / (16 * MB));
            s.finish(0, &order);
        }
        assert_eq!(sizes.iter().sum::<u64>(), 1000 * MB);
        assert_eq!(sizes[0], FIRST_SIZE);
        assert!((15 * MB..=17 * MB).contains(&sizes[3]), "{sizes:?}");
        let (last, others) = sizes.split_last().unwrap();
        assert!(*last <= SMALLEST && others.iter().all(|s| (SMALLEST..=LARGEST).contains(s)), "{sizes:?}");
    }

    #[test]
    fn only_what_is_contiguous_and_written_is_hashed() {
        let mut s = Simulation::new(&[100 * MB], 3);
        let first = s.begin(0);
        let second = s.begin(1);
        s.finish(1, &second);
        assert!(s.plan.next_hash().is_none(), "nothing of the beginning is there");
        let at = first.asked.range.end - MB;
        s.receive(0, &first, at).unwrap();
        let (claimed, count) = s.plan.claim(0, first.ticket, 1 << 20, s.now).unwrap();
        assert_eq!((claimed, count), (at, 1 << 20));
        let work = s.plan.next_hash().unwrap();
        assert_eq!(work.range, 0..at, "claimed bytes may not have been written");
        assert!(s.plan.next_hash().is_none(), "one thread per item");
        s.plan.wrote(0, first.ticket, count, s.now);
        s.plan.hashed(work);
        let work = s.plan.next_hash().unwrap();
        assert_eq!(work.range, at..second.asked.range.end);
        s.plan.fail(0, Error::new(crate::error::Code::Fetch, "x"));
        s.plan.hashed(work);
        assert_eq!(s.plan.effects().events.len(), 1, "a sum of what has failed changes nothing");
    }

    #[test]
    fn a_whole_answer_to_a_part_voids_the_other_parts() {
        let mut s = Simulation::new(&[100 * MB], 2);
        let first = s.begin(0);
        let second = s.take(1).unwrap();
        s.receive(0, &first, 1000).unwrap();
        let (url, version) = (second.url.clone(), Version::default());
        let heard = s.plan.answered(1, second.ticket, Body::WholeInstead, &url, version, s.now);
        let Heard::Wanted(asked, None) = heard else { panic!("{heard:?}") };
        assert_eq!((asked.range, asked.ranged), (0..100 * MB, false));
        assert_eq!(s.plan.effects().lost, [0, 1], "both look again");
        assert!(s.receive(0, &first, 1000).is_none());
        assert!(s.plan.is_wanted(1, second.ticket));
        s.plan.ended(0, first.ticket, Ok(()), s.now);
        assert!(s.take(0).is_none(), "one piece, one connection");
        assert_eq!(s.plan.bytes(), 0);
    }

    #[test]
    fn a_host_has_no_more_jobs_than_it_may() {
        let mut s = Simulation::new(&[100 * MB; 5], 5);
        s.plan.hosts[0].limit = 2;
        assert!(s.take(0).is_some() && s.take(1).is_some());
        assert!(s.take(2).is_none());
    }
}
