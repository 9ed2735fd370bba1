//! Packages and a signed flat repository, made by `dpkg-deb` and `gpg`, inside a disposable root.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// A package to be built.
#[derive(Clone)]
pub(crate) struct Deb {
    name: String,
    version: String,
    arch: String,
    fields: String,
    files: Vec<(String, Vec<u8>)>,
    links: Vec<(String, String)>,
    control: Vec<(String, String)>,
    conffiles: Vec<String>,
    scripts: Vec<(String, String)>,
    modes: Vec<(String, u32)>,
    compression: &'static str,
    level: Option<u8>,
    sums: bool,
}

impl Deb {
    pub(crate) fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            fields: String::new(),
            files: Vec::new(),
            links: Vec::new(),
            control: Vec::new(),
            conffiles: Vec::new(),
            scripts: Vec::new(),
            modes: Vec::new(),
            compression: "none",
            level: None,
            sums: false,
        }
    }

    /// Compressed as dpkg-deb calls it (`none`, `gzip`, `xz`, `zstd`).
    pub(crate) fn compressed(mut self, compression: &'static str) -> Self {
        self.compression = compression;
        self
    }

    /// At this level of compression. At level 1, xz makes a block of every 3 MiB.
    pub(crate) fn level(mut self, level: u8) -> Self {
        self.level = Some(level);
        self
    }

    /// With md5sums of its files, as every real package has them.
    pub(crate) fn sums(mut self) -> Self {
        self.sums = true;
        self
    }

    /// A file's permission bits.
    pub(crate) fn mode(mut self, path: &str, mode: u32) -> Self {
        self.modes.push((path.into(), mode));
        self
    }

    pub(crate) fn arch(mut self, arch: &str) -> Self {
        self.arch = arch.into();
        self
    }

    /// A further control field (`Depends`, `Conflicts`, `Installed-Size`, …).
    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.fields, "{name}: {value}");
        self
    }

    pub(crate) fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.push((path.into(), content.as_ref().to_vec()));
        self
    }

    /// A symbolic link.
    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.into(), target.into()));
        self
    }

    /// A further member of the control archive (`triggers`).
    pub(crate) fn control(mut self, name: &str, content: &str) -> Self {
        self.control.push((name.into(), content.into()));
        self
    }

    pub(crate) fn conffile(mut self, path: &str, content: &str) -> Self {
        self.conffiles.push(path.into());
        self.file(path, content)
    }

    /// A maintainer script (`postinst`, …): the body of a `sh -e` script.
    pub(crate) fn script(mut self, name: &str, body: &str) -> Self {
        self.scripts.push((name.into(), format!("#!/bin/sh\nset -e\n{body}\n")));
        self
    }

    /// Builds into `dir` and returns the file.
    pub(crate) fn build(&self, dir: &Path) -> PathBuf {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        // mkdtemp makes 0700, which would become the mode of / in the package.
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        for (path, content) in &self.files {
            let to = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, content).unwrap();
        }
        for (path, target) in &self.links {
            let to = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, to).unwrap();
        }
        for (path, mode) in &self.modes {
            let to = root.join(path.trim_start_matches('/'));
            fs::set_permissions(to, fs::Permissions::from_mode(*mode)).unwrap();
        }
        let control = root.join("DEBIAN");
        fs::create_dir_all(&control).unwrap();
        if self.sums {
            let names = self.files.iter().map(|(path, _)| path.trim_start_matches('/'));
            let sums = run(Command::new("md5sum").current_dir(root).args(names));
            fs::write(control.join("md5sums"), sums).unwrap();
        }
        let Self { name, version, arch, fields, .. } = self;
        fs::write(
            control.join("control"),
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: Test <test@localhost>\n\
                 {fields}Description: made for a test\n"
            ),
        )
        .unwrap();
        for (name, content) in &self.control {
            fs::write(control.join(name), content).unwrap();
        }
        if !self.conffiles.is_empty() {
            fs::write(control.join("conffiles"), self.conffiles.join("\n") + "\n").unwrap();
        }
        for (name, text) in &self.scripts {
            fs::write(control.join(name), text).unwrap();
            fs::set_permissions(control.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(dir).unwrap();
        let deb = dir.join(format!("{name}_{version}_{arch}.deb"));
        // Times are part of what is compared.
        run(Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args(["--root-owner-group", &format!("-Z{}", self.compression)])
            .args(self.level.map(|level| format!("-z{level}")))
            .arg("--build")
            .arg(root)
            .arg(&deb));
        deb
    }
}

