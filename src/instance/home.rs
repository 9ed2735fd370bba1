//! A user's `~/.ssh`, where the user may have put anything: nothing in it is followed by its path. The home directory is
//! opened once; from there on each name is opened on its own and without following a link, what was opened is looked at,
//! and only then is it used. Writing as the user would need a process of its own, since a thread that changes its user
//! is nothing that safe code can do portably; the directory's descriptor and `fchown` come to the same.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::account::Account;
use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};
use crate::host::files::Files;

const DIRECTORY: &str = ".ssh";
const KEYS: &str = "authorized_keys";
/// What is written before it gets its name. There is one writer, so that one name does.
pub(super) const TEMPORARY: &str = ".gpu-bootstrap-keys";
/// Longest file that is read: some ten thousand keys.
const MAX_BYTES: u64 = 4 << 20;

/// A user's `authorized_keys`.
pub(crate) struct AuthorizedKeys {
    account: Account,
    home: File,
    /// `None` where there is no `.ssh` yet.
    directory: Option<File>,
    /// What it holds; `None` where there is none.
    content: Option<Vec<u8>>,
    /// Owner, group and mode of file and directory are as sshd wants them.
    is_tidy: bool,
}

impl AuthorizedKeys {
    /// Opens and reads the file; refuses one that is a link, or anything else than a file with one name.
    pub(crate) fn open(files: &Files, account: &Account) -> Result<Self> {
        let mut keys = Self {
            account: account.clone(),
            home: files.open_dir(&account.home)?,
            directory: None,
            content: None,
            is_tidy: false,
        };
        keys.directory = keys.open_directory()?;
        let Some(directory) = &keys.directory else { return Ok(keys) };
        let Some(file) = keys.open_in(directory, KEYS, OFlag::O_NONBLOCK)? else { return Ok(keys) };
        let meta = file.metadata().map_err(|e| keys.io("stat", e))?;
        // A second name may be of a file that the user cannot read.
        if !meta.is_file() || meta.nlink() != 1 {
            return Err(keys.refused("is no file with a single name"));
        }
        let of_directory = directory.metadata().map_err(|e| keys.io("stat", e))?;
        keys.is_tidy = keys.is_own(&meta, 0o600) && keys.is_own(&of_directory, 0o700);
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| keys.io("read", e))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(keys.refused("is longer than 4 MB"));
        }
        keys.content = Some(bytes);
        Ok(keys)
    }

    /// Its path, for people.
    pub(super) fn path(&self) -> String {
        format!("{}/{DIRECTORY}/{KEYS}", self.account.home)
    }

    /// What it holds; empty where there is none.
    pub(crate) fn content(&self) -> &[u8] {
        self.content.as_deref().unwrap_or_default()
    }

    /// Makes it hold `content`, the user's own, for nobody else to read. Returns whether anything was changed.
    pub(crate) fn write(&mut self, content: &[u8]) -> Result<bool> {
        let is_same = self.content() == content;
        if is_same && (self.is_tidy || self.content.is_none()) {
            return Ok(false); // none is as good as an empty one
        }
        let directory = self.make_directory()?;
        self.in_place(&directory, content)?;
        self.directory = Some(directory);
        self.content = Some(content.to_vec());
        self.is_tidy = true;
        Ok(true)
    }

    fn is_own(&self, meta: &std::fs::Metadata, mode: u32) -> bool {
        meta.uid() == self.account.uid && meta.gid() == self.account.gid && meta.mode() & 0o7777 == mode
    }

    fn open_directory(&self) -> Result<Option<File>> {
        self.open_in(&self.home, DIRECTORY, OFlag::O_DIRECTORY)
    }

    /// Opens a name for reading without following a link; `None` where there is nothing.
    fn open_in(&self, directory: &File, name: &str, flags: OFlag) -> Result<Option<File>> {
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Some(descriptor.into())),
            Err(Errno::ENOENT) => Ok(None),
            // A link where O_DIRECTORY was asked for is ENOTDIR.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                Err(self.refused("leads over a link, or over no directory"))
            }
            Err(errno) => Err(self.io("open", errno.into())),
        }
    }

    /// The directory, made where it is missing, the user's own and closed to others.
    fn make_directory(&self) -> Result<File> {
        if self.directory.is_none() {
            fault::point(Kind::MakeDir, self.path()).map_err(|e| self.io("make the directory of", e))?;
            match mkdirat(&self.home, DIRECTORY, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(self.io("make the directory of", errno.into())),
            }
            self.sync(&self.home)?;
        }
        let directory = self.open_directory()?.ok_or_else(|| self.refused("has lost its directory"))?;
        let meta = directory.metadata().map_err(|e| self.io("stat", e))?;
        if !self.is_own(&meta, 0o700) {
            self.give(&directory, 0o700)?;
        }
        Ok(directory)
    }

    /// A new file beside it, whole and on the disk, that then takes its name.
    fn in_place(&self, directory: &File, content: &[u8]) -> Result<()> {
        match unlinkat(directory, TEMPORARY, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(self.io("clear the way for", errno.into())),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = fault::point(Kind::Create, self.path())
            .and_then(|()| Ok(openat(directory, TEMPORARY, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
            .map(File::from)
            .map_err(|e| self.io("write", e))?;
        fault::point(Kind::Write, self.path())
            .and_then(|()| file.write_all(content))
            .map_err(|e| self.io("write", e))?;
        self.give(&file, 0o600)?;
        self.sync(&file)?;
        fault::point(Kind::Rename, self.path())
            .and_then(|()| Ok(renameat(directory, TEMPORARY, directory, KEYS)?))
            .map_err(|e| self.io("rename to", e))?;
        self.sync(directory)
    }

    /// Makes an open file or directory the user's own, with this mode.
    fn give(&self, file: &File, mode: u32) -> Result<()> {
        fault::point(Kind::Mode, self.path())
            .and_then(|()| fchown(file.as_fd(), Some(self.account.uid), Some(self.account.gid)))
            .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
            .map_err(|e| self.io("set owner and mode of", e))
    }

    fn sync(&self, file: &File) -> Result<()> {
        fault::point(Kind::Sync, self.path()).and_then(|()| file.sync_all()).map_err(|e| self.io("fsync", e))
    }

    fn io(&self, verb: &str, source: std::io::Error) -> Error {
        Error::io(verb, self.path(), source)
    }

    fn refused(&self, why: &str) -> Error {
        Error::new(Code::Io, format!("{} {why}: it was left alone", self.path()))
            .with_hint("make it a plain file in a plain directory, both the user's own")
    }
}
