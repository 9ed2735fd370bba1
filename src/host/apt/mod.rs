//! apt: the only solver. Every call waits for all locks, asks nothing, and forces signatures on. Used by the
//! actions that deal with packages and repositories.

mod call;
mod failure;
mod in_flight;
mod locks;
pub mod nvidia;
mod policy;
mod simulate;
mod sources;

use std::time::{Duration, Instant};

pub use locks::LOCK_BUDGET;

use crate::error::{Code, Error, Result};
use crate::host::exec::{Call, Output};

use super::{Host, dpkg};
use in_flight::InFlight;
use simulate::Plan;

/// An archives directory that is never filled: apt lists only files that it does not have yet, and the list
/// has to be whole to be judged.
const NO_ARCHIVES: &str = "/var/lib/gpu-bootstrap/no-archives";

/// Exit statuses from here on say that a signal ended the program.
const KILLED: i32 = 128;

/// apt-get over a [`Host`].
#[derive(Clone, Copy)]
pub struct Apt<'a> {
    host: &'a Host,
    lock_budget: Duration,
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
}

impl Host {
    /// apt on this host.
    pub fn apt(&self) -> Apt<'_> {
        Apt { host: self, lock_budget: LOCK_BUDGET }
    }
}

impl Apt<'_> {
    /// Waits at most `budget` for other programs' locks, instead of [`LOCK_BUDGET`].
    #[must_use]
    pub fn waiting(mut self, budget: Duration) -> Self {
        self.lock_budget = budget;
        self
    }

    /// `apt-get update` for all of the machine's sources. An index that could not be fetched is an error, although
    /// apt would go on with an old one: what is installed next would be chosen from it.
    pub async fn update(&self) -> Result<()> {
        let call = call::apt_get(call::UPDATE_LIMIT).args(["update"]);
        let mut output = self.locked(&call).await?;
        if policy::refused_a_legacy_key(&output) && policy::install(self.host)? {
            output = self.locked(&call).await?;
        }
        updated("update the package lists", &output)
    }

    /// Like [`Apt::update`], but what is wrong with somebody else's source is a notice, not a failure: a stale
    /// third-party repository must not keep a GPU from working. `ours` are addresses (without scheme) that have
    /// to be fresh.
    pub async fn update_for(&self, ours: &[String]) -> Result<()> {
        let Err(error) = self.update().await else { return Ok(()) };
        let words = error.causes().join("\n");
        // One slash: apt writes `file:/srv/x` and `mirror+file:/etc/apt/mirrors/debian.list` (EC2's Debian images) so.
        let about_a_source =
            words.contains(":/") && !matches!(error.code(), Code::AptLocked | Code::DiskFull);
        if !about_a_source || ours.iter().any(|address| words.contains(address.trim_end_matches('/'))) {
            return Err(error);
        }
        self.host.notice(format!("apt could not refresh every source, going on with what it has: {words}"));
        Ok(())
    }

    /// `apt-get update` for one sources file alone, into a lists directory of its own (paths inside the root):
    /// the machine's lists and sources stay as they are.
    pub async fn update_apart(&self, sources: &str, lists_dir: &str) -> Result<()> {
        self.host.files.make_dir(format!("{lists_dir}/partial"), 0o755)?;
        let call = call::apt_get(call::UPDATE_LIMIT).args([
            "-o".to_owned(),
            format!("Dir::Etc::sourcelist={sources}"),
            "-o".to_owned(),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "-o".to_owned(),
            format!("Dir::State::lists={lists_dir}"),
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
        let mut output = self.locked(&call).await?;
        if policy::refused_sha1(&output) {
            output = self.locked(&policy::scoped(self.host, call)?).await?;
        }
        updated(&format!("fetch the index of the repository in {sources}"), &output)
    }

    /// Resolves, downloads, verifies and installs: after repairing what a killed run left behind, and only if
    /// apt's own simulation removes nothing, downgrades nothing, trusts no unsigned source and fits on the disk.
    pub async fn install(&self, request: &Request) -> Result<()> {
        self.recover().await?;
        let files = request.files(self.host).await?;
        let plan = self.plan(request).await?;
        InFlight::of(&plan, &files).write(self.host)?;
        let result = self.execute(request, &plan).await;
        // apt came to an end by itself: what dpkg says is true, even if it says that something failed. Only
        // when apt was killed (by us, or by the kernel for want of memory) does the list stay.
        let over = match &result {
            Ok(output) => output.status < KILLED,
            Err(error) => error.code() == Code::AptLocked, // it never began
        };
        if over {
            InFlight::clear(self.host).await?;
        }
        judge(request, &result?)
    }

    /// Whether apt could install the package from the lists that it has.
    pub async fn can_install(&self, package: &str) -> Result<bool> {
        let request = Request { packages: vec![package.to_owned()], ..Request::default() };
        match self.plan(&request).await {
            Ok(_) => Ok(true),
            Err(e) if e.code() == Code::AptUnsolvable => Ok(false),
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

    /// Repairs what a killed run (ours or another's) left behind; does nothing on a healthy machine.
    pub async fn recover(&self) -> Result<()> {
        let in_flight = InFlight::read(self.host)?;
        let broken = !self.host.packages()?.broken().is_empty();
        if in_flight.is_none() && !broken {
            return Ok(());
        }
        tracing::warn!("an earlier package installation did not finish: repairing it");
        let configured = self.configure().await?;
        let mut repaired = None;
        if !self.host.packages()?.broken().is_empty() {
            repaired = Some(self.fix_broken().await?);
        }
        let names: Vec<String> = self.host.packages()?.broken().iter().map(|p| p.id()).collect();
        if !names.is_empty() {
            return Err(Error::new(
                Code::DpkgBroken,
                format!("{} could not be repaired", names.join(", ")),
            )
            .with_hint("`dpkg --audit` says what is wrong; `apt-get install --reinstall PACKAGE` often helps; then run again")
            .because(format!("{}\n{}", configured.tail(), repaired.map(|o| o.tail()).unwrap_or_default()).trim().to_owned()));
        }
        if let Some(list) = in_flight {
            self.reinstall_in_flight(&list).await?;
            InFlight::clear(self.host).await?;
        }
        Ok(())
    }

    /// `dpkg --configure -a`. Its failure is not the end: what it could not configure, apt may complete.
    async fn configure(&self) -> Result<Output> {
        let args = ["--force-confdef", "--force-confold", "--configure", "-a"];
        self.locked(&call::program("dpkg", call::INSTALL_LIMIT).args(args)).await
    }

    /// `apt-get -f install`, judged like any other installation.
    async fn fix_broken(&self) -> Result<Output> {
        let request = Request::default();
        let plan = self.plan(&request).await?;
        self.locked(&install_call(&request, &plan)).await
    }

    /// Installs again, with their scripts, the packages that were in flight and are there: their files may be
    /// torn in ways that dpkg cannot see. The others come with the request that wanted them.
    async fn reinstall_in_flight(&self, list: &InFlight) -> Result<()> {
        let database = self.host.packages()?;
        let mut versioned = Request { change_held: true, ..Request::default() };
        let mut any = versioned.clone();
        for entry in &list.packages {
            let there = database.installed(&entry.name, Some(&entry.arch));
            if there.is_none_or(|p| p.version != entry.version) {
                continue;
            }
            match &entry.file {
                Some(file) if self.host.files.exists(file)? => {
                    versioned.reinstall.push(file.clone());
                    any.reinstall.push(file.clone());
                }
                _ => {
                    versioned.reinstall.push(format!("{}:{}={}", entry.name, entry.arch, entry.version));
                    any.reinstall.push(format!("{}:{}", entry.name, entry.arch));
                }
            }
        }
        if versioned.reinstall.is_empty() {
            return Ok(());
        }
        let plan = match self.plan(&versioned).await {
            Ok(plan) => return judge(&versioned, &self.execute(&versioned, &plan).await?),
            // The repository has moved on meanwhile: a newer version is as whole as the same one.
            Err(e) if e.code() == Code::AptUnsolvable => self.plan(&any).await?,
            Err(e) => return Err(e),
        };
        judge(&any, &self.execute(&any, &plan).await?)
    }

    /// What apt would do, refused if it must not happen.
    async fn plan(&self, request: &Request) -> Result<Plan> {
        self.host.files.make_dir(format!("{NO_ARCHIVES}/partial"), 0o755)?;
        let base = request_call(request, call::SIMULATE_LIMIT);
        let simulated = self.locked(&base.clone().args(["--simulate"])).await?;
        if !simulated.ok() || not_reinstallable(&simulated) {
            return Err(failure::explain(&request.describe(), &simulated));
        }
        let archives = format!("Dir::Cache::archives={NO_ARCHIVES}");
        let uris = self.locked(&base.args(["--print-uris", "-o", archives.as_str()])).await?;
        if !uris.ok() {
            return Err(failure::explain(&request.describe(), &uris));
        }
        let plan = Plan::read(&simulated.text(), &uris.text());
        plan.judge(request.downgrade)?;
        plan.refuse_unsigned(&sources::unsigned(self.host)?)?;
        plan.fits(self.host)?;
        Ok(plan)
    }

    async fn execute(&self, request: &Request, plan: &Plan) -> Result<Output> {
        self.locked(&install_call(request, plan)).await
    }

    /// Runs a call once nobody holds a lock, and again when somebody was faster, within one budget.
    async fn locked(&self, call: &Call) -> Result<Output> {
        let started = Instant::now();
        let deadline = started + self.lock_budget;
        loop {
            locks::wait(self.host, deadline).await?;
            let output = call::run_with_progress(self.host, call).await?;
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
fn judge(request: &Request, output: &Output) -> Result<()> {
    if output.ok() { Ok(()) } else { Err(failure::explain(&request.describe(), output)) }
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
    /// Asks each package file among the request what it is.
    async fn files(&self, host: &Host) -> Result<Vec<(String, dpkg::Control)>> {
        let mut files = Vec::new();
        for path in self.packages.iter().chain(&self.reinstall).filter(|p| p.starts_with('/')) {
            files.push((path.clone(), dpkg::control(host, path).await?));
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
fn request_call(request: &Request, limit: Duration) -> Call {
    let mut call = call::apt_get(limit).args(["install"]);
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
fn install_call(request: &Request, plan: &Plan) -> Call {
    let call = request_call(request, call::INSTALL_LIMIT);
    if plan.removes.is_empty() { call.args(["--no-remove"]) } else { call }
}

/// apt only warns when it has no file to install again.
fn not_reinstallable(output: &Output) -> bool {
    let printed = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&printed).contains("is not possible, it cannot be downloaded")
}
