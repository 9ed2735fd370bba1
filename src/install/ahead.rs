//! What later steps will need, fetched while an earlier one installs: from the moment when the packages of that one are
//! all unpacked (in the pipeline) or verified (where dpkg unpacks, on one core), so that link and cores would be idle, until
//! the run ends. Begun earlier, it took the cores from what the run waits for (docs/performance.md). apt says which files
//! they are; they come by the same fetcher, at a low priority, into the cache, named by their SHA-256. The installation that needs them takes them from
//! there ([`Stock`]), waits for one that is on its way, and hashes each of them before anything of it is read.
//!
//! Nothing of this can fail a run: what could not be fetched ahead is fetched when it is needed, and told then. It takes
//! no more than half of the disk that all those installations leave free, and of the memory in which files lie that have
//! just been written.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::fetch::{self, Event, Item, ProxyChoice, Settings, Supply};
use super::prepare::memory;
use super::report::Prepared;
use super::stage::Stage;
use super::unpack::be_nice;
use super::{Installer, Rung, rung};
use crate::error::{Code, Error, Result};
use crate::host::apt::Request;
use crate::host::apt::simulate::{Plan, SPARE};
use crate::host::fault::{self, Kind};
use crate::host::fetch::{PARTIAL_PREFIX, parse};
use crate::host::files::TEMPORARY;
use crate::host::{Host, paths};

/// Below the unpacking threads and whatever else the installation does.
const NICE: i32 = 10;
/// How soon the end is noticed, and a file that somebody waits for.
const LOOK: Duration = Duration::from_millis(50);
/// Where apt keeps what it has downloaded, inside the root; images often come with packages there.
const ARCHIVES: &str = "/var/cache/apt/archives";
const DPKG_STATUS: &str = "/var/lib/dpkg/status";

/// What a later action will ask for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Packages from apt's sources; nothing where it names none.
    pub request: Request,
    /// Package files: URL and SHA-256 of each.
    pub files: Vec<(String, String)>,
}

impl Wish {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && !names_any(&self.request)
    }
}

/// An empty request would mean to repair what is broken.
fn names_any(request: &Request) -> bool {
    !(request.packages.is_empty() && request.reinstall.is_empty())
}

/// What is fetched for later steps. Dropping it ends the downloads.
#[derive(Debug, Default)]
pub struct Ahead {
    wishes: Mutex<Vec<Wish>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What has become of each file, by SHA-256.
    files: Mutex<HashMap<String, Came>>,
    /// Begun once in a run.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// What has become of a file that was to be fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// It is on its way.
    Soon,
    /// It came, with so many bytes.
    Here(u64),
    /// It did not come.
    Not,
}

impl Ahead {
    /// Takes note of what later actions will ask for, the next one first.
    pub fn expect(&self, wishes: Vec<Wish>) {
        *lock(&self.wishes) = wishes.into_iter().filter(|wish| !wish.is_empty()).collect();
    }

    /// Ends the downloads; nothing is left of files that are not whole.
    pub fn stop(&self) {
        let running = lock(&self.shared.running).take();
        if let Some(Running { stop, thread }) = running {
            stop.store(true, Ordering::SeqCst);
            let _ = thread.join(); // a panic has been printed, and nobody needs what the thread did
        }
    }