/// A flat repository at `/srv/NAME` of a root.
pub(crate) struct Repository {
    dir: PathBuf,
    name: String,
}

impl Repository {
    pub(crate) fn new(root: &Path, name: &str) -> Self {
        let dir = root.join("srv").join(name);
        fs::create_dir_all(&dir).unwrap();
        Self { dir, name: name.into() }
    }

    pub(crate) fn add(&self, deb: &Deb) -> PathBuf {
        deb.build(&self.dir)
    }

    pub(crate) fn remove(&self, deb: &str) {
        fs::remove_file(self.dir.join(deb)).unwrap();
    }

    /// `file:` URI as a sources line needs it.
    pub(crate) fn uri(&self) -> String {
        format!("file:/srv/{}", self.name)
    }

    /// Writes Packages and Release; signed with `key` if one is given.
    pub(crate) fn publish(&self, key: Option<&Key>) {
        let mut packages = String::new();
        let mut debs: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().path()).collect();
        debs.sort();
        for deb in debs.iter().filter(|d| d.extension().is_some_and(|e| e == "deb")) {
            let bytes = fs::read(deb).unwrap();
            let control = run(Command::new("dpkg-deb").arg("-f").arg(deb));
            let file = deb.file_name().unwrap().to_string_lossy();
            let _ = writeln!(
                packages,
                "{}\nFilename: ./{file}\nSize: {}\nSHA256: {}\n",
                control.trim_end(),
                bytes.len(),
                hex(&Sha256::digest(&bytes))
            );
        }
        fs::write(self.dir.join("Packages"), &packages).unwrap();
        let release = format!(
            "Origin: test\nLabel: {}\nSuite: test\nCodename: test\nDate: {}\nSHA256:\n {} {} Packages\n",
            self.name,
            run(Command::new("date").args(["-uR"])).trim(),
            hex(&Sha256::digest(packages.as_bytes())),
            packages.len()
        );
        fs::write(self.dir.join("Release"), &release).unwrap();
        let _ = fs::remove_file(self.dir.join("InRelease"));
        if let Some(key) = key {
            key.clearsign(&self.dir.join("Release"), &self.dir.join("InRelease"));
        }
    }
}

/// A throw-away signing key.
pub(crate) struct Key {
    home: tempfile::TempDir,
}

impl Key {
    pub(crate) fn new() -> Self {
        Self::certified_with("ed25519", "SHA512")
    }

    /// A key whose self-signature uses the given digest: SHA1 is what newer verifiers refuse.
    pub(crate) fn certified_with(algorithm: &str, digest: &str) -> Self {
        let home = tempfile::Builder::new().prefix("gpg").tempdir_in("/tmp").unwrap();
        let key = Self { home };
        let mut command = key.gpg();
        command.args(["--cert-digest-algo", digest, "--quick-generate-key", "Test <test@localhost>"]);
        run(command.args([algorithm, "sign", "never"]));
        key
    }

    /// The public key, binary, as apt wants it.
    pub(crate) fn export(&self, to: &Path) {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        run(self.gpg().args(["--yes", "--output"]).arg(to).arg("--export"));
    }

    fn clearsign(&self, from: &Path, to: &Path) {
        run(self.gpg().args(["--yes", "--output"]).arg(to).arg("--clearsign").arg(from));
    }

    fn gpg(&self) -> Command {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
        command.env("GNUPGHOME", self.home.path());
        command
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // The agent that gpg started would outlive the test.
        let _ = Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", self.home.path()).status();
    }
}

/// Runs a program that must succeed and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}
