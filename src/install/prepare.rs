//! Fetching and unpacking while apt runs: the two faster ways.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::ahead::{Start, Stock};
use super::fetch::{self, Event, Item, ProxyChoice, Supply};
use super::report::Prepared;
use super::rung::Rung;
use super::stage::{Mounts, Stage};
use super::stand_in::{self, Server};
use super::unpack::{Handle, Limits, Package, Policy, Unpacker, fill_placeholder, full_hint};
use super::{Installer, ended_by_itself};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::apt::Request;
use crate::host::apt::simulate::{Download, Plan};
use crate::host::dpkg::{Database, State};
use crate::host::exec::{Call, Output};
use crate::host::fault::{self, Kind};
use crate::host::fetch::waiting;
use crate::host::files::Files;
use crate::report::event::{Progress, Unit};

/// Where the process's own work stands when apt has ended.
type Ended = (Result<Output>, Prepared);

/// How far verifying has come.
struct Verifying {
    began: Instant,
    left: usize,
    /// From then until everything was verified.
    seconds: Option<f64>,
}

impl Verifying {
    fn of(packages: usize, began: Instant) -> Arc<std::sync::Mutex<Self>> {
        Arc::new(std::sync::Mutex::new(Self { began, left: packages, seconds: None }))
    }

    fn one_more(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.seconds = Some(self.began.elapsed().as_secs_f64());
        }
    }
}

/// A thread that fetches. Dropping it ends the downloads.
pub(super) struct Fetching {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<fetch::Stats>>>,
}

impl Fetching {
    /// Fetches `items`, or takes them from where `supply` says that they are.
    pub(super) fn start(
        host: &Host,
        proxy: &ProxyChoice,
        items: Vec<Item>,
        supply: impl Fn(usize) -> Supply + Send + 'static,
        on: impl Fn(Event) + Send + Sync + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let settings = fetch::Settings::of(host, proxy);
        let ended = stop.clone();
        let thread = std::thread::spawn(move || {
            fetch::fetch_or_take(&items, &supply, &settings, &ended, &on).or_else(|error| {
                // Nothing could be begun (a proxy or a certificate that cannot be used): whoever waits for packages
                // hears of it in the same way as of a download that failed.
                on(Event::Failed { item: 0, error });
                Ok(fetch::Stats::default())
            })
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends the downloads that are still going on; what was done.
    fn end(mut self) -> Result<fetch::Stats> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().ok_or_else(|| Error::new(Code::Fetch, "downloads ended twice"))?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Code::Fetch, "the downloading thread failed")))
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its result is of no use any more
        }
    }
}

