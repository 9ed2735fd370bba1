//! apt: the only solver. Every call waits for all locks, asks nothing, and forces signatures on. Used by the
//! actions that deal with packages and repositories.

mod call;
mod failure;
pub(crate) mod lists;
pub(crate) mod locks;
pub mod nvidia;
mod policy;
mod remove;
pub(crate) mod simulate;
mod sources;
mod watch;

use std::time::{Duration, Instant};

pub(crate) use failure::http_status;

use crate::error::{Code, Error, Result};
use crate::host::exec::{Call, Output};

use super::fetch::waiting;
use super::retry::Backoff;
use super::{Host, dpkg};
use simulate::{Holds, Plan};
use watch::Watch;

/// An archives directory that is never filled: apt lists only files that it does not have yet, and the list
/// has to be whole to be judged.
pub(crate) const NO_ARCHIVES: &str = "/var/lib/gpu-bootstrap/no-archives";

/// Updates that are tried while a server is busy, and the waits between them.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// apt-get over a [`Host`].
#[derive(Clone, Copy)]
pub struct Apt<'a> {
    host: &'a Host,
    lock_timeout: Duration,
    script_timeout: Duration,
}

/// What `apt-get install` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names, `name=version`, or paths of `.deb` files.
    pub packages: Vec<String>,
    /// Packages to install again although dpkg thinks that they are there.
    pub reinstall: Vec<String>,
    /// Whether recommended packages come along.
    pub recommends: bool,
    /// Whether packages on hold may be changed (to bring back the version that was held).
    pub change_held: bool,
    /// Whether an older version may replace a newer one (for the same reason).
    pub downgrade: bool,
    /// The record of packages that this installation is made for, if it is made for one.
    pub record: Option<String>,
    /// Of the packages above, those (`name:arch`, or names) that are dependencies only: nobody has asked for them.
    pub automatic: Vec<String>,
}

impl Host {
    /// apt on this host.
    pub fn apt(&self) -> Apt<'_> {
        let options = self.install_options();
        Apt { host: self, lock_timeout: options.lock_timeout, script_timeout: options.script_timeout }
    }
}

