//! The only door to the machine. Actions, facts and reports reach files, programs, the network and the
//! clock through [`Host`], so that `--root DIR` and the documented environment names move all of it at once.

pub mod added;
pub mod apt;
pub mod beside;
pub mod clock;
pub(crate) mod directory;
pub mod dpkg;
pub mod exec;
pub(crate) mod fault;
pub mod fetch;
pub mod files;
pub(crate) mod guarded;
pub(crate) mod kernel_log;
pub mod ld_cache;
mod look;
pub(crate) mod mounts;
pub mod notify;
pub(crate) mod proxy;
pub mod retry;
mod sync;
pub(crate) mod tree;
mod trusted;

use std::any::Any;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::bundle::{Opened, Remote};
use crate::device_query::verdicts::Verdicts;
use crate::install::report::Report as Installation;
use crate::report::event::Progress;

/// Everything the agent may touch.
pub struct Host {
    /// The file tree: `/`, or a directory treated as if chrooted into it.
    pub files: files::Files,
    /// Running programs (inside the root).
    pub exec: exec::Exec,
    /// Downloads.
    pub fetch: fetch::Fetch,
    /// Time, boot id.
    pub clock: clock::Clock,
    install: OnceLock<crate::install::Options>,
    bundle: OnceLock<Arc<Opened>>,
    buckets: OnceLock<Remote>,
    is_apart: bool,
    ahead: Arc<crate::install::ahead::Ahead>,
    dpkg: dpkg::Cache,
    look: look::Look,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
    last_progress: Arc<Mutex<Option<Instant>>>,
    notices: Arc<dyn Fn(String) + Send + Sync>,
    said: Arc<dyn Fn(String) + Send + Sync>,
    installations: Arc<dyn Fn(Installation) + Send + Sync>,
    verdicts: Arc<dyn Fn(Verdicts) + Send + Sync>,
}

impl Host {
    /// A host over `root` (`/` for the machine itself). Nothing is touched until a method is called.
    pub fn new(root: PathBuf) -> Self {
        Self {
            exec: exec::Exec::new(root.clone()),
            files: files::Files::new(root),
            fetch: fetch::Fetch::new(),
            clock: clock::Clock,
            install: OnceLock::new(),
            bundle: OnceLock::new(),
            buckets: OnceLock::new(),
            is_apart: false,
            ahead: Arc::default(),
            dpkg: dpkg::Cache::default(),
            look: look::Look::default(),
            progress: Arc::new(|_| {}),
            last_progress: Arc::default(),
            notices: Arc::new(|_| {}),
            said: Arc::new(|_| {}),
            installations: Arc::new(|_| {}),
            verdicts: Arc::new(|_| {}),
        }
    }

    /// Sends progress of long work (bytes, packages) to `sink`; the engine connects it to the event stream.
    #[must_use]
    pub fn with_progress(mut self, sink: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(sink);
        self
    }

    /// Sends notices (things to know that are no failure) to `sink`.
    #[must_use]
    pub fn with_notices(mut self, sink: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.notices = Arc::new(sink);
        self
    }

    /// Sends what the administrator's commands print to `sink`.
    #[must_use]
    pub fn with_output(mut self, sink: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.said = Arc::new(sink);
        self
    }

    /// Passes on a line that a command of the administrator's printed. Never blocks, never fails.
    pub fn said(&self, line: String) {
        (self.said)(line);
    }

    /// Sends what each installation took to `sink`.
    #[must_use]
    pub fn with_installations(mut self, sink: impl Fn(Installation) + Send + Sync + 'static) -> Self {
        self.installations = Arc::new(sink);
        self
    }

    /// Says what an installation took. Never blocks, never fails.
    pub fn installed(&self, report: Installation) {
        (self.installations)(report);
    }

    /// Sends what each examination of the GPUs came to, to `sink`.
    #[must_use]
    pub fn with_verdicts(mut self, sink: impl Fn(Verdicts) + Send + Sync + 'static) -> Self {
        self.verdicts = Arc::new(sink);
        self
    }

    /// Says what an examination of the GPUs came to. Never blocks, never fails.
    pub fn examined(&self, verdicts: Verdicts) {
        (self.verdicts)(verdicts);
    }

