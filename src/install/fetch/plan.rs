//! Who fetches which bytes: pure bookkeeping, without sockets, files or clocks of its own.
//!
//! Every worker has at most one job: a range of one item. A job's bytes are *claimed* before they are written and
//! *written* after, so that a job's rest can be taken away at any time without two workers writing the same place.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use sha2::{Digest, Sha256};

use super::answer::{Asked, Body, Fault, Trouble, Version, too_short};
use super::item::{CRUMB, End, Mode, Place, State, is_due};
use super::job::{Host, Job, host_of};
use super::pace::as_f64;
use super::{Event, HostStats, Item};
use crate::error::{Code, Error};
use crate::host::fetch::{ATTEMPTS, FIRST_WAIT, LONGEST_ASKED_WAIT, shown};

/// Sizes of a segment: below, the round trip per request begins to count; above, nothing is saved any more.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 32 << 20;
/// The size of the first segments, before a connection's rate is known.
const FIRST_SIZE: u64 = 2 << 20;
/// Towards an item's end segments shrink, but not below this share of a second's worth.
const SMALLEST_SHARE: f64 = 1.0 / 16.0;
/// What is split at the end of the list: more bytes than these, and more time than that.
const SPLIT_BYTES: u64 = 512 << 10;
const SPLIT_SECONDS: f64 = 0.3;
/// Silence after which a connection loses the rest of its segment while others receive; doubled each time that it
/// happens to the same item, because the server may need its time.
const SILENCE: Duration = Duration::from_secs(2);
/// The same while an answer has not begun, or nobody else receives anything.
const LONG_SILENCE: Duration = Duration::from_secs(6);
/// A connection is slow below this share of its siblings' median rate …
const SLOW_SHARE: f64 = 0.25;
/// … if there are so many of them, and it would need so long for its rest.
const SLOW_SIBLINGS: usize = 3;
const SLOW_SECONDS: f64 = 3.0;
/// Hashing waits for so many bytes, and takes so many at a time.
const HASH_FROM: u64 = 256 << 10;
const HASH_UP_TO: u64 = 4 << 20;
/// A host gets its connections back one by one, after so long without trouble.
const RECOVERY: Duration = Duration::from_secs(2);
/// How often a file may change on its server before it is fetched in one piece.
const CHANGES: u32 = 2;

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
        if item.end.is_some() || item.place.is_opening() || is_all_out || !is_due(item.budget.not_before, now)
        {
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
        let has_no_ranges = self.hosts[item.host].ranges == Some(false);
        let size = self.segment_size(index, worker);
        let item = &mut self.items[index];
        if has_no_ranges && item.next == 0 {
            item.make_whole();
        }
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

    /// The latter part of the job that would take longest, where the idle worker's share of it begins.
    fn split(&mut self, worker: usize, now: Instant) -> Option<(usize, Range<u64>)> {
        // A job too young to have a rate is soon over, or soon seen to be slow.
        let seconds = |j: &Job| j.rate(now).map_or(0.0, |rate| as_f64(j.rest()) / rate.max(1.0));
        let may_be_split = |j: &&Job| {
            let item = &self.items[j.item];
            !item.is_whole()
                && self.hosts[item.host].ranges == Some(true)
                && j.rest() >= SPLIT_BYTES
                && seconds(j) > SPLIT_SECONDS
                && self.has_room(item.host, now)
                && is_due(item.budget.not_before, now)
        };
        let victim = self.live().filter(may_be_split).max_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
        let theirs = victim.rate(now)?.max(1.0);
        let mine = self.rates[worker].or_else(|| self.mean_rate()).unwrap_or(theirs).max(1.0);
        // Both shall end at the same time; a victim that hardly moves loses hardly less than everything.
        let given = to_bytes(as_f64(victim.rest()) * mine / (mine + theirs)).clamp(CRUMB, victim.rest());
        let (ticket, item) = (victim.ticket, victim.item);
        let victim = self.jobs.iter_mut().flatten().find(|j| j.ticket == ticket)?;
        let range = victim.end - given..victim.end;
        victim.end = range.start;
        self.counts.stolen += 1;
        Some((item, range))
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

    /// The server has another file by now than when the first bytes of it were fetched.
    fn changed(&mut self, worker: usize, index: usize, url: &Url, now: Instant) {
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

    /// Takes note that a worker is done with its job, well or not.
    pub(super) fn ended(&mut self, worker: usize, ticket: u64, outcome: Result<(), Fault>, now: Instant) {
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

    /// Looks after connections that hold the rest up, and after hosts that have recovered.
    pub(super) fn look_after(&mut self, now: Instant) {
        for worker in 0..self.jobs.len() {
            if self.is_silent(worker, now) || self.is_slow(worker, now) {
                self.take_away(worker);
            }
        }
        for host in &mut self.hosts {
            if host.limit < self.per_host && host.trouble.is_some_and(|at| now >= at + RECOVERY) {
                host.limit += 1;
                host.trouble = Some(now);
            }
        }
        // Waits end without anybody's doing.
        self.effects.work = true;
    }

    fn take_away(&mut self, worker: usize) {
        let Some(job) = self.jobs[worker].as_mut() else { return };
        let rest = job.claimed..job.end;
        job.end = job.claimed;
        job.is_taken_away = true;
        let item = &mut self.items[job.item];
        item.losses += 1;
        item.give_back(rest);
        self.counts.stolen += 1;
        self.effects.lost.push(worker);
    }

    /// A job whose rest another connection can fetch.
    fn movable(&self, worker: usize) -> Option<&Job> {
        let job = self.jobs[worker].as_ref()?;
        let item = &self.items[job.item];
        let is_movable = self.is_live(job)
            && !job.is_taken_away
            && !item.is_whole()
            && !item.place.is_opening()
            && self.hosts[item.host].ranges == Some(true)
            && job.rest() > 0;
        is_movable.then_some(job)
    }

    fn is_silent(&self, worker: usize, now: Instant) -> bool {
        let Some(job) = self.movable(worker) else { return false };
        let others_receive = self.heard.is_some_and(|at| now.saturating_duration_since(at) < SILENCE / 2);
        let patience = if job.has_begun && others_receive { SILENCE } else { LONG_SILENCE };
        let doubled = patience * 2_u32.pow(self.items[job.item].losses.min(4));
        now.saturating_duration_since(job.heard) >= doubled
    }

    fn is_slow(&self, worker: usize, now: Instant) -> bool {
        let Some(job) = self.movable(worker) else { return false };
        let Some(rate) = job.rate(now).filter(|_| now.saturating_duration_since(job.began) >= SILENCE) else {
            return false;
        };
        let host = self.items[job.item].host;
        let is_sibling = |j: &&Job| j.ticket != job.ticket && self.items[j.item].host == host;
        // Those that have no job left at the end of the list say by their last one what the host can do.
        let busy = self.jobs.iter().flatten().filter(is_sibling).filter_map(|j| j.rate(now));
        let idle = self.jobs.iter().zip(&self.rates).filter(|(j, _)| j.is_none()).filter_map(|(_, r)| *r);
        let mut rates: Vec<f64> = busy.chain(idle).collect();
        if rates.len() < SLOW_SIBLINGS {
            return false;
        }
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        rate < median * SLOW_SHARE && as_f64(job.rest()) > rate * SLOW_SECONDS
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
        } else {
            self.mismatch(work.item, &digest);
        }
    }

    /// A wrong sum may be the fault of a cache on the way or of its ranges: once, the whole file is fetched anew.
    fn mismatch(&mut self, index: usize, digest: &str) {
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

/// A positive number of bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, as is meant here"
)]
fn to_bytes(bytes: f64) -> u64 {
    bytes as u64
}
