//! Bringing whole file systems to the disk. A global sync would wait for others' network file systems, too.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::Host;
use super::fault::{self, Kind};
use crate::error::{Code, Error, Result};

impl Host {
    /// Returns when the file systems of these directories are on the disk. Those that do not exist are passed by.
    pub(crate) async fn sync(&self, directories: &[&str]) -> Result<()> {
        let directories = directories.iter().map(|d| self.files.outside(d)).collect::<Result<Vec<_>>>()?;
        tokio::task::spawn_blocking(move || sync_file_systems(&directories))
            .await
            .map_err(|e| Error::new(Code::Io, "cannot sync the file systems").because(e))?
    }
}

/// syncfs, once per file system. It can take a while on slow disks.
pub(super) fn sync_file_systems(directories: &[PathBuf]) -> Result<()> {
    let mut synced = HashSet::new();
    for dir in directories {
        let file = match File::open(dir) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("open", dir, e)),
        };
        if synced.insert(file.metadata().map_err(|e| Error::io("stat", dir, e))?.dev()) {
            fault::point(Kind::Sync, dir)
                .and_then(|()| Ok(nix::unistd::syncfs(&file)?))
                .map_err(|e| Error::io("sync the file system of", dir, e))?;
        }
    }
    Ok(())
}
