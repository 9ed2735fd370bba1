//! `disk_setup` and `fs_setup`: partition tables and file systems on disks that are named. Nothing is made over anything unless
//! `overwrite` is said, and nothing in use is touched in any case: see [`super::formatting`], which does it.

use super::super::read::Reader;
use super::devices::{Aliases, Name};
use crate::yaml::{Node, Value};

/// Everything that is to be made, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disks {
    pub(super) tables: Vec<Table>,
    pub(super) file_systems: Vec<FileSystem>,
}

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) disk: Name,
    pub(super) kind: TableKind,
    /// The last one gets what is left.
    pub(super) partitions: Vec<Partition>,
    pub(super) overwrite: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    Gpt,
    Mbr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// Of the disk.
    pub(super) percent: u64,
    pub(super) purpose: Purpose,
}

/// What a partition says that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Linux,
    Swap,
    Lvm,
    Raid,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) disk: Name,
    pub(super) place: Place,
    pub(super) kind: FsKind,
    pub(super) label: String,
    pub(super) options: Vec<String>,
    pub(super) overwrite: bool,
}

/// Where on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where there is one of this kind and label, or else where nothing is.
    Auto,
    /// Where there is one of this kind, or else where nothing is.
    Any,
    /// On the disk itself.
    Disk,
    /// On this partition.
    Partition(u32),
}

/// Kinds that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FsKind {
    Ext(u8),
    Xfs,
    Btrfs,
    Vfat,
    Swap,
}

const KINDS: [(&str, FsKind); 7] = [
    ("ext4", FsKind::Ext(4)),
    ("xfs", FsKind::Xfs),
    ("ext3", FsKind::Ext(3)),
    ("ext2", FsKind::Ext(2)),
    ("btrfs", FsKind::Btrfs),
    ("vfat", FsKind::Vfat),
    ("swap", FsKind::Swap),
];

/// What both keys say; `None` where they ask for nothing.
pub(super) fn read(
    reader: &mut Reader,
    tables: Option<&Node>,
    file_systems: Option<&Node>,
    aliases: &Aliases,
) -> Option<Disks> {
    let tables = tables.map(|node| read_tables(reader, node, aliases)).unwrap_or_default();
    let nodes = file_systems.and_then(|node| reader.list("fs_setup", node)).unwrap_or_default();
    let file_systems: Vec<_> = nodes.iter().filter_map(|node| file_system(reader, node, aliases)).collect();
    (!tables.is_empty() || !file_systems.is_empty()).then_some(Disks { tables, file_systems })
}

fn read_tables(reader: &mut Reader, node: &Node, aliases: &Aliases) -> Vec<Table> {
    let Value::Map(entries) = &node.value else {
        reader.wrong(node.at, format!("disk_setup takes a mapping of devices, and this is {}", node.kind()));
        return Vec::new();
    };
    entries.iter().filter_map(|(name, node)| table(reader, name, node, aliases)).collect()
}

fn device(reader: &mut Reader, key: &str, node: &Node, aliases: &Aliases) -> Option<Name> {
    let text = reader.line(key, node)?;
    match Name::parse(&text, aliases) {
        Ok(name) if name.is_device() => Some(name),
        Ok(_) => {
            reader.wrong(
                node.at,
                format!("{key}: {text:?} is no device; it takes one such as /dev/sdf or ephemeral0"),
            );
            None
        }
        Err(why) => {
            reader.wrong(node.at, format!("{key}: {why}"));
            None
        }
    }
}

fn table(reader: &mut Reader, name: &Node, node: &Node, aliases: &Aliases) -> Option<Table> {
    let disk = device(reader, "disk_setup", name, aliases)?;
    let map = reader.map("disk_setup", node, &["table_type", "layout", "overwrite"])?;
    if disk.partition.is_some() {
        reader.wrong(name.at, "disk_setup takes whole disks, and this is a partition");
        return None;
    }
    let kind = match map.get("table_type") {
        None => TableKind::Mbr,
        Some(node) => match reader.line("disk_setup.table_type", node)?.as_str() {
            "mbr" => TableKind::Mbr,
            "gpt" => TableKind::Gpt,
            other => {
                reader.wrong(
                    node.at,
                    format!("disk_setup.table_type {other:?} is not supported; supported are gpt, mbr"),
                );
                return None;
            }
        },
    };
    let overwrite =
        map.get("overwrite").is_some_and(|node| reader.switch("disk_setup.overwrite", node) == Some(true));
    let partitions = layout(reader, map.get("layout")?, kind)?;
    (!partitions.is_empty()).then_some(Table { disk, kind, partitions, overwrite })
}

