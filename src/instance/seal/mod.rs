//! `seal`: makes this machine one that an image can be captured of. What is the instance's goes, what is the image's stays.
//! [`seal`] is all of it as one readable function; `docs/instance.md` is the same for people.
//!
//! No file says that a machine is sealed: that nothing of [`items::ITEMS`] is found is the proof, here as in `--dry-run`.
//! The order is what makes it safe to be killed. First goes what says that this instance is set up, so that its next boot
//! lets its key pair in again, whatever happened since. Then go keys, secrets and traces. The machine-id, by which others
//! tell a prepared image, is emptied last: when everything else is looked through once more, and on the disk.

mod items;
mod network;
mod people;
mod report;
mod trace;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};

use super::cloud_init;
use crate::boot;
use crate::engine::lock;
use crate::error::{Code, Error, Result, exit};
use crate::host::apt::locks;
use crate::host::directory::{Directory, Left, Mounts};
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::host::{Host, paths};
use crate::report::remote;
use items::{ITEMS, Item};
use report::{Outcome, Report};
use trace::Found;

/// How long other programs may hold apt's and dpkg's locks.
const APT_PATIENCE: Duration = Duration::from_mins(1);
/// Where things are taken away: each may be a file system of its own.
const WRITTEN: [&str; 9] = ["/", "/boot", "/boot/efi", "/etc", "/home", "/root", "/tmp", "/var", "/var/log"];
/// Whoever is at work has systemd: `sd_booted(3)`.
const BOOTED: &str = "/run/systemd/system";

/// How a machine is sealed.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or a directory treated as the machine's root.
    pub root: PathBuf,
    /// Say what would go, and change nothing.
    pub dry_run: bool,
    /// Print a document instead of lines.
    pub json: bool,
    /// Let shell history go, too.
    pub shell_history: bool,
}

/// What the items look at.
struct Scene<'a> {
    files: &'a Files,
    mounts: Rc<Mounts>,
    /// By what it is seen that cloud-init sets up the instances of this image.
    cloud_init: Option<&'static str>,
    /// cloud-init writes the network's files anew for each of them.
    cloud_init_network: bool,
    shell_history: bool,
}

/// Seals the machine, or says what would be done. Returns the process's exit code.
pub async fn seal(options: &Options) -> Result<u8> {
    umask(Mode::from_bits_truncate(0o022));
    boot::require_root()?;
    let host = Host::new(options.root.clone());
    let files = &host.files;
    let mut report = Report::new(options.dry_run, options.json);
    let held = if options.dry_run { None } else { Some(Held::take(&host).await?) };
    if options.dry_run && lock::is_held(files)? {
        return Err(Error::new(Code::Locked, format!("another run is going on: {} is held", paths::LOCK)));
    }
    let cloud_init = cloud_init::enabled_by(files)?;
    let scene = Scene {
        files,
        mounts: Rc::new(Mounts::read()?),
        cloud_init,
        cloud_init_network: cloud_init.is_some() && !network::is_kept_from_cloud_init(files)?,
        shell_history: options.shell_history,
    };
    refuse_half_installed(&host)?;
    network::refuse_addresses(&scene)?;
    if let Some(Held { reports: remote::Undelivered { count, .. }, .. }) = &held {
        sweep(files);
        if *count > 0 {
            report.note(format!("reports that nobody has taken yet go with the rest (files: {count})"));
        }
    }
    for item in ITEMS.iter().filter(|item| !item.last) {
        work(item, &host, &scene, &mut report).await?;
    }
    if !options.dry_run {
        still_gone(&scene)?;
        host.sync(&WRITTEN).await?;
    }
    for item in ITEMS.iter().filter(|item| item.last) {
        work(item, &host, &scene, &mut report).await?;
    }
    if !options.dry_run {
        host.sync(&WRITTEN).await?;
    }
    if let Some(note) = items::next_boot(&scene)? {
        report.note(note);
    }
    report.finish()?;
    Ok(exit::CONVERGED)
}

/// Whoever could change something meanwhile is kept from it.
struct Held {
    _run: lock::Lock,
    _early: nix::fcntl::Flock<std::fs::File>,
    reports: remote::Undelivered,
    _apt: Option<locks::Frontend>,
}

