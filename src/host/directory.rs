//! A directory held open, for taking things out of places where others may put anything: each name is looked at, opened and
//! removed from the open directory, without following a link and without entering what is mounted there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::fault::{self, Kind};
use super::files::Files;
use super::mounts;
use crate::error::{Code, Error, Result};

/// How deep a tree is removed; each level costs an open file.
const DEEPEST: u32 = 200;
/// Longest file that is read from such a place.
const MAX_BYTES: u64 = 4 << 20;

/// What lies at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A regular file.
    File {
        /// Its size.
        bytes: u64,
        /// This is its only name.
        is_single: bool,
    },
    /// A directory.
    Directory,
    /// A link, a socket, a device: removed by its name, never opened.
    Other,
}

/// Something that stays, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Where it lies, inside the root.
    pub(crate) path: PathBuf,
    /// The end of a sentence that begins with the path.
    pub(crate) why: String,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    file: File,
    path: PathBuf,
    mounts: Rc<Mounts>,
}

/// Where file systems are mounted, as seen from outside the root.
#[derive(Debug, Default)]
pub(crate) struct Mounts(Vec<PathBuf>);

impl Mounts {
    /// By the kernel's word. A bind mount is none to `st_dev`, and is one here. Not to know of a mount would be to empty
    /// it, so a file that cannot be read is an error.
    pub(crate) fn read() -> Result<Self> {
        // The /proc of our own namespace, whatever the root.
        let table = fs::read_to_string(mounts::TABLE).map_err(|e| Error::io("read", mounts::TABLE, e))?;
        Ok(Self(mounts::parse(&table).into_iter().map(|mount| mount.place).collect()))
    }
}

impl Directory {
    /// Opens a directory that is not reached by a link; `None` where there is none. Directories on the way are the
    /// machine's own and may be links.
    pub(crate) fn open(files: &Files, path: &str, mounts: &Rc<Mounts>) -> Result<Option<Self>> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        match File::options().read(true).custom_flags(flags).open(files.outside(path)?) {
            Ok(file) => Ok(Some(Self { file, path: path.into(), mounts: mounts.clone() })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                Err(refused(Path::new(path)))
            }
            Err(e) => Err(Error::io("open the directory", path, e)),
        }
    }

    /// Opens a directory that may be reached by a link, as sshd reaches a home; `None` where there is none.
    pub(crate) fn open_followed(files: &Files, path: &str, mounts: &Rc<Mounts>) -> Result<Option<Self>> {
        let file = files.find_dir(path)?;
        Ok(file.map(|file| Self { file, path: path.into(), mounts: mounts.clone() }))
    }

    /// Its path inside the root, for people.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir =
            Dir::openat(&self.file, ".", flags, Mode::empty()).map_err(|e| self.error("list", e))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|e| self.error("list", e))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What lies at a name; `None` where nothing does.
    pub(crate) fn entry(&self, name: &OsStr) -> Result<Option<Entry>> {
        let stat = self.stat(name)?;
        Ok(stat.map(|stat| match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => Entry::File {
                bytes: u64::try_from(stat.st_size).unwrap_or_default(),
                is_single: stat.st_nlink == 1,
            },
            libc::S_IFDIR => Entry::Directory,
            _ => Entry::Other,
        }))
    }

    fn stat(&self, name: &OsStr) -> Result<Option<FileStat>> {
        match fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(self.error_at("stat", name, e)),
        }
    }

    /// A directory in it; `None` where there is nothing, an error where it is a link or no directory.
    pub(crate) fn enter(&self, name: &OsStr) -> Result<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = self.path.join(name);
        match openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { file: fd.into(), path, mounts: self.mounts.clone() })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => Err(refused(&path)),
            Err(e) => Err(self.error_at("open the directory", name, e)),
        }
    }

    /// The whole of a regular file of at most 4 MB; `None` for everything else.
    pub(crate) fn read(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(self.error_at("open", name, e)),
        };
        let fail = |e| Error::io("read", self.path.join(name), e);
        if !file.metadata().map_err(fail)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        Ok((bytes.len() as u64 <= MAX_BYTES).then_some(bytes))
    }

    /// Whether something is mounted at a name.
    pub(crate) fn is_mount(&self, name: &OsStr) -> bool {
        let here = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let by_name = here.is_ok_and(|here| self.mounts.0.contains(&here.join(name)));
        let device = |stat: FileStat| self.file.metadata().is_ok_and(|own| own.dev() != stat.st_dev);
        by_name || self.stat(name).ok().flatten().is_some_and(device)
    }

    /// Removes what lies at a name, a directory with all that is in it. What is mounted there stays, and is said.
    pub(crate) fn remove(&self, name: &OsStr, left: &mut Vec<Left>) -> Result<()> {
        self.remove_below(name, left, 0)
    }

    fn remove_below(&self, name: &OsStr, left: &mut Vec<Left>, depth: u32) -> Result<()> {
        let path = self.path.join(name);
        let stays = |why: &str| Left { path: path.clone(), why: why.into() };
        if self.is_mount(name) {
            left.push(stays("is mounted, and no part of the image"));
            return Ok(());
        }
        match self.entry(name)? {
            None => return Ok(()),
            Some(Entry::Directory) => {}
            Some(Entry::File { .. } | Entry::Other) => {
                return self.unlink(name, UnlinkatFlags::NoRemoveDir);
            }
        }
        if depth >= DEEPEST {
            left.push(stays("lies too deep"));
            return Ok(());
        }
        let already = left.len();
        if let Some(directory) = self.enter(name)? {
            for inner in directory.names()? {
                directory.remove_below(&inner, left, depth + 1)?;
            }
        }
        if left.len() > already { Ok(()) } else { self.unlink(name, UnlinkatFlags::RemoveDir) }
    }

    fn unlink(&self, name: &OsStr, flags: UnlinkatFlags) -> Result<()> {
        let path = self.path.join(name);
        fault::point(Kind::Remove, &path).map_err(|e| Error::io("remove", &path, e))?;
        match unlinkat(&self.file, name, flags) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(self.error_at("remove", name, e)),
        }
    }

    /// Takes a regular file's content away and leaves owner, mode and name, for the program that writes to it.
    pub(crate) fn empty(&self, name: &OsStr) -> Result<()> {
        let path = self.path.join(name);
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(self.error_at("open", name, e)),
        };
        let meta = file.metadata().map_err(|e| Error::io("stat", &path, e))?;
        // Swapped since it was looked at: by whoever owns the directory, for a file of somebody else's.
        if !meta.is_file() || meta.nlink() > 1 {
            return Err(refused(&path));
        }
        fault::point(Kind::Write, &path)
            .and_then(|()| file.set_len(0))
            .map_err(|e| Error::io("empty", &path, e))
    }

    /// Brings its names to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        fault::point(Kind::Sync, &self.path)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| Error::io("fsync the directory", &self.path, e))
    }

    fn error(&self, verb: &str, errno: Errno) -> Error {
        Error::io(verb, &self.path, errno.into())
    }

    fn error_at(&self, verb: &str, name: &OsStr, errno: Errno) -> Error {
        Error::io(verb, self.path.join(name), errno.into())
    }
}

