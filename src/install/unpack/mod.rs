//! Unpacks verified package files, by all cores, into what dpkg can take at once: big files in the stage, and a stub
//! of the package in which a hard link stands for each. Nothing is read of a file before its SHA-256 has matched.
//!
//! What dpkg does with more than an entry's content stays with dpkg: configuration files and all of `/etc`, set-id
//! files, files with an override or a diversion go into the stub as they are; packages that are not new to the
//! machine, that share files with another architecture's, or that bring no sums, are handed over as they came. So is
//! every package that cannot be read here: dpkg is the authority over its own format.

mod archive;
mod block;
mod control;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod outcome;
mod place;
mod pool;
mod stream;
mod stub;
mod system;
mod tar;
mod xz;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::archive::{Archive, Compression};
use self::block::Early;
use self::control::Control;
pub(super) use self::outcome::Handle;
use self::outcome::Outcome;
use self::place::{Placer, Staged, Write_, time_spent_writing};
use self::pool::{Chunk, Held, Next, Place, Queue, Reserved};
use self::stub::Stub;
pub(super) use self::stub::fill_placeholder;
pub(super) use self::system::be_nice;
use self::system::thread_time;
use self::tar::Splitter;
use super::stage::{Mounts, Stage};
use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};

/// Decoded bytes that are given on at once: what a processor keeps in its cache until they are written.
const WINDOW: usize = 1 << 20;
/// A block that is larger than this is decoded as a stream, so that it need not fit into memory.
const MOST_BLOCK: u64 = 64 << 20;
/// What a decoder of a whole stream may hold besides its pieces.
const STREAM_MEMORY: u64 = 32 << 20;

/// Why a package is not unpacked here.
#[derive(Debug)]
enum Trouble {
    /// It is handed to dpkg as it came.
    Unsuitable(String),
    /// The machine cannot take it: the disk is full or fails.
    Broken(Error),
}

impl Trouble {
    fn unsuitable(why: impl Into<String>) -> Self {
        Self::Unsuitable(why.into())
    }

    /// Decoding failed. The bytes are the right ones, so it is the format that we do not understand.
    #[expect(clippy::needless_pass_by_value, reason = "it takes the place of the error")]
    fn reading(e: io::Error) -> Self {
        Self::Unsuitable(format!("it cannot be read here ({e})"))
    }

    fn writing(path: impl AsRef<Path>, e: io::Error) -> Self {
        Self::Broken(Error::io("write", path, e))
    }
}

/// A package file that will be unpacked when it has been verified.
#[derive(Clone, Debug)]
pub(super) struct Package {
    /// Its place outside the root.
    pub(super) file: PathBuf,
    /// Its place inside the root.
    pub(super) inside: String,
    /// Bytes.
    pub(super) size: u64,
    /// Whether the file is ours to remove when dpkg no longer needs it.
    pub(super) disposable: bool,
}

/// What dpkg gets for a package; paths inside the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// A stub: the rest lies in the stage.
    Stub(String),
    /// The package as it came, and why.
    Original(String, String),
}

/// What decides whether a file may be linked.
pub(super) struct Policy {
    /// `name`, `architecture`, `version` of the packages that are new to the machine, with no sibling of another
    /// architecture.
    pub(super) fresh: HashSet<(String, String, String)>,
    /// Paths with an override or a diversion.
    pub(super) special: HashSet<PathBuf>,
    /// Where the stage can be linked to.
    pub(super) mounts: Mounts,
    /// Asked once, before dpkg gets the first package: whether the rest still holds, or what has changed.
    pub(super) unchanged: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// How much may be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Threads.
    pub(super) threads: usize,
    /// Bytes of decoded data at any one time.
    pub(super) memory: u64,
    /// Added to the threads' nice value: apt and dpkg, which everything waits for in the end, go first.
    pub(super) nice: i32,
}

/// What was done, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Work {
    /// Packages unpacked here.
    pub stubs: usize,
    /// Packages handed over as they came.
    pub originals: usize,
    /// Bytes decoded.
    pub unpacked: u64,
    /// Bytes that dpkg only had to link.
    pub linked: u64,
    /// Files that dpkg only had to link.
    pub linked_files: u64,
    /// Processor seconds of decoding.
    pub decode_seconds: f64,
    /// Processor seconds of writing.
    pub write_seconds: f64,
    /// The most memory that decoded data took, bytes.
    pub memory: u64,
}

/// Threads that unpack.
pub(super) struct Unpacker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

type Pool = Queue<Task, Write_>;
type Piece = Chunk<Task, Write_>;
type Memory = Held<Task, Write_>;

/// Work that decodes.
#[derive(Debug)]
enum Task {
    /// Look at a verified package and decide what to do with it.
    Open,
    Block(Arc<xz::Blocks>, usize),
    Stream(archive::Member),
}

