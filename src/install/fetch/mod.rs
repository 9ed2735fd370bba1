//! The fetcher of the package pipeline: many files over many range connections, hashed while they arrive.
//!
//! # How it works
//!
//! [`fetch`] is given the files in the order in which dpkg will want them. A [`plan`] knows which bytes are in
//! place and who is fetching which others. Workers ask it for a *job*, a range of one item: bytes that came back
//! first, then fresh ones, of the earliest item that has any. So the earliest item gets as many connections as it
//! can use and the rest go on with the next one; nobody ever waits for a file to be complete.
//!
//! * **Segments** are about what the worker's connection receives in a second, less towards an item's end, so that
//!   its connections end together. A file that fits into one segment is asked for without a range.
//! * **Until an item's first answer** it has one request: the answer says whether there are ranges and where a
//!   redirect leads. The other connections work on later items meanwhile.
//! * **The number of connections** is doubled while that makes the whole faster ([`pace`]). A host that answers 429
//!   or 503, or breaks connections, gets fewer until it has recovered.
//! * **A connection that is silent or slow** compared with its siblings loses the rest of its segment, which goes
//!   back to the plan. At the end of the list idle workers split the jobs that would take longest. A connection that
//!   breaks is replaced by one that goes on at the byte where it broke.
//! * **Without ranges** a file is one job from its first byte to its last, begun anew if it breaks.
//! * **Bytes** are written by pwrite as they come; a worker holds no more than the HTTP library's read buffer (at
//!   most 408 KiB). Hash threads read them back from the page cache behind the front of what is contiguous, 4 MiB at a
//!   time and the earliest item first, so that the sum is known a few milliseconds after the last byte.
//! * **A wrong sum** leads to one more attempt in one piece, past caches. A file that changes on its server is begun
//!   anew, in another file, so that late writes of the old one cannot reach it.
//! * **A file that is there already** (see [`Supply`]) is hashed like any other, and fetched if it is not the right one.
//!
//! Files have their final place from the beginning, but nobody may look at one before its [`Event::Verified`].
//!
//! # Threads
//!
//! Each network thread has a runtime, a client and its share of the workers; two to eight threads hash; the calling
//! thread delivers the events, looks after slow connections and measures. One lock guards the plan; it is held for
//! about a microsecond, twice per piece of up to 400 KiB.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use reqwest::{Client, Proxy};
use rustls::RootCertStore;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

#[cfg(any(test, fuzzing))]
pub(crate) use self::answer::fuzz as fuzz_answer;
use self::pace::Pace;
use self::plan::{Effects, HashWork, Plan};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fetch::{Patience, builder, out_of_time, redact_url, roots};
use crate::host::proxy;

mod answer;
mod file;
mod hash;
mod item;
mod job;
mod pace;
mod plan;
mod worker;

/// How often the calling thread looks around; the longest that an interruption goes unnoticed.
const LOOK: Duration = Duration::from_millis(50);
/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Connections in all. A CDN gives a connection some tens of MB/s: so many fill 10 Gbit/s.
const MAX_CONNECTIONS: usize = 32;
/// Connections to one host; servers that count them commonly draw the line at some tens.
const MAX_PER_HOST: usize = 24;
/// A network thread carries some GB/s; below so many cores a second one only takes the place of a decoder.
const CORES_FOR_THREADS: usize = 8;
/// Cores per network thread, and the most of these.
const CORES_PER_THREAD: usize = 4;
const MAX_THREADS: usize = 4;

/// One package file.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it is: http or https.
    pub uri: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256: 64 hexadecimal digits, lower case.
    pub sha256: String,
    /// Where its bytes go (outside path): nothing is there yet, but its directory is.
    pub path: PathBuf,
}

/// Which proxy is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// Those that the environment names (`https_proxy`, `no_proxy` …).
    #[default]
    Environment,
    /// One URL per scheme, where there is one (apt's `Acquire::http::Proxy`); may have user and password.
    Given {
        /// For http.
        http: Option<String>,
        /// For https.
        https: Option<String>,
    },
    /// None.
    Direct,
}

/// How to fetch.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The proxy.
    pub proxy: ProxyChoice,
    /// A file with certificates (PEM) to trust besides webpki's and the system's.
    pub extra_roots: Option<PathBuf>,
    /// Connections at once, at most.
    pub max_connections: usize,
    /// Connections at once to one host, at most.
    pub max_per_host: usize,
    /// Network threads.
    pub threads: usize,
    /// Hash threads.
    pub hash_threads: usize,
    /// How long servers are waited for.
    pub patience: Patience,
}

