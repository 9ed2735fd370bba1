//! A scratch root that looks like a machine, and the real binary run over it. Nothing of the host is touched.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "programs.rs"]
pub(crate) mod programs;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A scratch machine; everything vanishes with it.
pub(crate) struct Machine {
    root: tempfile::TempDir,
}

/// What a run of the binary left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit code; negative when a signal ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Machine {
    /// Debian 12 on amd64, without any GPU.
    pub(crate) fn debian12() -> Self {
        Self::debian12_in(&std::env::temp_dir())
    }

    /// The same, below this directory.
    pub(crate) fn debian12_in(dir: &Path) -> Self {
        let machine = Self { root: tempfile::tempdir_in(dir).unwrap() };
        machine
            .file("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n")
            .file("/var/lib/dpkg/arch", "amd64\n")
            .file("/var/lib/dpkg/status", "")
            .file("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
            .file("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n")
            .dir("/sys/bus/pci/devices")
            .dir("/usr")
    }

    /// Adds a PCI function to sysfs.
    pub(crate) fn pci(self, address: &str, vendor: u16, device: u16, class: u16) -> Self {
        let dir = format!("/sys/bus/pci/devices/{address}");
        self.file(&format!("{dir}/vendor"), &format!("0x{vendor:04x}\n"))
            .file(&format!("{dir}/device"), &format!("0x{device:04x}\n"))
            .file(&format!("{dir}/class"), &format!("0x{class:04x}00\n"))
    }

    /// Adds a T4, as on g4dn.
    pub(crate) fn t4(self) -> Self {
        self.pci("0000:00:1e.0", 0x10de, 0x1eb8, 0x0302)
    }

    /// Writes a file.
    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        let outside = self.outside(path);
        fs::create_dir_all(outside.parent().unwrap()).unwrap();
        fs::write(outside, content).unwrap();
        self
    }

    /// Makes a directory.
    pub(crate) fn dir(self, path: &str) -> Self {
        fs::create_dir_all(self.outside(path)).unwrap();
        self
    }

    /// Copies a program of this machine, with the libraries that it names.
    pub(crate) fn bring(&self, program: &str) {
        programs::bring(&self.outside("/"), program);
    }

    /// A program that notes its arguments in `/asked`, and then does `rest`.
    pub(crate) fn tool(&self, name: &str, rest: &str) {
        let path = self.outside(&format!("/usr/bin/{name}"));
        fs::write(&path, format!("#!/bin/sh\necho \"{name} $*\" >>/asked\n{rest}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Where a path of the machine lies on the host.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// The root directory on the host.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The text of a file; panics if it is not there.
    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.outside(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The binary over this machine: the subcommand and its flags, then `--root` and `--no-imds`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.args(args).arg("--root").arg(self.root());
        if !args.contains(&"status") {
            command.arg("--no-imds");
        }
        command
    }

    /// Runs the binary over this machine to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ran(&mut self.command(args))
    }
}

/// The real binary, with an environment that cannot steer it.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
