//! Trees of files that others may have written: every name below a directory, each regular file opened without following a
//! link and hashed, and files that get their place whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::fault::{self, Kind};
use super::files::Files;
use super::sync::sync_file_systems;
use crate::error::{Error, Result};
use crate::text::hex;

impl Files {
    /// Every file below `dir`, by its path relative to it, sorted; none where there is no such directory. Links are files.
    pub fn tree(&self, dir: impl AsRef<Path>) -> Result<Vec<String>> {
        fn walk(dir: &Path, prefix: &str, to: &mut Vec<String>) -> io::Result<()> {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.file_type()?.is_dir() {
                    walk(&entry.path(), &format!("{path}/"), to)?;
                } else {
                    to.push(path);
                }
            }
            Ok(())
        }
        let dir = dir.as_ref();
        let mut found = Vec::new();
        match walk(&self.outside_followed(dir)?, "", &mut found) {
            Ok(()) => found.sort(),
            Err(e) if e.kind() == io::ErrorKind::NotFound && found.is_empty() => {}
            Err(e) => return Err(Error::io("list", dir, e)),
        }
        Ok(found)
    }

    /// Opens the regular file `path` below `dir` and says how many bytes it has. No link is followed on the way from `dir`; an
    /// error is a few words that follow the path.
    pub(crate) fn open_plain(&self, dir: &str, path: &str) -> Result<(File, u64), String> {
        let cannot = |e: io::Error| format!("cannot be read: {e}");
        let mut at = self.outside_followed(Path::new(dir)).map_err(|e| format!("cannot be read: {e}"))?;
        for name in path.split('/') {
            at.push(name);
            match fs::symlink_metadata(&at) {
                Ok(meta) if meta.is_symlink() => return Err("is or lies behind a symbolic link".into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("is missing".into()),
                Err(e) => return Err(cannot(e)),
            }
        }
        // A pipe is not waited for.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&at).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        if meta.is_file() { Ok((file, meta.len())) } else { Err("is no regular file".into()) }
    }

    /// Copies a file's bytes. The copy has no name that anybody trusts until it has been looked at.
    pub(crate) fn copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (source, target) = (self.outside_followed(from)?, self.outside(to)?);
        fault::point(Kind::Create, to)
            .and_then(|()| fs::copy(source, target))
            .map(drop)
            .map_err(|e| Error::io("copy", from, e))
    }

    /// Gives a file a second name, where nothing may be yet; a copy where the file system knows no second names.
    pub(crate) fn link_or_copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (source, target) = (self.outside_followed(from.as_ref())?, self.outside(to.as_ref())?);
        match fault::point(Kind::Link, to.as_ref()).and_then(|()| fs::hard_link(source, target)) {
            Ok(()) => Ok(()),
            Err(_) => self.copy(from, to),
        }
    }

    /// Brings a file to the disk and gives it its place, whose directories are made, in one move.
    pub(crate) fn settle(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (source, target) = (self.outside(from.as_ref())?, self.prepare_parent(to.as_ref())?);
        fault::point(Kind::Sync, to.as_ref())
            .and_then(|()| File::open(&source)?.sync_all())
            .and_then(|()| fault::point(Kind::Rename, to.as_ref()))
            .and_then(|()| fs::rename(source, target))
            .map_err(|e| Error::io("write", to.as_ref(), e))
    }

    /// Returns when everything on the file system of a directory is on the disk, names included.
    pub(crate) fn sync_tree(&self, dir: impl AsRef<Path>) -> Result<()> {
        sync_file_systems(&[self.outside_followed(dir.as_ref())?])
    }
}

/// SHA-256 of what can be read, in hexadecimal.
pub(crate) fn sha256(from: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_every_file_and_a_link_is_not_walked() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        assert!(files.tree("/nowhere").unwrap().is_empty());
        for path in ["/t/b/c", "/t/a", "/u/d"] {
            files.write(path, b"x", 0o644).unwrap();
        }
        files.symlink("/t/link", "/u").unwrap();
        assert_eq!(files.tree("/t").unwrap(), ["a", "b/c", "link"]);
        files.symlink("/v", "/t").unwrap();
        assert_eq!(
            files.tree("/v").unwrap(),
            ["a", "b/c", "link"],
            "the directory itself may be reached by one"
        );
    }

    #[test]
    fn a_file_gets_its_place_in_one_move_and_a_second_name_is_no_second_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        files.write("/new/1", b"right", 0o644).unwrap();
        files.write("/place/deep/file", b"wrong", 0o644).unwrap();
        files.settle("/new/1", "/place/deep/file").unwrap();
        assert_eq!(files.read("/place/deep/file").unwrap().unwrap(), b"right");
        assert!(files.tree("/new").unwrap().is_empty());
        files.link_or_copy("/place/deep/file", "/new/2").unwrap();
        files.settle("/new/2", "/other/file").unwrap();
        let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&files.lstat(path).unwrap().unwrap());
        assert_eq!(inode("/other/file"), inode("/place/deep/file"));
    }
}
