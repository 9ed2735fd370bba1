//! The root partition and its file system grow to what the disk has. The disk is asked first, by sysfs; the partition is
//! changed by `growpart`, which the distributions' images have, and the file system by its own tool, which does nothing
//! where there is nothing to do.

use std::path::Path;
use std::time::Duration;

use super::report::Told;
use crate::cloud_config::Growth;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::host::mounts::{self, Mount};

const BLOCK: &str = "/sys/class/block";
/// sysfs counts in these, whatever the disk's own sectors are.
const SECTOR: u64 = 512;
/// Less than this behind the partition is not worth a change: `growpart` leaves up to 1 MiB, and GPT has its copy there.
const SMALL: u64 = (2 << 20) / SECTOR;
/// An image with this file keeps its partition.
const DISABLED: &str = "/etc/growroot-disabled";
/// The tool that changes the partition.
const TOOL: &str = "growpart";
/// Online growth writes some blocks for every 128 MiB; a slow new volume takes its time for them.
const LIMIT: Duration = Duration::from_mins(5);

/// A partition, in sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    /// `nvme0n1p1`
    name: String,
    /// `nvme0n1`
    disk: String,
    number: u32,
    size: u64,
    /// Sectors behind it that no other partition has.
    room: u64,
}

/// Grows what can be grown, and may be.
pub(super) async fn apply(host: &Host, growth: &Growth) -> Result<Told> {
    let files = &host.files;
    // The file is cloud-init's and its initramfs' word for an image whose partition is to stay.
    let is_disabled = files.exists(DISABLED)? && !growth.even_if_disabled;
    let grows_partition = growth.partition && !is_disabled;
    if !grows_partition && !growth.file_system {
        let text = if is_disabled {
            format!("the root stays as it is ({DISABLED}, user-data)")
        } else {
            "the root stays as it is, by user-data".into()
        };
        return Ok(Told { changed: false, text });
    }
    let mount = mounts::at(files, "/")?;
    let mount = mount.ok_or_else(|| unknown(format!("{} does not say what / is on", mounts::TABLE)))?;
    let Some(resize) = Resize::of(&mount.kind) else {
        return Ok(Told {
            changed: false,
            text: format!("the root is {}, which is not grown here", mount.kind),
        });
    };
    let name = device(files, &mount)?;
    let mut told = Told { changed: false, text: format!("the root ({name}, {}) has", mount.kind) };
    if grows_partition {
        told.changed = partition_to_its_end(host, &name).await?;
    }
    let before = bytes(files)?;
    if growth.file_system {
        host.exec.run(&resize.call(&name).limit(LIMIT)).await?;
    }
    let after = bytes(files)?;
    told.changed |= after != before;
    let gigabytes = |bytes: u64| format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10);
    told.text = match (grows_partition, growth.file_system) {
        (true, false) if told.changed => {
            format!("the root's partition ({name}) has grown; its file system is left as it is")
        }
        (true, false) => format!("{} all of its disk; its file system is left as it is", told.text),
        _ if told.changed => {
            format!("{} grown from {} to {}", told.text, gigabytes(before), gigabytes(after))
        }
        (true, true) => format!("{} all of its disk: {}", told.text, gigabytes(after)),
        (false, _) => format!("{} {}; its partition is left as it is", told.text, gigabytes(after)),
    };
    Ok(told)
}

/// Grows a partition into the room behind it; anything else is left as it is. Returns whether it is larger now.
pub(crate) async fn partition_to_its_end(host: &Host, name: &str) -> Result<bool> {
    match partition(&host.files, name)? {
        Some(partition) => grow(host, &partition).await,
        None => Ok(false),
    }
}

/// How a file system is grown while it is mounted.
#[derive(Clone, Copy)]
enum Resize {
    Ext,
    Xfs,
    Btrfs,
}

impl Resize {
    fn of(file_system: &str) -> Option<Self> {
        match file_system {
            "ext2" | "ext3" | "ext4" => Some(Self::Ext),
            "xfs" => Some(Self::Xfs),
            "btrfs" => Some(Self::Btrfs),
            _ => None,
        }
    }

