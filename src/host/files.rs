//! Files under the root: reads that tell "missing" from "unreadable", and writes that are whole or not there.
//!
//! Every write is: temporary file in the same directory → fsync → rename → fsync of the directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Code, Error, Result};

use super::fault::{self, Kind};
use super::paths;

/// The file tree below a root directory. Paths given to its methods are absolute and are resolved as if
/// chrooted: neither `..` nor a symbolic link leaves the root.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

/// How temporary files begin; six random characters follow (tempfile's own number).
pub(crate) const TEMPORARY: &str = ".gpu-bootstrap-";

/// Symbolic links followed while resolving one path; the kernel's own limit.
pub(super) const MAX_LINKS: usize = 40;

/// How often a directory is removed into which somebody puts files meanwhile, and how long is waited between.
const REMOVALS: u32 = 20;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(50);

impl Files {
    /// The tree below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root directory as seen from outside.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the root is the machine's own.
    pub fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where `path` lies when seen from outside. Directories on the way are resolved inside the root; the
    /// last component is not followed, so that links themselves can be looked at and replaced.
    pub fn outside(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        if self.is_machine() {
            return Ok(path.to_path_buf());
        }
        self.resolve(path, false)
    }

    /// Like [`Files::outside`], with the last component followed, too.
    pub(super) fn outside_followed(&self, path: &Path) -> Result<PathBuf> {
        if self.is_machine() {
            return Ok(path.to_path_buf());
        }
        self.resolve(path, true)
    }

    /// Where the path leads when every link is followed (inside the root); `None` if nothing is there.
    pub fn real_path(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = path.as_ref();
        let outside = self.resolve(path, true)?;
        match fs::symlink_metadata(&outside) {
            Ok(_) => {
                let inside = outside.strip_prefix(&self.root).unwrap_or(&outside);
                Ok(Some(Path::new("/").join(inside)))
            }
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(Error::io("stat", path, e)),
        }
    }

