//! Installing packages: apt decides what and in which order, dpkg does it and keeps its database; what takes long,
//! fetching and unpacking, is done for them by as many connections and cores as there are.
//!
//! Three ways lead to the same machine, each with less of our own in it than the one before. [`rung`] chooses, and
//! the result says which one it was and why:
//!
//! 1. **pipeline**: package files are fetched in pieces ([`fetch`]) and, once their SHA-256 is that of apt's signed
//!    index, unpacked by all cores ([`unpack`]): big files into a stage on the same file system, everything else into
//!    a stub of the package, in which hard links stand for the big files. apt plans meanwhile, over placeholders of the
//!    right size, and dpkg, which starts when every package is verified, gets the stubs from a stand-in for `dpkg-deb`
//!    ([`stand_in`]).
//! 2. **originals**: fetched and verified the same way, installed by plain apt and dpkg.
//! 3. **apt**: everything by plain apt.
//!
//! Meanwhile the first two fetch what later steps will need ([`ahead`]), and take what lies on the machine already.
//!
//! Called by the actions that deal with packages.

pub mod ahead;
pub mod arriving;
pub mod fetch;
mod in_flight;
mod prepare;
pub mod report;
mod rung;
mod single;
mod stage;
pub mod stand_in;
mod unpack;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::schema::{InstallConfig, Method};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::apt::simulate::Plan;
use crate::host::apt::{self, Request, judge};
use crate::host::exec::{Call, Output};
use arriving::Arriving;
use in_flight::{Entry, InFlight};
use report::Prepared;
pub use report::Report;
pub use rung::Rung;
pub use single::{deb_into_cache, fetch_files};
use stage::Stage;
#[cfg(any(test, fuzzing))]
pub(crate) use unpack::fuzz::package as fuzz_package;

/// Exit statuses from here on say that a signal ended the program.
const KILLED: i32 = 128;

/// How packages are installed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The fastest way that may be taken.
    pub most: Rung,
    /// Bytes of decoded data at any one time; a quarter of the machine's memory unless it is said.
    pub memory: Option<u64>,
    /// Whether dpkg may leave it to the end of the installation to bring files to the disk, where nothing that is
    /// installed is replaced.
    pub unsafe_io: bool,
    /// Whether manuals and documentation are unpacked.
    pub documentation: bool,
    /// Whether packages of later steps are fetched while an earlier one installs.
    pub prefetch: bool,
    /// How long others may hold a lock.
    pub lock_timeout: Duration,
    /// How long an installation may show no sign of life.
    pub script_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self::from(&InstallConfig::default())
    }
}

impl From<&InstallConfig> for Options {
    fn from(config: &InstallConfig) -> Self {
        Self {
            most: match config.method {
                Method::Auto => Rung::Pipeline,
                Method::Originals => Rung::Originals,
                Method::Apt => Rung::Apt,
            },
            memory: config.memory_bytes(),
            unsafe_io: config.unsafe_io,
            documentation: config.documentation,
            prefetch: config.prefetch,
            lock_timeout: Duration::from_secs(config.lock_timeout),
            script_timeout: Duration::from_secs(config.script_timeout),
        }
    }
}

/// Everything that `documentation = false` leaves out, and what of it stays: licences have to.
const DOCUMENTATION: [&str; 5] = [
    "--path-exclude=/usr/share/doc/*",
    "--path-exclude=/usr/share/man/*",
    "--path-exclude=/usr/share/info/*",
    "--path-exclude=/usr/share/gtk-doc/*",
    "--path-include=/usr/share/doc/*/copyright",
];

/// Installs packages on a [`Host`].
#[derive(Clone, Copy)]
pub struct Installer<'a> {
    host: &'a Host,
    options: Options,
    program: &'a Path,
}

impl<'a> Installer<'a> {
    /// Nothing is touched until a method is called.
    pub fn new(host: &'a Host) -> Self {
        Self { host, options: host.install_options(), program: Path::new("/proc/self/exe") }
    }

