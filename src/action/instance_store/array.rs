//! Several devices as one: RAID 0, by mdadm. Its members are known by the array's name in their superblocks.

use super::device::{self, Holds};
use super::{LABEL, LIMIT, in_use};
use crate::error::{Code, Error, Result};
use crate::facts::instance_store::BLOCK;
use crate::host::Host;
use crate::host::exec::Call;

/// Where mdadm makes the link to the array's device.
const ARRAY: &str = "/dev/md/gpu-store";

/// How the devices stand as an array.
#[derive(Debug)]
pub(super) enum Found {
    /// The kernel has an array of exactly these devices, under this name.
    Array(String),
    /// It has to be made, or put together again.
    Work(String),
}

/// What each device holds, where that is nothing or a part of ours.
async fn look_at_each(host: &Host, devices: &[String]) -> Result<Vec<Holds>> {
    let mut all = Vec::new();
    for name in devices {
        match device::holds(host, name).await? {
            Holds::Foreign(why) => return Err(in_use(name, &why)),
            // From when the instance type had one device only; it may hold something.
            Holds::Ours => return Err(in_use(name, "has a file system of ours, without the other devices")),
            other => all.push(other),
        }
    }
    Ok(all)
}

/// Looks at the devices. Nothing is changed.
pub(super) async fn look(host: &Host, devices: &[String]) -> Result<Found> {
    let all = look_at_each(host, devices).await?;
    if let Some(name) = whole(host, devices, &all)? {
        return Ok(Found::Array(name));
    }
    Ok(Found::Work(format!("{} devices are no array yet: {}", devices.len(), devices.join(", "))))
}

/// The array's name, where the kernel has one of exactly these devices.
fn whole(host: &Host, devices: &[String], all: &[Holds]) -> Result<Option<String>> {
    let Some(Holds::Member { array: Some(name) }) = all.first() else { return Ok(None) };
    let is_same = |holds: &Holds| matches!(holds, Holds::Member { array: Some(other) } if other == name);
    let members = host.files.list(format!("{BLOCK}/{name}/slaves"))?;
    let size = host.files.read_text(format!("{BLOCK}/{name}/size"))?.unwrap_or_default();
    // One that lacks a member has no size.
    let is_active = !matches!(size.trim(), "" | "0");
    Ok((all.iter().all(is_same) && members.len() == devices.len() && is_active).then(|| name.clone()))
}

/// Makes the array of these devices, or puts it together; returns its device's name.
pub(super) async fn converge(host: &Host, devices: &[String]) -> Result<String> {
    let all = look_at_each(host, devices).await?;
    if let Some(name) = whole(host, devices, &all)? {
        return Ok(name);
    }
    // What the kernel put together of some of them is no array that could be used.
    let mut partial: Vec<_> = all
        .iter()
        .filter_map(|holds| match holds {
            Holds::Member { array } => array.as_deref(),
            _ => None,
        })
        .collect();
    partial.sort_unstable();
    partial.dedup();
    for array in partial {
        host.exec.run(&mdadm(&["--stop"], &[format!("/dev/{array}")])).await?;
    }
    let paths: Vec<_> = devices.iter().map(|name| format!("/dev/{name}")).collect();
    let are_members = all.iter().all(|holds| matches!(holds, Holds::Member { .. }));
    if are_members {
        // Whatever an array holds that cannot be put together, it is not made anew over it.
        host.exec.run(&mdadm(&["--assemble", ARRAY], &paths)).await?;
    } else {
        // A blank one among them: the making was not finished, or a device was replaced, and what an array without
        // redundancy held is lost then.
        for (path, holds) in paths.iter().zip(&all) {
            if !matches!(holds, Holds::Blank) {
                host.exec.run(&Call::new("wipefs").args(["--all", "--quiet", path.as_str()])).await?;
            }
        }
        let count = format!("--raid-devices={}", devices.len());
        let name = format!("--name={LABEL}");
        let how = [
            "--create",
            ARRAY,
            "--run",
            "--quiet",
            "--level=0",
            "--metadata=1.2",
            "--homehost=any",
            &name,
            &count,
        ];
        host.exec.run(&mdadm(&how, &paths)).await?;
    }
    let all = look_at_each(host, devices).await?;
    whole(host, devices, &all)?.ok_or_else(|| {
        Error::new(
            Code::VerifyFailed,
            format!("mdadm made no array of {} that the kernel knows of", devices.join(", ")),
        )
        .with_hint("`cat /proc/mdstat` and `dmesg` say more")
    })
}

fn mdadm(how: &[&str], devices: &[String]) -> Call {
    Call::new("mdadm").args(how.iter().copied()).args(devices).limit(LIMIT)
}