    fn resolve(&self, path: &Path, follow_last: bool) -> Result<PathBuf> {
        let mut pending: Vec<std::ffi::OsString> = components(path);
        let mut inside: Vec<std::ffi::OsString> = Vec::new();
        let mut links = 0;
        while let Some(next) = pending.pop() {
            if next == ".." {
                inside.pop();
                continue;
            }
            let candidate = inside.iter().fold(self.root.clone(), |p, c| p.join(c)).join(&next);
            let is_last = pending.is_empty();
            if is_last && !follow_last {
                inside.push(next);
                break;
            }
            match fs::read_link(&candidate) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::new(
                            Code::Io,
                            format!("too many symbolic links in {}", path.display()),
                        ));
                    }
                    if target.is_absolute() {
                        inside.clear();
                    }
                    pending.extend(components(&target));
                }
                Err(_) => inside.push(next), // not a link, or not there: the caller's operation says which
            }
        }
        Ok(inside.iter().fold(self.root.clone(), |p, c| p.join(c)))
    }

    /// The whole file, or `None` if it does not exist. Any other failure is an error.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        match fs::read(self.outside_followed(path)?) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// The whole file as text, with bytes that are not UTF-8 replaced; `None` if it does not exist.
    pub fn read_text(&self, path: impl AsRef<Path>) -> Result<Option<String>> {
        Ok(self.read(path)?.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }

    /// At most `limit` bytes of the file; `None` if it does not exist.
    pub fn read_limited(&self, path: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        let file = match File::open(self.outside_followed(path)?) {
            Ok(f) => f,
            Err(e) if is_missing(&e) => return Ok(None),
            Err(e) => return Err(Error::io("open", path, e)),
        };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        Ok(Some(bytes))
    }

    /// Metadata of the path itself (links not followed); `None` if it does not exist.
    pub fn lstat(&self, path: impl AsRef<Path>) -> Result<Option<fs::Metadata>> {
        let path = path.as_ref();
        match fs::symlink_metadata(self.outside(path)?) {
            Ok(m) => Ok(Some(m)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(Error::io("stat", path, e)),
        }
    }

    /// Whether anything is there (a dangling link is).
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.lstat(path)?.is_some())
    }

    /// The target of a symbolic link; `None` if there is nothing or something else.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = path.as_ref();
        match fs::read_link(self.outside(path)?) {
            Ok(t) => Ok(Some(t)),
            Err(e) if is_missing(&e) || e.raw_os_error() == Some(nix::libc::EINVAL) => Ok(None),
            Err(e) => Err(Error::io("read the link", path, e)),
        }
    }

    /// The names in a directory, sorted; empty if it does not exist.
    pub fn list(&self, dir: impl AsRef<Path>) -> Result<Vec<String>> {
        let dir = dir.as_ref();
        let entries = match fs::read_dir(self.outside_followed(dir)?) {
            Ok(e) => e,
            Err(e) if is_missing(&e) => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", dir, e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", dir, e))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Writes the file whole, with `mode` (permission bits), durably. Missing parent directories are made (0755).
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<()> {
        let path = path.as_ref();
        let target = self.prepare_parent(path)?;
        let dir = parent(&target);
        let mut temp = tempfile::Builder::new();
        temp.prefix(TEMPORARY).permissions(fs::Permissions::from_mode(mode));
        let mut temp = fault::point(Kind::Create, path)
            .and_then(|()| temp.tempfile_in(dir))
            .map_err(|e| Error::io("write", path, e))?;
        fault::point(Kind::Write, path)
            .and_then(|()| temp.write_all(bytes))
            .map_err(|e| Error::io("write", path, e))?;
        // The umask may have taken bits away from the mode given at creation.
        fault::point(Kind::Mode, path)
            .and_then(|()| temp.as_file().set_permissions(fs::Permissions::from_mode(mode)))
            .map_err(|e| Error::io("set the mode of", path, e))?;
        fault::point(Kind::Sync, path)
            .and_then(|()| temp.as_file().sync_all())
            .map_err(|e| Error::io("fsync", path, e))?;
        persist(temp.into_temp_path(), &target, path)?;
        sync_dir(dir, path)
    }

    /// Makes `path` a symbolic link to `target`, atomically replacing a link or file that is there.
    pub fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let link = self.prepare_parent(path)?;
        let dir = parent(&link);
        let temp = fault::point(Kind::Link, path)
            .and_then(|()| {
                tempfile::Builder::new()
                    .prefix(TEMPORARY)
                    .make_in(dir, |p| std::os::unix::fs::symlink(target.as_ref(), p))
            })
            .map_err(|e| Error::io("link", path, e))?;
        persist(temp.into_temp_path(), &link, path)?;
        sync_dir(dir, path)
    }

    /// Opens a directory, so that what is in it can be reached without following a path again.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        File::options()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY)
            .open(self.outside_followed(path)?)
            .map_err(|e| Error::io("open the directory", path, e))
    }

    /// The same, or `None` where there is no directory.
    pub(crate) fn find_dir(&self, path: impl AsRef<Path>) -> Result<Option<File>> {
        let path = path.as_ref();
        let mut options = File::options();
        let opened =
            options.read(true).custom_flags(nix::libc::O_DIRECTORY).open(self.outside_followed(path)?);
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(Error::io("open the directory", path, e)),
        }
    }

    /// Makes a directory and its parents; an existing one keeps its mode.
    pub fn make_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = path.as_ref();
        let target = self.outside_followed(path)?;
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, mode);
        fault::point(Kind::MakeDir, path)
            .and_then(|()| builder.recursive(true).create(target))
            .map_err(|e| Error::io("make the directory", path, e))
    }

    /// Removes a file or link; nothing happens if it is not there.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let target = self.outside(path)?;
        match fault::point(Kind::Remove, path).and_then(|()| fs::remove_file(&target)) {
            Ok(()) => sync_dir(parent(&target), path),
            Err(e) if is_missing(&e) => Ok(()),
            Err(e) => Err(Error::io("remove", path, e)),
        }
    }

    /// Removes the temporary files that a run left in `dir` when it was killed in the middle of a write. Only
    /// the holder of the lock may do this: to anybody else they may be a write that is going on.
    pub fn sweep(&self, dir: &str) -> Result<()> {
        let ours = |name: &&String| name.strip_prefix(TEMPORARY).is_some_and(|rest| rest.len() == 6);
        self.list(dir)?.iter().filter(ours).try_for_each(|name| {
            let path = Path::new(dir).join(name);
            // A directory is the room beside something that a program was making (see `beside`).
            if self.lstat(&path)?.is_some_and(|m| m.is_dir()) {
                self.remove_tree(path)
            } else {
                self.remove(path)
            }
        })
    }

    /// Removes a directory of our own with all that is in it; nothing happens if it is not there.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let target = self.outside(path)?;
        fault::point(Kind::Remove, path).map_err(|e| Error::io("remove the directory", path, e))?;
        let mut attempts = 1;
        loop {
            match fs::remove_dir_all(&target) {
                Ok(()) => return Ok(()),
                Err(e) if is_missing(&e) => return Ok(()),
                // A program that outlived an earlier run still puts files there.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && attempts < REMOVALS => {
                    attempts += 1;
                    std::thread::sleep(BETWEEN_REMOVALS);
                }
                Err(e) => return Err(Error::io("remove the directory", path, e)),
            }
        }
    }

    /// Moves somebody else's file out of the way, to be found again under [`paths::SET_ASIDE_DIR`].
    /// Returns its new path (inside the root).
    pub fn set_aside(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        self.make_dir(paths::SET_ASIDE_DIR, 0o755)?;
        let flat = path.display().to_string().trim_start_matches('/').replace('/', "__");
        let mut kept = Path::new(paths::SET_ASIDE_DIR).join(&flat);
        let mut n = 1;
        while self.exists(&kept)? {
            n += 1;
            kept = Path::new(paths::SET_ASIDE_DIR).join(format!("{flat}.{n}"));
        }
        let bytes = self.read(path)?.ok_or_else(|| {
            Error::new(Code::Io, format!("cannot set {} aside: it is gone", path.display()))
        })?;
        // A link's own mode bits are all set and mean nothing.
        let own = self.lstat(path)?.filter(|m| !m.is_symlink());
        let mode = own.map_or(0o644, |m| m.mode() & 0o7777);
        // A copy and a removal, not a rename: /var may be another file system.
        self.write(&kept, &bytes, mode)?;
        self.remove(path)?;
        Ok(kept)
    }

    /// Opens (or makes, mode 0644) a file for reading and writing, for locks.
    pub fn open_rw(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        let target = self.prepare_parent(path)?;
        fault::point(Kind::Create, path)
            .and_then(|()| {
                File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(target)
            })
            .map_err(|e| Error::io("open", path, e))
    }

    /// Opens (or makes) a file to be written to at its end; refuses one that is a link.
    pub fn open_append(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        let path = path.as_ref();
        let target = self.prepare_parent(path)?;
        fault::point(Kind::Create, path)
            .and_then(|()| {
                File::options()
                    .append(true)
                    .create(true)
                    .mode(mode)
                    .custom_flags(nix::libc::O_NOFOLLOW)
                    .open(target)
            })
            .map_err(|e| Error::io("open", path, e))
    }

    /// Makes a file of this size whose room on the disk is its own: it has no holes.
    pub fn reserve(&self, path: impl AsRef<Path>, bytes: u64, mode: u32) -> Result<()> {
        let path = path.as_ref();
        let target = self.prepare_parent(path)?;
        let mut file = fault::point(Kind::Create, path)
            .and_then(|()| File::options().write(true).create_new(true).mode(mode).open(target))
            .map_err(|e| Error::io("make", path, e))?;
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        let reserved = fault::point(Kind::Write, path).and_then(|()| {
            match fallocate(&file, FallocateFlags::empty(), 0, length) {
                // A file system that cannot reserve gets zeros, which take as much room.
                Err(Errno::EOPNOTSUPP) => io::copy(
                    &mut io::repeat(0).take(bytes),
                    &mut io::BufWriter::with_capacity(1 << 20, &mut file),
                )
                .map(drop),
                result => Ok(result?),
            }
        });
        reserved.map_err(|e| Error::io("reserve the room of", path, e))?;
        fault::point(Kind::Sync, path).and_then(|()| file.sync_all()).map_err(|e| Error::io("fsync", path, e))
    }

    /// Gives a file another name in its directory.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (source, target) = (self.outside(from)?, self.outside(to)?);
        fault::point(Kind::Rename, to)
            .and_then(|()| fs::rename(source, target))
            .map_err(|e| Error::io("rename to", to, e))
    }

    /// Free bytes that root may use on the file system that holds `path` (or its nearest existing parent).
    pub fn free_bytes(&self, path: impl AsRef<Path>) -> Result<u64> {
        let path = path.as_ref();
        let mut probe = self.outside(path)?;
        while fs::symlink_metadata(&probe).is_err() && probe.pop() {}
        let stat = nix::sys::statvfs::statvfs(&probe).map_err(|e| Error::io("statvfs", path, e.into()))?;
        Ok(stat.blocks_free() * stat.fragment_size())
    }

    /// Resolves the parent directory inside the root, makes it if needed, and joins the last component.
    pub(super) fn prepare_parent(&self, path: &Path) -> Result<PathBuf> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::new(Code::Io, format!("{} names no file", path.display())))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let dir_outside = self.outside_followed(dir)?;
        fault::point(Kind::MakeDir, dir)
            .and_then(|()| fs::create_dir_all(&dir_outside))
            .map_err(|e| Error::io("make the directory", dir, e))?;
        Ok(dir_outside.join(name))
    }
}