impl Default for Settings {
    /// Proxy and extra certificates (`AWS_CA_BUNDLE`) as the environment has them, threads for this machine.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = if cores < CORES_FOR_THREADS { 1 } else { (cores / CORES_PER_THREAD).min(MAX_THREADS) };
        Self {
            proxy: ProxyChoice::default(),
            extra_roots: std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from),
            max_connections: MAX_CONNECTIONS,
            max_per_host: MAX_PER_HOST,
            threads,
            hash_threads: (cores / CORES_PER_THREAD).clamp(2, 8),
            patience: Patience::default(),
        }
    }
}

impl Settings {
    /// As the host's own client is set up, by this proxy.
    pub(super) fn of(host: &Host, proxy: &ProxyChoice) -> Self {
        Self {
            proxy: proxy.clone(),
            extra_roots: host.fetch.extra_roots(),
            patience: host.fetch.patience(),
            ..Self::default()
        }
    }
}

/// Where an item's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// From its address.
    Address,
    /// A file that should be the right one lies at its path: it only has to be verified. Where it is another one, it
    /// is removed, and the question is asked again.
    Here,
    /// Somebody else is fetching it: the question is asked again soon.
    Soon,
}

/// What [`fetch`] says while it works.
#[derive(Debug)]
pub enum Event {
    /// The item's file is whole and has the right SHA-256.
    Verified {
        /// Its index.
        item: usize,
    },
    /// The item cannot be had. Nothing of it is left.
    Failed {
        /// Its index.
        item: usize,
        /// Why.
        error: Error,
    },
    /// An item is left alone for some time, after a failure.
    Waiting {
        /// What went wrong, a sentence that names the address.
        why: String,
        /// The time.
        wait: Duration,
    },
    /// How far the work has come.
    Progress {
        /// Bytes in place so far, of all items. Fewer than before when a file had to be begun anew.
        bytes: u64,
    },
}

/// What a fetch took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Body bytes received, those of failed attempts too.
    pub bytes: u64,
    /// Seconds from begin to end.
    pub wall_seconds: f64,
    /// Most connections in use at once.
    pub connections: usize,
    /// Requests, redirects not counted.
    pub requests: u64,
    /// Failures after which there was another attempt.
    pub retries: u64,
    /// Segments whose rest another connection got, because their own was slow or the list had come to its end.
    pub segments_stolen: u64,
    /// CPU time of the hash threads, seconds.
    pub hash_cpu_seconds: f64,
    /// CPU time of the network threads, seconds.
    pub network_cpu_seconds: f64,
    /// Whether the fetch was stopped.
    pub is_stopped: bool,
    /// By `scheme://host:port`.
    pub hosts: BTreeMap<String, HostStats>,
}

/// What a host did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HostStats {
    /// Whether it answers a range with that range; `None` if it was never asked for one.
    pub ranges: Option<bool>,
    /// Requests to it.
    pub requests: u64,
    /// Body bytes from it.
    pub bytes: u64,
}

/// Fetches all `items`, earlier ones first. Blocks until each has been verified or has failed, or until `stop` is
/// set; then nothing is left of items that have not been verified. `on` is called on this thread, and should
/// return quickly.
///
/// # Errors
///
/// When nothing can be begun: certificates or proxy cannot be used, no thread can be started. What happens to an
/// item is told by `on`.
pub fn fetch(
    items: &[Item],
    settings: &Settings,
    stop: &AtomicBool,
    on: &(dyn Fn(Event) + Sync),
) -> Result<Stats> {
    fetch_or_take(items, &|_| Supply::Address, settings, stop, on)
}

/// Like [`fetch`]; `supply`, which is called on this thread, says of an item where its bytes come from.
pub fn fetch_or_take(
    items: &[Item],
    supply: &dyn Fn(usize) -> Supply,
    settings: &Settings,
    stop: &AtomicBool,
    on: &(dyn Fn(Event) + Sync),
) -> Result<Stats> {
    let began = Instant::now();
    let (events, told) = channel();
    let shared = Arc::new(Shared::new(items, settings, events));
    shared.plan().wait_for_supply();
    let networks = networks(settings)?;
    let usage = thread::scope(|scope| -> Result<Usage> {
        // Ends the threads however this closure ends.
        let _over = Over(&shared);
        let mut network_threads = Vec::new();
        for (index, network) in networks.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let threads = settings.threads.max(1);
            let mine = (index..settings.max_connections.max(1)).step_by(threads).collect();
            let run = move || network.run(&shared, mine);
            network_threads.push(
                thread::Builder::new().name("fetch".into()).spawn_scoped(scope, run).map_err(no_thread)?,
            );
        }
        let mut hash_threads = Vec::new();
        for _ in 0..settings.hash_threads.max(1) {
            let run = || cpu_seconds_of(|| hash::run(&shared));
            hash_threads.push(
                thread::Builder::new().name("hash".into()).spawn_scoped(scope, run).map_err(no_thread)?,
            );
        }
        let is_stopped = shared.attend(settings, supply, stop, &told, on);
        shared.end();
        // A thread that panicked has nothing to say about its time; the panic itself has been printed.
        let sum = |threads: Vec<thread::ScopedJoinHandle<'_, f64>>| {
            threads.into_iter().filter_map(|t| t.join().ok()).sum()
        };
        Ok(Usage { network: sum(network_threads), hash: sum(hash_threads), is_stopped })
    })?;
    // What the threads said last; some of it, after the plan had already shown what they did.
    told.try_iter().for_each(on);
    for path in shared.plan().unfinished_files() {
        file::remove(&path);
    }
    on(Event::Progress { bytes: shared.plan().bytes() });
    Ok(shared.stats(began.elapsed(), &usage))
}