    /// Installs as `options` say, instead of as the host was told to.
    #[must_use]
    pub fn with(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Waits at most `budget` for other programs' locks.
    #[must_use]
    pub fn waiting(mut self, budget: Duration) -> Self {
        self.options.lock_timeout = budget;
        self
    }

    /// Lets `program` play the stand-ins' part, instead of this one: it must call [`stand_in::play_if_called`].
    #[must_use]
    pub fn playing(mut self, program: &'a Path) -> Self {
        self.program = program;
        self
    }

    fn apt(&self) -> apt::Apt<'a> {
        self.host.apt().waiting(self.options.lock_timeout).silent_for(self.options.script_timeout)
    }

    /// Resolves, downloads, verifies and installs: after repairing what a killed run left behind, and only if
    /// apt's own simulation removes nothing, downgrades nothing, trusts no unsigned source and fits on the disk.
    pub async fn install(&self, request: &Request) -> Result<Report> {
        self.recover().await?;
        let began = Instant::now();
        let files = request.files(self.host).await?;
        let plan = self.apt().plan(request).await?;
        let plan_seconds = began.elapsed().as_secs_f64();
        if let Some(key) = &request.record {
            let new = plan.installs.iter().filter(|i| i.old.is_none());
            let new = new.map(|i| format!("{}:{}", i.name, i.arch)).collect();
            let automatic = request.automatic.iter().cloned().collect();
            Arriving { new, automatic }.write(self.host, key)?;
        }
        InFlight::of(&plan, &files).write(self.host)?;
        let began = Instant::now();
        let result = self.climb_down(request, &plan).await;
        let install_seconds = began.elapsed().as_secs_f64();
        let over = match &result {
            Ok(taken) => ended_by_itself(&taken.output),
            Err(stopped) => stopped.over,
        };
        let began = Instant::now();
        if over {
            InFlight::clear(self.host).await?;
        }
        let taken = result.map_err(|stopped| stopped.error)?;
        judge(request, &taken.output)?;
        let report = Report {
            install: taken.rung,
            why: taken.why,
            threads: self.limits().threads,
            packages: plan.installs.len(),
            download_bytes: plan.download_bytes(),
            installed_bytes: plan.unpacked,
            plan_seconds,
            install_seconds,
            sync_seconds: began.elapsed().as_secs_f64(),
            prepared: taken.prepared,
        };
        self.host.installed(report.clone());
        Ok(report)
    }

    /// Tries the fastest way that the machine allows, and a slower one where that fails before anything was
    /// installed. A failure of apt's or dpkg's own is none of the way's: another would meet it, too.
    async fn climb_down(&self, request: &Request, plan: &Plan) -> Result<Taken, Stopped> {
        let chosen =
            rung::choose(self.host, request, plan, self.options.most).await.map_err(Stopped::before)?;
        let (mut rung, mut why, proxy) = (chosen.rung, chosen.why, chosen.proxy);
        while rung > Rung::Apt {
            match self.prepare(request, plan, rung, &proxy).await {
                Ok((output, prepared)) => {
                    let output = output.map_err(Stopped::during)?;
                    return Ok(Taken { rung, why, output, prepared });
                }
                // Another way would fill it just as well.
                Err(error) if matches!(error.code(), Code::DiskFull | Code::AptLocked) => {
                    self.complete().await;
                    return Err(Stopped::before(error));
                }
                Err(error) if !self.host.packages().map_err(Stopped::before)?.broken().is_empty() => {
                    self.complete().await;
                    return Err(Stopped::before(error));
                }
                Err(error) => {
                    let causes = error.causes().join(": ");
                    let causes = if causes.is_empty() { causes } else { format!(" ({causes})") };
                    tracing::warn!("{rung}: {error}{causes}");
                    // Where only the stand-in does not run, fetching may; a download that failed is apt's turn.
                    let slower =
                        if error.code() == Code::Exec { Rung::Originals.min(rung) } else { Rung::Apt };
                    rung = if slower < rung { slower } else { Rung::Apt };
                    why = format!("{error}{causes}");
                }
            }
        }
        let output = self.apt().execute(request, plan, |call| self.dpkg_options(call, plan)).await;
        let output = output.map_err(Stopped::during)?;
        Ok(Taken { rung, why, output, prepared: Prepared::default() })
    }

