//! What the kernel says is mounted, by `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::files::Files;
use crate::error::{Code, Error, Result};

/// The table, of our own namespace.
pub(crate) const TABLE: &str = "/proc/self/mountinfo";

/// One file system, mounted at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number of the device, `259:1`; btrfs has numbers that are no device's.
    pub(crate) number: String,
    /// Where it is mounted.
    pub(crate) place: PathBuf,
    /// The kind of file system: `ext4`.
    pub(crate) kind: String,
    /// What is mounted there: `/dev/nvme0n1p1`, or a word where it is no device.
    pub(crate) source: String,
}

/// Everything that is mounted, in the order in which it was. A table that is not there is no empty one: whoever asks would
/// take what is in use for free.
pub(crate) fn read(files: &Files) -> Result<Vec<Mount>> {
    let text = files.read_text(TABLE)?.ok_or_else(|| {
        Error::new(Code::FactsUnreadable, format!("{TABLE} is missing, so that nobody knows what is mounted"))
            .with_hint("mount /proc, then run again; nothing was written to a disk")
    })?;
    Ok(parse(&text))
}

/// What is mounted at `place`: the uppermost, which hides what lies below it.
pub(crate) fn at(files: &Files, place: impl AsRef<Path>) -> Result<Option<Mount>> {
    Ok(uppermost(&read(files)?, place.as_ref()).cloned())
}

/// The last of `mounts` at `place`.
pub(crate) fn uppermost<'a>(mounts: &'a [Mount], place: &Path) -> Option<&'a Mount> {
    mounts.iter().rfind(|mount| mount.place == place)
}

/// The lines of a mount table; what is no line of one is left out.
pub(crate) fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(line).collect()
}

/// `27 1 259:1 / /mnt rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw`, with any number of optional fields before the dash.
fn line(text: &str) -> Option<Mount> {
    let (first, second) = text.split_once(" - ")?;
    let mut first = first.split(' ');
    let mut second = second.split(' ');
    Some(Mount {
        number: first.nth(2)?.to_owned(),
        place: unescape(first.nth(1)?),
        kind: second.next()?.to_owned(),
        source: unescape(second.next()?).to_string_lossy().into_owned(),
    })
}

/// `\040` and the like, as proc(5) writes them.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let number = after.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match number {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lines as Linux 6.1 writes them.
    const NVME: &str = "\
22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw,discard,errors=remount-ro
28 27 259:3 / /boot/efi rw,relatime shared:30 - vfat /dev/nvme0n1p15 rw,fmask=0022
";

    fn root(table: &str) -> Option<Mount> {
        uppermost(&parse(table), Path::new("/")).cloned()
    }

    #[test]
    fn what_was_mounted_last_hides_the_rest() {
        let mount = root(NVME).unwrap();
        assert_eq!((mount.number.as_str(), mount.kind.as_str()), ("259:1", "ext4"));
        let btrfs = "30 1 0:26 /@rootfs / rw shared:1 - btrfs /dev/xvda1 rw,subvol=/@rootfs\n";
        assert_eq!(root(&format!("{NVME}{btrfs}")).unwrap().source, "/dev/xvda1");
        // No optional fields.
        assert_eq!(root("1 1 259:1 / / rw - xfs /dev/root rw").unwrap().kind, "xfs");
        for odd in ["", "\n", "27 1 259:1 / /x rw - ext4 /dev/a rw", "27 1 259:1 / / rw", "a b c d / - "] {
            assert_eq!(root(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn places_are_as_they_are_on_the_machine() {
        let mounts =
            parse("1 1 8:1 / /a\\040b\\134c rw - nfs host:/d\\040e rw\n2 1 8:2 / /x\\9 rw - xfs s rw\n");
        let places: Vec<_> = mounts.iter().map(|m| m.place.to_str().unwrap()).collect();
        assert_eq!(places, ["/a b\\c", "/x\\9"]);
        assert_eq!(mounts[0].source, "host:/d e");
    }

    #[test]
    fn a_table_that_is_not_there_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        assert_eq!(at(&files, "/").unwrap_err().code(), Code::FactsUnreadable);
        files.write(TABLE, b"1 0 0:20 / /proc rw - proc proc rw\n", 0o644).unwrap();
        assert_eq!(at(&files, "/").unwrap(), None);
        assert_eq!(at(&files, "/proc").unwrap().unwrap().kind, "proc");
    }
}
