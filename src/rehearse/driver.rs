//! The simulated driver: a shared object, compiled from `driver/*.c` by `build/simulated_driver.rs`, that stands in for
//! libcuda, NVML and the CUDA libraries. It enumerates the simulated GPUs, computes on the processor, and fails as
//! its settings say. The packages of a rehearsal ship it under the names of NVIDIA's libraries; the tests of the
//! device query use the same bytes.

use std::fmt::Write as _;
use std::sync::LazyLock;

use super::pci::Gpu;
use crate::embedded::inflate;
use crate::error::{Code, Error, Result};

/// As it was compiled: without a soname and a version of its own.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| inflate(include_bytes!(env!("SIMULATED_DRIVER"))));
/// Where it reads its settings from, lines of `KEY=VALUE`.
pub const SETTINGS: &str = "/etc/simulated-driver";

/// The places in [`IMAGE`] that are filled in for each library; the dots are room.
const SONAME: &[u8] = b"libsimulated.so................";
const VERSION: &[u8] = b"simulated-version=";
const VERSION_ROOM: usize = 28;

/// The shared object as the library `soname` that says it is `version`: NVML says it of the driver, libcuda of the
/// CUDA release that it supports, the others of themselves.
pub fn library(soname: &str, version: &str) -> Result<Vec<u8>> {
    let mut image = IMAGE.clone();
    let too_long = || Error::new(Code::RehearsalFailed, format!("{soname} {version} is too long a name"));
    let at = place(&image, SONAME).ok_or_else(too_long)?;
    put(&mut image[at..at + SONAME.len()], soname).ok_or_else(too_long)?;
    let at = place(&image, VERSION).ok_or_else(too_long)? + VERSION.len();
    put(&mut image[at..at + VERSION_ROOM], version).ok_or_else(too_long)?;
    Ok(image)
}

fn place(image: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(image, what)
}

/// Writes `text` and zeros behind it.
fn put(room: &mut [u8], text: &str) -> Option<()> {
    room.fill(0);
    room.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(())
}

/// Whether the simulated driver has a function of this name.
pub(super) fn has_function(name: &str) -> bool {
    let known = |prefix: &&str| name.starts_with(prefix);
    let entry = [b"\0", name.as_bytes(), b"\0"].concat();
    ["cu", "nvml", "nccl"].iter().any(known) && place(&IMAGE, &entry).is_some()
}

/// The settings for these GPUs; `needs` is a file without which the driver says that the system is not ready.
pub(super) fn settings(gpus: &[Gpu], needs: Option<&str>, faults: &[String]) -> String {
    let device = gpus.first().map(|gpu| gpu.device).unwrap_or_default();
    let addresses: Vec<&str> = gpus.iter().map(|gpu| gpu.address.as_str()).collect();
    let mut text =
        format!("gpus={}x{device:04x}\npci={}\nlabel=(simulated)\n", gpus.len(), addresses.join(" "));
    if let Some(path) = needs {
        let _ = writeln!(text, "needs={path}"); // a String takes everything
    }
    for fault in faults {
        let _ = writeln!(text, "{fault}");
    }
    text
}

/// A simulated GPU's UUID, as the shared object gives it.
pub(super) fn uuid(index: usize) -> String {
    format!("GPU-00000000-0000-0000-0000-{index:012x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldconfig_lists_it_under_the_soname_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let image = library("libcuda.so.1", "13.0").unwrap();
        std::fs::write(dir.path().join("libany.so.9"), image).unwrap();
        // -n: only this directory, and only the link that the soname asks for; the cache stays as it is.
        let out = std::process::Command::new("/sbin/ldconfig").arg("-nv").arg(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.contains("libcuda.so.1 -> libany.so.9"), "{said}");
        assert!(dir.path().join("libcuda.so.1").is_symlink());
    }

    #[test]
    fn each_place_is_there_once_and_has_its_limits() {
        for what in [SONAME, VERSION] {
            assert_eq!(memchr::memmem::find_iter(&IMAGE, what).count(), 1);
        }
        assert!(library("libcudart.so.11.0", &"1".repeat(VERSION_ROOM)).is_ok());
        assert!(library("libcudart.so.11.0", &"1".repeat(VERSION_ROOM + 1)).is_err());
        assert!(library(&"l".repeat(SONAME.len() + 1), "1").is_err());
    }
}
