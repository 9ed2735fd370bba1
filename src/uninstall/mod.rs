//! `uninstall`: takes back what runs have added to this machine, and nothing else. [`uninstall`] is all of it as one
//! readable function; `docs/uninstall.md` is the same for people.
//!
//! What was there before is known from [`crate::host::added`]; whether it is still as a run left it is asked of the
//! machine, so that a killed uninstall is simply begun again. What somebody has changed since stays, and is named.

mod packages;
mod plan;
mod show;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use crate::action::{deb, python_environment};
use crate::boot;
use crate::bundle;
use crate::engine::lock;
use crate::engine::signals::Signals;
use crate::error::{Code, Error, Result, exit};
use crate::host::added::Added;
use crate::host::exec::Call;
use crate::host::{Host, apt, paths};
use crate::install::Installer;
use crate::report::streams;
use plan::{Lies, Plan};

/// A service may take this long to stop.
const STOP_LIMIT: Duration = Duration::from_mins(2);
/// `sd_booted(3)`.
const BOOTED: &str = "/run/systemd/system";

/// How the machine is taken back.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command-line flag of its own")]
pub struct Options {
    /// `/`, or a directory treated as the machine's root.
    pub root: PathBuf,
    /// Say what would go, and change nothing.
    pub dry_run: bool,
    /// Ask nothing.
    pub yes: bool,
    /// Downloads, results and the rest of our own state go, too.
    pub purge: bool,
    /// Print a document instead of lines.
    pub json: bool,
}

/// Takes back what runs have added, or says what would be. Returns the process's exit code.
pub async fn uninstall(options: &Options) -> Result<u8> {
    umask(Mode::from_bits_truncate(0o022));
    boot::require_root()?;
    let host = Host::new(options.root.clone());
    let files = &host.files;
    if options.dry_run && lock::is_held(files)? {
        return Err(Error::new(Code::Locked, format!("another run is going on: {} is held", paths::LOCK)));
    }
    let _lock = if options.dry_run { None } else { Some(lock::acquire(files)?) };
    let mut signals = Signals::take()?;
    let work = async {
        if !options.dry_run {
            recover(&host).await?;
        }
        let plan = Plan::of(&host).await?;
        show::plan(&plan, options)?;
        if options.dry_run {
            return Ok(exit::CONVERGED);
        }
        if !plan.is_empty() {
            confirm(options)?;
        }
        carry_out(&host, &plan).await?;
        if options.purge {
            purge_state(&host)?;
        }
        show::done(&plan, &host, options)?;
        Ok(exit::CONVERGED)
    };
    tokio::select! {
        result = work => result,
        error = signals.next() => Err(error.with_hint("`gpu-bootstrap uninstall` goes on from here")),
    }
}

/// Brings dpkg's database in order: after an installation that was killed by ending it, after a removal that was killed
/// only so far that apt can go on with it.
async fn recover(host: &Host) -> Result<()> {
    if host.packages_in_flight()? {
        return Installer::new(host).recover().await;
    }
    if host.packages()?.broken().is_empty() { Ok(()) } else { host.apt().configure().await.map(drop) }
}

/// Asks on a terminal; elsewhere nobody could answer.
fn confirm(options: &Options) -> Result<()> {
    if options.yes {
        return Ok(());
    }
    let refused =
        |what: &str| Err(Error::new(Code::Usage, what).with_hint("--yes asks nothing; --dry-run shows only"));
    if !std::io::stdin().is_terminal() {
        return refused("nothing was changed: nobody is there to be asked");
    }
    streams::err("Take this back? [y/N]");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => refused("nothing was changed"),
    }
}

/// Services first, then packages, whose scripts may want them stopped; then files; our state last of all, because it says
/// what is left to do when this is killed.
async fn carry_out(host: &Host, plan: &Plan) -> Result<()> {
    let booted = host.files.exists(BOOTED)?;
    if booted {
        for unit in &plan.units {
            let call = Call::new("systemctl").args(["disable", "--now", unit.as_str()]).limit(STOP_LIMIT);
            host.exec
                .run(&call)
                .await
                .map_err(|e| Error::new(Code::Exec, format!("{unit} does not stop")).because(e))?;
        }
    }
    packages::take(host, &plan.packages).await?;
    for file in &plan.files {
        match &file.lies {
            Lies::Ours => host.files.remove(&file.path)?,
            Lies::InPlaceOf(before) => plan::restore(host, &file.path, before)?,
        }
    }
    for path in &plan.environments {
        python_environment::remove(&host.files, path)?;
    }
    for path in &plan.lists {
        host.files.remove(path)?;
    }
    for dir in plan.directories.iter().rev() {
        remove_empty(host, dir)?;
    }
    if plan.files.iter().any(|f| f.path.starts_with("/etc/ld.so.conf.d/")) {
        host.exec.run(&Call::new("ldconfig").limit(Duration::from_mins(5))).await?;
    }
    if booted {
        after_files(host, plan).await?;
    }
    forget(host, plan)
}

/// What runs with files that are other ones now.
async fn after_files(host: &Host, plan: &Plan) -> Result<()> {
    let changed = |beginning: &str| plan.files.iter().any(|f| f.path.starts_with(beginning));
    if changed("/etc/systemd/system/") {
        host.exec.run(&Call::new("systemctl").args(["daemon-reload"])).await?;
    }
    for (path, unit) in
        [("/etc/docker/daemon.json", "docker.service"), ("/etc/containerd/config.toml", "containerd.service")]
    {
        if changed(path) {
            let call = Call::new("systemctl").args(["try-restart", unit]).limit(STOP_LIMIT);
            host.exec.run(&call).await?;
        }
    }
    Ok(())
}

/// Only where nothing of others has come into it.
fn remove_empty(host: &Host, dir: &str) -> Result<()> {
    let is_dir = host.files.lstat(dir)?.is_some_and(|m| m.is_dir());
    if is_dir && host.files.list(dir)?.is_empty() { host.files.remove_tree(dir) } else { Ok(()) }
}

/// Removes what described the installation; what stays on the machine stays known.
fn forget(host: &Host, plan: &Plan) -> Result<()> {
    for path in [paths::PACKAGE_FILES_DIR, paths::LISTS_DIR] {
        host.files.remove_tree(path)?;
    }
    for path in [paths::CHOICE, paths::RECEIPT, paths::LAST_INSTALLATION] {
        host.files.remove(path)?;
    }
    let added = Added::read(&host.files)?;
    let mut left = plan.what_stays(&added);
    if left == (Added { schema: left.schema, ..Added::default() }) {
        host.files.remove_tree(paths::ORIGINALS_DIR)?;
        return host.files.remove(paths::ADDED);
    }
    // Those that what stays is in: they go with it.
    for dir in added.directories {
        if host.files.exists(&dir)? {
            left.directories.insert(dir);
        }
    }
    left.write(&host.files)
}

/// Our own state, but for what is other people's (files set aside), what keeps this instance set up, and the lock that is
/// held.
fn purge_state(host: &Host) -> Result<()> {
    let files = &host.files;
    for path in [paths::CACHE_DIR, paths::SPOOL_DIR, apt::NO_ARCHIVES, deb::DEBS_DIR, bundle::DIR] {
        files.remove_tree(path)?;
    }
    for path in [paths::LAST_RESULT, paths::STATUS, paths::RESULT, paths::DELIVERY] {
        files.remove(path)?;
    }
    remove_empty(host, paths::SET_ASIDE_DIR)
}
