//! Doing what `mounts` and `swap` say: `/etc/fstab` whole and looked at before it takes its place, then only what is ours is
//! mounted. What fails is told, and the rest is done.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::devices::{self, Block};
use super::mounts::{self, Entry, Mounts};
use super::swap;
use crate::action::instance_store::device;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::guarded::Wanted;
use crate::host::mounts::{self as mounted, Mount};

const FSTAB: &str = "/etc/fstab";
/// Where the new one lies while it is looked at.
const CANDIDATE: &str = "/run/gpu-bootstrap/fstab";
/// A server that does not answer must not use up the five minutes of the stage.
const LIMIT: Duration = Duration::from_secs(90);

/// What came of it so far.
#[derive(Default)]
struct Outcome {
    told: Vec<String>,
    failures: Vec<Error>,
}

/// An entry whose device is there, or that only mount(8) can make sense of.
struct Ready<'a> {
    entry: &'a Entry,
    source: String,
    block: Option<Block>,
}

/// Writes, mounts, makes the swap file. Every part is tried; the first failure is what is told.
pub(in crate::cloud_config) async fn apply(host: &Host, wanted: &Mounts) -> Result<String> {
    let mut outcome = Outcome::default();
    let old = host.files.read(FSTAB)?.unwrap_or_default();
    let (lines, ready) = found(host, wanted, &mounts::foreign(&old), &mut outcome).await;
    // The line of a swap file that an earlier call made stays until it is known whether there still is one.
    let mut ours = lines.clone();
    let kept = wanted.swap.as_ref().and_then(|swap| mounts::kept_swap(&old, &swap.file));
    ours.extend(kept.map(|line| String::from_utf8_lossy(line).into_owned()));
    write(host, &old, &ours).await?;
    for ready in &ready {
        match activate(host, ready).await {
            Ok(told) => outcome.told.push(told),
            Err(error) => outcome.failures.push(error),
        }
    }
    // Behind the mounts: it may lie on one of them.
    if let Some(swap) = &wanted.swap {
        let mut ours = lines;
        match swap.apply(host).await {
            Ok((told, is_there)) => {
                outcome.told.push(told);
                ours.extend(is_there.then(|| mounts::swap_line(&swap.file)));
            }
            Err(error) => outcome.failures.push(error),
        }
        let now = host.files.read(FSTAB)?.unwrap_or_default();
        write(host, &now, &ours).await?;
    }
    summed("mounts", &outcome.told, outcome.failures)
}

/// A sentence, or the first failure with how many there are.
pub(super) fn summed(key: &str, told: &[String], failures: Vec<Error>) -> Result<String> {
    let failed = failures.len();
    match failures.into_iter().next() {
        None => Ok(told.join("; ")),
        Some(first) if failed == 1 => Err(first),
        Some(first) => {
            let hint = first.hint().unwrap_or_default().to_owned();
            Err(Error::new(first.code(), format!("{key}: {failed} failed; the first: {}", first.message()))
                .with_hint(hint)
                .because(first))
        }
    }
}

/// The lines of the entries, and what is to be mounted of them.
async fn found<'a>(
    host: &Host,
    wanted: &'a Mounts,
    foreign: &[&[u8]],
    outcome: &mut Outcome,
) -> (Vec<String>, Vec<Ready<'a>>) {
    let (mut lines, mut ready) = (Vec::new(), Vec::new());
    for entry in &wanted.entries {
        let name = &entry.name;
        let block = match name.source(host).await {
            Ok(block) => block,
            Err(error) => {
                outcome.failures.push(error);
                continue;
            }
        };
        let source = match &block {
            Some(block) => match block.lasting(host).await {
                Ok(source) => Some(source),
                Err(error) => {
                    outcome.failures.push(error);
                    continue;
                }
            },
            None => name.as_given().map(str::to_owned),
        };
        if block.is_none() && name.is_ephemeral() {
            outcome.told.push(format!(
                "this instance has no {}, so that nothing is mounted at {}",
                name.text, entry.place
            ));
            continue;
        }
        if block.is_none() && name.is_device() {
            let then = if source.is_some() {
                "; its line of /etc/fstab mounts it at a boot that has it"
            } else {
                ""
            };
            outcome.failures.push(failed(format!("mounts: there is no {}{then}", name.text)));
        }
        let Some(source) = source else { continue };
        if foreign.iter().any(|line| mounts::names(line, &source)) {
            outcome.told.push(format!("{source} stands in /etc/fstab already, and stays as it is"));
            continue;
        }
        lines.push(entry.line(&source));
        if let Err(error) = place(host, entry) {
            outcome.failures.push(error);
            continue;
        }
        if block.is_some() || !name.is_device() {
            ready.push(Ready { entry, source, block });
        }
    }
    (lines, ready)
}

