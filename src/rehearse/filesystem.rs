//! The throw-away copy of this machine's file tree: overlays whose upper layers lie in one directory that is
//! removed at the end. Everything here happens in a mount namespace of its own; the host sees no mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Code, Error, Result};
use crate::host::mounts;

/// Directories that may be file systems of their own and without which a copy is not this machine.
const PARTS: &[&str] = &["/usr", "/usr/local", "/etc", "/opt", "/var", "/var/cache", "/var/lib", "/var/log"];

/// A mounted copy.
pub(super) struct Copy {
    dir: PathBuf,
    mounted: Vec<PathBuf>,
    /// What the upper layers lie on, for people.
    pub(super) carrier: String,
}

impl Copy {
    /// Mounts the copy at `dir/root` and an empty `/run` for it at `dir/run`. The upper layers lie in `dir`
    /// itself where its file system can carry them, else in memory.
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        let mut copy = Self { dir: dir.into(), mounted: Vec::new(), carrier: dir.display().to_string() };
        if let Err(on_disk) = copy.overlay(Path::new("/")) {
            tracing::info!("{} cannot carry an overlay: {:?}", dir.display(), on_disk.causes());
            copy.tmpfs(dir, "mode=0700")?;
            copy.carrier = "memory".into();
            copy.overlay(Path::new("/"))?;
        }
        for part in own_file_systems()? {
            copy.overlay(&part)?;
        }
        let run = copy.run();
        make_dir(&run)?;
        copy.tmpfs(&run, "mode=0755")?;
        Ok(copy)
    }

    /// The copy's root directory.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where the copy's `/run` can be read from outside, also after the sandbox has ended.
    pub(super) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// An overlay over the host's `part`, in its place in the copy.
    fn overlay(&mut self, part: &Path) -> Result<()> {
        let name = part.display().to_string().replace('/', "_");
        let upper = self.dir.join(format!("upper{name}"));
        let work = self.dir.join(format!("work{name}"));
        let below_root = part.strip_prefix("/").unwrap_or(part);
        let target = self.root().join(below_root);
        make_dir(&upper)?;
        make_dir(&work)?;
        make_dir(&target)?;
        copy_owner(part, &upper)?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", part.display(), upper.display(), work.display());
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(
            |e| {
                let text = format!("cannot mount an overlay over {}", part.display());
                unavailable(
                    text,
                    "the kernel needs overlayfs, and the container (if this is one) must allow it",
                    e,
                )
            },
        )?;
        self.mounted.push(target.clone());
        try_to_write(&target)
    }

    fn tmpfs(&mut self, at: &Path, options: &str) -> Result<()> {
        mount_tmpfs(at, options)?;
        self.mounted.push(at.into());
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            // Gone already, or gone with this mount namespace: both are fine.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// A tmpfs; its content is gone when it is unmounted.
pub(super) fn mount_tmpfs(at: &Path, options: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options))
        .map_err(|e| unavailable(format!("cannot mount a tmpfs at {}", at.display()), "run as root", e))
}

fn unavailable(text: String, hint: &str, cause: nix::Error) -> Error {
    Error::new(Code::RehearsalUnavailable, text).with_hint(hint).because(cause)
}

/// The upper layer's top directory decides owner and mode of the mount's.
fn copy_owner(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::metadata(from).map_err(|e| Error::io("stat", from, e))?;
    chown(to, Some(meta.uid()), Some(meta.gid())).map_err(|e| Error::io("chown", to, e))?;
    fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))
        .map_err(|e| Error::io("set the mode of", to, e))
}

/// A mount can succeed and every write fail, for example on an upper layer without extended attributes.
fn try_to_write(dir: &Path) -> Result<()> {
    let trial = dir.join(".gpu-bootstrap-trial");
    fs::write(&trial, b"x").and_then(|()| fs::remove_file(&trial)).map_err(|e| {
        Error::new(Code::RehearsalUnavailable, format!("cannot write in the overlay at {}", dir.display()))
            .because(e)
    })
}

/// Those of [`PARTS`] that are mount points of real file systems: an overlay does not reach into what is mounted
/// below its lower layer.
fn own_file_systems() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(mounts::TABLE).map_err(|e| Error::io("read", mounts::TABLE, e))?;
    let mounts = mounts::parse(&text);
    Ok(PARTS.iter().map(PathBuf::from).filter(|p| mounts.iter().any(|mount| mount.place == *p)).collect())
}

pub(super) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("make the directory", dir, e))
}

/// Removes a directory with all that is in it; nothing happens if it is not there.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        _ => Ok(()),
    }
}
