//! The supervisor: makes the throw-away directory, starts the sandbox, passes signals on, and removes the directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::{Job, Options, failed, filesystem};
use crate::config;
use crate::error::{Error, Result, exit};

/// Here a large file system is likelier than under `/tmp`, which is often memory.
const PARENT: &str = "/var/tmp";
const PREFIX: &str = "gpu-bootstrap-rehearsal-";

/// Runs the sandbox to its end.
pub(super) fn run(options: &Options) -> Result<u8> {
    let config = read_config(options)?;
    remove_leftovers();
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(PARENT)
        .map_err(|e| Error::io("make a directory in", PARENT, e))?;
    // Held while this process lives: tells the next rehearsal that the directory is in use.
    let _in_use = hold(dir.path())?;
    let job = Job {
        supervisor: nix::unistd::getpid().as_raw(),
        dir: dir.path().into(),
        instance_type: options.instance_type.clone(),
        config,
        faults: options.faults.clone(),
        keep: options.keep.as_deref().map(absolute).transpose()?,
        json: options.json,
        command: options.command.clone(),
    };
    let signals = wait_for_signals()?;
    let mut sandbox = start(&job)?;
    let status = wait(&mut sandbox, &signals)?;
    // The sandbox has done so already, unless it was killed.
    filesystem::remove(dir.path())?;
    Ok(status)
}

/// The configuration is checked here, where its errors can name the file; inside it is user-data.
fn read_config(options: &Options) -> Result<String> {
    let Some(path) = &options.config else { return Ok(String::new()) };
    config::check(path)?;
    fs::read_to_string(path).map_err(|e| Error::io("read", path, e))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, e))
}

fn hold(dir: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| Error::io("lock", dir, e.into()))
}

/// A rehearsal locks its directory right after it has made it; younger ones may not have come that far.
const LEFT_BEHIND_AFTER: Duration = Duration::from_mins(1);

/// Removes what rehearsals left behind that were killed together with their sandbox.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        let ours = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX))
            && fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() && m.uid() == 0 && is_old(&m));
        if ours && let Ok(_unused) = hold(&path) {
            // Another attempt follows with the next rehearsal.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn is_old(meta: &fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|changed| changed.elapsed().ok());
    age.is_some_and(|age| age > LEFT_BEHIND_AFTER)
}

/// Blocks the signals that this process waits for; its children start with none blocked.
pub(super) fn wait_for_signals() -> Result<SigSet> {
    let signals: SigSet =
        [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(|e| failed("wait for signals", e))?;
    Ok(signals)
}

fn start(job: &Job) -> Result<Child> {
    let mut sandbox = Command::new("/proc/self/exe")
        .args(["rehearse-inside", "sandbox"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start the sandbox", e))?;
    let json = serde_json::to_vec(job).map_err(|e| failed("describe the rehearsal", e))?;
    // Dropping the pipe ends the sandbox's input.
    let written = sandbox.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(&json));
    written.map_err(|e| failed("tell the sandbox what to do", e))?;
    Ok(sandbox)
}

/// Passes every signal on; the sandbox decides how much time is left.
fn wait(sandbox: &mut Child, signals: &SigSet) -> Result<u8> {
    let pid = Pid::from_raw(i32::try_from(sandbox.id()).unwrap_or_default());
    loop {
        if let Some(status) = sandbox.try_wait().map_err(|e| failed("wait for the sandbox", e))? {
            let code = status.code().and_then(|c| u8::try_from(c).ok());
            return Ok(code.unwrap_or(exit::FAILED));
        }
        match signals.wait().map_err(|e| failed("wait for signals", e))? {
            Signal::SIGCHLD => {}
            // It may have ended this moment.
            signal => _ = kill(pid, signal),
        }
    }
}