impl Installer<'_> {
    /// Fetches, unpacks as far as `rung` says, and lets apt install. The outer error: nothing was installed, and
    /// a slower way may do better. The inner result is apt's.
    pub(super) async fn prepare(
        &self,
        request: &Request,
        plan: &Plan,
        rung: Rung,
        proxy: &ProxyChoice,
    ) -> Result<Ended> {
        let deadline = Instant::now() + self.options.lock_timeout;
        let stage = Arc::new(Stage::make(self.host, deadline).await?);
        let ended = match rung {
            Rung::Pipeline => self.pipeline(request, plan, &stage, proxy).await,
            Rung::Originals | Rung::Apt => self.originals(request, plan, &stage, proxy).await,
        };
        // Whatever came of it, its space is given back; dpkg's links keep what they link to. A dpkg that is still
        // at work then (apt was killed, and it was not) keeps the stage, until the next run.
        let purged = Stage::purge(self.host, deadline).await;
        let ended = ended?;
        if ended.0.is_ok() {
            purged?;
        }
        Ok(ended)
    }

    /// Package files under the names that apt gives them, then apt.
    async fn originals(
        &self,
        request: &Request,
        plan: &Plan,
        stage: &Stage,
        proxy: &ProxyChoice,
    ) -> Result<Ended> {
        let began = Instant::now();
        let failed = Arc::new(std::sync::Mutex::new(None));
        let first_failure = failed.clone();
        let progress = self.host.progress_sink();
        let total = plan.download_bytes();
        let (stock, next) = (Stock::new(self.host, request, plan, stage)?, self.ahead(request, plan));
        let asked = stock.clone();
        let supply = move |item| asked.supply(item);
        let fetching =
            Fetching::start(self.host, proxy, items(plan, stage), supply, move |event| match event {
                Event::Progress { bytes } => progress(downloading(bytes, total)),
                Event::Waiting { why, wait } => progress(waiting(&why, wait)),
                Event::Failed { error, .. } => {
                    let mut failed = first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
                Event::Verified { .. } => {}
            });
        let stats = wait_for(fetching).await?;
        if let Some(error) = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            return Err(full_hint(error));
        }
        let verified = began.elapsed().as_secs_f64();
        next.into_iter().for_each(Start::go);
        for (number, download) in plan.downloads.iter().enumerate() {
            let (from, to) = (stage.spool(number), stage.archive(&download.file));
            fault::point(Kind::Rename, &to)
                .and_then(|()| fs::rename(&from, &to))
                .map_err(|e| Error::io("rename", &from, e))?;
        }
        let output = self.apt().execute(request, plan, |call| self.with_archives(call, request, plan)).await;
        let prepared =
            Prepared { fetched: Some(stats), verified_seconds: Some(verified), ..stock.prepared() };
        Ok((output, prepared))
    }

    /// Everything at once.
    async fn pipeline(
        &self,
        request: &Request,
        plan: &Plan,
        stage: &Arc<Stage>,
        proxy: &ProxyChoice,
    ) -> Result<Ended> {
        if !stand_in::install(self.host, stage, self.program).await? {
            return Err(Error::new(Code::Exec, "the stand-in for dpkg-deb cannot be executed")
                .with_hint("allow execution below /var/lib/gpu-bootstrap (noexec, SELinux, fapolicyd)"));
        }
        let packages = self.packages(request, plan, stage)?;
        let archives = self.placeholders(request, plan, stage)?;
        let policy = self.policy(plan, stage)?;
        let fetched = plan.downloads.len();
        let local = packages.len() - fetched;
        // Not before: as long as packages wait to be decoded, the cores are what the run waits for, and not the link.
        let next = self.ahead(request, plan).map(|start| Box::new(move || start.go()) as _);
        let unpacker = Unpacker::start(stage.clone(), policy, packages, self.limits(), next);
        let server = Server::start(stage, archives, unpacker.handle())?;
        // Files that were there already were verified by whoever asked for them.
        (fetched..fetched + local).for_each(|number| unpacker.handle().verified(number));
        let began = Instant::now();
        let stock = Stock::new(self.host, request, plan, stage)?;
        let verifying = Verifying::of(fetched, began);
        let fetching = self.feed(plan, stage, proxy, &stock, unpacker.handle(), verifying.clone());
        let output = self
            .apt()
            .execute(request, plan, |call| {
                stand_in::call(self.with_archives(call, request, plan)).args(stand_in::options())
            })
            .await;
        let failure = unpacker.handle().take_failure();
        let stats = fetching.end();
        drop(server);
        let originals = unpacker.handle().originals();
        let ready_seconds = unpacker.handle().all_ready_at().map(|at| at.duration_since(began).as_secs_f64());
        let work = unpacker.finish();
        // Where apt was killed, the failure is no more than a consequence.
        let by_itself = output.as_ref().map_or_else(|e| e.code() == Code::AptLocked, ended_by_itself);
        if let Some(error) = failure.filter(|_| by_itself) {
            return Err(full_hint(error));
        }
        let named = |(number, why): (usize, String)| {
            (plan.downloads.get(number).map_or_else(|| "package file".into(), |d| d.file.clone()), why)
        };
        let prepared = Prepared {
            fetched: Some(stats?),
            verified_seconds: verifying.lock().unwrap_or_else(std::sync::PoisonError::into_inner).seconds,
            ready_seconds,
            unpacked: Some(work),
            originals: originals.into_iter().map(named).collect(),
            ..stock.prepared()
        };
        Ok((output, prepared))
    }

    /// Starts the downloads and tells the unpacker what comes of them.
    fn feed(
        &self,
        plan: &Plan,
        stage: &Stage,
        proxy: &ProxyChoice,
        stock: &Arc<Stock>,
        unpacker: Handle,
        verifying: Arc<std::sync::Mutex<Verifying>>,
    ) -> Fetching {
        let progress = self.host.progress_sink();
        let (total, stock) = (plan.download_bytes(), stock.clone());
        let place = |(number, d): (usize, &Download)| (stage.spool(number), stage.archive(&d.file));
        let packages: Vec<_> = plan.downloads.iter().enumerate().map(place).collect();
        let supply = move |item| stock.supply(item);
        Fetching::start(self.host, proxy, items(plan, stage), supply, move |event| match event {
            Event::Progress { bytes } => progress(downloading(bytes, total)),
            Event::Waiting { why, wait } => progress(waiting(&why, wait)),
            Event::Failed { error, .. } => unpacker.fail(error),
            Event::Verified { item } => {
                // Before it counts as verified: then programs look at the placeholders.
                if let Err(error) = fill_placeholder(&packages[item].0, &packages[item].1) {
                    unpacker.fail(error);
                    return;
                }
                unpacker.verified(item);
                verifying.lock().unwrap_or_else(std::sync::PoisonError::into_inner).one_more();
            }
        })
    }

    pub(super) fn limits(&self) -> Limits {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Limits {
            threads,
            memory: self.options.memory.unwrap_or_else(default_memory),
            // On a small machine apt's own planning would be slowed down; on a large one there is room for all.
            nice: if threads <= 4 { 5 } else { 0 },
        }
    }

    /// What will be unpacked: the downloads in apt's order, then package files among the request.
    fn packages(&self, request: &Request, plan: &Plan, stage: &Stage) -> Result<Vec<Package>> {
        let mut packages: Vec<_> = plan
            .downloads
            .iter()
            .enumerate()
            .map(|(number, download)| Package {
                file: stage.spool(number),
                inside: Stage::spool_inside(number),
                size: download.size,
                disposable: true,
            })
            .collect();
        for path in request.local_files() {
            let file = self.host.files.outside(path)?;
            let size = fs::metadata(&file).map_err(|e| Error::io("stat", &file, e))?.len();
            packages.push(Package { file, inside: path.to_owned(), size, disposable: false });
        }
        Ok(packages)
    }

    /// Files of the right size for apt, and which package each stands for (paths as dpkg sees them).
    fn placeholders(&self, request: &Request, plan: &Plan, stage: &Stage) -> Result<HashMap<PathBuf, usize>> {
        let mut archives = HashMap::new();
        let real = self.real_stage()?;
        for (number, download) in plan.downloads.iter().enumerate() {
            let path = stage.archive(&download.file);
            let made = fault::point(Kind::Create, &path);
            let made =
                made.and_then(|()| File::create_new(&path)).and_then(|file| file.set_len(download.size));
            made.map_err(|e| Error::io("make", &path, e))?;
            archives.insert(real.join("archives").join(&download.file), number);
        }
        for (number, path) in request.local_files().enumerate() {
            archives.insert(self.real(path)?, plan.downloads.len() + number);
        }
        Ok(archives)
    }

    fn real_stage(&self) -> Result<PathBuf> {
        self.real(crate::host::paths::STAGE_DIR)
    }

    /// A path inside the root with no links in it.
    fn real(&self, path: &str) -> Result<PathBuf> {
        let outside = self.host.files.outside(path)?;
        let root = fs::canonicalize(self.host.files.root()).map_err(|e| Error::io("resolve", path, e))?;
        let real = fs::canonicalize(&outside).map_err(|e| Error::io("resolve", &outside, e))?;
        Ok(PathBuf::from("/").join(real.strip_prefix(root).unwrap_or(&real)))
    }

    fn policy(&self, plan: &Plan, stage: &Stage) -> Result<Policy> {
        let database = self.host.packages()?;
        let is_fresh = |i: &&crate::host::apt::simulate::Install| {
            // dpkg compares files that two architectures of a package share.
            let alone = plan.installs.iter().filter(|other| other.name == i.name).count() == 1;
            alone && i.old.is_none() && database.named(&i.name).all(|p| p.state == State::Absent)
        };
        let id = |i: &crate::host::apt::simulate::Install| (i.name.clone(), i.arch.clone(), i.new.clone());
        let fresh: HashSet<_> = plan.installs.iter().filter(is_fresh).map(id).collect();
        let special = special_paths(&self.host.files)?;
        let unchanged = unchanged(self.host.files.clone(), &fresh, special.clone());
        Ok(Policy {
            fresh,
            special,
            mounts: Mounts::new(&self.host.files, stage)?,
            unchanged: Box::new(unchanged),
        })
    }

    /// apt with our archives, in which it finds everything.
    fn with_archives(&self, call: Call, request: &Request, plan: &Plan) -> Call {
        let archives = format!("Dir::Cache::archives={}/", Stage::archives_inside());
        let call = self.dpkg_options(call.args(["-o", archives.as_str()]), plan);
        // apt "downloads" package files of the request, too, to learn their paths.
        if request.local_files().next().is_some() { call } else { call.args(["--no-download"]) }
    }
}

