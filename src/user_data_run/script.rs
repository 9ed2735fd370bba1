//! Running one script of the user-data: a file of root's alone in a directory from which programs may be started, gone
//! afterwards.

use nix::sys::statvfs::{FsFlags, statvfs};

use super::log::Log;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;

/// Where scripts may lie while they run. Hardened images mount `/var` or `/run` without the right to execute.
const DIRS: [&str; 3] =
    ["/var/lib/gpu-bootstrap/scripts", "/run/gpu-bootstrap/scripts", "/usr/local/lib/gpu-bootstrap/scripts"];
/// apt's own setting, by which a script's apt waits for whoever holds dpkg's lock (unattended upgrades at the first boot)
/// instead of failing at once.
const APT_WAITS: (&str, &str) = ("/run/gpu-bootstrap/apt-waits.conf", "DPkg::Lock::Timeout \"600\";\n");

/// Removes what a run that was killed left.
pub(super) fn sweep(files: &Files) -> Result<()> {
    DIRS.iter().try_for_each(|dir| files.remove_tree(dir))
}

/// Runs the script to its end, however long that takes. Returns a sentence; a status other than 0 is an error.
pub(super) async fn run(host: &Host, name: &str, program: &[u8], instance_id: &str) -> Result<String> {
    let dir = executable_dir(&host.files)?;
    let path = format!("{dir}/{name}");
    host.files.make_dir(dir, 0o700)?;
    host.files.write(&path, program, 0o700)?;
    host.files.write(APT_WAITS.0, APT_WAITS.1.as_bytes(), 0o644)?;
    let call = Call::new(&path)
        .env("INSTANCE_ID", instance_id)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("APT_CONFIG", APT_WAITS.0);
    let mut log = Log::open(&host.files, name)?;
    let result = host.exec.logged(&call, log.writers()?, || log.follow()).await;
    log.finish();
    let removed = host.files.remove_tree(dir);
    let status = result.map_err(|error| not_started(error, name, program))?;
    removed?;
    if status == 0 {
        return Ok("ended well".into());
    }
    Err(Error::new(Code::UserDataFailed, format!("{name} ended with status {status}"))
        .with_hint(format!("{} has all that it said", super::log::PATH)))
}

fn not_started(error: Error, name: &str, program: &[u8]) -> Error {
    let line = program.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
    let message = format!("{name} cannot be started; its first line is {line:?}");
    Error::new(Code::UserDataFailed, message)
        .with_hint(
            "the first line must be #! and the path of a program that this machine has, such as #!/bin/sh",
        )
        .because(error)
}

fn executable_dir(files: &Files) -> Result<&'static str> {
    for dir in DIRS {
        files.make_dir(dir, 0o700)?;
        let flags = statvfs(&files.outside(dir)?).map_err(|e| Error::io("statvfs", dir, e.into()))?.flags();
        if !flags.contains(FsFlags::ST_NOEXEC) {
            return Ok(dir);
        }
        files.remove_tree(dir)?;
    }
    Err(Error::new(Code::UserDataFailed, format!("scripts may be executed in none of {}", DIRS.join(", ")))
        .with_hint("mount one of their file systems without noexec"))
}
