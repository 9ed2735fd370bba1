//! Doing what `disk_setup` and `fs_setup` say. A device is looked at before it is written to: what holds something is left
//! alone unless `overwrite` is said; what is mounted (the root above all), swap, or part of something else is never touched.
//!
//! A file system is made under a label of ours and gets its own at the end, so that one that was cut off is known by that.

use std::fmt::Write as _;
use std::time::Duration;

use super::devices::{self, Block};
use super::setup::{Disks, FileSystem, FsKind, Place, Purpose, Table, TableKind};
use super::{fstab, swap};
use crate::action::instance_store::{LIMIT, UNFINISHED, device};
use crate::error::{Code, Error, Result};
use crate::facts::instance_store::BLOCK;
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::host::mounts::{self, Mount};

/// How long a partition may take to be seen once the kernel knows of it.
const SEEN: Duration = Duration::from_secs(10);
/// sysfs counts in these.
const SECTOR: u64 = 512;

/// What a device holds.
#[derive(Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// A partition table without partitions, which holds nothing either.
    EmptyTable,
    /// A partition table.
    Table,
    /// A file system, whole or as far as it came.
    FileSystem {
        kind: String,
        label: String,
    },
}

/// Does everything; each part is tried, and the first failure is what is told.
pub(in crate::cloud_config) async fn apply(host: &Host, disks: &Disks) -> Result<String> {
    let mut told = Vec::new();
    let mut failures = Vec::new();
    for table in &disks.tables {
        match partition(host, table).await {
            Ok(text) => told.push(text),
            Err(error) => failures.push(error),
        }
    }
    for file_system in &disks.file_systems {
        match format(host, file_system).await {
            Ok(text) => told.push(text),
            Err(error) => failures.push(error),
        }
    }
    fstab::summed("disks", &told, failures)
}

async fn partition(host: &Host, table: &Table) -> Result<String> {
    let name = &table.disk.text;
    let Some(disk) = table.disk.disk(host).await? else { return absent(name, table.disk.is_ephemeral()) };
    let kernel = &disk.kernel;
    let device = format!("/dev/{kernel}");
    is_disk(&host.files, name, kernel)?;
    let holds = look(host, kernel).await?;
    if holds == Holds::Table && is_as_wanted(host, &device, table).await? {
        if partitions(&host.files, kernel)?.len() != table.partitions.len() {
            show(host, &disk, table.partitions.len()).await?; // a call that was cut off did not come to that
        }
        return Ok(format!("{name} has these partitions already"));
    }
    if !table.overwrite && !matches!(holds, Holds::Nothing | Holds::EmptyTable) {
        return Err(not_empty("disk_setup", name, kernel, &holds));
    }
    unused(host, name, kernel)?;
    let sectors = number(&host.files, &format!("{BLOCK}/{kernel}/size"))? * SECTOR;
    let sectors =
        sectors / number(&host.files, &format!("{BLOCK}/{kernel}/queue/logical_block_size"))?.max(SECTOR);
    // Where something is overwritten, an old file system must not come back inside of a new partition.
    let wipe = if table.overwrite { "always" } else { "auto" };
    let call = Call::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "always", "--wipe-partitions", wipe])
        .args([device.as_str()])
        .input(script(table, sectors));
    host.exec.run(&call.limit(LIMIT)).await?;
    show(host, &disk, table.partitions.len()).await?;
    Ok(format!("{name} has {} partitions", table.partitions.len()))
}

/// For sfdisk: sizes in sectors, the last partition with what is left.
fn script(table: &Table, sectors: u64) -> String {
    let mut script = format!("label: {}\n", table.kind.name());
    for (at, partition) in table.partitions.iter().enumerate() {
        let kind = type_code(table.kind, partition.purpose);
        if at + 1 < table.partitions.len() {
            let size = u128::from(sectors) * u128::from(partition.percent) / 100;
            _ = writeln!(script, "size={size}, type={kind}"); // a String takes everything
        } else {
            _ = writeln!(script, "type={kind}");
        }
    }
    script
}

/// As sfdisk takes and shows it.
fn type_code(table: TableKind, purpose: Purpose) -> &'static str {
    match (table, purpose) {
        (TableKind::Mbr, Purpose::Linux) => "83",
        (TableKind::Mbr, Purpose::Swap) => "82",
        (TableKind::Mbr, Purpose::Lvm) => "8e",
        (TableKind::Mbr, Purpose::Raid) => "fd",
        (TableKind::Gpt, Purpose::Linux) => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        (TableKind::Gpt, Purpose::Swap) => "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
        (TableKind::Gpt, Purpose::Lvm) => "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        (TableKind::Gpt, Purpose::Raid) => "A19D880F-05FC-4D3B-A006-743F0F84911E",
    }
}