    fn call(self, device: &str) -> Call {
        match self {
            Self::Ext => Call::new("resize2fs").args([format!("/dev/{device}")]),
            Self::Xfs => Call::new("xfs_growfs").args(["/"]),
            Self::Btrfs => Call::new("btrfs").args(["filesystem", "resize", "max", "/"]),
        }
    }
}

/// Grows the partition into the room behind it. Returns whether it is larger now.
async fn grow(host: &Host, partition: &Partition) -> Result<bool> {
    if partition.room < SMALL {
        return Ok(false);
    }
    let there = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let mut found = false;
    for dir in there {
        found |= host.files.exists(format!("{dir}/{TOOL}"))?;
    }
    let Partition { name, disk, number, .. } = partition;
    if !found {
        let megabytes = partition.room * SECTOR / 1_000_000;
        return Err(Error::new(
            Code::Exec,
            format!("{name} could be {megabytes} MB larger, but this image has no {TOOL}"),
        )
        .with_hint("install cloud-guest-utils in the image"));
    }
    let call = Call::new(TOOL).args([format!("/dev/{disk}"), number.to_string()]).limit(LIMIT);
    let output = host.exec.output(&call).await?;
    // It exits 1 where there is nothing to be done, and says so.
    let has_nothing_to_do = output.status == 1 && output.text().starts_with("NOCHANGE");
    if !output.ok() && !has_nothing_to_do {
        return Err(Error::new(Code::Exec, format!("{} failed with status {}", call.line(), output.status))
            .because(output.tail()));
    }
    let now = number_at(&host.files, &format!("{BLOCK}/{name}/size"))?.unwrap_or_default();
    if output.ok() && now <= partition.size {
        return Err(Error::new(
            Code::VerifyFailed,
            format!("{} has changed nothing that the kernel knows of", call.line()),
        )
        .with_hint("the next boot reads the partition table anew, and grows the file system"));
    }
    Ok(now > partition.size)
}

/// The kernel's name of the root's device. btrfs has a number that is no device's, and then its source tells.
fn device(files: &Files, mount: &Mount) -> Result<String> {
    let link = files.read_link(format!("/sys/dev/block/{}", mount.number))?;
    let name = link.as_deref().and_then(last).or_else(|| last(Path::new(&mount.source)));
    let name = name.ok_or_else(|| unknown(format!("/ is on {}, which is no device", mount.source)))?;
    // A link of udev's, such as /dev/disk/by-uuid/….
    let name = match files.read_link(&mount.source)? {
        Some(target) if link.is_none() => last(&target).unwrap_or(name),
        _ => name,
    };
    if files.exists(format!("{BLOCK}/{name}"))? {
        return Ok(name);
    }
    Err(unknown(format!("/ is on {}, and {BLOCK} has no {name}", mount.source)))
}

/// The partition called `name`; `None` where it is something else: a whole disk, a logical volume.
fn partition(files: &Files, name: &str) -> Result<Option<Partition>> {
    let at = |name: &str, item: &str| number_at(files, &format!("{BLOCK}/{name}/{item}"));
    let Some(number) = at(name, "partition")? else { return Ok(None) };
    let link = files.read_link(format!("{BLOCK}/{name}"))?;
    let disk = link.as_deref().and_then(Path::parent).and_then(last);
    let disk = disk.ok_or_else(|| unknown(format!("{BLOCK}/{name} does not say what disk it is on")))?;
    let (Some(start), Some(size), Some(whole)) = (at(name, "start")?, at(name, "size")?, at(&disk, "size")?)
    else {
        return Err(unknown(format!("{BLOCK} does not say where {name} is on {disk}")));
    };
    let end = start.saturating_add(size);
    let mut limit = whole;
    for other in files.list(format!("{BLOCK}/{disk}"))? {
        let is_partition = other != name && other.starts_with(&disk);
        if is_partition && let Some(begins) = at(&other, "start")?.filter(|begins| *begins >= end) {
            limit = limit.min(begins);
        }
    }
    let number = u32::try_from(number).map_err(|_| unknown(format!("{name} has no number")))?;
    Ok(Some(Partition { name: name.into(), disk, number, size, room: limit.saturating_sub(end) }))
}

