//! A root with a simulated NVIDIA driver: the C library of this machine, stand-ins for libcuda and libnvidia-ml
//! built by `cc`, and the files of `/proc` and `/sys` that a loaded module makes. What runs in it is the real agent
//! with its real probe.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Where this machine's C library lies, and where the root's will.
pub(crate) const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// What the probe and the real driver libraries link to.
pub(crate) const C_LIBRARY: [&str; 6] =
    ["libc.so.6", "libdl.so.2", "libpthread.so.0", "libm.so.6", "librt.so.1", "libgcc_s.so.1"];
/// The dynamic linker, in both.
pub(crate) const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The root; it vanishes with this.
pub(crate) struct Simulated {
    root: tempfile::TempDir,
}

impl Simulated {
    /// A root with a C library and nothing of NVIDIA's.
    pub(crate) fn bare() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the probe is run in a root of its own: run the tests as root"
        );
        let simulated = Self { root: tempfile::tempdir().unwrap() };
        for dir in [LIBRARIES, "/lib64", "/run", "/tmp", "/etc", "/dev", "/sys/bus/pci/devices"] {
            fs::create_dir_all(simulated.at(dir)).unwrap();
        }
        fs::copy(LOADER, simulated.at(LOADER)).unwrap();
        for library in C_LIBRARY {
            let from = Path::new(LIBRARIES).join(library);
            let from = if from.exists() { from } else { Path::new("/lib/x86_64-linux-gnu").join(library) };
            fs::copy(from, simulated.at(LIBRARIES).join(library)).unwrap();
        }
        std::os::unix::fs::symlink("usr/lib", simulated.at("/lib")).unwrap();
        simulated.file("/dev/kmsg", "6,1,1,-;Linux version\n")
    }

    /// A machine with `gpus` GPUs whose driver has `settings` (lines of `KEY=VALUE`).
    pub(crate) fn with(gpus: u32, model: &str, settings: &str) -> Self {
        let simulated = Self::bare();
        for (source, soname) in
            [("cuda.c", "libcuda.so.1"), ("nvml.c", "libnvidia-ml.so.1"), ("cudnn.c", "libcudnn.so.9")]
        {
            fs::copy(built(source), simulated.at(LIBRARIES).join(soname)).unwrap();
        }
        simulated
            .file("/etc/simulated-driver", format!("gpus={gpus}x{model}\n{settings}\n"))
            .loaded("580.95.05")
            .gpus(gpus)
    }

    /// The module's own file.
    pub(crate) fn loaded(self, version: &str) -> Self {
        let line = format!(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu Jan  6 00:00:00 UTC 2026\n"
        );
        self.file("/proc/driver/nvidia/version", line)
    }

    /// GPUs on the PCI bus, driven by the module.
    fn gpus(mut self, count: u32) -> Self {
        for i in 0..count {
            let address = format!("0000:{:02x}:00.0", 0x10 + i);
            let dir = format!("/sys/bus/pci/devices/{address}");
            self = self
                .file(&format!("{dir}/vendor"), "0x10de\n")
                .file(&format!("{dir}/device"), "0x2330\n")
                .file(&format!("{dir}/class"), "0x030200\n")
                .file(
                    &format!("/proc/driver/nvidia/gpus/{address}/information"),
                    format!("Model: \t\t simulated\nBus Location: \t {address}\n"),
                );
        }
        self
    }

    /// Writes a file.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let to = self.at(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, content).unwrap();
        self
    }

    /// Where a path of the root lies.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// `device-query` over this root.
    pub(crate) fn query(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["device-query", "--root"]).arg(self.root.path()).args(args);
        command
    }
}

/// A stand-in, compiled once for each test binary.
fn built(source: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    // Another test's panic while it held the lock says nothing about the set.
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/simulated_driver");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let to = target.join(format!("simulated-{source}.so"));
    if !built.contains(source) {
        // Under another name first: another test binary may be copying it.
        let mine = target.join(format!("simulated-{source}.{}", std::process::id()));
        let status = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"])
            .args(["-O2", "-fPIC", "-shared", "-o"])
            .arg(&mine)
            .arg(sources.join(source))
            .status();
        assert!(status.unwrap().success(), "cc {source}");
        fs::rename(mine, &to).unwrap();
        built.insert(source);
    }
    to
}