impl Held {
    async fn take(host: &Host) -> Result<Self> {
        let run = lock::acquire(&host.files)?;
        let early = super::turn(&host.files)?;
        let reports = remote::undelivered(&host.files).await?;
        let deadline = Instant::now() + APT_PATIENCE;
        locks::wait(host, deadline).await?;
        Ok(Self { _run: run, _early: early, reports, _apt: locks::frontend(host, deadline).await? })
    }
}

/// What killed runs left of writes.
fn sweep(files: &Files) {
    for dir in paths::WRITTEN_DIRS.into_iter().chain(super::WRITTEN_DIRS).chain(["/var/lib/dbus"]) {
        if let Err(error) = files.sweep(dir) {
            tracing::warn!("{}", boot::explain(&error));
        }
    }
}

/// An image of a machine on which dpkg was cut off is one on which it was cut off for ever.
fn refuse_half_installed(host: &Host) -> Result<()> {
    let hint = "`gpu-bootstrap run` repairs them, or `dpkg --audit` says what is wrong; then seal";
    let refused = |what: String| Err(Error::new(Code::PackagesInFlight, what).with_hint(hint));
    if host.packages_in_flight()? {
        return refused(format!(
            "a run was killed while it installed packages ({}): an image of this machine would have them half installed",
            paths::IN_FLIGHT
        ));
    }
    let database = host.packages()?;
    let broken: Vec<_> = database.broken().iter().map(|p| p.name.clone()).collect();
    if broken.is_empty() {
        return Ok(());
    }
    refused(format!("dpkg has not finished {}: an image of this machine would have it so", broken.join(", ")))
}

/// One item: look, take away, look again.
async fn work(item: &Item, host: &Host, scene: &Scene<'_>, report: &mut Report) -> Result<()> {
    let mut found = item.find(scene)?;
    let paths = found.words();
    if report.is_dry_run() {
        let outcome = if paths.is_empty() { Outcome::Clean } else { Outcome::WouldGo };
        report.item(item, outcome, &paths, &found.left);
        return Ok(());
    }
    if !paths.is_empty() {
        found.left.extend(calm(item, host).await);
        let failed = found.clear(scene.files);
        if item.must {
            failed.into_iter().next().map_or(Ok(()), Err)?;
            item.refuse_rest(scene)?;
        } else {
            found.left.extend(failed.iter().map(trace::left));
        }
    }
    let outcome = if paths.is_empty() { Outcome::Clean } else { Outcome::Gone };
    report.item(item, outcome, &paths, &found.left);
    Ok(())
}

/// Stops what would write at once again what is about to go.
async fn calm(item: &Item, host: &Host) -> Option<Left> {
    let (path, [program, args @ ..]) = item.calm? else { return None };
    if ![BOOTED, path].iter().all(|path| host.files.exists(path).unwrap_or(false)) {
        return None;
    }
    let call = Call::new(program).args(args.iter().copied());
    let error = host.exec.run(&call).await.err()?;
    Some(Left { path: call.line().into(), why: format!("failed ({error}), so that it may come again") })
}

/// Everything that must be gone is looked for once more: something may have written meanwhile.
fn still_gone(scene: &Scene<'_>) -> Result<()> {
    ITEMS.iter().filter(|item| item.must && !item.last).try_for_each(|item| item.refuse_rest(scene))
}

impl Item {
    /// What there is of it. What must go and cannot be looked at is an error.
    fn find(&self, scene: &Scene<'_>) -> Result<Found> {
        let mut found = Found::default();
        (self.look)(scene, &mut found)?;
        if self.must && !found.refused.is_empty() {
            return Err(found.refused.swap_remove(0));
        }
        found.left.extend(std::mem::take(&mut found.refused).iter().map(trace::left));
        Ok(found)
    }

    fn refuse_rest(&self, scene: &Scene<'_>) -> Result<()> {
        let rest = self.find(scene)?.words();
        if rest.is_empty() {
            return Ok(());
        }
        let message = format!("{} came again: {}", self.title, report::few(&rest));
        Err(Error::new(Code::VerifyFailed, message)
            .with_hint("stop what writes them, then seal again: the machine is not sealed"))
    }
}

impl Scene<'_> {
    fn directory(&self, path: &str) -> Result<Option<Rc<Directory>>> {
        Ok(Directory::open(self.files, path, &self.mounts)?.map(Rc::new))
    }
}