fn items(plan: &Plan, stage: &Stage) -> Vec<Item> {
    let item = |(number, download): (usize, &Download)| Item {
        uri: download.uri.clone(),
        size: download.size,
        sha256: download.sha256.clone().unwrap_or_default(),
        path: stage.spool(number),
    };
    plan.downloads.iter().enumerate().map(item).collect()
}

fn downloading(bytes: u64, total: u64) -> Progress {
    Progress {
        what: "downloading packages".into(),
        item: String::new(),
        done: bytes,
        total: Some(total),
        unit: Unit::Bytes,
    }
}

/// Waits for downloads to end by themselves. Dropped while it waits, it ends them.
pub(super) async fn wait_for(mut fetching: Fetching) -> Result<fetch::Stats> {
    const LOOK: std::time::Duration = std::time::Duration::from_millis(20);
    while fetching.thread.as_ref().is_some_and(|t| !t.is_finished()) {
        tokio::time::sleep(LOOK).await;
    }
    let thread = fetching.thread.take().ok_or_else(|| Error::new(Code::Fetch, "downloads ended twice"))?;
    thread.join().unwrap_or_else(|_| Err(Error::new(Code::Fetch, "the downloading thread failed")))
}

/// Asked when dpkg, which has its lock by then, wants the first package: whether all of this is still true. Another
/// program may have installed something while packages were fetched and unpacked.
fn unchanged(
    files: Files,
    fresh: &HashSet<(String, String, String)>,
    special: HashSet<PathBuf>,
) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    let names: Vec<String> = fresh.iter().map(|(name, ..)| name.clone()).collect();
    move || {
        let database = Database::read(&files).map_err(|e| e.to_string())?;
        let there = |name: &&String| database.named(name).any(|p| p.state != State::Absent);
        if let Some(name) = names.iter().find(there) {
            return Err(format!("another program has installed {name} meanwhile"));
        }
        if special_paths(&files).map_err(|e| e.to_string())? != special {
            return Err("another program has changed dpkg's overrides or diversions meanwhile".into());
        }
        Ok(())
    }
}

/// Paths with an override of owner or mode, or a diversion: dpkg's own business.
fn special_paths(files: &Files) -> Result<HashSet<PathBuf>> {
    let mut paths = HashSet::new();
    let overrides = files.read_text("/var/lib/dpkg/statoverride")?.unwrap_or_default();
    paths.extend(overrides.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).map(PathBuf::from));
    // Three lines each: from, to, by whom.
    let diversions = files.read_text("/var/lib/dpkg/diversions")?.unwrap_or_default();
    paths.extend(
        diversions.lines().enumerate().filter(|(n, _)| n % 3 != 2).map(|(_, path)| PathBuf::from(path)),
    );
    Ok(paths)
}

/// A quarter of the machine's memory.
fn default_memory() -> u64 {
    const LEAST: u64 = 64 << 20;
    memory("MemTotal").map_or(LEAST, |bytes| (bytes / 4).max(LEAST))
}

/// What the kernel says under this name about memory, bytes.
pub(super) fn memory(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes =
        |l: &str| l.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
    text.lines().find_map(kilobytes).map(|kb| kb * 1024)
}