/// The components of a path, last first (a stack for [`Files::resolve`]); `.` and the root are dropped.
pub(super) fn components(path: &Path) -> Vec<std::ffi::OsString> {
    let mut all: Vec<_> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(n) => Some(n.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    all.reverse();
    all
}

/// "It does not exist": only these two. A directory on the way that is a file counts as missing as well.
fn is_missing(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ENOTDIR)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Gives a temporary file or link its name.
fn persist(temp: tempfile::TempPath, to: &Path, path: &Path) -> Result<()> {
    fault::point(Kind::Rename, path)
        .and_then(|()| temp.persist(to).map_err(|e| e.error))
        .map_err(|e| Error::io("rename to", path, e))
}

fn sync_dir(dir: &Path, path: &Path) -> Result<()> {
    fault::point(Kind::Sync, dir)
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(|e| Error::io("fsync the directory of", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_path_buf());
        (dir, files)
    }

    #[test]
    fn write_is_whole_and_leaves_no_temporary_file() {
        let (_dir, files) = scratch();
        files.write("/etc/x/y.conf", b"one", 0o600).unwrap();
        files.write("/etc/x/y.conf", b"two", 0o644).unwrap();
        assert_eq!(files.read("/etc/x/y.conf").unwrap().unwrap(), b"two");
        assert_eq!(files.lstat("/etc/x/y.conf").unwrap().unwrap().mode() & 0o7777, 0o644);
        assert_eq!(files.list("/etc/x").unwrap(), ["y.conf"]);
    }

    #[test]
    fn neither_dots_nor_links_leave_the_root() {
        let (dir, files) = scratch();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/../../../tmp", dir.path().join("etc/up")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("abs")).unwrap();
        files.write("/etc/up/f", b"x", 0o644).unwrap();
        assert!(dir.path().join("tmp/f").exists());
        files.write("/abs/../../g", b"x", 0o644).unwrap();
        assert!(dir.path().join("g").exists());
    }

    #[test]
    fn reserved_room_has_no_holes() {
        let (dir, files) = scratch();
        files.reserve("/a/swap", 3 << 20, 0o600).unwrap();
        let meta = fs::metadata(dir.path().join("a/swap")).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (3 << 20, 0o600));
        assert!(meta.blocks() * 512 >= 3 << 20, "{} blocks", meta.blocks());
        assert!(files.reserve("/a/swap", 1, 0o600).is_err(), "what is there stays");
    }

    #[test]
    fn a_link_loop_is_an_error() {
        let (dir, files) = scratch();
        std::os::unix::fs::symlink("b", dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        assert!(files.read("/a").is_err());
    }

    #[test]
    fn missing_is_none_and_unreadable_is_an_error() {
        let (dir, files) = scratch();
        assert!(files.read("/nope").unwrap().is_none());
        fs::create_dir(dir.path().join("d")).unwrap();
        assert!(files.read("/d").is_err());
    }

    #[test]
    fn set_aside_keeps_the_bytes_and_never_overwrites() {
        let (_dir, files) = scratch();
        for content in [b"one", b"two"] {
            files.write("/etc/apt/preferences.d/pin", content, 0o640).unwrap();
            files.set_aside("/etc/apt/preferences.d/pin").unwrap();
        }
        assert!(!files.exists("/etc/apt/preferences.d/pin").unwrap());
        let kept = files.list(paths::SET_ASIDE_DIR).unwrap();
        assert_eq!(kept, ["etc__apt__preferences.d__pin", "etc__apt__preferences.d__pin.2"]);
        files.write("/srv/shared", b"three", 0o640).unwrap();
        files.symlink("/etc/apt/preferences.d/link", "/srv/shared").unwrap();
        let kept = files.set_aside("/etc/apt/preferences.d/link").unwrap();
        assert_eq!(files.lstat(kept).unwrap().unwrap().mode() & 0o7777, 0o644);
        assert!(files.exists("/srv/shared").unwrap());
    }
}
