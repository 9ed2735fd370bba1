//! `swap`: a file that the kernel may put memory into. It is reserved, not sparse, made beside its place and renamed, so that
//! what lies there is whole or not there.

use std::path::Path;

use super::super::read::Reader;
use crate::action::instance_store::LIMIT;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::host::mounts;
use crate::yaml::{Node, Value};

const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
/// Where it lies unless the user-data says otherwise; cloud-init's choice.
const FILE: &str = "/swap.img";
pub(super) const ACTIVE: &str = "/proc/swaps";
/// Kinds of file systems on which a file made as others are is no swap: the kernel refuses it, or loses data.
const UNFIT: [&str; 6] = ["btrfs", "zfs", "nfs", "nfs4", "lustre", "fuse"];

/// The file that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Swap {
    pub(super) file: String,
    /// Bytes; `None` is `auto`.
    size: Option<u64>,
    most: Option<u64>,
}

/// What the key says; `None` where it asks for nothing.
pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<Swap> {
    let map = reader.map("swap", node, &["filename", "size", "maxsize"])?;
    let file = match map.get("filename") {
        Some(node) => {
            let file = reader.line("swap.filename", node)?;
            let is_path =
                file.starts_with('/') && !file.ends_with('/') && !file.split('/').any(|part| part == "..");
            if !is_path || file.contains(char::is_whitespace) {
                reader.wrong(node.at, "swap.filename takes an absolute path of a file, without blanks");
                return None;
            }
            file
        }
        None => FILE.into(),
    };
    let most = match map.get("maxsize") {
        Some(node) => Some(bytes(reader, "swap.maxsize", node)?),
        None => None,
    };
    let size = map.get("size")?;
    if matches!(&size.value, Value::Text(text) if text.eq_ignore_ascii_case("auto")) {
        return Some(Swap { file, size: None, most });
    }
    match bytes(reader, "swap.size", size)? {
        0 => None,
        few if few < MB => {
            reader.wrong(size.at, format!("swap.size is {few} bytes; write a unit, such as 2G"));
            None
        }
        bytes => Some(Swap { file, size: Some(bytes), most }),
    }
}

/// A number of bytes, or one with a unit.
fn bytes(reader: &mut Reader, key: &str, node: &Node) -> Option<u64> {
    let found = match &node.value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::Text(text) => with_unit(text),
        _ => None,
    };
    if found.is_none() {
        reader
            .wrong(node.at, format!("{key} takes a number of bytes, or one with a unit, such as 512M, 1.5G"));
    }
    found
}

/// `1.5G`, `10MB`, `.5T`: powers of 1024.
fn with_unit(text: &str) -> Option<u64> {
    let text = text.strip_suffix('B').unwrap_or(text);
    let (number, unit) = match text.bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], MB),
        b'G' => (&text[..text.len() - 1], GB),
        b'T' => (&text[..text.len() - 1], GB << 10),
        _ => (text, 1),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |s: &str| s.len() <= 12 && s.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let unit = u128::from(unit);
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()? * unit / 10_u128.pow(u32::try_from(fraction.len()).ok()?)
    };
    u64::try_from(whole * unit + part).ok()
}

impl Swap {
    /// What `user-data check` says.
    pub(super) fn sentence(&self) -> String {
        let size = match (self.size, self.most) {
            (Some(size), _) => format!("of {} MB", size / MB),
            (None, Some(most)) => format!("as large as memory and disk suggest, {} MB at most", most / MB),
            (None, None) => "as large as memory and disk suggest".into(),
        };
        format!("{} becomes a swap file {size}", self.file)
    }

    /// Makes the file and switches it on. Returns a sentence, and whether there is one.
    pub(super) async fn apply(&self, host: &Host) -> Result<(String, bool)> {
        let file = &self.file;
        if is_active(&host.files, file)? {
            return Ok((format!("{file} is swap already"), true));
        }
        let is_new = match host.files.lstat(file)? {
            None => true,
            Some(meta) => {
                let call = Call::new("blkid").args(["-p", "-s", "TYPE", "-o", "value", file.as_str()]);
                if !meta.is_file() || host.exec.output(&call).await?.text().trim() != "swap" {
                    return Err(failed(format!("{file} is there, and is no swap; it was left as it is"))
                        .with_hint("name another file, or take this one away"));
                }
                false
            }
        };
        let mut text = format!("{file}, which was there, is swap");
        if is_new {
            let Some(bytes) = self.make(host).await? else {
                return Ok(("no swap file: the disk has no room for one".into(), false));
            };
            text = format!("{file} is swap, {} MB", bytes / MB);
        }
        if let Err(error) = host.exec.run(&Call::new("swapon").args([file]).limit(LIMIT)).await {
            if is_new {
                host.files.remove(file)?;
            }
            return Err(failed(format!("{file} cannot be swap")).because(error));
        }
        Ok((text, true))
    }

