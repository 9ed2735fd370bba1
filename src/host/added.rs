//! What runs have added to this machine, for `uninstall`. It says what was there before, which nothing on the machine
//! tells afterwards; whether it is still as we left it is asked of the machine. Unlike the receipt it is no instance's: an
//! image carries it along with what it describes. Versions before this one wrote none, and what they installed is not in it.
//!
//! A path is noted before it is written for the first time, with a copy of what was there; what we wrote there is noted
//! afterwards, so that a later change by somebody else can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Host, paths};
use crate::error::{Code, Error, Result};
use crate::host::files::Files;

/// All of it. Fields that a later version knows are not lost on it alone: it is read again with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Added {
    /// Version of this format.
    pub schema: u32,
    /// Packages (`name:arch`) that were not there.
    pub packages: BTreeMap<String, AddedPackage>,
    /// Packages that we have put on hold.
    pub held: BTreeSet<String>,
    /// Files and links by path.
    pub files: BTreeMap<String, AddedFile>,
    /// Directories that were made for them.
    pub directories: BTreeSet<String>,
    /// Units that were enabled and started.
    pub units: BTreeSet<String>,
    /// Python environments that were made.
    pub environments: BTreeSet<String>,
}

/// A package that a run installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddedPackage {
    /// Its version then.
    pub version: String,
    /// A step named it, so it did not come as a dependency; or an uninstall has begun to take it away.
    pub asked: bool,
}

/// A file or link that a run wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddedFile {
    /// What we left there last (see [`state`]); empty while that is being written.
    pub written: String,
    /// What was there before; `None` for nothing.
    pub before: Option<Before>,
}

/// What was there before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// As [`state`] says it.
    pub state: String,
    /// Where its content is kept; empty for a link.
    pub kept: String,
    /// Its permission bits.
    pub mode: u32,
}

/// `sha256 …` of a file, `link …` with a link's target, `other` for anything else; `None` if nothing is there.
pub fn state(files: &Files, path: &str) -> Result<Option<String>> {
    let Some(meta) = files.lstat(path)? else { return Ok(None) };
    if meta.is_symlink() {
        let target = files.read_link(path)?.unwrap_or_default();
        return Ok(Some(format!("link {}", target.display())));
    }
    if !meta.is_file() {
        return Ok(Some("other".into()));
    }
    Ok(files.read(path)?.map(|bytes| format!("sha256 {:x}", Sha256::digest(bytes))))
}

impl Added {
    /// Reads it; one that this version cannot read is an error, because to begin anew would lose what it says.
    pub fn read(files: &Files) -> Result<Self> {
        let Some(bytes) = files.read(paths::ADDED)? else { return Ok(Self { schema: 1, ..Self::default() }) };
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Code::Io, format!("cannot understand {}", paths::ADDED))
                .with_hint(format!("move {} away and run again; uninstall then knows less", paths::ADDED))
                .because(e)
        })
    }

    /// The directories that will have to be made for a path.
    fn note_directories_above(&mut self, files: &Files, path: &str) -> Result<()> {
        for dir in Path::new(path).ancestors().skip(1) {
            if files.exists(dir)? {
                break;
            }
            self.directories.insert(dir.display().to_string());
        }
        Ok(())
    }

    /// Writes it durably.
    pub fn write(&self, files: &Files) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Code::Io, format!("cannot write {}", paths::ADDED)).because(e))?;
        files.write(paths::ADDED, &json, 0o600)
    }
}

impl Host {
    /// Notes a path that is about to be written, and keeps what is there.
    pub(crate) fn note_before(&self, path: &str) -> Result<()> {
        let files = &self.files;
        let mut added = Added::read(files)?;
        if added.files.contains_key(path) {
            return Ok(());
        }
        let before = match state(files, path)? {
            None => None,
            Some(state) if state == "other" => return Ok(()), // a directory, or worse: the action will say so
            Some(state) => Some(self.keep(path, state)?),
        };
        added.note_directories_above(files, path)?;
        added.files.insert(path.to_owned(), AddedFile { written: String::new(), before });
        added.write(files)
    }

    fn keep(&self, path: &str, state: String) -> Result<Before> {
        if state.starts_with("link ") {
            return Ok(Before { state, ..Before::default() });
        }
        let kept = format!("{}/{}", paths::ORIGINALS_DIR, path.trim_start_matches('/').replace('/', "__"));
        let mode = self.files.lstat(path)?.map_or(0o644, |m| m.mode() & 0o7777);
        self.files.write(&kept, &self.files.read(path)?.unwrap_or_default(), 0o600)?;
        Ok(Before { state, kept, mode })
    }