    /// Configures what dpkg had unpacked when an installation was cut short. What cannot be, the next run mends.
    async fn complete(&self) {
        let broken = self.host.packages().is_ok_and(|database| !database.broken().is_empty());
        if broken && let Err(error) = self.apt().configure().await {
            tracing::warn!("what was unpacked could not be configured: {error}");
        }
    }

    /// What the options say to dpkg.
    fn dpkg_options(&self, call: Call, plan: &Plan) -> Call {
        let mut options = Vec::new();
        // Without upgrades there is no old state to fall back to: what a power cut leaves is installed anew anyway.
        if self.options.unsafe_io && plan.installs.iter().all(|i| i.old.is_none()) {
            options.push("--force-unsafe-io");
        }
        if !self.options.documentation {
            options.extend(DOCUMENTATION);
        }
        let option = |o: &str| ["-o".to_owned(), format!("DPkg::Options::={o}")];
        call.args(options.into_iter().flat_map(option))
    }

    /// Gives the space of a stage back that could not be removed when it was no longer needed. What was in flight is
    /// for [`Installer::recover`], which every installation begins with.
    pub async fn tidy(&self) -> Result<()> {
        if self.host.packages_in_flight()? {
            return Ok(());
        }
        Stage::purge(self.host, Instant::now()).await
    }

