//! The stage: a directory of our own on the machine's file system, in which package files are fetched, big files are
//! unpacked for dpkg to link, and the stubs lie. Entered by root alone. Whatever a killed run left there is removed by
//! the next one, and only while dpkg cannot be at work: a dpkg that outlived its agent may still be linking from it.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::host::apt::locks;
use crate::host::fault::{self, Kind};
use crate::host::files::Files;
use crate::host::{Host, paths};

/// Below the stage: package files as they come, files for dpkg to link, stubs, and what apt takes for its archives.
const SPOOL: &str = "spool";
const FILES: &str = "files";
const STUBS: &str = "stubs";
const ARCHIVES: &str = "archives";
/// A file to be linked for a trial, and a note of where: a link to the place of the link.
const TRIAL: &str = "trial";
const TRIED: &str = "tried";

/// The stage, empty when made.
#[derive(Debug)]
pub(super) struct Stage {
    outside: PathBuf,
    next_file: AtomicU64,
}

impl Stage {
    /// Makes the stage anew, once nobody holds dpkg's lock.
    pub(super) async fn make(host: &Host, deadline: Instant) -> Result<Self> {
        Self::purge(host, deadline).await?;
        let outside = host.files.outside(paths::STAGE_DIR)?;
        host.files.make_dir(paths::STATE_DIR, 0o755)?;
        let create = |dir: &Path| {
            fault::point(Kind::MakeDir, dir)
                .and_then(|()| fs::create_dir(dir))
                .and_then(|()| fault::point(Kind::Mode, dir))
                .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o700)))
                .map_err(|e| Error::io("make", dir, e))
        };
        create(&outside)?;
        for name in [SPOOL, FILES, STUBS, ARCHIVES, "archives/partial"] {
            create(&outside.join(name))?;
        }
        Ok(Self { outside, next_file: AtomicU64::new(0) })
    }

    /// Removes the stage with all that is in it, under dpkg's frontend lock. What dpkg has linked stays linked.
    pub(super) async fn purge(host: &Host, deadline: Instant) -> Result<()> {
        if !host.files.exists(paths::STAGE_DIR)? {
            return Ok(());
        }
        let _lock = locks::frontend(host, deadline).await?;
        let stage = host.files.outside(paths::STAGE_DIR)?;
        // Where a killed run was trying whether the stage can be linked to.
        if let Ok(link) = fs::read_link(stage.join(TRIED)) {
            remove_trial(&link);
        }
        host.files.remove_tree(paths::STAGE_DIR)
    }

    /// The stage as seen from outside the root.
    pub(super) fn outside(&self) -> &Path {
        &self.outside
    }

    /// Where the package file of this number is fetched to.
    pub(super) fn spool(&self, number: usize) -> PathBuf {
        self.outside.join(SPOOL).join(number.to_string())
    }

    /// The same, inside the root.
    pub(super) fn spool_inside(number: usize) -> String {
        format!("{}/{SPOOL}/{number}", paths::STAGE_DIR)
    }

    /// Where the stub of this number is made.
    pub(super) fn stub(&self, name: &str) -> PathBuf {
        self.outside.join(STUBS).join(name)
    }

    /// The same, inside the root.
    pub(super) fn stub_inside(name: &str) -> String {
        format!("{}/{STUBS}/{name}", paths::STAGE_DIR)
    }

    /// The directory that apt takes for its archives, inside the root.
    pub(super) fn archives_inside() -> String {
        format!("{}/{ARCHIVES}", paths::STAGE_DIR)
    }

    /// The file of this name in it, outside.
    pub(super) fn archive(&self, name: &str) -> PathBuf {
        self.outside.join(ARCHIVES).join(name)
    }

    /// A new file for dpkg to link: the file, open for writing, and its path relative to the root.
    pub(super) fn new_file(&self) -> io::Result<(File, String)> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = self.outside.join(FILES).join(number.to_string());
        fault::point(Kind::Create, &path)?;
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok((file, format!(".{}/{FILES}/{number}", paths::STAGE_DIR)))
    }

    /// How many files were made for dpkg to link.
    pub(super) fn files(&self) -> u64 {
        self.next_file.load(Ordering::Relaxed)
    }
}

/// Where a file of the stage can be linked to. Decided by trying: a device number tells nothing about bind mounts, nor
/// about file systems without hard links.
#[derive(Debug)]
pub(super) struct Mounts {
    files: Files,
    /// The file that is linked for the trial.
    trial: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_mount: HashMap<u64, bool>,
    by_directory: HashMap<PathBuf, bool>,
}

