//! Writing a file as root where users may have put anything: the way to it is gone name by name, each opened from the
//! directory before it. A link is followed only if it is root's and lies in a directory that only root may write to; so a
//! user can send root nowhere. The file is written beside its place and renamed over whatever lies there.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::fault::{self, Kind};
use super::files::{Files, MAX_LINKS, components};
use crate::error::{Code, Error, Result};

/// What is written before it gets its name. There is one writer, so that one name does.
const TEMPORARY: &str = ".gpu-bootstrap-file";
/// Longest file that is appended to: it is written whole.
const MOST_BYTES: u64 = 64 << 20;

/// A file as it is to be.
pub(crate) struct Wanted<'a> {
    /// All of it, or what is to stand behind what is there.
    pub(crate) content: &'a [u8],
    /// Permission bits.
    pub(crate) mode: u32,
    /// The owner; `None` keeps that of the file that is there, or root.
    pub(crate) uid: Option<u32>,
    /// The group, likewise.
    pub(crate) gid: Option<u32>,
    /// Keep what is there.
    pub(crate) append: bool,
}

/// A directory that was reached safely, and a name in it.
struct Spot {
    directory: File,
    name: OsString,
}

impl Files {
    /// Writes the file; missing directories are made (0755, root's).
    pub(crate) fn write_guarded(&self, path: &str, wanted: &Wanted<'_>) -> Result<()> {
        let spot = self.spot(path)?;
        let existing = spot.open(path)?;
        let meta =
            existing.as_ref().map(File::metadata).transpose().map_err(|e| Error::io("stat", path, e))?;
        let mut bytes = Vec::new();
        if let (true, Some(file), Some(meta)) = (wanted.append, existing, &meta) {
            // A second name may be of a file that is nobody else's business.
            if meta.nlink() != 1 {
                return Err(refused(path, "has a second name"));
            }
            file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
            if bytes.len() as u64 > MOST_BYTES {
                return Err(refused(path, "is longer than 64 MB"));
            }
        }
        bytes.extend_from_slice(wanted.content);
        let uid = wanted.uid.or(meta.as_ref().map(MetadataExt::uid)).unwrap_or(0);
        let gid = wanted.gid.or(meta.as_ref().map(MetadataExt::gid)).unwrap_or(0);
        spot.replace(path, &bytes, (uid, gid), wanted.mode).map_err(|e| Error::io("write", path, e))
    }

    /// Makes a directory, and those above it, where they are missing (0755, root's).
    pub(crate) fn make_dir_guarded(&self, path: &str) -> Result<()> {
        // What leads to something in it has all of them made.
        self.spot(&format!("{path}/{TEMPORARY}")).map(drop)
    }

    /// Goes the way to `path`.
    fn spot(&self, path: &str) -> Result<Spot> {
        let failed = |errno: Errno| Error::io("reach", path, errno.into());
        let mut pending = components(Path::new(path));
        let mut way = vec![self.open_dir("/")?];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let Some(directory) = way.last() else { break };
            let is_last = pending.is_empty();
            let stat = match fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(failed(errno)),
            };
            match stat {
                Some(stat) if kind(&stat) == SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refused(path, "leads over too many links"));
                    }
                    if !is_roots(directory, &stat).map_err(|e| Error::io("stat the way to", path, e))? {
                        return Err(refused(
                            path,
                            "leads over a link that somebody else than root could have put there",
                        ));
                    }
                    let target = readlinkat(directory, name.as_os_str()).map_err(failed)?;
                    if Path::new(&target).is_absolute() {
                        way.truncate(1);
                    }
                    pending.extend(components(Path::new(&target)));
                }
                _ if is_last => {
                    let directory = directory.try_clone().map_err(|e| Error::io("reach", path, e))?;
                    return Ok(Spot { directory, name });
                }
                found => {
                    if found.is_none() {
                        fault::point(Kind::MakeDir, path)
                            .and_then(|()| {
                                Ok(mkdirat(directory, name.as_os_str(), Mode::from_bits_truncate(0o755))?)
                            })
                            .and_then(|()| directory.sync_all())
                            .map_err(|e| Error::io("make a directory of", path, e))?;
                    }
                    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                    way.push(
                        openat(directory, name.as_os_str(), flags, Mode::empty()).map_err(failed)?.into(),
                    );
                }
            }
        }
        Err(refused(path, "names no file"))
    }
}

