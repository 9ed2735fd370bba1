//! Room beside a path, in which a program makes what shall lie at that path: on the same file system, root's alone, and
//! renamed into place only when it is whole.

use std::path::{Path, PathBuf};

use super::fault::{self, Kind};
use super::files::{Files, TEMPORARY};
use crate::error::{Error, Result};

/// A directory of ours beside a path. Dropped, it is gone; one that a killed run left is swept by the next.
#[derive(Debug)]
pub struct Beside {
    directory: tempfile::TempDir,
    target: PathBuf,
    path: PathBuf,
    output: PathBuf,
}

impl Files {
    /// Makes room beside `path`, whose parent directories are made where they are missing.
    pub fn beside(&self, path: &Path) -> Result<Beside> {
        let target = self.prepare_parent(path)?;
        let parent = target.parent().unwrap_or(Path::new("/"));
        let directory = fault::point(Kind::MakeDir, path)
            .and_then(|()| tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent))
            .map_err(|e| Error::io("make room beside", path, e))?;
        let own = directory.path().file_name().unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        let output = path.parent().unwrap_or(Path::new("/")).join(own).join(name);
        Ok(Beside { directory, target, path: path.into(), output })
    }
}

impl Beside {
    /// Where the program shall make it, as seen from inside the root. It has the name that it will have.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Brings what was made to the disk and gives it its path. `false` where nothing was made.
    pub fn publish(self) -> Result<bool> {
        let made = self.directory.path().join(self.path.file_name().unwrap_or_default());
        match std::fs::symlink_metadata(&made) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("stat", self.output, e)),
        }
        // It may be a whole tree, so its file system is brought to the disk, not one file.
        let directory = std::fs::File::open(self.directory.path());
        let directory = directory.map_err(|e| Error::io("open the directory", &self.output, e))?;
        fault::point(Kind::Sync, &self.output)
            .and_then(|()| Ok(nix::unistd::syncfs(&directory)?))
            .map_err(|e| Error::io("bring to the disk", &self.output, e))?;
        fault::point(Kind::Rename, &self.path)
            .and_then(|()| std::fs::rename(&made, &self.target))
            .map_err(|e| Error::io("rename to", &self.path, e))?;
        fault::point(Kind::Remove, &self.output)
            .and_then(|()| self.directory.close())
            .map_err(|e| Error::io("remove the room beside", &self.path, e))?;
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        fault::point(Kind::Sync, parent)
            .and_then(|()| std::fs::File::open(parent)?.sync_all())
            .map_err(|e| Error::io("fsync the directory of", &self.path, e))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_made_gets_its_path_and_the_room_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        let path = Path::new("/opt/x/tree");
        let room = files.beside(path).unwrap();
        let made = files.outside(room.output()).unwrap();
        fs::create_dir(&made).unwrap();
        fs::write(made.join("file"), "whole").unwrap();
        assert!(!files.exists(path).unwrap());
        assert!(room.publish().unwrap());
        assert_eq!(files.read("/opt/x/tree/file").unwrap().unwrap(), b"whole");
        assert_eq!(files.list("/opt/x").unwrap(), ["tree"]);
        assert!(!files.beside(Path::new("/opt/x/other")).unwrap().publish().unwrap());
        assert_eq!(files.list("/opt/x").unwrap(), ["tree"]);
    }

    #[test]
    fn what_a_killed_run_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        let room = files.beside(Path::new("/opt/x")).unwrap();
        fs::write(files.outside(room.output()).unwrap(), "half").unwrap();
        let left = room.directory.keep();
        assert!(left.exists());
        files.sweep("/opt").unwrap();
        assert!(files.list("/opt").unwrap().is_empty());
    }
}