struct Usage {
    network: f64,
    hash: f64,
    is_stopped: bool,
}

/// What all threads share.
struct Shared {
    plan: Mutex<Plan>,
    /// Wakes hash threads.
    hash: Condvar,
    /// Wakes idle workers.
    work: Notify,
    /// By worker: wakes one whose job has been taken away.
    lost: Vec<Notify>,
    over: watch::Sender<bool>,
    events: Sender<Event>,
    patience: Patience,
}

impl Shared {
    fn new(items: &[Item], settings: &Settings, events: Sender<Event>) -> Self {
        let workers = settings.max_connections.max(1);
        Self {
            plan: Mutex::new(Plan::new(items, workers, settings.max_per_host.max(1))),
            hash: Condvar::new(),
            work: Notify::new(),
            lost: (0..workers).map(|_| Notify::new()).collect(),
            over: watch::Sender::new(false),
            events,
            patience: settings.patience,
        }
    }

    /// A panic elsewhere does not make the plan wrong: it is changed in whole steps.
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the plan, then does what the change asks for, outside of the lock.
    fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        let (result, effects) = {
            let mut plan = self.plan();
            let result = change(&mut plan);
            (result, plan.effects())
        };
        self.carry_out(effects);
        result
    }

    fn carry_out(&self, effects: Effects) {
        if effects.hash {
            self.hash.notify_all();
        }
        for worker in effects.lost {
            self.lost[worker].notify_one();
        }
        for path in effects.remove {
            file::remove(&path);
        }
        for event in effects.events {
            // The receiver lives as long as the threads do.
            let _ = self.events.send(event);
        }
        if effects.work {
            self.work.notify_waiters();
        }
    }

    /// Something to hash; `None` when the fetch is over.
    fn wait_for_hash_work(&self) -> Option<HashWork> {
        let mut plan = self.plan();
        loop {
            if *self.over.borrow() {
                return None;
            }
            if let Some(work) = plan.next_hash() {
                return Some(work);
            }
            plan = self.hash.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Delivers events, measures and looks after the connections until all items have ended (by force when the time
    /// is up) or `stop` is set; returns whether it was.
    fn attend(
        &self,
        settings: &Settings,
        supply: &dyn Fn(usize) -> Supply,
        stop: &AtomicBool,
        told: &Receiver<Event>,
        on: &(dyn Fn(Event) + Sync),
    ) -> bool {
        let began = Instant::now();
        let mut pace = Pace::new(settings.max_connections, began);
        let (mut looked, mut said) = (None::<Instant>, None::<(Instant, u64)>);
        loop {
            let now = Instant::now();
            if looked.is_none_or(|at| now >= at + LOOK) {
                looked = Some(now);
                self.ask_for_supply(supply);
                let bytes = self.change(|plan| {
                    pace.look(now, plan.counts().received, plan.busy());
                    plan.allow(pace.limit());
                    plan.look_after(now);
                    if now - began >= self.patience.total {
                        plan.give_up(|url| out_of_time(url, self.patience.total));
                    }
                    plan.bytes()
                });
                // Where nothing moves, what was said last (a wait) still holds.
                if said.is_none_or(|(at, before)| now >= at + PROGRESS_EVERY && bytes != before) {
                    said = Some((now, bytes));
                    on(Event::Progress { bytes });
                }
            }
            if stop.load(Ordering::SeqCst) {
                return true;
            }
            if self.plan().is_over() {
                return false;
            }
            if let Ok(event) = told.recv_timeout(LOOK) {
                on(event);
            }
        }
    }

    /// Asks where the bytes of those items come from of which that has not been said.
    fn ask_for_supply(&self, supply: &dyn Fn(usize) -> Supply) {
        let waiting = self.plan().waiting();
        for item in waiting {
            let creation = self.plan().creation(item);
            if creation.replaces {
                // What was here was not the right file.
                file::remove(&creation.path);
            }
            match supply(item) {
                Supply::Soon => {}
                Supply::Address => self.change(|plan| plan.fetch_item(item)),
                Supply::Here => match file::open(&creation.path, creation.size) {
                    Ok(Some(file)) => self.change(|plan| plan.given(item, file)),
                    Ok(None) | Err(_) => file::remove(&creation.path), // asked again soon
                },
            }
        }
    }

    /// Ends all threads.
    fn end(&self) {
        self.over.send_replace(true);
        // Under the lock, so that no hash thread is between its look and its sleep.
        let _plan = self.plan();
        self.hash.notify_all();
    }

    fn stats(&self, wall: Duration, usage: &Usage) -> Stats {
        let plan = self.plan();
        let counts = plan.counts();
        Stats {
            bytes: counts.received,
            wall_seconds: wall.as_secs_f64(),
            connections: counts.most_at_once,
            requests: counts.requests,
            retries: counts.retries,
            segments_stolen: counts.stolen,
            hash_cpu_seconds: usage.hash,
            network_cpu_seconds: usage.network,
            is_stopped: usage.is_stopped,
            hosts: plan.host_stats(),
        }
    }
}

/// Ends all threads when dropped.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What a network thread works with.
struct Network {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Network {
    /// Runs the workers `mine` until the fetch is over; returns the thread's CPU seconds.
    fn run(self, shared: &Arc<Shared>, mine: Vec<usize>) -> f64 {
        cpu_seconds_of(|| {
            let mut over = shared.over.subscribe();
            self.runtime.block_on(async {
                let mut workers = tokio::task::JoinSet::new();
                for me in mine {
                    workers.spawn(worker::run(Arc::clone(shared), self.client.clone(), me));
                }
                tokio::select! {
                    _ = over.wait_for(|over| *over) => {}
                    () = async { while workers.join_next().await.is_some() {} } => {}
                }
            });
        })
    }
}

/// A runtime and a client per network thread: connections stay on the thread that made them.
fn networks(settings: &Settings) -> Result<Vec<Network>> {
    let roots = roots(settings.extra_roots.as_deref())?;
    (0..settings.threads.max(1))
        .map(|_| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
            Ok(Network { runtime, client: client(settings, roots.clone())? })
        })
        .collect()
}

fn client(settings: &Settings, roots: RootCertStore) -> Result<Client> {
    let mut builder = builder(roots)?
        .connect_timeout(settings.patience.connect)
        .read_timeout(settings.patience.silence)
        .redirect(reqwest::redirect::Policy::none());
    match &settings.proxy {
        ProxyChoice::Environment => proxy::check_environment()?,
        ProxyChoice::Direct => builder = builder.no_proxy(),
        ProxyChoice::Given { http, https } => {
            builder = builder.no_proxy();
            for (url, make) in [(http, Proxy::http::<&str> as fn(_) -> _), (https, Proxy::https::<&str>)] {
                let Some(url) = url else { continue };
                proxy::check("apt's configuration", url)?;
                builder = builder.proxy(make(url.as_str()).map_err(|e| bad_proxy(url, e))?);
            }
        }
    }
    builder
        .build()
        .map_err(|e| Error::new(Code::Fetch, "cannot set up the HTTP client").because(e.without_url()))
}

fn bad_proxy(url: &str, e: reqwest::Error) -> Error {
    Error::new(Code::Fetch, format!("cannot use the proxy {}", redact_url(url)))
        .with_hint("correct the proxy in apt's configuration (Acquire::http::Proxy) or in the environment")
        .because(e.without_url())
}

fn no_thread(e: std::io::Error) -> Error {
    Error::new(Code::Io, "cannot start a thread for downloads").because(e)
}

/// Runs `work` and returns the CPU seconds that this thread has used.
fn cpu_seconds_of(work: impl FnOnce()) -> f64 {
    work();
    // It cannot fail with these arguments; a time of zero would be seen in the statistics.
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0.0, |usage| {
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::fetch::Fetch;

    #[test]
    fn what_is_fetched_ahead_waits_for_servers_as_the_run_does() {
        let mut host = Host::new("/".into());
        let patience = Patience { total: Duration::from_secs(7), ..Patience::default() };
        host.fetch = Fetch::new().waiting(patience);
        let settings = Settings::of(&host.in_silence(), &ProxyChoice::default());
        assert_eq!(settings.patience.total, patience.total);
    }
}