impl Apt<'_> {
    /// Waits at most `budget` for other programs' locks, instead of as the host was told to.
    #[must_use]
    pub fn waiting(mut self, budget: Duration) -> Self {
        self.lock_timeout = budget;
        self
    }

    /// Ends an installation that shows no sign of life for so long, instead of as the host was told to.
    #[must_use]
    pub(crate) fn silent_for(mut self, limit: Duration) -> Self {
        self.script_timeout = limit;
        self
    }

    /// `apt-get update` for all of the machine's sources. An index that could not be fetched is an error, although
    /// apt would go on with an old one: what is installed next would be chosen from it.
    pub async fn update(&self) -> Result<()> {
        if self.host.bundle().is_some() || self.host.is_apart() {
            // Lists of our own: made anew by whoever asks.
            let mut output = self.fetched(&self.apt_get(self.update_limit()).args(["update"])).await?;
            if policy::refused_a_legacy_key(&output) {
                output = self
                    .fetched(&policy::scoped(self.host, self.apt_get(self.update_limit()).args(["update"]))?)
                    .await?;
            }
            return updated("read the package lists of the bundle", &output);
        }
        if self.lists_are_in_doubt()? {
            // They are about to be removed: not under another program's eyes.
            locks::wait(self.host, Instant::now() + self.lock_timeout).await?;
        }
        let in_doubt = lists::begin(self.host)?;
        let call = self.apt_get(self.update_limit()).args(["update"]);
        let mut output = self.fetched(&call).await?;
        if policy::refused_a_legacy_key(&output) && policy::install(self.host)? {
            output = self.fetched(&call).await?;
        }
        if in_doubt {
            lists::sync(self.host)?;
        }
        updated("update the package lists", &output)
    }

    /// What a user asks for by name, by plain apt: no pipeline, no record of ours.
    pub(crate) async fn for_users(&self, command: &[&str], packages: &[String]) -> Result<()> {
        locks::wait(self.host, Instant::now() + self.lock_timeout).await?;
        let words = command.iter().map(|word| (*word).to_owned()).chain(packages.iter().cloned());
        let call = call::for_users(self.lock_timeout).args(call::place(self.host)).args(words);
        let output = self.host.exec.output(&call).await?;
        if output.ok() {
            return Ok(());
        }
        let what =
            command.iter().copied().chain(packages.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        Err(Error::new(Code::AptFailed, format!("apt-get {what} failed with status {}", output.status))
            .because(output.tail()))
    }

    /// A call of `apt-get` with the sources that are to be used.
    fn apt_get(&self, limit: Duration) -> Call {
        call::apt_get(limit).args(call::place(self.host))
    }

    /// What would be fetched for a request, by apt's word alone: for whoever keeps it for another machine.
    pub(crate) async fn resolve(&self, request: &Request) -> Result<Plan> {
        let hashes = "Acquire::ForceHash=SHA256";
        let call =
            request_call(self.host, request, call::SIMULATE_LIMIT).args(["--print-uris", "-o", hashes]);
        let output = self.host.exec.output(&call).await?;
        if !output.ok() {
            return Err(failure::explain(&request.describe(), &output));
        }
        Ok(Plan::read("", &output.text()))
    }

    /// apt itself gives up a silent server (after 30 s, and four attempts at each file), but not one that trickles.
    fn update_limit(&self) -> Duration {
        call::UPDATE_LIMIT.min(self.host.fetch.patience().total)
    }

    /// Whether the package lists may be torn, because the machine went down before they were on the disk. Then they
    /// count as none: the next update fetches all of them.
    pub fn lists_are_in_doubt(&self) -> Result<bool> {
        if self.host.bundle().is_some() {
            return Ok(false);
        }
        lists::are_in_doubt(self.host)
    }

    /// Like [`Apt::update`], but what is wrong with somebody else's source is a notice, not a failure: a stale
    /// third-party repository must not keep a GPU from working. `ours` are addresses (without scheme) that have
    /// to be fresh. What was wrong is also the answer: it may explain what is missing later.
    pub async fn update_for(&self, ours: &[String]) -> Result<Option<Error>> {
        let Err(error) = self.update().await else { return Ok(None) };
        let words = error.causes().join("\n");
        // One slash: apt writes `file:/srv/x` and `mirror+file:/etc/apt/mirrors/debian.list` (EC2's Debian images) so.
        let about_a_source =
            words.contains(":/") && !matches!(error.code(), Code::AptLocked | Code::DiskFull);
        if !about_a_source || ours.iter().any(|address| words.contains(address.trim_end_matches('/'))) {
            return Err(error);
        }
        self.host.notice(format!("apt could not refresh every source, going on with what it has: {words}"));
        Ok(Some(error))
    }

    /// Renews the package lists if a power cut may have torn them; otherwise nothing happens.
    pub(crate) async fn renew_lists_in_doubt(&self) -> Result<()> {
        if !self.lists_are_in_doubt()? {
            return Ok(());
        }
        tracing::warn!("the machine went down before the package lists were on the disk: renewing them");
        self.update_for(&[]).await.map(drop)
    }

    /// `apt-get update` for one sources file alone, into a lists directory of its own (paths inside the root):
    /// the machine's lists and sources stay as they are.
    pub async fn update_apart(&self, sources: &str, lists_dir: &str) -> Result<()> {
        self.host.files.make_dir(format!("{lists_dir}/partial"), 0o755)?;
        let call = self.apt_get(self.update_limit()).args([
            "-o".to_owned(),
            format!("Dir::Etc::sourcelist={}", self.host.seen(sources)),
            "-o".to_owned(),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "-o".to_owned(),
            format!("Dir::State::lists={}", self.host.seen(lists_dir)),
            // No caches: they would replace the machine's.
            "-o".to_owned(),
            "Dir::Cache::pkgcache=".to_owned(),
            "-o".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "-o".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Docker's images keep indexes compressed, in a format of apt's choice; these are read by us.
            "-o".to_owned(),
            "Acquire::GzipIndexes=false".to_owned(),
            "update".to_owned(),
        ]);
        let mut output = self.fetched(&call).await?;
        if policy::refused_sha1(&output) {
            output = self.fetched(&policy::scoped(self.host, call)?).await?;
        }
        updated(&format!("fetch the index of the repository in {sources}"), &output)
    }

    /// Whether apt could install the package from the lists that it has.
    pub async fn can_install(&self, package: &str) -> Result<bool> {
        let request = Request { packages: vec![package.to_owned()], ..Request::default() };
        match self.plan(&request).await {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.code(), Code::AptUnsolvable | Code::BundleIncomplete) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Holds packages (names, or `name:arch`) at their installed version.
    pub async fn hold(&self, packages: &[String]) -> Result<()> {
        self.mark("hold", "hold packages", packages).await
    }

    /// Records that packages (names, or `name:arch`) are there as dependencies only.
    pub async fn mark_automatic(&self, packages: &[String]) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        self.mark("auto", "mark packages as dependencies", packages).await
    }

    async fn mark(&self, verb: &str, what: &str, packages: &[String]) -> Result<()> {
        let call =
            call::program("apt-mark", call::SIMULATE_LIMIT).args([verb]).args(packages.iter().cloned());
        let output = self.locked(&call).await?;
        if output.ok() { Ok(()) } else { Err(failure::explain(what, &output)) }
    }

    /// `dpkg --configure -a`. Its failure is not the end: what it could not configure, apt may complete.
    pub(crate) async fn configure(&self) -> Result<Output> {
        let args = ["--force-confdef", "--force-confold", "--configure", "-a"];
        self.installing(&call::program("dpkg", call::INSTALL_LIMIT).args(args), None).await
    }

    /// `dpkg --remove` of packages (`name:arch`) that were never whole, whatever depends on them. Their configuration
    /// files stay.
    pub(crate) async fn take_away(&self, ids: &[String]) -> Result<Output> {
        let args = ["--force-depends", "--force-remove-reinstreq", "--remove"];
        let call = call::program("dpkg", call::INSTALL_LIMIT).args(args).args(ids.iter().cloned());
        self.installing(&call, None).await
    }

    /// What apt would do, refused if it must not happen.
    ///
    /// apt leaves packages on hold alone unless they are named, so that another branch of the driver would meet "held
    /// broken packages" in those that came with the last one. Where nothing else is in the way, their holds give way.
    pub(crate) async fn plan(&self, request: &Request) -> Result<Plan> {
        let error = match self.plan_with(request, Holds::Kept).await {
            Err(e) if e.code() == Code::AptUnsolvable && request.change_held => e,
            other => return other,
        };
        match self.plan_with(request, Holds::Ignored).await {
            Ok(plan) if self.may_ignore_holds(&plan)? => Ok(plan),
            // What it would do to others is the better reason.
            Err(e) if e.code() == Code::WouldRemove => Err(e),
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// Whether of all packages on hold only those are changed that were held as NVIDIA's set.
    fn may_ignore_holds(&self, plan: &Plan) -> Result<bool> {
        let database = self.host.packages()?;
        let held = |name: &str| database.named(name).any(|p| p.want == dpkg::Want::Hold);
        let is_ours = |name: &str| nvidia::belongs_to_the_set(name) || nvidia::may_be_removed(name);
        let changed = plan.installs.iter().filter(|i| i.old.is_some()).map(|i| i.name.as_str());
        let mut changed = changed.chain(plan.removes.iter().map(String::as_str));
        Ok(changed.all(|name| is_ours(name) || !held(name)))
    }

    async fn plan_with(&self, request: &Request, holds: Holds) -> Result<Plan> {
        self.host.files.make_dir(format!("{NO_ARCHIVES}/partial"), 0o755)?;
        let base = holds.option(request_call(self.host, request, call::SIMULATE_LIMIT));
        let archives = format!("Dir::Cache::archives={NO_ARCHIVES}");
        // Without the second option apt prints no sum at all where an index has nothing weaker than SHA-256.
        let hashes = "Acquire::ForceHash=SHA256";
        let simulate = base.clone().args(["--simulate"]);
        let print = base.args(["--print-uris", "-o", archives.as_str(), "-o", hashes]);
        // At the same time: each computes for half a second or more. Waited for here, a held lock is told of once.
        locks::wait(self.host, Instant::now() + self.lock_timeout).await?;
        let (simulated, uris) = tokio::join!(self.locked(&simulate), self.locked(&print));
        let (simulated, uris) = (simulated?, uris?);
        if !simulated.ok() || not_reinstallable(&simulated) {
            return Err(failure::explain(&request.describe(), &simulated));
        }
        if !uris.ok() {
            return Err(failure::explain(&request.describe(), &uris));
        }
        let mut plan = Plan::read(&simulated.text(), &uris.text());
        plan.holds = holds;
        // Package files among the request are there already.
        plan.downloads.retain(|d| !request.local_files().any(|path| d.uri == format!("file:{path}")));
        plan.judge(request.downgrade)?;
        plan.refuse_what_no_bundle_has(self.host)?;
        plan.refuse_unsigned(&sources::unsigned(self.host)?)?;
        plan.fits(self.host)?;
        Ok(plan)
    }

    /// What an installation would fetch and by how much the system would grow, by apt's word alone, while another one
    /// goes on: no lock is waited for or taken, nothing is judged, and dpkg's database is read from `status` (path
    /// inside the root).
    pub(crate) async fn foresee(&self, request: &Request, status: &str) -> Result<Plan> {
        self.host.files.make_dir(format!("{NO_ARCHIVES}/partial"), 0o755)?;
        let options = [
            format!("Dir::State::status={status}"),
            // No cache of a database that is not the machine's.
            "Dir::Cache::pkgcache=".to_owned(),
            format!("Dir::Cache::archives={NO_ARCHIVES}"),
            "Acquire::ForceHash=SHA256".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]);
        let call =
            request_call(self.host, request, call::SIMULATE_LIMIT).args(["--print-uris"]).args(options);
        let uris = self.host.exec.run(&call).await?;
        Ok(Plan::read("", &uris.text()))
    }

    /// The installation itself, as planned. `adjust` may add to the call (other archives, other options of dpkg).
    pub(crate) async fn execute(
        &self,
        request: &Request,
        plan: &Plan,
        adjust: impl FnOnce(Call) -> Call,
    ) -> Result<Output> {
        self.installing(&adjust(install_call(self.host, request, plan)), Some(plan.download_bytes())).await
    }

    /// Runs an update, and again where a server was busy: apt has further attempts for broken connections only.
    async fn fetched(&self, call: &Call) -> Result<Output> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        for _ in 1..ATTEMPTS {
            let output = self.locked(call).await?;
            if !failure::is_busy(&output) {
                return Ok(output);
            }
            let wait = backoff.next_wait();
            self.host.progress(waiting(&output.tail(), wait));
            tokio::time::sleep(wait).await;
        }
        self.locked(call).await
    }

    async fn locked(&self, call: &Call) -> Result<Output> {
        self.locked_watched(call, Watch::new(self.host)).await
    }

    /// Runs a call that downloads `bytes` at most, if that is known, and runs packages' scripts.
    async fn installing(&self, call: &Call, bytes: Option<u64>) -> Result<Output> {
        self.locked_watched(call, Watch::new(self.host).downloading(bytes).silent_for(self.script_timeout))
            .await
    }

    /// Runs a call once nobody holds a lock, and again when somebody was faster, within one budget.
    async fn locked_watched(&self, call: &Call, watch: Watch<'_>) -> Result<Output> {
        let started = Instant::now();
        let deadline = started + self.lock_timeout;
        loop {
            locks::wait(self.host, deadline).await?;
            let output = watch.run(call).await?;
            if output.ok() || !failure::is_lock(&output) {
                return Ok(output);
            }
            if Instant::now() >= deadline {
                return Err(locks::gave_up(&failure::lock_line(&output), started.elapsed()));
            }
            // The holder may be one that the kernel does not show to us; do not spin.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// What an installation came to.
pub(crate) fn judge(request: &Request, output: &Output) -> Result<()> {
    if output.ok() { Ok(()) } else { Err(failure::explain(&request.describe(), output)) }
}

/// What a removal came to.
fn judge_removal(what: &str, output: &Output) -> Result<()> {
    if output.ok() { Ok(()) } else { Err(failure::explain(what, output)) }
}

/// apt-get update says 0 when it could go on with old indexes.
fn updated(what: &str, output: &Output) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    let stale =
        ["Failed to fetch", "previous index files will be used", "have been ignored, or old ones used"];
    if output.ok() && !stale.iter().any(|words| text.contains(words)) {
        return Ok(());
    }
    Err(failure::explain(what, output))
}

impl Request {
    /// The package files among the request (paths inside the root).
    pub(crate) fn local_files(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().chain(&self.reinstall).map(String::as_str).filter(|p| p.starts_with('/'))
    }

    /// Asks each package file among the request what it is.
    pub(crate) async fn files(&self, host: &Host) -> Result<Vec<(String, dpkg::Control)>> {
        let mut files = Vec::new();
        for path in self.local_files() {
            files.push((path.to_owned(), dpkg::control(host, path).await?));
        }
        Ok(files)
    }

    /// For messages: `install a, b and 3 more`.
    fn describe(&self) -> String {
        let mut names: Vec<&str> = self.packages.iter().chain(&self.reinstall).map(String::as_str).collect();
        if names.is_empty() {
            return "repair broken packages".into();
        }
        let more = names.len().saturating_sub(5);
        names.truncate(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("install {}{more}", names.join(", "))
    }
}

/// `apt-get install` for a request. `--reinstall` counts for every package named, but changes nothing for those
/// that are not installed in the wanted version.
fn request_call(host: &Host, request: &Request, limit: Duration) -> Call {
    let mut call = call::apt_get(limit).args(call::place(host)).args(["install"]);
    if request.packages.is_empty() && request.reinstall.is_empty() {
        // Only here: together with names it would let apt drop a name that it cannot install.
        call = call.args(["--fix-broken"]);
    }
    call = call.args([if request.recommends { "--install-recommends" } else { "--no-install-recommends" }]);
    for (wanted, option) in [
        (!request.reinstall.is_empty(), "--reinstall"),
        (request.change_held, "--allow-change-held-packages"),
        (request.downgrade, "--allow-downgrades"),
    ] {
        if wanted {
            call = call.args([option]);
        }
    }
    call.args(request.packages.iter().chain(&request.reinstall).cloned())
}

/// The real call: removals stay forbidden, unless the simulation showed permitted ones.
fn install_call(host: &Host, request: &Request, plan: &Plan) -> Call {
    let call = plan.holds.option(request_call(host, request, call::INSTALL_LIMIT));
    if plan.removes.is_empty() { call.args(["--no-remove"]) } else { call }
}

/// apt only warns when it has no file to install again.
fn not_reinstallable(output: &Output) -> bool {
    let printed = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&printed).contains("is not possible, it cannot be downloaded")
}

/// Every reader of source files, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_sources(text: &str) {
    sources::in_lines("a.list", text);
    sources::in_stanzas("a.sources", text);
}

/// Every reader of what apt prints, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_output(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let plan = Plan::read(&text, &text);
    let _ = plan.judge(false);
    let output = Output { status: 100, stdout: bytes.to_vec(), stderr: bytes.to_vec() };
    failure::explain("install", &output);
    failure::is_lock(&output);
    not_reinstallable(&output);
    for line in text.lines() {
        watch::status_line(line, Some(1 << 40));
    }
}