    /// Lets packages be installed as the configuration says, from now on. Told once: later words change nothing.
    pub fn install_as(&self, options: crate::install::Options) {
        let _ = self.install.set(options);
    }

    /// A directory as the root of an apt that only computes and fetches, while programs run outside of it.
    #[must_use]
    pub(crate) fn apart(root: PathBuf) -> Self {
        Self { exec: exec::Exec::new("/".into()), is_apart: true, ..Self::new(root) }
    }

    pub(crate) fn is_apart(&self) -> bool {
        self.is_apart
    }

    /// A path of the root as programs see it.
    pub(crate) fn seen(&self, path: &str) -> String {
        if self.is_apart { format!("{}{path}", self.files.root().display()) } else { path.to_owned() }
    }

    /// Lets apt see this bundle's sources in place of the machine's, from now on. Told once.
    pub fn install_from(&self, bundle: Arc<Opened>) {
        let _ = self.bundle.set(bundle);
    }

    /// The bundle that packages come from, if they do.
    pub(crate) fn bundle(&self) -> Option<&Opened> {
        self.bundle.get().map(Arc::as_ref)
    }

    /// Lets what lies in buckets be had by way of `remote`, from now on. Told once.
    pub fn reach_buckets(&self, remote: Remote) {
        let _ = self.buckets.set(remote);
    }

    /// Whom to ask for what lies in a bucket.
    pub(crate) fn buckets(&self) -> Option<&Remote> {
        self.buckets.get()
    }

    /// Where apt keeps the indexes of its sources.
    pub(crate) fn apt_lists(&self) -> &'static str {
        if self.bundle().is_some() { crate::bundle::LISTS } else { "/var/lib/apt/lists" }
    }

    /// How packages are installed.
    pub fn install_options(&self) -> crate::install::Options {
        self.install.get().copied().unwrap_or_default()
    }

    /// What is fetched for later steps.
    pub fn ahead(&self) -> &Arc<crate::install::ahead::Ahead> {
        &self.ahead
    }

    /// The same machine, for work that nobody is to hear of.
    pub(crate) fn in_silence(&self) -> Self {
        let mut host = Self::new(self.files.root().into());
        host.fetch = self.fetch.alike();
        host
    }

    /// Says something that a person should know and that is no failure. Never blocks, never fails.
    pub fn notice(&self, text: impl Into<String>) {
        (self.notices)(text.into());
    }

    /// Keeps what a check has just found for the work that follows it, in place of an earlier finding.
    pub(crate) fn keep_look(&self, finding: impl Any + Send) {
        self.look.keep(finding, Instant::now());
    }

    /// What the check before this work found: once, and only where it is a `T` and some seconds old at most.
    pub(crate) fn take_look<T: Any>(&self) -> Option<T> {
        self.look.take(Instant::now())
    }

    /// Says how far a piece of long work has come. Never blocks, never fails.
    pub fn progress(&self, progress: Progress) {
        (self.progress_sink())(progress);
    }

    /// When work last said that it gets on.
    pub(crate) fn last_progress(&self) -> Option<Instant> {
        *self.last_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for threads that outlive a borrow of the host.
    pub fn progress_sink(&self) -> Arc<dyn Fn(Progress) + Send + Sync> {
        let (sink, last) = (self.progress.clone(), self.last_progress.clone());
        Arc::new(move |progress| {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            sink(progress);
        })
    }
}