/// Writes fstab with these lines of ours, unless it is so already. One that mount(8) cannot read is not written.
async fn write(host: &Host, old: &[u8], ours: &[String]) -> Result<()> {
    let files = &host.files;
    let new = mounts::joined(&mounts::foreign(old), ours);
    // Where nothing of ours stands or is to stand, nobody's missing line end is mended.
    if new == old || (ours.is_empty() && !mounts::has_ours(old)) {
        return Ok(());
    }
    if unreadable(host, &new).await? > unreadable(host, old).await? {
        return Err(failed(format!(
            "{FSTAB} would have a line that mount(8) cannot read; it was left as it is"
        ))
        .with_hint("`gpu-bootstrap user-data check` shows the lines of mounts"));
    }
    let mode =
        files.lstat(FSTAB)?.filter(std::fs::Metadata::is_file).map_or(0o644, |meta| meta.mode() & 0o7777);
    files.write_guarded(FSTAB, &Wanted { content: &new, mode, uid: None, gid: None, append: false })?;
    if files.exists("/run/systemd/system")? {
        // systemd makes its units of fstab, and would unmount what it knows otherwise.
        host.exec.run(&Call::new("systemctl").args(["daemon-reload"])).await?;
    }
    Ok(())
}

/// Lines that the machine's own reader of fstab cannot make sense of; none where it is not there to be asked.
async fn unreadable(host: &Host, fstab: &[u8]) -> Result<usize> {
    if !host.files.exists("/usr/bin/findmnt")? && !host.files.exists("/bin/findmnt")? {
        return Ok(0);
    }
    host.files.write(CANDIDATE, fstab, 0o600)?;
    let result = host.exec.output(&Call::new("findmnt").args(["--verify", "--tab-file", CANDIDATE])).await;
    host.files.remove(CANDIDATE)?;
    let output = result?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).lines().filter(|line| line.contains("parse error at line")).count())
}

/// Makes the directory at which it is to be mounted.
fn place(host: &Host, entry: &Entry) -> Result<()> {
    if entry.place.starts_with('/') { host.files.make_dir_guarded(&entry.place) } else { Ok(()) }
}

/// Mounts it, or switches it on as swap.
async fn activate(host: &Host, Ready { entry, source, block }: &Ready<'_>) -> Result<String> {
    let place = entry.place.as_str();
    if entry.options.split(',').any(|word| word == "noauto") {
        return Ok(format!("{source} is for {place}, when asked for (noauto)"));
    }
    if entry.kind == "swap" {
        let device = block.as_ref().map_or_else(|| source.clone(), |block| format!("/dev/{}", block.kernel));
        if !swap::is_active(&host.files, &device)? {
            host.exec.run(&Call::new("swapon").args([source.as_str()]).limit(LIMIT)).await?;
        }
        return Ok(format!("{source} is swap"));
    }
    if !place.starts_with('/') {
        return Ok(format!("{source} is mounted nowhere"));
    }
    if let Some(Mount { number, source: other, .. }) = mounted::at(&host.files, place)? {
        let own = block.as_ref().map(|block| device::number(host, &block.kernel)).transpose()?.flatten();
        let is_ours = match (&own, block) {
            (Some(own), _) => *own == number,
            (None, Some(block)) => {
                devices::kernel_name(&host.files, &other)?.as_deref() == Some(&block.kernel)
            }
            (None, None) => true,
        };
        return if is_ours {
            Ok(format!("{source} is mounted at {place}"))
        } else {
            Err(failed(format!("{other} is mounted at {place} already, so that {source} is not")))
        };
    }
    let call = Call::new("mount").args([place]).limit(LIMIT);
    host.exec.run(&call).await.map_err(|error| {
        failed(format!("mounts: {source} cannot be mounted at {place}"))
            .with_hint(format!(
                "`blkid {source}` says what it holds; fs_setup makes a file system on an empty one"
            ))
            .because(error)
    })?;
    // With nofail a device that is not there is no failure to mount(8).
    if mounted::at(&host.files, place)?.is_none() {
        return Err(failed(format!("mounts: {source} is not there, so that nothing is mounted at {place}")));
    }
    Ok(format!("{source} is mounted at {place}"))
}

fn failed(message: String) -> Error {
    Error::new(Code::UserDataFailed, message).with_hint("`lsblk` shows the devices that there are")
}
