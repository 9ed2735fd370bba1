//! The embedded probe as something that the kernel can execute: a sealed file in memory, else a file in a
//! directory that only we may enter (where `vm.memfd_noexec`, fapolicyd or `SELinux` deny the first).

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::embedded::inflate;
use crate::host::fault::{self, Kind};
use crate::host::files::Files;

/// The probe, compiled by `build.rs` from `src/probe/`. Inflated once: a query starts it several times.
static PROBE: LazyLock<Vec<u8>> = LazyLock::new(|| inflate(include_bytes!(env!("GPU_PROBE"))));

/// From `linux/memfd.h`; nix has no name for it.
const MFD_EXEC: u32 = 0x10;

/// Directories tried in turn where files in memory cannot be executed; any of them may be mounted noexec.
const DIRECTORIES: [&str; 5] = ["/run", "/var/lib", "/tmp", "/dev/shm", "/root"];

/// One way to execute the probe.
pub(super) enum Image {
    /// A sealed file in memory.
    Memory(OwnedFd),
    /// A file, removed with its directory when this is dropped.
    File {
        /// Removes the directory when it is dropped.
        _directory: tempfile::TempDir,
        /// The program's path inside the root.
        inside: PathBuf,
    },
}

impl Image {
    /// For people: where the probe was executed from.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Memory(_) => "memfd".into(),
            Self::File { inside, .. } => inside.display().to_string(),
        }
    }

    /// All ways, best first, each made only when the one before failed.
    pub(super) fn ways(files: &Files) -> impl Iterator<Item = io::Result<Self>> {
        let in_directory = |dir: &'static str| Self::in_directory(files, dir);
        std::iter::once_with(Self::in_memory).chain(DIRECTORIES.into_iter().map(in_directory))
    }

    fn in_memory() -> io::Result<Self> {
        fault::point(Kind::Create, "memfd")?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag; newer ones may insist on it.
        let fd = match memfd_create(c"gpu-probe", flags | MFdFlags::from_bits_retain(MFD_EXEC)) {
            Err(Errno::EINVAL) => memfd_create(c"gpu-probe", flags),
            made => made,
        }?;
        let mut file = File::from(fd);
        file.write_all(&PROBE)?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self::Memory(file.into()))
    }

    fn in_directory(files: &Files, dir: &str) -> io::Result<Self> {
        fault::point(Kind::Create, dir)?;
        let outside = files.outside(Path::new(dir).join("x")).map_err(io::Error::other)?;
        let directory = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o700))
            .prefix(".gpu-bootstrap-probe-")
            .tempdir_in(outside.parent().unwrap_or(&outside))?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(directory.path().join("gpu-probe"))?;
        file.write_all(&PROBE)?;
        // Closed before it is executed: a file that is open for writing is "busy".
        drop(file);
        let name = directory.path().file_name().unwrap_or_default();
        let inside = Path::new(dir).join(name).join("gpu-probe");
        Ok(Self::File { _directory: directory, inside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_small() {
        assert!(PROBE.len() < 100_000, "{} bytes", PROBE.len());
    }

    #[test]
    fn a_file_lies_in_a_directory_of_its_own_and_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("run")).unwrap();
        let image = Image::in_directory(&Files::new(root.path().into()), "/run").unwrap();
        assert!(image.place().starts_with("/run/.gpu-bootstrap-probe-"), "{}", image.place());
        let directory = std::fs::read_dir(root.path().join("run")).unwrap().next().unwrap().unwrap();
        let mode = directory.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(image);
        assert_eq!(std::fs::read_dir(root.path().join("run")).unwrap().count(), 0);
    }
}