impl Mounts {
    pub(super) fn new(files: &Files, stage: &Stage) -> Result<Self> {
        let trial = stage.outside.join(TRIAL);
        fault::point(Kind::Create, &trial)
            .and_then(|()| File::create_new(&trial))
            .map_err(|e| Error::io("make", &trial, e))?;
        Ok(Self { files: files.clone(), trial, known: Mutex::default() })
    }

    /// Whether a staged file could become `path` (inside the root) by a hard link.
    pub(super) fn reach(&self, path: &Path) -> Result<bool> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(answer) = known.by_directory.get(parent) {
            return Ok(*answer);
        }
        // Directories that come with the package lie on the mount of the nearest that is there already.
        let outside = self.files.outside(path)?;
        let nearest = outside.ancestors().skip(1).find(|d| d.is_dir()).unwrap_or(Path::new("/"));
        let answer = match mount_of(nearest) {
            Some(mount) => match known.by_mount.get(&mount) {
                Some(answer) => *answer,
                None => *known.by_mount.entry(mount).or_insert_with(|| self.try_link(nearest)),
            },
            None => self.try_link(nearest),
        };
        known.by_directory.insert(parent.to_path_buf(), answer);
        Ok(answer)
    }

    fn try_link(&self, directory: &Path) -> bool {
        let link = directory.join(format!(".gpu-bootstrap-trial-{}", std::process::id()));
        let note = self.trial.with_file_name(TRIED);
        let noted = fault::point(Kind::Link, &note).and_then(|()| symlink(&link, &note));
        let linked = noted
            .and_then(|()| fault::point(Kind::Link, directory))
            .and_then(|()| fs::hard_link(&self.trial, &link));
        if linked.is_ok() {
            remove_trial(&link);
        }
        let _ = fs::remove_file(&note); // the stage goes with all that is in it
        linked.is_ok()
    }
}

fn remove_trial(link: &Path) {
    if let Err(error) =
        fault::point(Kind::Remove, link.parent().unwrap_or(link)).and_then(|()| fs::remove_file(link))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %link.display(), "cannot remove the trial link");
    }
}

/// The kernel's number of the mount that a directory lies on; `None` where /proc does not tell.
fn mount_of(directory: &Path) -> Option<u64> {
    let open = File::open(directory).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd())).ok()?;
    info.lines().find_map(|l| l.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_can_be_linked_is_found_by_trying() {
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        let host = Host::new(root.path().into());
        host.files.make_dir("/usr/lib", 0o755).unwrap();
        // Another file system, whatever it is mounted from.
        std::os::unix::fs::symlink("/proc/self", root.path().join("elsewhere")).unwrap();
        let stage = Stage::make(&host, Instant::now()).await.unwrap();
        let mounts = Mounts::new(&host.files, &stage).unwrap();
        assert!(mounts.reach(Path::new("/usr/lib/a/b/libx.so")).unwrap());
        assert!(mounts.reach(Path::new("/opt/new")).unwrap());
        assert_eq!(host.files.list("/usr/lib").unwrap(), [""; 0]);
        assert!(!mounts.try_link(Path::new("/proc")));
        Stage::purge(&host, Instant::now()).await.unwrap();
        assert!(!host.files.exists(paths::STAGE_DIR).unwrap());
    }

    #[expect(clippy::cast_possible_truncation, reason = "small constants, of another type than the field")]
    #[tokio::test]
    async fn a_stage_that_dpkg_may_still_use_stays() {
        use nix::libc;
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path().into());
        Stage::make(&host, Instant::now()).await.unwrap();
        let dpkg = host.files.open_rw("/var/lib/dpkg/lock-frontend").unwrap();
        let (l_type, l_whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
        let whole = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
        // A lock of the open file: one of the process would not keep this process out.
        nix::fcntl::fcntl(&dpkg, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        let error = Stage::purge(&host, Instant::now()).await.unwrap_err();
        assert_eq!(error.code(), crate::error::Code::AptLocked, "{error}");
        assert!(host.files.exists(paths::STAGE_DIR).unwrap());
        drop(dpkg);
        Stage::purge(&host, Instant::now()).await.unwrap();
        assert!(!host.files.exists(paths::STAGE_DIR).unwrap());
    }

    #[tokio::test]
    async fn a_new_stage_has_nothing_of_the_last() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path().into());
        let stage = Stage::make(&host, Instant::now()).await.unwrap();
        stage.new_file().unwrap();
        let stage = Stage::make(&host, Instant::now()).await.unwrap();
        assert_eq!(stage.new_file().unwrap().1, "./var/lib/gpu-bootstrap/stage/files/0");
        let mode = fs::metadata(stage.outside()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}
