//! A root with a simulated NVIDIA driver: the C library of this machine, the stand-in for NVIDIA's libraries that
//! rehearsals use, and the files of `/proc` and `/sys` that a loaded module makes. What runs in it is the real
//! agent with its real probe.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_bootstrap::rehearse::driver::{self, SETTINGS};

/// Where this machine's C library lies, and where the root's will.
pub(crate) const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// What the probe and the real driver libraries link to.
pub(crate) const C_LIBRARY: [&str; 6] =
    ["libc.so.6", "libdl.so.2", "libpthread.so.0", "libm.so.6", "librt.so.1", "libgcc_s.so.1"];
/// The dynamic linker, in both.
pub(crate) const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// The simulated driver's version.
pub(crate) const DRIVER: &str = "580.95.05";

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
        let libraries =
            [("libcuda.so.1", "12.8"), ("libnvidia-ml.so.1", DRIVER), ("libcudnn.so.9", "9.28.0.15")];
        let simulated = libraries.iter().fold(simulated, |simulated, (soname, version)| {
            simulated.library(&format!("{LIBRARIES}/{soname}"), version)
        });
        simulated.file(SETTINGS, format!("gpus={gpus}x{model}\n{settings}\n")).loaded(DRIVER).gpus(gpus)
    }

    /// A stand-in at `path` that says it is `version`.
    pub(crate) fn library(self, path: &str, version: &str) -> Self {
        let soname = Path::new(path).file_name().unwrap().to_str().unwrap();
        self.file(path, driver::library(soname, version).unwrap())
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

    /// What an earlier run recorded as its choice.
    pub(crate) fn planned(self, toolkit: &str, cudnn: &str) -> Self {
        let home = format!("/usr/local/cuda-{toolkit}");
        let choice = serde_json::json!({
            "gpu_architectures": ["Hopper"],
            "source": { "distro": { "components": [] } },
            "driver": null,
            "toolkits": [{ "version": toolkit, "packages": [], "home": home }],
            "cudnn": { "version": cudnn, "packages": [] },
            "cudnn_debs": [],
            "fabric_manager": null,
            "expect_gpus": null,
            "reasons": [],
        });
        self.file("/var/lib/gpu-bootstrap/choice.json", choice.to_string())
    }

    /// A package that owns `files`.
    pub(crate) fn package(self, name: &str, version: &str, files: &[&str]) -> Self {
        let status = self.at("/var/lib/dpkg/status");
        let known = fs::read_to_string(status).unwrap_or_default();
        let stanza = format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
        );
        self.file("/var/lib/dpkg/status", known + &stanza)
            .file(&format!("/var/lib/dpkg/info/{name}.list"), files.join("\n") + "\n")
    }

    /// A program that is a shell script.
    pub(crate) fn program(self, path: &str, script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let simulated = self.file("/usr/bin/sh", fs::read("/bin/dash").unwrap());
        let simulated = simulated.file(path, format!("#!/usr/bin/sh\n{script}\n"));
        for program in ["/usr/bin/sh", path] {
            fs::set_permissions(simulated.at(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        simulated
    }

    /// The linker's cache over these directories, by the real ldconfig.
    pub(crate) fn linked(self, directories: &[&str]) -> Self {
        let linked = self.file("/etc/ld.so.conf", directories.join("\n") + "\n");
        let out = Command::new("/sbin/ldconfig").arg("-r").arg(linked.at("/")).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        linked
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