/// `true`, or a list of percentages, each alone or with a type.
fn layout(reader: &mut Reader, node: &Node, kind: TableKind) -> Option<Vec<Partition>> {
    let nodes = match &node.value {
        Value::Bool(false) => return Some(Vec::new()),
        Value::Bool(true) => return Some(vec![Partition { percent: 100, purpose: Purpose::Linux }]),
        Value::List(nodes) => nodes,
        Value::Text(text) if text == "remove" => {
            reader.wrong(
                node.at,
                "disk_setup.layout: remove is not supported: it is `wipefs --all` in bootcmd",
            );
            return None;
        }
        _ => {
            reader.wrong(
                node.at,
                format!("disk_setup.layout takes true or a list of percentages, and this is {}", node.kind()),
            );
            return None;
        }
    };
    let partitions: Vec<_> = nodes.iter().map(|node| partition(reader, node)).collect::<Option<_>>()?;
    let most = if kind == TableKind::Mbr { 4 } else { 128 };
    if partitions.len() > most {
        reader.wrong(node.at, format!("disk_setup.layout has more than {most} partitions"));
        return None;
    }
    let sum: u64 = partitions.iter().map(|partition| partition.percent).sum();
    if sum > 100 {
        reader.wrong(node.at, format!("disk_setup.layout: the percentages add up to {sum}"));
        return None;
    }
    Some(partitions)
}

fn partition(reader: &mut Reader, node: &Node) -> Option<Partition> {
    let (percent, purpose) = match &node.value {
        Value::List(pair) if pair.len() == 2 => (&pair[0], Some(&pair[1])),
        _ => (node, None),
    };
    let percent = match &percent.value {
        Value::Int(number) => u64::try_from(*number).ok().filter(|number| (1..=100).contains(number)),
        _ => None,
    };
    let Some(percent) = percent else {
        reader.wrong(node.at, "disk_setup.layout: a partition is a percentage, or a list of one and a type");
        return None;
    };
    let Some(purpose_node) = purpose else { return Some(Partition { percent, purpose: Purpose::Linux }) };
    let purpose = match purpose_node.python().unwrap_or_default().to_lowercase().as_str() {
        "83" | "8300" => Purpose::Linux,
        "82" | "8200" => Purpose::Swap,
        "8e" | "8e00" => Purpose::Lvm,
        "fd" | "fd00" => Purpose::Raid,
        other => {
            reader.wrong(
                purpose_node.at,
                format!("disk_setup.layout: the type {other:?} is not supported; supported are 83, 82 (swap), 8e (LVM), fd (RAID)"),
            );
            return None;
        }
    };
    Some(Partition { percent, purpose })
}

fn file_system(reader: &mut Reader, node: &Node, aliases: &Aliases) -> Option<FileSystem> {
    let known =
        ["label", "filesystem", "device", "partition", "overwrite", "replace_fs", "extra_opts", "cmd"];
    let map = reader.map("fs_setup", node, &known)?;
    for (key, why) in [
        ("replace_fs", "it would destroy whatever has that kind; name the partition, with overwrite"),
        ("cmd", "it is a command of your own: put it into bootcmd"),
    ] {
        if let Some(node) = map.get(key) {
            reader.wrong(node.at, format!("fs_setup.{key} is not supported: {why}"));
        }
    }
    let (Some(device_node), Some(kind_node)) = (map.get("device"), map.get("filesystem")) else {
        reader.wrong(map.at, "fs_setup: an entry needs device and filesystem");
        return None;
    };
    let disk = device(reader, "fs_setup.device", device_node, aliases)?;
    let kind_text = reader.line("fs_setup.filesystem", kind_node)?;
    let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == kind_text) else {
        let names = KINDS.map(|(name, _)| name).join(", ");
        reader.wrong(
            kind_node.at,
            format!("fs_setup.filesystem {kind_text:?} is not supported; supported are {names}"),
        );
        return None;
    };
    let label = match map.get("label") {
        Some(node) => {
            let label = reader.line("fs_setup.label", node)?;
            if label.len() > kind.most_label() {
                reader.wrong(
                    node.at,
                    format!(
                        "fs_setup.label has more than the {} bytes that {kind_text} takes",
                        kind.most_label()
                    ),
                );
            }
            label
        }
        None => String::new(),
    };
    let place = match (disk.partition, map.get("partition")) {
        // What stands behind the dot counts, as in cloud-init.
        (Some(number), _) => Place::Partition(number),
        (None, None) => Place::Any,
        (None, Some(node)) => place(reader, node)?,
    };
    let options =
        map.get("extra_opts").and_then(|node| reader.lines("fs_setup.extra_opts", node)).unwrap_or_default();
    let overwrite =
        map.get("overwrite").is_some_and(|node| reader.switch("fs_setup.overwrite", node) == Some(true));
    Some(FileSystem { disk, place, kind: *kind, label, options, overwrite })
}

fn place(reader: &mut Reader, node: &Node) -> Option<Place> {
    let text = node.python().unwrap_or_default();
    match text.to_lowercase().as_str() {
        "auto" => Some(Place::Auto),
        "any" => Some(Place::Any),
        "none" => Some(Place::Disk),
        number => {
            let number = number.parse().ok().filter(|number| *number > 0);
            if number.is_none() {
                let text =
                    format!("fs_setup.partition takes auto, any, none or a number, and this is {text:?}");
                reader.wrong(node.at, text);
            }
            number.map(Place::Partition)
        }
    }
}