    /// Notes what was written there. A file of our own name that an earlier version wrote is noted, too.
    pub(crate) fn note_written(&self, path: &str) -> Result<()> {
        let mut added = Added::read(&self.files)?;
        let Some(now) = state(&self.files, path)?.filter(|now| now != "other") else { return Ok(()) };
        let is_ours_by_name =
            Path::new(path).file_name().is_some_and(|n| n.to_string_lossy().contains("gpu-bootstrap"));
        if !added.files.contains_key(path) && !is_ours_by_name {
            return Ok(());
        }
        let file = added.files.entry(path.to_owned()).or_default();
        if file.written == now {
            return Ok(());
        }
        file.written = now;
        added.write(&self.files)
    }

    /// Notes an environment that is about to be made, or is ours already.
    pub(crate) fn note_environment(&self, path: &str) -> Result<()> {
        let mut added = Added::read(&self.files)?;
        if !added.environments.insert(path.to_owned()) {
            return Ok(());
        }
        added.note_directories_above(&self.files, path)?;
        added.write(&self.files)
    }

    /// Notes a unit that is about to be enabled.
    pub(crate) fn note_unit(&self, unit: &str) -> Result<()> {
        let mut added = Added::read(&self.files)?;
        if added.units.insert(unit.to_owned()) { added.write(&self.files) } else { Ok(()) }
    }

    /// Notes packages that were installed, and those that were put on hold.
    pub(crate) fn note_packages(
        &self,
        new: impl Iterator<Item = (String, AddedPackage)>,
        held: impl Iterator<Item = String>,
    ) -> Result<()> {
        let mut added = Added::read(&self.files)?;
        let before = added.clone();
        for (id, package) in new {
            let known = added.packages.entry(id).or_default();
            *known = AddedPackage { asked: known.asked || package.asked, ..package };
        }
        added.held.extend(held);
        if added == before { Ok(()) } else { added.write(&self.files) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        (dir, host)
    }

    #[test]
    fn what_was_there_is_kept_once() {
        let (_dir, host) = machine();
        let path = "/etc/docker/daemon.json";
        host.files.write(path, b"{}", 0o640).unwrap();
        for text in ["{\"a\": 1}", "{\"a\": 2}"] {
            host.note_before(path).unwrap();
            host.files.write(path, text.as_bytes(), 0o640).unwrap();
            host.note_written(path).unwrap();
        }
        let added = Added::read(&host.files).unwrap();
        let before = added.files[path].before.clone().unwrap();
        assert_eq!((host.files.read(&before.kept).unwrap().unwrap(), before.mode), (b"{}".to_vec(), 0o640));
        assert_eq!(Some(&added.files[path].written), state(&host.files, path).unwrap().as_ref());
        assert!(added.directories.is_empty());
    }

    #[test]
    fn directories_that_were_made_are_known_and_a_second_look_writes_nothing() {
        let (_dir, host) = machine();
        let path = "/etc/cdi/gpu-bootstrap-nvidia.json";
        host.files.make_dir("/etc", 0o755).unwrap();
        host.note_before(path).unwrap();
        host.files.write(path, b"{}", 0o644).unwrap();
        host.note_written(path).unwrap();
        let added = Added::read(&host.files).unwrap();
        assert_eq!(added.directories, BTreeSet::from(["/etc/cdi".to_owned()]));
        let when = host.files.lstat(paths::ADDED).unwrap().unwrap().ino();
        host.note_before(path).unwrap();
        host.note_written(path).unwrap();
        assert_eq!(host.files.lstat(paths::ADDED).unwrap().unwrap().ino(), when);
    }

    #[test]
    fn others_files_are_not_claimed_and_an_unreadable_record_is_not_begun_anew() {
        let (_dir, host) = machine();
        host.files.write("/etc/x", b"", 0o644).unwrap();
        host.files.write("/etc/gpu-bootstrap-x.conf", b"", 0o644).unwrap();
        host.note_written("/etc/x").unwrap();
        host.note_written("/etc/gpu-bootstrap-x.conf").unwrap();
        let files: Vec<_> = Added::read(&host.files).unwrap().files.into_keys().collect();
        assert_eq!(files, ["/etc/gpu-bootstrap-x.conf"]);
        host.files.write(paths::ADDED, b"{", 0o600).unwrap();
        assert!(host.note_before("/etc/y").unwrap_err().message().contains("added.json"));
    }
}