/// Whether the disk has a table of this kind, and partitions of these types: cloud-init's test.
async fn is_as_wanted(host: &Host, device: &str, table: &Table) -> Result<bool> {
    let dump = host.exec.run(&Call::new("sfdisk").args(["--dump", device])).await?.text();
    let wanted: Vec<_> =
        table.partitions.iter().map(|p| type_code(table.kind, p.purpose).to_owned()).collect();
    Ok(types(&dump) == Some((table.kind.name(), wanted)))
}

/// The table's kind and the types of its partitions, from what sfdisk dumps.
fn types(dump: &str) -> Option<(&str, Vec<String>)> {
    let kind = dump.lines().find_map(|line| line.strip_prefix("label:"))?.trim();
    let of_line =
        |line: &str| line.split(',').find_map(|word| Some(word.trim().strip_prefix("type=")?.to_owned()));
    Some((kind, dump.lines().filter(|line| line.starts_with("/dev/")).filter_map(of_line).collect()))
}

/// Tells the kernel of the partitions, and waits until they are seen.
async fn show(host: &Host, disk: &Block, count: usize) -> Result<()> {
    host.exec.run(&Call::new("partx").args(["--update".to_owned(), format!("/dev/{}", disk.kernel)])).await?;
    if host.files.exists("/usr/bin/udevadm")? {
        // It makes the nodes, and links by label.
        let call = Call::new("udevadm").args(["settle", "--timeout=30"]);
        host.exec.output(&call).await?;
    }
    let deadline = std::time::Instant::now() + SEEN;
    while partitions(&host.files, &disk.kernel)?.len() != count {
        if std::time::Instant::now() > deadline {
            return Err(Error::new(
                Code::VerifyFailed,
                format!("the kernel does not see the partitions of {}", disk.path),
            )
            .with_hint(format!("`partx --show /dev/{}` and `dmesg` say more", disk.kernel)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn format(host: &Host, wanted: &FileSystem) -> Result<String> {
    let name = &wanted.disk.text;
    let Some(disk) = wanted.disk.disk(host).await? else { return absent(name, wanted.disk.is_ephemeral()) };
    let target = match choose(host, wanted, &disk).await? {
        Choice::There(kernel) => return Ok(format!("{kernel} has its {} already", wanted.kind.name())),
        Choice::Make(kernel) => kernel,
    };
    unused(host, name, &target)?;
    host.exec.run(&make(wanted, &target)).await?;
    if let Some(call) = label(wanted, &target) {
        host.exec.run(&call).await?;
    }
    let label = if wanted.label.is_empty() { String::new() } else { format!(", {}", wanted.label) };
    Ok(format!("/dev/{target} has {}{label}", wanted.kind.name()))
}

enum Choice {
    /// It is there.
    There(String),
    /// It is to be made on this device.
    Make(String),
}

async fn choose(host: &Host, wanted: &FileSystem, disk: &Block) -> Result<Choice> {
    let name = &wanted.disk.text;
    let is_wanted = |holds: &Holds, any_label: bool| {
        matches!(holds, Holds::FileSystem { kind, label }
            if kind == wanted.kind.name() && label != UNFINISHED && (any_label || *label == wanted.label))
    };
    if let Place::Auto | Place::Any = wanted.place {
        let mut all = vec![(disk.kernel.clone(), look(host, &disk.kernel).await?)];
        for partition in partitions(&host.files, &disk.kernel)? {
            let holds = look(host, &partition).await?;
            all.push((partition, holds));
        }
        if let Some((kernel, _)) = all.iter().find(|(_, holds)| is_wanted(holds, wanted.place == Place::Any))
        {
            return Ok(Choice::There(kernel.clone()));
        }
        let (whole, parts) = (&all[0], &all[1..]);
        let free = parts.iter().find(|(_, holds)| is_free(holds));
        let free = free.or_else(|| Some(whole).filter(|(_, holds)| parts.is_empty() && is_free(holds)));
        return match free {
            Some((kernel, _)) => Ok(Choice::Make(kernel.clone())),
            None => Err(not_empty("fs_setup", name, &whole.0, &whole.1)),
        };
    }
    let target = match wanted.place {
        Place::Partition(number) => {
            disk.partition(&host.files, number)?.map(|part| part.kernel).ok_or_else(|| {
                Error::new(Code::UserDataFailed, format!("fs_setup: {name} has no partition {number}"))
                    .with_hint("disk_setup makes partitions; `lsblk` shows those that there are")
            })?
        }
        _ => disk.kernel.clone(),
    };
    let holds = look(host, &target).await?;
    if wanted.overwrite || is_free(&holds) {
        Ok(Choice::Make(target))
    } else if is_wanted(&holds, false) {
        Ok(Choice::There(target))
    } else {
        Err(not_empty("fs_setup", name, &target, &holds))
    }
}

/// Nothing that anybody could miss.
fn is_free(holds: &Holds) -> bool {
    match holds {
        Holds::Nothing | Holds::EmptyTable => true,
        Holds::Table => false,
        Holds::FileSystem { label, .. } => label == UNFINISHED,
    }
}

fn make(wanted: &FileSystem, target: &str) -> Call {
    let label = wanted.label.as_str();
    // Whether it may be written to was decided here: programs must not ask, nor refuse what is left of an earlier call.
    // Nothing is discarded, which takes minutes on terabytes.
    let (program, args): (_, Vec<&str>) = match wanted.kind {
        FsKind::Ext(4) => ("mkfs.ext4", vec!["-q", "-F", "-E", "nodiscard", "-L", UNFINISHED]),
        FsKind::Ext(3) => ("mkfs.ext3", vec!["-q", "-F", "-E", "nodiscard", "-L", UNFINISHED]),
        FsKind::Ext(_) => ("mkfs.ext2", vec!["-q", "-F", "-E", "nodiscard", "-L", UNFINISHED]),
        FsKind::Xfs => ("mkfs.xfs", vec!["-q", "-f", "-K", "-L", UNFINISHED]),
        FsKind::Btrfs => ("mkfs.btrfs", vec!["-q", "-f", "-K", "-L", label]),
        FsKind::Vfat => ("mkfs.vfat", vec!["-I", "-n", label]),
        FsKind::Swap => ("mkswap", vec!["-f", "-L", label]),
    };
    let args =
        if label.is_empty() && self_labelled(wanted.kind) { &args[..args.len() - 2] } else { &args[..] };
    Call::new(program)
        .args(args.iter().copied())
        .args(wanted.options.iter().map(String::as_str))
        .args([format!("/dev/{target}")])
        .limit(LIMIT)
}

/// Kinds that are made by one short write at the end, and get their label with it.
fn self_labelled(kind: FsKind) -> bool {
    matches!(kind, FsKind::Btrfs | FsKind::Vfat | FsKind::Swap)
}

/// The label that says that it is whole.
fn label(wanted: &FileSystem, target: &str) -> Option<Call> {
    let device = format!("/dev/{target}");
    match wanted.kind {
        FsKind::Ext(_) => Some(Call::new("e2label").args([device.as_str(), &wanted.label])),
        FsKind::Xfs => {
            let label = if wanted.label.is_empty() { "--" } else { &wanted.label };
            Some(Call::new("xfs_admin").args(["-L", label, device.as_str()]))
        }
        _ => None,
    }
}

/// Looks at a device. Nothing is changed.
async fn look(host: &Host, kernel: &str) -> Result<Holds> {
    let signatures = device::signatures(host, kernel).await?;
    let value = |name: &str| device::value(&signatures, name);
    let has_partitions = !partitions(&host.files, kernel)?.is_empty();
    Ok(match (value("TYPE"), value("PTTYPE")) {
        ("", "") if !has_partitions => Holds::Nothing,
        ("", _) if !has_partitions && has_no_entries(host, kernel).await? => Holds::EmptyTable,
        ("", _) => Holds::Table,
        (kind, _) => Holds::FileSystem { kind: kind.into(), label: value("LABEL").into() },
    })
}

/// Whether the partition table has no partition, also none that the kernel does not know of.
async fn has_no_entries(host: &Host, kernel: &str) -> Result<bool> {
    let device = format!("/dev/{kernel}");
    let dump = host.exec.output(&Call::new("sfdisk").args(["--dump", device.as_str()])).await?;
    Ok(dump.ok() && types(&dump.text()).is_some_and(|(_, types)| types.is_empty()))
}

/// Refuses what is in use, whatever the user-data says.
fn unused(host: &Host, name: &str, kernel: &str) -> Result<()> {
    let files = &host.files;
    let mut all = partitions(files, kernel)?;
    all.push(kernel.into());
    for device in &all {
        let why = if let Some(place) = mounted_place(files, device)? {
            if place == "/" {
                "is what the machine runs from".to_owned()
            } else {
                format!("is mounted at {place}")
            }
        } else if swap::is_active(files, &format!("/dev/{device}"))? {
            "is swap".into()
        } else {
            let holders = files.list(format!("{BLOCK}/{device}/holders"))?;
            if holders.is_empty() {
                continue;
            }
            format!("is used by {}", holders.join(", "))
        };
        return Err(Error::new(
            Code::UserDataFailed,
            format!("{name}: /dev/{device} {why}; it was left as it is"),
        )
        .with_hint("`lsblk` shows what is in use; name another device"));
    }
    Ok(())
}

/// Where a device is mounted.
fn mounted_place(files: &Files, kernel: &str) -> Result<Option<String>> {
    let own = files.read_text(format!("{BLOCK}/{kernel}/dev"))?.unwrap_or_default();
    for Mount { number, place, source, .. } in mounts::read(files)? {
        // btrfs has numbers of its own, and its source tells.
        let is_by_number = !own.trim().is_empty() && number == own.trim();
        if is_by_number
            || (source.starts_with("/dev/")
                && devices::kernel_name(files, &source)?.as_deref() == Some(kernel))
        {
            return Ok(Some(place.display().to_string()));
        }
    }
    Ok(None)
}

/// Its partitions that the kernel has, by their numbers.
fn partitions(files: &Files, kernel: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for child in files.list(format!("{BLOCK}/{kernel}"))? {
        if let Some(text) = files.read_text(format!("{BLOCK}/{kernel}/{child}/partition"))? {
            found.push((text.trim().parse::<u32>().unwrap_or(u32::MAX), child));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, child)| child).collect())
}

fn is_disk(files: &Files, name: &str, kernel: &str) -> Result<()> {
    if kernel.starts_with("dm-") || devices::is_partition(files, kernel)? {
        return Err(Error::new(
            Code::UserDataFailed,
            format!("disk_setup: {name} is no disk; it was left as it is"),
        )
        .with_hint("name a whole disk; `lsblk` shows them"));
    }
    Ok(())
}

fn number(files: &Files, path: &str) -> Result<u64> {
    Ok(files.read_text(path)?.and_then(|text| text.trim().parse().ok()).unwrap_or_default())
}

/// An instance type may have no instance store; a volume that is named is missed.
fn absent(name: &str, is_ephemeral: bool) -> Result<String> {
    if is_ephemeral {
        return Ok(format!("this instance has no {name}"));
    }
    Err(Error::new(Code::UserDataFailed, format!("there is no {name}, so that nothing was made on it"))
        .with_hint("`lsblk` shows the devices that there are"))
}

fn not_empty(key: &str, name: &str, kernel: &str, holds: &Holds) -> Error {
    let what = match holds {
        Holds::Nothing | Holds::EmptyTable => "is in use".into(),
        Holds::Table => "has a partition table, and no free partition for this".into(),
        Holds::FileSystem { kind, label } if label.is_empty() => format!("holds {kind}"),
        Holds::FileSystem { kind, label } => format!("holds {kind}, called {label:?}"),
    };
    Error::new(Code::UserDataFailed, format!("{key}: {name} (/dev/{kernel}) {what}; it was left as it is"))
        .with_hint("if nobody needs what it holds: overwrite: true, with the partition")
}

#[cfg(test)]
mod tests {
    use super::super::devices::{Aliases, Name};
    use super::super::setup::Partition;
    use super::*;

    #[test]
    fn sizes_are_parts_of_the_disk_and_the_last_gets_the_rest() {
        let part = |percent, purpose| Partition { percent, purpose };
        let table = Table {
            disk: Name::parse("sdf", &Aliases::new()).unwrap(),
            kind: TableKind::Mbr,
            partitions: vec![part(33, Purpose::Swap), part(50, Purpose::Linux)],
            overwrite: false,
        };
        assert_eq!(script(&table, 1_000_001), "label: dos\nsize=330000, type=82\ntype=83\n");
    }

    #[test]
    fn types_are_those_of_the_dump() {
        let dump = "label: dos\nlabel-id: 0x1\ndevice: /dev/sdf\nunit: sectors\n\n/dev/sdf1 : start= 2048, size= 10, type=82\n\
                    /dev/sdf2 : start= 4096, size= 10, type=83, bootable\n";
        assert_eq!(types(dump), Some(("dos", vec!["82".to_owned(), "83".to_owned()])));
        assert_eq!(types("label: gpt\n"), Some(("gpt", Vec::new())));
        assert_eq!(types("sfdisk: no table"), None);
    }

    #[test]
    fn a_cut_off_one_is_free_and_a_whole_one_is_not() {
        let fs = |label: &str| Holds::FileSystem { kind: "ext4".into(), label: label.into() };
        assert!(is_free(&fs(UNFINISHED)) && is_free(&Holds::EmptyTable) && is_free(&Holds::Nothing));
        assert!(!is_free(&fs("")) && !is_free(&fs("data")) && !is_free(&Holds::Table));
    }

    #[test]
    fn without_a_table_of_mounts_nothing_counts_as_unused() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        assert_eq!(mounted_place(&files, "nvme1n1").unwrap_err().code(), Code::FactsUnreadable);
        files.write(mounts::TABLE, b"1 0 0:20 / /proc rw - proc proc rw\n", 0o644).unwrap();
        assert_eq!(mounted_place(&files, "nvme1n1").unwrap(), None);
    }
}