    /// Makes the file; `None` where there is no room for what `auto` would be.
    async fn make(&self, host: &Host) -> Result<Option<u64>> {
        let (files, path) = (&host.files, Path::new(&self.file));
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = parent.to_string_lossy();
        files.make_dir_guarded(&directory)?;
        let kind = file_system(files, &directory)?;
        if UNFIT.iter().any(|unfit| kind.starts_with(unfit)) {
            return Err(failed(format!("{directory} is {kind}, on which no swap file is made")).with_hint(
                "name a file on ext4 or XFS; on btrfs `btrfs filesystem mkswapfile` makes one by a script",
            ));
        }
        let free = files.free_bytes(&*directory)?;
        let bytes = match self.size {
            Some(size) => size,
            None => suggested(memory(files)?, free, self.most),
        } / MB
            * MB;
        if bytes == 0 {
            return Ok(None);
        }
        files.sweep(&directory)?;
        let room = files.beside(path)?;
        files.reserve(room.output(), bytes, 0o600)?;
        let output = room.output().to_string_lossy().into_owned();
        host.exec.run(&Call::new("mkswap").args([output]).limit(LIMIT)).await?;
        room.publish()?;
        Ok(Some(bytes))
    }
}

/// Whether the kernel uses it.
pub(super) fn is_active(files: &Files, path: &str) -> Result<bool> {
    let swaps = files.read_text(ACTIVE)?.unwrap_or_default();
    Ok(swaps.lines().any(|line| line.split_whitespace().next() == Some(path)))
}

/// cloud-init's table: as much as memory, from 4 GB of it on 4 GB, from 16 GB on its square root; a quarter of the free room
/// at most, or what the user-data allows of nine tenths of it.
fn suggested(memory: u64, free: u64, most: Option<u64>) -> u64 {
    let most = match most {
        None => (free / 4).min(memory * 2),
        Some(most) => most.min(free / 10 * 9),
    };
    let wanted = if memory < 4 * GB {
        memory
    } else if memory < 16 * GB {
        4 * GB
    } else {
        // The whole number nearest to the square root of the gigabytes: n is, from (n - 1/2)² on. No machine has more.
        (1..1000).take_while(|n| (2 * n - 1) * (2 * n - 1) * GB <= 4 * memory).last().unwrap_or(1) * GB
    };
    wanted.min(most)
}

fn memory(files: &Files) -> Result<u64> {
    let text = files.read_text("/proc/meminfo")?.unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| {
        failed("swap.size: auto needs /proc/meminfo, which does not say how much memory there is".into())
    })
}

/// The kind of file system that a directory is on: that of the longest mount point above it.
fn file_system(files: &Files, directory: &str) -> Result<String> {
    let mounts = mounts::read(files)?;
    let mount = Path::new(directory).ancestors().find_map(|above| mounts::uppermost(&mounts, above));
    Ok(mount.map_or_else(|| "unknown".into(), |mount| mount.kind.clone()))
}

fn failed(message: String) -> Error {
    Error::new(Code::UserDataFailed, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn swap(text: &str) -> (Option<Swap>, Vec<String>) {
        let mut reader = Reader::default();
        let swap = read(&mut reader, &parse(text).unwrap().unwrap());
        (swap, reader.problems.into_iter().map(|problem| problem.text).collect())
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("2G", Some(2 * GB)),
            ("1.5G", Some(GB + GB / 2)),
            (".5M", Some(MB / 2)),
            ("10MB", Some(10 * MB)),
            ("4096", Some(4096)),
            ("1T", Some(GB << 10)),
            ("2g", None),
            ("G", None),
            ("-1G", None),
            ("1.2.3G", None),
            ("99999999999999999999G", None),
            ("", None),
        ] {
            assert_eq!(with_unit(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_and_what_is_wrong() {
        let made = |file: &str, size, most| Some(Swap { file: file.into(), size, most });
        assert_eq!(swap("{size: 2G}").0, made("/swap.img", Some(2 * GB), None));
        assert_eq!(
            swap("{filename: /a/b, size: auto, maxsize: 10485760}").0,
            made("/a/b", None, Some(10 * MB))
        );
        for nothing in ["{}", "{filename: /a}", "{size: 0}"] {
            assert_eq!(swap(nothing), (None, Vec::new()), "{nothing}");
        }
        for (text, why) in [
            ("{size: 2048}", "2048 bytes; write a unit"),
            ("{size: huge}", "with a unit"),
            ("{size: 2G, filename: swap}", "absolute path"),
            ("{size: 2G, filename: /../etc/x}", "absolute path"),
            ("{size: 2G, file: /x}", "swap.file is not supported"),
        ] {
            let (_, problems) = swap(text);
            assert!(problems.len() == 1 && problems[0].contains(why), "{text}: {problems:?}");
        }
    }

    #[test]
    fn the_suggested_size_is_cloud_inits() {
        // By cloud-init's suggested_swapsize(memsize, maxsize, fsys) with this much free.
        let lots = 4000 * GB;
        for (memory, free, most, size) in [
            (2 * GB, lots, None, 2 * GB),
            (8 * GB, lots, None, 4 * GB),
            (16 * GB, lots, None, 4 * GB),
            (64 * GB, lots, None, 8 * GB),
            (192 * GB, lots, None, 14 * GB),
            (1152 * GB, lots, None, 34 * GB),
            (8 * GB, 8 * GB, None, 2 * GB),
            (8 * GB, lots, Some(GB), GB),
            (8 * GB, 0, None, 0),
        ] {
            assert_eq!(suggested(memory, free, most), size, "{memory} {free} {most:?}");
        }
        assert!(suggested(8 * GB, GB, Some(2 * GB)) <= GB / 10 * 9);
    }
}