impl FsKind {
    /// As blkid calls it.
    pub(super) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    fn most_label(self) -> usize {
        match self {
            Self::Ext(_) => 16,
            Self::Xfs => 12,
            Self::Btrfs => 255,
            Self::Vfat => 11,
            Self::Swap => 15,
        }
    }
}

impl TableKind {
    /// As blkid and sfdisk call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "dos",
        }
    }
}

impl Disks {
    /// What `user-data check` says.
    pub(in crate::cloud_config) fn sentence(&self) -> String {
        let over =
            |overwrite| if overwrite { "whatever it holds is LOST" } else { "only if it holds nothing" };
        let table = |table: &Table| {
            let (kind, count) = (table.kind.name(), table.partitions.len());
            format!(
                "{} gets a {kind} table of {count} partitions ({})",
                table.disk.text,
                over(table.overwrite)
            )
        };
        let file_system = |fs: &FileSystem| {
            let place = match fs.place {
                Place::Auto | Place::Any => "the first free place of ".into(),
                Place::Disk => "the whole of ".into(),
                Place::Partition(number) if fs.disk.partition.is_none() => format!("partition {number} of "),
                Place::Partition(_) => String::new(),
            };
            let label = if fs.label.is_empty() { String::new() } else { format!(" called {:?}", fs.label) };
            format!("{place}{} gets {}{label} ({})", fs.disk.text, fs.kind.name(), over(fs.overwrite))
        };
        let all = self.tables.iter().map(table).chain(self.file_systems.iter().map(file_system));
        all.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn disks(tables: &str, file_systems: &str) -> (Option<Disks>, Vec<String>) {
        let (tables, file_systems) = (parse(tables).unwrap(), parse(file_systems).unwrap());
        let mut reader = Reader::default();
        let found = read(&mut reader, tables.as_ref(), file_systems.as_ref(), &Aliases::new());
        (found, reader.problems.into_iter().map(|problem| problem.text).collect())
    }

    #[test]
    fn what_is_to_be_made() {
        let (found, problems) = disks(
            "{/dev/sdf: {table_type: gpt, layout: [25, [75, 82]]}, sdg: {layout: true, overwrite: true}, sdh: {layout: false}}",
            "[{device: /dev/sdf.1, filesystem: ext4, label: data, partition: none}, {device: ephemeral0, filesystem: xfs}, \
              {device: sdg, partition: 1, filesystem: swap}, {device: sdh, partition: none, filesystem: ext4, overwrite: true}]",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(
            found.unwrap().sentence(),
            "/dev/sdf gets a gpt table of 2 partitions (only if it holds nothing); \
             sdg gets a dos table of 1 partitions (whatever it holds is LOST); \
             /dev/sdf.1 gets ext4 called \"data\" (only if it holds nothing); \
             the first free place of ephemeral0 gets xfs (only if it holds nothing); \
             partition 1 of sdg gets swap (only if it holds nothing); \
             the whole of sdh gets ext4 (whatever it holds is LOST)"
        );
        assert_eq!(disks("{sdf: {layout: false}}", "[]").0, None);
    }

    #[test]
    fn mistakes_are_told() {
        for (tables, why) in [
            ("[sdf]", "mapping of devices"),
            ("{LABEL=x: {layout: true}}", "is no device"),
            ("{root: {layout: true}}", "name the device as it was attached"),
            ("{sdf.1: {layout: true}}", "whole disks"),
            ("{sdf: {layout: remove}}", "remove is not supported"),
            ("{sdf: {layout: [60, 50]}}", "add up to 110"),
            ("{sdf: {layout: [20, 20, 20, 20, 20]}}", "more than 4"),
            ("{sdf: {layout: [0]}}", "is a percentage"),
            ("{sdf: {layout: [[50, 7]]}}", "the type \"7\" is not supported"),
            ("{sdf: {table_type: bsd, layout: true}}", "supported are gpt, mbr"),
            ("{sdf: {layouts: true}}", "disk_setup.layouts is not supported"),
        ] {
            let (found, problems) = disks(tables, "");
            assert!(
                found.is_none() && problems.len() == 1 && problems[0].contains(why),
                "{tables}: {problems:?}"
            );
        }
        for (file_system, why) in [
            ("{device: sdf}", "needs device and filesystem"),
            ("{device: sdf, filesystem: zfs}", "supported are ext4, xfs"),
            ("{device: sdf, filesystem: xfs, label: thirteen-char}", "more than the 12 bytes"),
            ("{device: sdf, filesystem: xfs, partition: first}", "auto, any, none or a number"),
            ("{device: sdf, filesystem: xfs, partition: 0}", "auto, any, none or a number"),
            ("{device: sdf, filesystem: xfs, replace_fs: ntfs}", "replace_fs is not supported"),
            ("{device: sdf, filesystem: xfs, cmd: mkfs}", "put it into bootcmd"),
            ("{device: /srv/image, filesystem: xfs}", "is no device"),
        ] {
            let problems = disks("", &format!("[{file_system}]")).1;
            assert!(problems.len() == 1 && problems[0].contains(why), "{file_system}: {problems:?}");
        }
    }
}