    /// Waits until a file is not on its way any more.
    pub(super) async fn wait(&self, sha256: &str) {
        while self.shared.came(sha256) == Came::Soon {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes what has been fetched for installations that never asked for it. Files with these sums stay.
    pub fn tidy(&self, host: &Host, keep: &[String]) -> Result<()> {
        let is_sum = |name: &&String| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let names = host.files.list(paths::CACHE_DIR)?;
        let mut unused = names.iter().filter(is_sum).filter(|name| !keep.contains(*name));
        unused.try_for_each(|name| host.files.remove(cached(name)))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn came(&self, sha256: &str) -> Came {
        lock(&self.files).get(sha256).copied().unwrap_or(Came::Not)
    }

    fn note(&self, sha256: &str, came: Came) {
        lock(&self.files).insert(sha256.to_owned(), came);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place in the cache, inside the root.
fn cached(sha256: &str) -> PathBuf {
    Path::new(paths::CACHE_DIR).join(sha256)
}

/// The place of a download that goes on, inside the root.
pub(super) fn partial(sha256: &str) -> PathBuf {
    Path::new(paths::CACHE_DIR).join([PARTIAL_PREFIX, sha256].concat())
}

/// Gives a verified download its name in the cache (outside paths). Not durably: what lies in the cache is hashed again
/// before it is used.
pub(super) fn keep(item: &Item, place: &Path) -> io::Result<()> {
    fault::point(Kind::Mode, &item.path)?;
    fs::set_permissions(&item.path, Permissions::from_mode(0o644))?;
    fault::point(Kind::Rename, place)?;
    fs::rename(&item.path, place)
}

impl Installer<'_> {
    /// What begins when everything that this installation needs has been verified; `None` where nothing is expected.
    pub(super) fn ahead(&self, request: &Request, plan: &Plan) -> Option<Start> {
        let wishes = lock(&self.host.ahead().wishes).clone();
        let is_begun = lock(&self.host.ahead().shared.running).is_some();
        if wishes.is_empty() || is_begun || !self.options.prefetch {
            return None;
        }
        if let Err(error) = self.host.fetch.sweep(self.host) {
            tracing::debug!("nothing is fetched ahead: {error}");
            return None;
        }
        let mut request = request.clone();
        // Files of the request may be gone when apt is asked, and bring nothing that has to be fetched.
        request.packages.retain(|name| !name.starts_with('/'));
        request.reinstall.retain(|name| !name.starts_with('/'));
        Some(Start {
            host: self.host.in_silence(),
            shared: self.host.ahead().shared.clone(),
            wishes,
            request,
            mine: plan.downloads.iter().filter_map(|d| d.sha256.clone()).collect(),
            unpacked: plan.unpacked,
            fetched: 0,
        })
    }
}

/// Everything that fetching ahead needs.
pub(super) struct Start {
    host: Host,
    shared: Arc<Shared>,
    wishes: Vec<Wish>,
    /// What has been asked for up to now: what comes with it need not be fetched again.
    request: Request,
    /// What this installation has fetched itself.
    mine: HashSet<String>,
    /// Bytes by which the system will have grown by then.
    unpacked: u64,
    /// Bytes fetched ahead.
    fetched: u64,
}

impl Start {
    /// Begins, unless it was begun before in this run.
    pub(super) fn go(self) {
        let shared = self.shared.clone();
        let mut running = lock(&shared.running);
        if running.is_some() {
            return;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        match Builder::new().name("ahead".into()).spawn(move || self.run(&ended)) {
            Ok(thread) => *running = Some(Running { stop, thread }),
            Err(error) => tracing::debug!("nothing is fetched ahead: {error}"),
        }
    }

    fn run(mut self, stop: &AtomicBool) {
        be_nice(NICE);
        if let Err(error) = self.work(stop) {
            tracing::debug!(causes = error.causes().join(": "), "nothing more is fetched ahead: {error}");
        }
    }

    fn work(&mut self, stop: &AtomicBool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::new(Code::Io, "cannot start an event loop").because(e))?;
        self.host.files.make_dir(paths::CACHE_DIR, 0o755)?;
        let status = self.status()?;
        for wish in std::mem::take(&mut self.wishes) {
            let found = runtime.block_on(async {
                tokio::select! {
                    found = self.find(&wish, status.path()) => Some(found),
                    () = stopped(stop) => None,
                }
            });
            match found {
                None => return Ok(()),
                Some(Ok(batches)) => {
                    batches.into_iter().try_for_each(|(proxy, items)| self.fetch(&proxy, items, stop))?;
                }
                // Another step's wish may be clearer.
                Some(Err(error)) => {
                    tracing::debug!(causes = error.causes().join(": "), "cannot look ahead: {error}");
                }
            }
        }
        Ok(())
    }

    /// dpkg's database as it is now: while dpkg works, the packages in it need not go together.
    fn status(&self) -> Result<NamedTempFile> {
        let from = self.host.files.outside(DPKG_STATUS)?;
        let fail = |e| Error::io("copy", DPKG_STATUS, e);
        // Named so that the next run removes it, should this one be killed.
        let directory = self.host.files.outside(paths::STATE_DIR)?;
        fault::point(Kind::Create, DPKG_STATUS).map_err(fail)?;
        let copy = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).map_err(fail)?;
        fault::point(Kind::Write, DPKG_STATUS).map_err(fail)?;
        fs::copy(from, copy.path()).map_err(fail)?;
        Ok(copy)
    }

    /// The files that a wish needs and that are not here, each with the proxy by which they come.
    async fn find(&mut self, wish: &Wish, status: &Path) -> Result<Vec<(ProxyChoice, Vec<Item>)>> {
        let mut batches = Vec::new();
        if names_any(&wish.request) {
            batches.extend(self.packages(&wish.request, status).await?);
        }
        let mut files = Vec::new();
        for (url, sha256) in &wish.files {
            let sha256 = sha256.to_ascii_lowercase();
            if self.lacks(&sha256, None, None)?
                && let Some(size) = self.host.fetch.size_of_deb(&parse(url)?).await
            {
                files.push(self.item(url.clone(), size, sha256)?);
            }
        }
        batches.push((ProxyChoice::Environment, files));
        Ok(batches)
    }

    /// What apt would fetch for a request after all that has been asked for before it.
    async fn packages(&mut self, wish: &Request, status: &Path) -> Result<Option<(ProxyChoice, Vec<Item>)>> {
        let mut request = self.request.clone();
        request.packages.extend(wish.packages.iter().cloned());
        request.reinstall.extend(wish.reinstall.iter().cloned());
        request.recommends = wish.recommends;
        request.change_held |= wish.change_held;
        request.downgrade |= wish.downgrade;
        let name = status.file_name().unwrap_or_default().to_string_lossy();
        let plan = self.host.apt().foresee(&request, &format!("{}/{name}", paths::STATE_DIR)).await?;
        let chosen = rung::choose(&self.host, &request, &plan, Rung::Originals).await?;
        (self.request, self.unpacked) = (request, plan.unpacked.max(self.unpacked));
        if chosen.rung == Rung::Apt {
            tracing::debug!(why = chosen.why, "not fetched ahead");
            return Ok(None);
        }
        let mut items = Vec::new();
        for download in plan.downloads {
            let Some(sha256) = download.sha256 else { continue };
            if self.lacks(&sha256, Some(download.size), Some(&download.file))? {
                items.push(self.item(download.uri, download.size, sha256)?);
            }
        }
        Ok(Some((chosen.proxy, items)))
    }

    /// Whether a file lies nowhere here and has not been asked for; `archive` is its name among apt's own.
    fn lacks(&self, sha256: &str, size: Option<u64>, archive: Option<&str>) -> Result<bool> {
        if self.mine.contains(sha256) || lock(&self.shared.files).contains_key(sha256) {
            return Ok(false);
        }
        for place in archive.map(|file| Path::new(ARCHIVES).join(file)).into_iter().chain([cached(sha256)]) {
            let there = self.host.files.lstat(place)?;
            if there.is_some_and(|m| size.is_none_or(|size| m.len() == size)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn item(&self, uri: String, size: u64, sha256: String) -> Result<Item> {
        let path = self.host.files.outside(partial(&sha256))?;
        Ok(Item { uri, size, sha256, path })
    }

    /// Bytes that may be fetched ahead from now on.
    fn room(&self) -> Result<u64> {
        let free = self.host.files.free_bytes(paths::CACHE_DIR)?;
        let disk = free.saturating_sub(self.unpacked + SPARE) / 2;
        let memory = (memory("MemAvailable").unwrap_or_default() / 2).saturating_sub(self.fetched);
        Ok(disk.min(memory))
    }

    fn fetch(&mut self, proxy: &ProxyChoice, mut items: Vec<Item>, stop: &AtomicBool) -> Result<()> {
        let (room, mut sum, all) = (self.room()?, 0, items.len());
        let fits = items.iter().take_while(|item| {
            sum += item.size;
            sum <= room
        });
        let fits = fits.count();
        items.truncate(fits);
        tracing::debug!(files = fits, of = all, room, "fetching ahead");
        if items.is_empty() {
            return Ok(());
        }
        for item in &items {
            self.shared.note(&item.sha256, Came::Soon);
        }
        let settings = Settings::of(&self.host, proxy);
        let result = fetch::fetch(&items, &settings, stop, &|event| match event {
            Event::Verified { item } => self.came(&items[item]),
            Event::Failed { item, error } => {
                tracing::debug!("not fetched ahead: {error}");
                self.shared.note(&items[item].sha256, Came::Not);
            }
            Event::Progress { .. } | Event::Waiting { .. } => {}
        });
        for item in &items {
            match self.shared.came(&item.sha256) {
                // The end came first: nobody is to wait for it any more.
                Came::Soon => self.shared.note(&item.sha256, Came::Not),
                Came::Here(size) => self.fetched += size,
                Came::Not => {}
            }
        }
        result.map(drop)
    }

    fn came(&self, item: &Item) {
        let place = self.host.files.outside(cached(&item.sha256));
        let kept = place.and_then(|place| keep(item, &place).map_err(|e| Error::io("keep", place, e)));
        let came = match kept {
            Ok(()) => Came::Here(item.size),
            Err(error) => {
                tracing::debug!("not fetched ahead: {error}");
                Came::Not
            }
        };
        self.shared.note(&item.sha256, came);
    }
}

/// Ends when the run does.
async fn stopped(stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Where the package files of one installation may lie already.
pub(super) struct Stock {
    shared: Arc<Shared>,
    files: Vec<Place>,
    /// Bytes of package files among the request that were fetched ahead.
    local: u64,
}

/// One of them; outside paths.
struct Place {
    sha256: String,
    size: u64,
    /// Where the installation wants it.
    to: PathBuf,
    cached: PathBuf,
    archive: PathBuf,
    /// In a bundle.
    bundled: Option<PathBuf>,
    from: Mutex<Source>,
}

/// Where a file was taken from last, in the order in which that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Nowhere,
    Ahead,
    Cache,
    Archives,
    Bundle,
    Address,
}

impl Stock {
    /// For the downloads of `plan`, which go to the stage's spool.
    pub(super) fn new(host: &Host, request: &Request, plan: &Plan, stage: &Stage) -> Result<Arc<Self>> {
        let shared = host.ahead().shared.clone();
        let mut files = Vec::new();
        for (number, download) in plan.downloads.iter().enumerate() {
            let sha256 = download.sha256.clone().unwrap_or_default();
            files.push(Place {
                size: download.size,
                to: stage.spool(number),
                cached: host.files.outside(cached(&sha256))?,
                archive: host.files.outside(Path::new(ARCHIVES).join(&download.file))?,
                bundled: host.bundle().and_then(|b| b.supplies(host, &download.uri)).map(|(path, _)| path),
                from: Mutex::new(Source::Nowhere),
                sha256,
            });
        }
        // They are named by their sum.
        let sums = request.local_files().filter_map(|path| Path::new(path).file_stem()?.to_str());
        let local = sums.map(|sum| if let Came::Here(size) = shared.came(sum) { size } else { 0 }).sum();
        Ok(Arc::new(Self { shared, files, local }))
    }

    /// Brings a file to where the installation wants it, if it lies here and was not brought before from there.
    pub(super) fn supply(&self, number: usize) -> Supply {
        let Some(place) = self.files.get(number) else { return Supply::Address };
        let mut from = lock(&place.from);
        let came = self.shared.came(&place.sha256);
        if came == Came::Soon {
            return Supply::Soon;
        }
        if *from < Source::Ahead {
            *from = if matches!(came, Came::Here(_)) { Source::Ahead } else { Source::Cache };
            let moved =
                fault::point(Kind::Rename, &place.to).and_then(|()| fs::rename(&place.cached, &place.to));
            if moved.is_ok() {
                return Supply::Here;
            }
        }
        if *from < Source::Archives {
            *from = Source::Archives;
            if place.is_archived() {
                if place.link(&place.archive).is_ok() {
                    return Supply::Here;
                }
                let _ = fs::remove_file(&place.to); // what a copy has left that failed; mostly nothing
            }
        }
        if *from < Source::Bundle
            && let Some(bundled) = &place.bundled
        {
            *from = Source::Bundle;
            if place.link(bundled).is_ok() {
                return Supply::Here;
            }
            let _ = fs::remove_file(&place.to);
        }
        *from = Source::Address;
        Supply::Address
    }

    /// The report's beginning: what need not be fetched. To be asked when everything is verified.
    pub(super) fn prepared(&self) -> Prepared {
        let bytes = |sources: &[Source]| {
            self.files.iter().filter(|p| sources.contains(&*lock(&p.from))).map(|p| p.size).sum::<u64>()
        };
        Prepared {
            ahead: bytes(&[Source::Ahead]) + self.local,
            cached: bytes(&[Source::Cache, Source::Archives, Source::Bundle]),
            ..Prepared::default()
        }
    }
}

impl Place {
    /// Whether apt has the file, and nobody but root can change it after it has been hashed.
    fn is_archived(&self) -> bool {
        let is_ours =
            |m: fs::Metadata| m.is_file() && m.uid() == 0 && m.mode() & 0o022 == 0 && m.len() == self.size;
        fs::symlink_metadata(&self.archive).is_ok_and(is_ours)
    }

    /// A second name costs no space; across file systems a copy is made.
    fn link(&self, from: &Path) -> io::Result<()> {
        fault::point(Kind::Link, &self.to)?;
        fs::hard_link(from, &self.to).or_else(|_| {
            fault::point(Kind::Create, &self.to)?;
            io::copy(&mut File::open(from)?, &mut File::create_new(&self.to)?).map(drop)
        })
    }
}