/// Bytes of the root's file system.
fn bytes(files: &Files) -> Result<u64> {
    let root = files.outside("/")?;
    let stat = nix::sys::statvfs::statvfs(&root).map_err(|e| Error::io("statvfs", "/", e.into()))?;
    Ok(stat.blocks() * stat.fragment_size())
}

fn number_at(files: &Files, path: &str) -> Result<Option<u64>> {
    Ok(files.read_text(path)?.and_then(|text| text.trim().parse().ok()))
}

fn last(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn unknown(message: String) -> Error {
    Error::new(Code::FactsUnreadable, message).with_hint("the root was left as it is")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk {
        dir: tempfile::TempDir,
        files: Files,
    }

    impl Disk {
        fn new(disk: &str, size: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::new(dir.path().into());
            let new = Self { dir, files };
            new.write(&format!("/sys/devices/pci/{disk}/size"), size);
            new.link(&format!("/sys/class/block/{disk}"), &format!("../../devices/pci/{disk}"));
            new
        }

        fn partition(self, disk: &str, name: &str, numbers: [u64; 3]) -> Self {
            for (item, number) in ["partition", "start", "size"].into_iter().zip(numbers) {
                self.write(&format!("/sys/devices/pci/{disk}/{name}/{item}"), number);
            }
            self.link(&format!("/sys/class/block/{name}"), &format!("../../devices/pci/{disk}/{name}"));
            self
        }

        fn write(&self, path: &str, number: u64) {
            self.files.write(path, format!("{number}\n").as_bytes(), 0o644).unwrap();
        }

        fn link(&self, path: &str, target: &str) {
            self.files.symlink(path, target).unwrap();
            assert!(self.dir.path().exists());
        }
    }

    #[test]
    fn room_is_what_lies_behind_up_to_the_next_partition() {
        let disk = Disk::new("nvme0n1", 62_914_560)
            .partition("nvme0n1", "nvme0n1p1", [1, 262_144, 16_512_991])
            .partition("nvme0n1", "nvme0n1p14", [14, 2048, 6144])
            .partition("nvme0n1", "nvme0n1p15", [15, 8192, 253_952]);
        let root = partition(&disk.files, "nvme0n1p1").unwrap().unwrap();
        assert_eq!((root.disk.as_str(), root.number), ("nvme0n1", 1));
        assert_eq!(root.room, 62_914_560 - 262_144 - 16_512_991);
        assert_eq!(
            partition(&disk.files, "nvme0n1p14").unwrap().unwrap().room,
            0,
            "the next one begins there"
        );
        assert_eq!(partition(&disk.files, "nvme0n1").unwrap(), None, "a disk is no partition");
    }

    #[test]
    fn the_device_is_found_by_its_number_or_else_by_its_source() {
        let disk = Disk::new("xvda", 100).partition("xvda", "xvda1", [1, 10, 20]);
        let mount = |device: &str, source: &str| Mount {
            number: device.into(),
            place: "/".into(),
            kind: "btrfs".into(),
            source: source.into(),
        };
        assert_eq!(device(&disk.files, &mount("0:26", "/dev/xvda1")).unwrap(), "xvda1");
        disk.link("/dev/disk/by-uuid/1-2", "../../xvda1");
        assert_eq!(device(&disk.files, &mount("0:26", "/dev/disk/by-uuid/1-2")).unwrap(), "xvda1");
        disk.link("/sys/dev/block/202:1", "../../devices/pci/xvda/xvda1");
        assert_eq!(device(&disk.files, &mount("202:1", "/dev/root")).unwrap(), "xvda1");
        for odd in ["overlay", "/dev/xvdb1", "tmpfs", "/"] {
            let error = device(&disk.files, &mount("0:26", odd)).unwrap_err();
            assert_eq!(error.code(), Code::FactsUnreadable, "{odd}");
        }
    }
}