impl Spot {
    /// What lies there, if it is a file; `None` where there is nothing.
    fn open(&self, path: &str) -> Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.directory, self.name.as_os_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::io("open", path, errno.into())),
        };
        let is_file = file.metadata().map_err(|e| Error::io("stat", path, e))?.is_file();
        if is_file { Ok(Some(file)) } else { Err(refused(path, "is no file")) }
    }

    fn replace(&self, path: &str, bytes: &[u8], (uid, gid): (u32, u32), mode: u32) -> io::Result<()> {
        match unlinkat(&self.directory, TEMPORARY, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        fault::point(Kind::Create, path)?;
        let mut file: File = openat(&self.directory, TEMPORARY, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into();
        fault::point(Kind::Write, path)?;
        file.write_all(bytes)?;
        fault::point(Kind::Mode, path)?;
        // In this order: a change of the owner takes set-id bits away.
        fchown(file.as_fd(), Some(uid), Some(gid))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fault::point(Kind::Sync, path)?;
        file.sync_all()?;
        fault::point(Kind::Rename, path)?;
        renameat(&self.directory, TEMPORARY, &self.directory, self.name.as_os_str())?;
        fault::point(Kind::Sync, path)?;
        self.directory.sync_all()
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Whether only root can have put the link there.
fn is_roots(directory: &File, link: &FileStat) -> io::Result<bool> {
    let meta = directory.metadata()?;
    Ok(link.st_uid == 0 && meta.uid() == 0 && meta.mode() & 0o022 == 0)
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(Code::Io, format!("{path} {why}: it was left alone"))
        .with_hint("name the path that is meant, or take away what lies in the way")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let files = Files::new(dir.path().to_path_buf());
        (dir, files)
    }

    fn wanted(content: &[u8]) -> Wanted<'_> {
        let me = nix::unistd::geteuid().as_raw();
        Wanted { content, mode: 0o640, uid: Some(me), gid: None, append: false }
    }

    #[test]
    fn files_are_whole_and_directories_are_made() {
        let (dir, files) = scratch();
        files.write_guarded("/a/../b/c", &wanted(b"one")).unwrap();
        files.write_guarded("/b/c", &Wanted { append: true, ..wanted(b"two") }).unwrap();
        assert_eq!(files.read("/b/c").unwrap().unwrap(), b"onetwo");
        assert_eq!(files.lstat("/b/c").unwrap().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(files.list("/b").unwrap(), ["c"]);
        fs::create_dir(dir.path().join("d")).unwrap();
        assert!(files.write_guarded("/d", &wanted(b"")).unwrap_err().message().contains("is no file"));
        fs::hard_link(dir.path().join("b/c"), dir.path().join("e")).unwrap();
        let twice = files.write_guarded("/e", &Wanted { append: true, ..wanted(b"x") }).unwrap_err();
        assert!(twice.message().contains("second name"), "{twice}");
    }

    #[test]
    fn only_links_of_roots_are_followed() {
        if !nix::unistd::geteuid().is_root() {
            return; // who owns a link cannot be changed
        }
        let (dir, files) = scratch();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("usr/lib")).unwrap();
        symlink("/usr/lib", at("lib")).unwrap();
        files.write_guarded("/lib/x", &wanted(b"x")).unwrap();
        assert!(at("usr/lib/x").is_file() && at("lib").is_symlink());
        symlink("../usr/lib/y", at("usr/y")).unwrap();
        files.write_guarded("/usr/y", &wanted(b"y")).unwrap();
        assert!(at("usr/lib/y").is_file() && at("usr/y").is_symlink());

        // A user's directory, with links of root's own making and of the user's.
        fs::create_dir_all(at("home/me")).unwrap();
        symlink("/usr/lib", at("home/me/dir")).unwrap();
        symlink("/usr/lib/x", at("home/me/file")).unwrap();
        std::os::unix::fs::chown(at("home/me"), Some(1000), Some(1000)).unwrap();
        fs::create_dir(at("open")).unwrap();
        fs::set_permissions(at("open"), Permissions::from_mode(0o1777)).unwrap();
        symlink("/usr/lib/x", at("open/link")).unwrap();
        symlink("/usr/lib/x", at("theirs")).unwrap();
        std::os::unix::fs::lchown(at("theirs"), Some(1000), Some(1000)).unwrap();
        for path in ["/home/me/dir/z", "/home/me/file", "/open/link", "/theirs"] {
            let error = files.write_guarded(path, &wanted(b"evil")).unwrap_err();
            assert!(error.message().contains("leads over a link"), "{path}: {error}");
        }
        assert_eq!(fs::read(at("usr/lib/x")).unwrap(), b"x");
        files.write_guarded("/home/me/plain", &wanted(b"fine")).unwrap();
        files.make_dir_guarded("/home/me/a/b").unwrap();
        assert!(at("home/me/a/b").is_dir());
        assert!(files.make_dir_guarded("/home/me/dir/b").is_err() && !at("usr/lib/b").exists());
    }
}