    /// Repairs what a killed run (ours or another's) left behind; does nothing on a healthy machine.
    pub async fn recover(&self) -> Result<()> {
        self.apt().renew_lists_in_doubt().await?;
        let in_flight = InFlight::read(self.host)?;
        let broken = !self.host.packages()?.broken().is_empty();
        if in_flight.is_none() && !broken {
            return Ok(());
        }
        Stage::purge(self.host, Instant::now() + self.options.lock_timeout).await?;
        tracing::warn!("an earlier package installation did not finish: repairing it");
        let configured = self.apt().configure().await?;
        let mut repaired = None;
        if !self.host.packages()?.broken().is_empty() {
            repaired = match (self.fix_broken().await, &in_flight) {
                (Ok(output), _) => Some(output),
                // What keeps a package from being configured may be a torn file; it is about to come anew.
                (Err(error), Some(_)) => {
                    tracing::warn!("apt could not repair it: {error}");
                    None
                }
                (Err(error), None) => return Err(error),
            };
        }
        if let Some(list) = &in_flight {
            self.remove_unconfigurable(list).await?;
            self.reinstall_in_flight(list).await?;
        }
        // What cannot be had any more is named below.
        if let Err(error) = self.reinstall_torn(in_flight.as_ref()).await {
            tracing::warn!("{error}: {}", error.causes().join(": "));
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
        if in_flight.is_some() {
            InFlight::clear(self.host).await?;
        }
        Ok(())
    }

    /// `apt-get -f install`, judged like any other installation.
    async fn fix_broken(&self) -> Result<Output> {
        let request = Request::default();
        let plan = self.apt().plan(&request).await?;
        Ok(self.climb_down(&request, &plan).await.map_err(|s| s.error)?.output)
    }

    async fn again(&self, request: &Request, plan: &Plan) -> Result<()> {
        judge(request, &self.climb_down(request, plan).await.map_err(|s| s.error)?.output)
    }

    /// Removes what was in flight, was not here before, and cannot be configured: a file that its script needs may be
    /// torn, and apt installs nothing again that waits to be configured. It comes anew with what wanted it.
    async fn remove_unconfigurable(&self, list: &InFlight) -> Result<()> {
        let database = self.host.packages()?;
        let broken: Vec<String> = database.broken().iter().map(|p| p.id()).collect();
        let arrived = list.packages.iter().filter(|e| !e.upgrade).map(|e| format!("{}:{}", e.name, e.arch));
        let ids: Vec<String> = arrived.filter(|id| broken.contains(id)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        tracing::warn!("{} cannot be configured, and will be installed anew", ids.join(", "));
        // What it could not remove is still broken, and is told of then.
        self.apt().take_away(&ids).await.map(drop)
    }

    /// Installs again, with their scripts, the packages that were in flight and are there: their files may be
    /// torn in ways that dpkg cannot see. The others come with the request that wanted them.
    async fn reinstall_in_flight(&self, list: &InFlight) -> Result<()> {
        let database = self.host.packages()?;
        let is_there =
            |e: &&Entry| database.installed(&e.name, Some(&e.arch)).is_some_and(|p| p.version == e.version);
        self.reinstall(list.packages.iter().filter(is_there)).await
    }

    /// Installs again what dpkg was killed over while it unpacked: `apt-get -f install` fetches such packages, and
    /// leaves them as they are.
    async fn reinstall_torn(&self, in_flight: Option<&InFlight>) -> Result<()> {
        let database = self.host.packages()?;
        let file = |name: &str| in_flight?.packages.iter().find(|e| e.name == name)?.file.clone();
        let torn = database.broken().into_iter().filter(|p| p.torn);
        let torn: Vec<_> = torn
            .map(|p| Entry {
                name: p.name.clone(),
                arch: p.arch.clone(),
                version: p.version.clone(),
                file: file(&p.name),
                upgrade: false,
            })
            .collect();
        self.reinstall(torn.iter()).await
    }

    /// Installs these again: from their files, else in their versions, else in what the repository has.
    async fn reinstall(&self, packages: impl Iterator<Item = &Entry>) -> Result<()> {
        let mut versioned = Request { change_held: true, ..Request::default() };
        let mut any = versioned.clone();
        for entry in packages {
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
        let plan = match self.apt().plan(&versioned).await {
            Ok(plan) => return self.again(&versioned, &plan).await,
            // The repository has moved on meanwhile: a newer version is as whole as the same one.
            Err(e) if e.code() == Code::AptUnsolvable => self.apt().plan(&any).await?,
            Err(e) => return Err(e),
        };
        self.again(&any, &plan).await
    }
}

/// apt came to an end by itself: what dpkg says is true, even if it says that something failed. When apt was killed (by
/// us, or by the kernel for want of memory), it is not.
fn ended_by_itself(output: &Output) -> bool {
    output.status < KILLED
}

/// An installation that came to no end.
struct Stopped {
    error: Error,
    /// Whether dpkg's word can be believed all the same.
    over: bool,
}

impl Stopped {
    /// apt had not begun, or had ended by itself.
    fn before(error: Error) -> Self {
        Self { error, over: true }
    }

    /// apt was cut off, unless it never got its lock.
    fn during(error: Error) -> Self {
        let over = error.code() == Code::AptLocked;
        Self { error, over }
    }
}

/// The way that was taken, and what came of it.
struct Taken {
    rung: Rung,
    why: String,
    output: Output,
    prepared: Prepared,
}

/// The list of packages in flight, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_in_flight(bytes: &[u8]) {
    let _ = serde_json::from_slice::<InFlight>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths;

    #[tokio::test]
    async fn a_stage_that_nobody_needs_is_given_back_and_one_of_packages_in_flight_stays() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path().into());
        let there = || host.files.exists(paths::STAGE_DIR).unwrap();
        Stage::make(&host, Instant::now()).await.unwrap();
        InFlight::of(&Plan::default(), &[]).write(&host).unwrap();
        Installer::new(&host).tidy().await.unwrap();
        assert!(there(), "recovery begins with it");
        host.files.remove(paths::IN_FLIGHT).unwrap();
        Installer::new(&host).tidy().await.unwrap();
        assert!(!there());
    }
}
