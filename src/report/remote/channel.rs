//! One way out of the machine: a queue, and who empties it. What every channel has in common stands here (waiting,
//! trying again, keeping what cannot be sent); what a request looks like is its [`Target`]'s.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::spool::Spool;
use crate::aws::{Refusal, Refused};
use crate::host::retry::Backoff;

/// Small enough for a full disk's last corner and for a small machine's memory, large enough for hours of a run.
const LIMIT: usize = 2 << 20;
/// Events that come close together make one request. Drawn anew each time, so that a fleet does not knock together.
const GATHER: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Many machines that are turned away at the same time share what the service gives; longer waits would leave it unused.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// What a request on its way gets when the machine goes down.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// How often the other side may refuse the same part of a batch.
const PARTIAL_ATTEMPTS: u32 = 8;

/// Where the deliverer stands, for every channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The run works; more will come.
    Open,
    /// The run is over; what an earlier one left may still come.
    Draining,
    /// What is there is all there is.
    Closed,
    /// Another run's deliverer goes on with what is left: no further request.
    HandOver,
    /// The machine goes down: no further request, and no waiting for answers.
    Stop,
}

/// What the other side took of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// So many of the last items were not taken, and are worth another attempt.
    pub later: usize,
    /// So many others are never going to be taken.
    pub lost: usize,
    /// What there is to say, where nobody had been waiting for it.
    pub note: Option<&'static str>,
}

/// What a channel sends, and how.
pub(super) trait Target {
    /// One thing to be sent.
    type Item: Clone + Serialize + DeserializeOwned;

    /// The channel's name, for people and (with `-` for spaces) for files.
    fn name(&self) -> &'static str;
    /// How long an item is worth being sent.
    fn keeps(&self) -> SignedDuration;
    /// When an item was made.
    fn made(item: &Self::Item) -> Timestamp;
    /// Whether an item may be dropped before others when there are too many.
    fn is_detail(_item: &Self::Item) -> bool {
        false
    }
    /// Whether what an earlier run left is still to be sent from here.
    fn still_holds(&self, _item: &Self::Item) -> bool {
        true
    }
    /// Whether only the newest item counts.
    fn only_the_last(&self) -> bool {
        false
    }
    /// Whether the lack of credentials is no failure.
    fn may_be_off(&self) -> bool {
        false
    }
    /// How many of the first items make one request; at least one. There is at least one.
    fn batch<'a>(&self, _items: impl Iterator<Item = &'a Self::Item>) -> usize
    where
        Self::Item: 'a,
    {
        1
    }
    /// Sends them.
    async fn send(&self, items: &[Self::Item]) -> Result<Taken, Refused>;
}

/// How it stands with a channel, as told to the run and written to `delivery.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The channel's name.
    pub channel: String,
    /// What there is to say, without the name.
    pub sentence: String,
    /// Items that the other side has taken.
    pub sent: u64,
    /// Items that wait to be sent.
    pub waiting: u64,
    /// Items that were given up, because there were too many, they were too old, or they were refused for what they are.
    pub lost: u64,
    /// Whether the deliverer has ended its work on it.
    pub is_over: bool,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.channel, self.sentence)
    }
}

/// A channel's queue and counts.
pub(super) struct Queue<T> {
    items: RefCell<VecDeque<(T, usize)>>,
    /// Of the first items: those that are on their way.
    busy: Cell<usize>,
    sent: Cell<u64>,
    lost: Cell<u64>,
    why: RefCell<Option<String>>,
    /// Why what waits is not on the disk, where it should be.
    unkept: RefCell<Option<String>>,
    note: Cell<Option<&'static str>>,
    /// Something has changed since this was last written to the disk.
    is_news: Cell<bool>,
    off: RefCell<Option<String>>,
    is_over: Cell<bool>,
    is_written: Cell<bool>,
    news: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: RefCell::default(),
            busy: Cell::default(),
            sent: Cell::default(),
            lost: Cell::default(),
            why: RefCell::default(),
            unkept: RefCell::default(),
            note: Cell::default(),
            is_news: Cell::default(),
            off: RefCell::default(),
            is_over: Cell::default(),
            is_written: Cell::default(),
            news: Notify::new(),
        }
    }
}

/// A channel: its target, its queue, and the deliverer's phase.
pub(super) struct Channel<T: Target> {
    target: T,
    queue: Queue<T::Item>,
    phase: watch::Receiver<Phase>,
}