fn refused(path: &Path) -> Error {
    Error::new(
        Code::Io,
        format!(
            "{} leads over a link, or is not what it was looked at as: it was left alone",
            path.display()
        ),
    )
    .with_hint("make it a plain file or directory, or remove it by hand, then run again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/sub/deeper")).unwrap();
        fs::write(dir.path().join("d/sub/deeper/f"), "x").unwrap();
        fs::write(dir.path().join("outside"), "theirs").unwrap();
        symlink("../outside", dir.path().join("d/link")).unwrap();
        let files = Files::new(dir.path().into());
        let opened = Directory::open(&files, "/d", &Rc::default()).unwrap().unwrap();
        (dir, opened)
    }

    #[test]
    fn a_tree_goes_with_its_links_and_not_with_what_they_lead_to() {
        let (dir, directory) = scratch();
        let mut left = Vec::new();
        for name in directory.names().unwrap() {
            directory.remove(&name, &mut left).unwrap();
        }
        assert_eq!((directory.names().unwrap().len(), left.len()), (0, 0));
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "theirs");
        directory.remove("sub".as_ref(), &mut left).unwrap();
    }

    #[test]
    fn nothing_is_opened_over_a_link() {
        let (dir, directory) = scratch();
        let files = Files::new(dir.path().into());
        symlink("d", dir.path().join("to-d")).unwrap();
        symlink("sub", dir.path().join("d/to-sub")).unwrap();
        for refused in [
            directory.enter("link".as_ref()).map(drop),
            directory.enter("to-sub".as_ref()).map(drop),
            directory.empty("link".as_ref()),
            Directory::open(&files, "/to-d", &Rc::default()).map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code(), Code::Io);
        }
        assert_eq!(directory.read("link".as_ref()).unwrap(), None);
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "theirs");
        assert!(Directory::open_followed(&files, "/to-d", &Rc::default()).unwrap().is_some());
        assert!(Directory::open_followed(&files, "/nowhere", &Rc::default()).unwrap().is_none());
        assert!(Directory::open_followed(&files, "/outside", &Rc::default()).unwrap().is_none());
    }

    #[test]
    fn a_file_with_a_second_name_is_not_emptied() {
        let (dir, directory) = scratch();
        fs::hard_link(dir.path().join("outside"), dir.path().join("d/second")).unwrap();
        assert!(directory.empty("second".as_ref()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "theirs");
        directory.sync().unwrap();
    }

    #[test]
    fn what_is_mounted_stays_with_its_way_there() {
        let (dir, directory) = scratch();
        let at = fs::canonicalize(dir.path()).unwrap().join("d/sub/deeper");
        let directory = Directory { mounts: Rc::new(Mounts(vec![at])), ..directory };
        let mut left = Vec::new();
        directory.remove("sub".as_ref(), &mut left).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(dir.path().join("d/sub/deeper/f").exists());
    }
}
