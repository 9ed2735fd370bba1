//! `instance-store`: a file system on the instance store, on several devices over all of them (RAID 0). What is not blank
//! and not ours is never touched. Mounting it is a unit of systemd's, by the label.
//!
//! A label is what says that the file system is whole: it is made under another one, and gets its own at the end.

mod array;
pub(crate) mod device;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::device::Holds;
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::facts::instance_store;
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::mounts::{self, Mount};

/// The label of a file system that is whole. XFS takes twelve characters.
pub const LABEL: &str = "gpu-store";
/// The label while it is being made.
pub(crate) const UNFINISHED: &str = "gpu-making";
/// Terabytes are ready in seconds, as nothing is discarded and ext4's tables are written later.
pub(crate) const LIMIT: Duration = Duration::from_mins(5);

/// A file system on the instance store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceStore {
    /// Where it will be mounted.
    pub path: String,
    /// What is made on a blank device. One of ours that is of the other kind stays: it may hold something.
    pub file_system: FileSystem,
}

/// Kinds of file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

/// How the devices stand.
enum Stand {
    /// The file system is whole, on this device.
    Whole(String),
    /// Something is to be done, and may be.
    Work(String),
}

impl FileSystem {
    /// `mkfs` on a device; `again` where an earlier one was killed, so that there is something to be overwritten.
    fn make(self, device: &str, again: bool) -> Call {
        let (program, args, force): (_, &[&str], _) = match self {
            // The reserve is for root's logs, which do not lie here. A new device needs no discarding.
            Self::Ext4 => ("mkfs.ext4", &["-q", "-m", "0", "-E", "nodiscard"], "-F"),
            Self::Xfs => ("mkfs.xfs", &["-q", "-K"], "-f"),
        };
        let call = Call::new(program).args(args.iter().copied()).args(["-L", UNFINISHED]);
        let call = if again { call.args([force]) } else { call };
        call.args([format!("/dev/{device}")]).limit(LIMIT)
    }

    fn label(self, device: &str) -> Call {
        let device = format!("/dev/{device}");
        match self {
            Self::Ext4 => Call::new("e2label").args([device.as_str(), LABEL]),
            Self::Xfs => Call::new("xfs_admin").args(["-L", LABEL, device.as_str()]),
        }
    }
}

impl Converge for InstanceStore {
    async fn check(&self, host: &Host) -> Result<Check> {
        let stand = self.stand(host).await?;
        self.place_is_free(host, &stand)?;
        Ok(match stand {
            Stand::Whole(device) => Check::satisfied(format!("/dev/{device} has our file system")),
            Stand::Work(why) => Check::needed(why),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let target = match &devices(host)?[..] {
            [] => return Ok(Applied::Done), // gone meanwhile: the check says so
            [one] => one.clone(),
            several => array::converge(host, several).await?,
        };
        // Between the check and now somebody may have written there.
        let again = match device::holds(host, &target).await? {
            Holds::Ours => return Ok(Applied::Done),
            Holds::Blank => false,
            Holds::Unfinished => true,
            Holds::Member { .. } => return Err(in_use(&target, "is part of an array")),
            Holds::Foreign(why) => return Err(in_use(&target, &why)),
        };
        host.exec.run(&self.file_system.make(&target, again)).await?;
        host.exec.run(&self.file_system.label(&target)).await?;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("instance store for {}", self.path)
    }
}

impl InstanceStore {
    async fn stand(&self, host: &Host) -> Result<Stand> {
        let target = match &devices(host)?[..] {
            [] => return Ok(Stand::Work("the instance store is gone".into())),
            [one] => one.clone(),
            several => match array::look(host, several).await? {
                array::Found::Array(name) => name,
                array::Found::Work(why) => return Ok(Stand::Work(why)),
            },
        };
        match device::holds(host, &target).await? {
            Holds::Ours => Ok(Stand::Whole(target)),
            Holds::Blank => Ok(Stand::Work(format!("/dev/{target} is blank"))),
            Holds::Unfinished => {
                Ok(Stand::Work(format!("/dev/{target} has a file system that was not finished")))
            }
            Holds::Member { .. } => Err(in_use(&target, "is part of an array")),
            Holds::Foreign(why) => Err(in_use(&target, &why)),
        }
    }

    /// Refuses where something else is mounted at the path, or lies there and would be hidden.
    fn place_is_free(&self, host: &Host, stand: &Stand) -> Result<()> {
        let wrong = |why: String| {
            Error::new(Code::StoreInUse, format!("{} {why}", self.path))
                .with_hint("name another directory in [instance] store, or free this one")
        };
        if let Some(Mount { number, source, .. }) = mounts::at(&host.files, &self.path)? {
            let is_ours = match stand {
                Stand::Whole(target) => device::number(host, target)? == Some(number),
                Stand::Work(_) => false,
            };
            return if is_ours { Ok(()) } else { Err(wrong(format!("is where {source} is mounted"))) };
        }
        match host.files.lstat(&self.path)? {
            Some(meta) if !meta.is_dir() => Err(wrong("is no directory".into())),
            Some(_) if !host.files.list(&self.path)?.is_empty() => {
                Err(wrong("is not empty, and a mount would hide what lies there".into()))
            }
            _ => Ok(()),
        }
    }
}

fn devices(host: &Host) -> Result<Vec<String>> {
    let devices = instance_store::gather(&host.files)?.value;
    Ok(devices.into_iter().map(|device| device.name).collect())
}

/// The error of a device that is not ours to change.
fn in_use(device: &str, why: &str) -> Error {
    Error::new(Code::StoreInUse, format!("/dev/{device} {why}; it was left as it is")).with_hint(format!(
        "if nobody needs what it holds: unmount it, `wipefs --all /dev/{device}`, and run again; else leave [instance] \
         store away"
    ))
}
