//! The package lists that an update wrote, until they are on the disk. apt does not sync them: a power cut leaves
//! empty or short ones, which apt takes for whole ones (it compares what the signed index said before with what it
//! says now, not with the file). So each update notes in which boot it wrote, durably and before it writes; an
//! installation's own syncfs covers the lists, and then the note goes. Lists of another boot's that still have
//! their note count as none.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::fault::{self, Kind};
use crate::host::{Host, paths};

const DIR: &str = "/var/lib/apt/lists";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Whether a boot that is over wrote lists that nobody has synced since.
pub(super) fn are_in_doubt(host: &Host) -> Result<bool> {
    match host.files.read_text(paths::LISTS_UNSYNCED)? {
        Some(boot) => Ok(boot != this_boot(host)?),
        None => Ok(false),
    }
}

/// To be called before lists are written. Lists in doubt are removed, because apt fetches only what it does not
/// have. True if there were any.
pub(super) fn begin(host: &Host) -> Result<bool> {
    let in_doubt = are_in_doubt(host)?;
    if in_doubt {
        for name in host.files.list(DIR)?.iter().filter(|name| *name != "lock") {
            let path = Path::new(DIR).join(name);
            if host.files.lstat(&path)?.is_some_and(|m| m.is_file()) {
                host.files.remove(path)?;
            }
        }
    }
    let now = this_boot(host)?;
    if host.files.read_text(paths::LISTS_UNSYNCED)?.is_none_or(|boot| boot != now) {
        host.files.write(paths::LISTS_UNSYNCED, now.as_bytes(), 0o644)?;
    }
    Ok(in_doubt)
}

/// Brings the lists to the disk, for a run that may install nothing that would do so.
pub(super) fn sync(host: &Host) -> Result<()> {
    let dir = File::open(host.files.outside(DIR)?).map_err(|e| Error::io("open", DIR, e))?;
    fault::point(Kind::Sync, DIR).map_err(|e| Error::io("sync the file system of", DIR, e))?;
    nix::unistd::syncfs(&dir).map_err(|e| Error::io("sync the file system of", DIR, e.into()))?;
    synced(host)
}

/// To be called when everything that was written is on the disk.
pub(crate) fn synced(host: &Host) -> Result<()> {
    host.files.remove(paths::LISTS_UNSYNCED)
}

/// Empty where no `/proc` tells: then every boot counts as the same one.
fn this_boot(host: &Host) -> Result<String> {
    Ok(host.files.read_text(BOOT_ID)?.unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_an_earlier_boot_go_unless_they_were_synced() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        let there = || host.files.exists("/var/lib/apt/lists/x_Packages").unwrap();
        for (path, text) in
            [(BOOT_ID, "one\n"), ("/var/lib/apt/lists/x_Packages", ""), ("/var/lib/apt/lists/lock", "")]
        {
            put(path, text);
        }
        put("/var/lib/apt/lists/partial/y", "");

        assert!(!begin(&host).unwrap() && !begin(&host).unwrap());
        assert!(there() && !are_in_doubt(&host).unwrap());

        put(BOOT_ID, "two\n");
        assert!(are_in_doubt(&host).unwrap());
        assert!(begin(&host).unwrap());
        assert!(!there() && !are_in_doubt(&host).unwrap());
        for kept in ["lock", "partial/y"] {
            assert!(host.files.exists(format!("{DIR}/{kept}")).unwrap());
        }

        put("/var/lib/apt/lists/x_Packages", "");
        sync(&host).unwrap();
        put(BOOT_ID, "three\n");
        assert!(!begin(&host).unwrap() && there());
    }
}