/// What a file of the spool holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept<T> {
    items: Vec<T>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T: Target> Channel<T> {
    pub(super) fn new(target: T, phase: watch::Receiver<Phase>) -> Self {
        Self { target, queue: Queue::default(), phase }
    }

    /// The target, for what it does besides.
    pub(super) fn target(&self) -> &T {
        &self.target
    }

    /// One more thing to be sent.
    pub(super) fn push(&self, item: T::Item) {
        let size = size(&item);
        let mut items = self.queue.items.borrow_mut();
        if self.target.only_the_last() {
            items.truncate(self.queue.busy.get());
        }
        items.push_back((item, size));
        drop(items);
        self.queue.is_news.set(true);
        self.shrink();
        self.queue.news.notify_one();
    }

    /// What an earlier run left, before everything else.
    pub(super) fn adopt(&self, kept: Kept<T::Item>) {
        let mut items = self.queue.items.borrow_mut();
        let at = self.queue.busy.get();
        if !(self.target.only_the_last() && items.len() > at) {
            let items_left = kept.items.into_iter().filter(|item| self.target.still_holds(item));
            for (n, item) in items_left.enumerate() {
                let size = size(&item);
                items.insert(at + n, (item, size));
            }
        }
        drop(items);
        self.shrink();
        self.queue.news.notify_one();
    }

    /// Keeps the queue within [`LIMIT`]: details go first, and then the oldest.
    fn shrink(&self) {
        let mut items = self.queue.items.borrow_mut();
        let busy = self.queue.busy.get();
        let mut bytes: usize = items.iter().map(|(_, size)| size).sum();
        while bytes > LIMIT && items.len() > busy {
            let detail = items.iter().skip(busy).position(|(item, _)| T::is_detail(item)).unwrap_or(0);
            if let Some((_, size)) = items.remove(busy + detail) {
                bytes -= size;
                self.queue.lost.set(self.queue.lost.get() + 1);
            }
        }
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Standing {
        let waiting = self.queue.items.borrow().len();
        let why = self.queue.why.borrow();
        let mut sentence = match (&*self.queue.off.borrow(), waiting, &*why) {
            (Some(why), ..) => format!("off: {why}"),
            (None, 0, None) if self.queue.sent.get() == 0 => "nothing to send".into(),
            (None, 0, None) => self.queue.note.get().unwrap_or("sent").into(),
            (None, 0, Some(why)) => format!("failed: {why}"),
            (None, n, Some(why)) if self.queue.is_over.get() => match &*self.queue.unkept.borrow() {
                None => format!("failed: {why}; {n} kept for the next run"),
                Some(e) => format!("failed: {why}; {n} not kept: {e}"),
            },
            (None, n, Some(why)) => format!("{n} on the way, after: {why}"),
            (None, n, None) => format!("{n} on the way"),
        };
        let lost = self.queue.lost.get();
        if lost > 0 {
            sentence = format!("{sentence}; {lost} given up");
        }
        Standing {
            channel: self.target.name().into(),
            sentence,
            sent: self.queue.sent.get(),
            waiting: waiting as u64,
            lost,
            is_over: self.queue.is_over.get(),
        }
    }

    /// Sends what comes until nothing more can come, and keeps the rest. `told` hears whenever something has changed.
    pub(super) async fn work(&self, spool: &Spool, told: &Notify) {
        self.empty(spool, told).await;
        self.write(spool);
        self.queue.is_over.set(true);
        told.notify_one();
    }

    async fn empty(&self, spool: &Spool, told: &Notify) {
        let mut phase = self.phase.clone();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut partial = 0;
        while self.something_to_send(&mut phase).await {
            self.forget_the_old();
            let batch = self.first_batch();
            if batch.is_empty() {
                continue;
            }
            self.queue.busy.set(batch.len());
            let mut until = phase.clone();
            let sent = tokio::select! {
                sent = self.target.send(&batch) => Some(sent),
                () = last_moment(&mut until) => None,
            };
            self.queue.busy.set(0);
            let refused = match sent {
                None => return, // on its way, and nobody knows how far it got: it is sent again
                Some(Ok(taken)) => {
                    self.took(batch.len(), taken);
                    partial = if taken.later > 0 { partial + 1 } else { 0 };
                    if self.queue.is_written.get() {
                        self.write(spool);
                    }
                    told.notify_one();
                    if taken.later == 0 {
                        *self.queue.why.borrow_mut() = None;
                        backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
                        continue;
                    }
                    if partial >= PARTIAL_ATTEMPTS {
                        self.drop_first(taken.later.min(batch.len()));
                    }
                    Refused::new(Refusal::Temporary, "a part of a batch was refused")
                }
                Some(Err(refused)) => refused,
            };
            match refused.refusal {
                Refusal::Nobody if self.target.may_be_off() => {
                    *self.queue.off.borrow_mut() = Some(refused.to_string());
                    self.queue.items.borrow_mut().clear();
                    return self.nothing_more(&mut phase).await;
                }
                Refusal::Nobody | Refusal::Denied => {
                    *self.queue.why.borrow_mut() = Some(refused.to_string());
                    told.notify_one();
                    return self.nothing_more(&mut phase).await;
                }
                Refusal::Invalid | Refusal::Missing | Refusal::Exists => {
                    *self.queue.why.borrow_mut() = Some(refused.to_string());
                    self.drop_first(batch.len());
                }
                Refusal::Temporary => {
                    *self.queue.why.borrow_mut() = Some(refused.to_string());
                    if !self.queue.is_written.get() {
                        self.write(spool);
                    }
                    let wait = refused.retry_after.unwrap_or_default().max(backoff.next_wait());
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        _ = phase.wait_for(|p| *p >= Phase::HandOver) => return,
                    }
                }
            }
            told.notify_one();
        }
    }

    /// Waits for something to send. `false` when there is nothing more to be done.
    async fn something_to_send(&self, phase: &mut watch::Receiver<Phase>) -> bool {
        loop {
            let now = *phase.borrow_and_update();
            let is_empty = self.queue.items.borrow().is_empty();
            match now {
                Phase::HandOver | Phase::Stop => return false,
                Phase::Closed => return !is_empty,
                Phase::Draining if !is_empty => return true,
                Phase::Open | Phase::Draining if is_empty => {
                    tokio::select! {
                        () = self.queue.news.notified() => {}
                        // Whoever sets the phase lives as long as the channels.
                        _ = phase.changed() => {}
                    }
                }
                Phase::Open | Phase::Draining => {
                    // What comes within the next moments goes along.
                    let wait = Backoff::new(GATHER, GATHER).next_wait();
                    let _ = tokio::time::timeout(wait, phase.changed()).await;
                    return *phase.borrow() < Phase::HandOver;
                }
            }
        }
    }

    /// Nothing more is sent: waits until nothing more can come, so that it is kept, too.
    async fn nothing_more(&self, phase: &mut watch::Receiver<Phase>) {
        let _ = phase.wait_for(|p| *p >= Phase::Closed).await; // an error means that the deliverer has ended
        if self.queue.off.borrow().is_some() {
            self.queue.items.borrow_mut().clear();
        }
    }

    fn first_batch(&self) -> Vec<T::Item> {
        let items = self.queue.items.borrow();
        if items.is_empty() {
            return Vec::new();
        }
        let n = self.target.batch(items.iter().map(|(item, _)| item)).max(1);
        items.iter().take(n).map(|(item, _)| item.clone()).collect()
    }

    /// Counts and removes what was taken; what is to be tried again stays in front.
    fn took(&self, all: usize, taken: Taken) {
        let done = all.saturating_sub(taken.later);
        self.queue.items.borrow_mut().drain(..done);
        let lost = taken.lost.min(done) as u64;
        self.queue.lost.set(self.queue.lost.get() + lost);
        self.queue.sent.set(self.queue.sent.get() + done as u64 - lost);
        self.queue.note.set(taken.note);
    }

    fn drop_first(&self, n: usize) {
        self.queue.items.borrow_mut().drain(..n);
        self.queue.lost.set(self.queue.lost.get() + n as u64);
    }

    /// What nobody would take any more.
    fn forget_the_old(&self) {
        let keeps = self.target.keeps();
        let now = Timestamp::now();
        let mut items = self.queue.items.borrow_mut();
        let before = items.len();
        items.retain(|(item, _)| now.duration_since(T::made(item)) < keeps);
        self.queue.lost.set(self.queue.lost.get() + (before - items.len()) as u64);
    }

    /// Brings what waits to the disk, where the other side has refused something, or where the run is over and it may
    /// take longer than that: from then on, only the disk knows of it when this process is killed.
    pub(super) fn secure(&self, spool: &Spool, is_over: bool) {
        let is_in_trouble = self.queue.why.borrow().is_some();
        if self.queue.is_news.get() && (is_in_trouble || is_over) {
            self.write(spool);
        }
    }

    /// Brings what waits to the disk, or removes it from there when nothing does.
    pub(super) fn write(&self, spool: &Spool) {
        let items = self.queue.items.borrow();
        self.queue.is_news.set(false);
        if items.is_empty() {
            if self.queue.is_written.replace(false) {
                spool.remove(self.target.name());
            }
            return;
        }
        let items = items.iter().map(|(item, _)| item.clone()).collect();
        // There is no better place for it than the disk, and nobody else to tell.
        let written = spool.write(self.target.name(), &Kept { items });
        self.queue.is_written.set(written.is_ok());
        *self.queue.unkept.borrow_mut() = written.err().map(|e| e.to_string());
    }
}

fn size<T: Serialize>(item: &T) -> usize {
    serde_json::to_vec(item).map_or(0, |bytes| bytes.len())
}

/// The machine goes down, and a request that is on its way has had its moment.
async fn last_moment(phase: &mut watch::Receiver<Phase>) {
    if phase.wait_for(|p| *p == Phase::Stop).await.is_ok() {
        tokio::time::sleep(LAST_MOMENT).await;
    } else {
        std::future::pending::<()>().await;
    }
}