struct Shared {
    stage: Arc<Stage>,
    policy: Policy,
    packages: Vec<Slot>,
    pool: Arc<Pool>,
    outcome: Mutex<Outcome>,
    changed: Condvar,
    unchanged: OnceLock<Result<(), String>>,
    decode_ns: AtomicU64,
    write_ns: AtomicU64,
    unpacked: AtomicU64,
    linked: AtomicU64,
}

struct Slot {
    package: Package,
    job: Mutex<Option<Job>>,
    /// Decoding counts as one, each waiting write as one.
    outstanding: AtomicUsize,
    given_up: AtomicBool,
}

/// A package that is being unpacked.
struct Job {
    splitter: Splitter,
    stub: Stub,
    conffiles: HashSet<PathBuf>,
    /// Blocks that came out before their turn.
    early: BTreeMap<usize, Vec<Early>>,
    /// The block whose turn it is.
    next: usize,
    blocks: usize,
    /// Bytes of the archive that the splitter has seen.
    fed: u64,
    current: Option<Arc<Staged>>,
    /// Bytes of big files that went into the stub.
    inline: u64,
}

impl Unpacker {
    /// Starts the threads. Packages are in the order in which dpkg will ask for them. When the last one is ready, and the
    /// cores have no more work of it, `next` begins.
    pub(super) fn start(
        stage: Arc<Stage>,
        policy: Policy,
        packages: Vec<Package>,
        limits: Limits,
        next: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        let slot = |package| Slot {
            package,
            job: Mutex::new(None),
            outstanding: AtomicUsize::new(1),
            given_up: AtomicBool::new(false),
        };
        let shared = Arc::new(Shared {
            stage,
            policy,
            packages: packages.into_iter().map(slot).collect(),
            pool: Arc::new(Queue::new(limits.memory)),
            outcome: Mutex::new(Outcome { next, ..Outcome::default() }),
            changed: Condvar::new(),
            unchanged: OnceLock::new(),
            decode_ns: AtomicU64::new(0),
            write_ns: AtomicU64::new(0),
            unpacked: AtomicU64::new(0),
            linked: AtomicU64::new(0),
        });
        let thread = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                be_nice(limits.nice);
                shared.work();
            })
        };
        let threads = (0..limits.threads.max(1)).map(thread).collect();
        Self { shared, threads }
    }

    /// The handle for those who wait and tell.
    pub(super) fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Ends the threads and says what they did.
    pub(super) fn finish(mut self) -> Work {
        self.stop();
        let outcome = self.shared.outcome();
        let stubs = outcome.ready.values().filter(|r| matches!(r, Ready::Stub(_))).count();
        let seconds = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed)).as_secs_f64();
        Work {
            stubs,
            originals: outcome.ready.len() - stubs,
            unpacked: self.shared.unpacked.load(Ordering::Relaxed),
            linked: self.shared.linked.load(Ordering::Relaxed),
            linked_files: self.shared.stage.files(),
            decode_seconds: seconds(&self.shared.decode_ns),
            write_seconds: seconds(&self.shared.write_ns),
            memory: self.shared.pool.most_in_use(),
        }
    }

    fn stop(&mut self) {
        self.shared.pool.stop();
        self.shared.outcome().over = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error; its package never became ready.
            let _ = thread.join();
        }
        // What a thread added in its last moment holds the queue that it is in.
        self.shared.pool.stop();
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(next) = self.pool.next() {
            match next {
                Next::Write(write) => self.write(write),
                Next::Task(task, place, reserved) => self.task(task, place, reserved),
            }
        }
    }

    fn task(&self, task: Task, place: Place, reserved: Reserved) {
        let package = place.0;
        if self.packages[package].given_up.load(Ordering::Relaxed) {
            self.pool.release(reserved);
            return;
        }
        let (began, writing) = (thread_time(), time_spent_writing());
        let done = match task {
            Task::Open => {
                self.pool.release(reserved);
                self.open(package)
            }
            Task::Block(blocks, number) => self.block(package, &blocks, number, reserved),
            Task::Stream(member) => self.stream(package, member, reserved),
        };
        let spent = thread_time().saturating_sub(began).saturating_sub(time_spent_writing() - writing);
        self.decode_ns.fetch_add(spent, Ordering::Relaxed);
        if let Err(trouble) = done {
            self.give_up(package, trouble);
        }
    }

    /// The package is handed over as it came, or the installation cannot go on.
    fn give_up(&self, package: usize, trouble: Trouble) {
        match trouble {
            Trouble::Broken(error) => self.fail(error),
            Trouble::Unsuitable(why) => {
                let slot = &self.packages[package];
                slot.given_up.store(true, Ordering::Relaxed);
                *lock(&slot.job) = None;
                tracing::debug!(package = slot.package.inside, why, "handed to dpkg as it came");
                self.ready(package, Ready::Original(slot.package.inside.clone(), why));
            }
        }
    }

    /// Decides what is to be done with a verified package.
    fn open(&self, package: usize) -> Result<(), Trouble> {
        let slot = &self.packages[package];
        let file = File::open(&slot.package.file).map_err(Trouble::reading)?;
        let archive = Archive::read(&file, slot.package.size)?;
        let control = Control::read(&file, archive.control)?;
        self.suits(&control)?;
        let stub = Stub::make(&self.stage, package, &file, &archive)?;
        let blocks = match archive.data.compression {
            Compression::Xz => xz::blocks(&file, archive.data)?,
            _ => None,
        };
        let blocks = blocks.filter(|b| b.list.iter().all(|b| b.unpacked <= MOST_BLOCK)).map(Arc::new);
        *lock(&slot.job) = Some(Job {
            splitter: Splitter::new(),
            stub,
            conffiles: control.conffiles.into_iter().collect(),
            early: BTreeMap::new(),
            next: 0,
            blocks: blocks.as_ref().map_or(usize::MAX, |b| b.list.len()),
            fed: 0,
            current: None,
            inline: 0,
        });
        match blocks {
            Some(blocks) if blocks.list.is_empty() => return Err(Trouble::unsuitable("it has no data")),
            Some(blocks) => {
                for (number, block) in blocks.list.iter().enumerate() {
                    let memory = block.unpacked + block.packed;
                    self.pool.push((package, number), Task::Block(blocks.clone(), number), memory);
                }
            }
            None => {
                let memory = STREAM_MEMORY + 2 * WINDOW as u64;
                self.pool.push((package, 0), Task::Stream(archive.data), memory);
            }
        }
        Ok(())
    }

    /// Whether the package's files may be placed by us at all.
    fn suits(&self, control: &Control) -> Result<(), Trouble> {
        let id = (control.name.clone(), control.arch.clone(), control.version.clone());
        if !self.policy.fresh.contains(&id) {
            return Err(Trouble::unsuitable("it is not new to this machine"));
        }
        if !control.has_sums {
            return Err(Trouble::unsuitable("it brings no sums of its files"));
        }
        Ok(())
    }

    fn stream(&self, package: usize, member: archive::Member, reserved: Reserved) -> Result<(), Trouble> {
        let memory = Arc::new(Held::new(reserved, self.pool.clone()));
        let slot = &self.packages[package];
        let file = File::open(&slot.package.file).map_err(Trouble::reading)?;
        let mut decoder = stream::open(&file, member)?;
        loop {
            let mut buffer = self.pool.buffer(WINDOW);
            let length = fill(&mut *decoder, &mut buffer[..WINDOW]).map_err(Trouble::reading)?;
            let piece = Arc::new(Chunk::new(buffer, length, memory.clone()));
            let mut guard = lock(&slot.job);
            let Some(job) = guard.as_mut() else { return Ok(()) };
            if length == 0 {
                job.splitter.finish()?;
                break;
            }
            self.count_unpacked(length as u64);
            self.feed(package, job, &piece)?;
            drop((guard, piece));
            self.write_what_waits();
            if self.pool.stopped() {
                return Ok(());
            }
        }
        self.one_less(package)
    }

    fn count_unpacked(&self, bytes: u64) {
        self.unpacked.fetch_add(bytes, Ordering::Relaxed);
    }

    /// At once, by whoever decoded it.
    fn write_what_waits(&self) {
        while let Some(write) = self.pool.a_write() {
            self.write(write);
        }
    }

    fn feed(&self, package: usize, job: &mut Job, piece: &Arc<Piece>) -> Result<(), Trouble> {
        let Job { splitter, stub, conffiles, fed, current, inline, .. } = job;
        *fed += piece.bytes().len() as u64;
        let mut placer = Placer { shared: self, package, stub, conffiles, current, inline, piece };
        splitter.feed(piece.bytes(), &mut placer)
    }

    /// One piece of work on the package less; the last one makes it ready.
    fn one_less(&self, package: usize) -> Result<(), Trouble> {
        let slot = &self.packages[package];
        if slot.outstanding.fetch_sub(1, Ordering::AcqRel) != 1 || slot.given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Taken out: with the job every file of the package is closed.
        let Some(job) = lock(&slot.job).take() else { return Ok(()) };
        drop(job.current);
        let inside = job.stub.close()?;
        if slot.package.disposable {
            // Its pages need not be written to the disk any more.
            fault::point(Kind::Remove, &slot.package.file)
                .and_then(|()| fs::remove_file(&slot.package.file))
                .map_err(|e| Trouble::writing(&slot.package.file, e))?;
        }
        self.ready(package, Ready::Stub(inside));
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until the buffer is full or the stream is over.
fn fill(from: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// A disk that is full, in the words of the installation.
pub(super) fn full_hint(error: Error) -> Error {
    if error.code() == Code::DiskFull {
        return error.with_hint("free space on /var and /usr or enlarge the volume, then run again");
    }
    error
}