/// Where the agent keeps its state, under the root.
pub mod paths {
    /// State that survives a reboot.
    pub const STATE_DIR: &str = "/var/lib/gpu-bootstrap";
    /// The receipt: what happened to each step. It explains; it never decides.
    pub const RECEIPT: &str = "/var/lib/gpu-bootstrap/receipt.json";
    /// Packages being installed at this moment; honoured whatever the receipt says.
    pub const IN_FLIGHT: &str = "/var/lib/gpu-bootstrap/in-flight.json";
    /// The boot in which apt's package lists were last written, until they are on the disk.
    pub const LISTS_UNSYNCED: &str = "/var/lib/gpu-bootstrap/lists-unsynced";
    /// What runs have added to this machine, for `uninstall`.
    pub const ADDED: &str = "/var/lib/gpu-bootstrap/added.json";
    /// What was in the place of files that runs wrote.
    pub const ORIGINALS_DIR: &str = "/var/lib/gpu-bootstrap/originals";
    /// What `auto` chose on this image.
    pub const CHOICE: &str = "/var/lib/gpu-bootstrap/choice.json";
    /// Held by flock for the whole run; names its holder.
    pub const LOCK: &str = "/var/lib/gpu-bootstrap/lock";
    /// Verified downloads, named by their SHA-256.
    pub const CACHE_DIR: &str = "/var/lib/gpu-bootstrap/cache";
    /// The last result, kept over reboots.
    pub const LAST_RESULT: &str = "/var/lib/gpu-bootstrap/result.json";
    /// Size of every file of the packages we installed, as recorded when they were installed.
    pub const PACKAGE_FILES_DIR: &str = "/var/lib/gpu-bootstrap/packages";
    /// apt index files fetched and verified apart from the machine's own lists.
    pub const LISTS_DIR: &str = "/var/lib/gpu-bootstrap/lists";
    /// Where packages are fetched and unpacked while they are installed; gone afterwards.
    pub const STAGE_DIR: &str = "/var/lib/gpu-bootstrap/stage";
    /// The result of the last run that installed something, for `analyze`.
    pub const LAST_INSTALLATION: &str = "/var/lib/gpu-bootstrap/last-installation.json";
    /// Reports that could not be delivered yet.
    pub const SPOOL_DIR: &str = "/var/lib/gpu-bootstrap/spool";
    /// Held by flock by whoever delivers what earlier runs left; names its holder.
    pub const SPOOL_LOCK: &str = "/var/lib/gpu-bootstrap/spool/lock";
    /// How it stands with reports since the run is over.
    pub const DELIVERY: &str = "/run/gpu-bootstrap/delivery.json";
    /// The instance that this machine was last set up as, and what of that is done.
    pub const INSTANCE: &str = "/var/lib/gpu-bootstrap/instance.json";
    /// What the early part of this boot did.
    pub const EARLY: &str = "/run/gpu-bootstrap/early.json";
    /// What the metadata service said in this boot, for the units.
    pub const METADATA: &str = "/run/gpu-bootstrap/metadata.json";
    /// Held by flock while the early part is at work.
    pub const EARLY_LOCK: &str = "/run/gpu-bootstrap/early.lock";
    /// Held by flock while the RSA host key is made.
    pub const RSA_LOCK: &str = "/run/gpu-bootstrap/rsa.lock";
    /// What of the user-data is done, and for which instance.
    pub const USER_DATA: &str = "/var/lib/gpu-bootstrap/user-data.json";
    /// What `#include` named, verified, by its SHA-256.
    pub const INCLUDED_DIR: &str = "/var/lib/gpu-bootstrap/included";
    /// What became of the user-data in this boot.
    pub const USER_DATA_REPORT: &str = "/run/gpu-bootstrap/user-data.json";
    /// Held by flock while the user-data is acted on.
    pub const USER_DATA_LOCK: &str = "/run/gpu-bootstrap/user-data.lock";
    /// Files of others that stood in the way, kept.
    pub const SET_ASIDE_DIR: &str = "/var/lib/gpu-bootstrap/set-aside";
    /// Live status, rewritten at each event.
    pub const STATUS: &str = "/run/gpu-bootstrap/status.json";
    /// The result of the last run, written only at its end.
    pub const RESULT: &str = "/run/gpu-bootstrap/result.json";
    /// Every directory that files of ours are written to.
    pub const WRITTEN_DIRS: [&str; 13] = [
        STATE_DIR,
        ORIGINALS_DIR,
        CACHE_DIR,
        SPOOL_DIR,
        PACKAGE_FILES_DIR,
        "/run/gpu-bootstrap",
        "/etc/apt/preferences.d",
        "/etc/apt/sources.list.d",
        "/etc/ld.so.conf.d",
        "/etc/profile.d",
        "/etc/crypto-policies/back-ends",
        "/usr/local",
        "/usr/share/keyrings",
    ];
    /// Distribution's configuration layer.
    pub const CONFIG_VENDOR_DIR: &str = "/usr/lib/gpu-bootstrap";
    /// The administrator's configuration layer.
    pub const CONFIG_DIR: &str = "/etc/gpu-bootstrap";
    /// The administrator's own steps.
    pub const CUSTOM_STEPS_DIR: &str = "/etc/gpu-bootstrap/steps.d";
}
