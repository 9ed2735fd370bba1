//! A flat, signed apt repository laid out like NVIDIA's: `{distro}/{arch}/` with Release, Release.gpg, `InRelease`,
//! Packages, Packages.gz, the `.deb` files and the key. Packages are real ones, made with dpkg-deb; signatures are
//! gpg's.

#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// A throw-away signing key in a directory of its own.
pub struct Key {
    home: tempfile::TempDir,
    /// 40 hexadecimal digits.
    pub fingerprint: String,
    /// The public key, ASCII-armoured.
    pub armoured: String,
}

impl Key {
    /// Makes a key.
    pub fn generate(name: &str) -> Self {
        // The agent's socket lies in it, whose path must stay below 108 characters.
        let home = tempfile::Builder::new().prefix("gpg-").tempdir_in("/tmp").unwrap();
        let gpg = |args: &[&str]| gpg(home.path(), args);
        gpg(&["--quick-gen-key", name, "ed25519", "sign", "never"]);
        let listing = gpg(&["--with-colons", "--fingerprint"]);
        let fingerprint = listing.lines().find_map(|l| l.strip_prefix("fpr:")).unwrap();
        let fingerprint = fingerprint.split(':').find(|f| !f.is_empty()).unwrap().to_owned();
        let armoured = gpg(&["--armor", "--no-emit-version", "--export"]);
        Self { home, fingerprint, armoured }
    }
}

impl Key {
    /// The public key, binary.
    pub fn binary(&self) -> Vec<u8> {
        let to = self.home.path().join("export.gpg");
        gpg(self.home.path(), &["--output", to.to_str().unwrap(), "--export"]);
        std::fs::read(to).unwrap()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        run("gpgconf", &["--homedir", self.home.path().to_str().unwrap(), "--kill", "all"]);
    }
}

fn gpg(home: &Path, args: &[&str]) -> String {
    let mut all =
        vec!["--homedir", home.to_str().unwrap(), "--batch", "--yes", "--quiet", "--passphrase", ""];
    all.extend(args);
    run("gpg", &all)
}

/// A package to be made.
#[derive(Clone)]
pub struct Package {
    name: String,
    version: String,
    fields: String,
}

impl Package {
    /// A package that holds one file, `/usr/share/NAME/version`.
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.into(), version: version.into(), fields: String::new() }
    }

    /// Adds a control field.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.fields, "{name}: {value}");
        self
    }

    /// Adds `Depends`.
    pub fn depends(self, relations: &str) -> Self {
        self.field("Depends", relations)
    }
}

/// A repository under construction; nothing is signed before [`Repository::publish`].
pub struct Repository {
    dir: tempfile::TempDir,
    /// `ubuntu2204/x86_64`
    layout: String,
    architecture: &'static str,
    label: String,
    date: String,
    stanzas: String,
}

impl Repository {
    /// An empty repository for a distribution and one of NVIDIA's names of architectures.
    pub fn new(distro: &str, arch_dir: &str) -> Self {
        let architecture = match arch_dir {
            "x86_64" => "amd64",
            "sbsa" => "arm64",
            other => panic!("no architecture directory is called {other}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let layout = format!("{distro}/{arch_dir}");
        std::fs::create_dir_all(dir.path().join(&layout)).unwrap();
        Self {
            dir,
            layout,
            architecture,
            label: "NVIDIA CUDA".into(),
            date: "Sun, 01 Nov 2026 12:00:00 UTC".into(),
            stanzas: String::new(),
        }
    }

    /// The directory to serve.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The directory with the index, `{distro}/{arch}`.
    pub fn index_dir(&self) -> PathBuf {
        self.dir.path().join(&self.layout)
    }

    /// dpkg's name of the architecture.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Base URL behind a server's URL, with a trailing slash.
    pub fn url(&self, server: &str) -> String {
        format!("{server}/{}/", self.layout)
    }

    /// Another Label.
    pub fn labelled(mut self, label: &str) -> Self {
        self.label = label.into();
        self
    }

    /// Another Date (RFC 2822).
    pub fn dated(mut self, date: &str) -> Self {
        self.set_date(date);
        self
    }

    /// Another Date, for publishing again.
    pub fn set_date(&mut self, date: &str) {
        self.date = date.into();
    }

    /// Makes a package and lists it.
    pub fn with(mut self, package: &Package) -> Self {
        let file = format!("{}_{}_{}.deb", package.name, package.version, self.architecture);
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: Tests <tests@localhost>\nSection: misc\n\
             Priority: optional\n{}Description: test package\n",
            package.name, package.version, self.architecture, package.fields
        );
        let deb = build(package, &control, &self.index_dir().join(&file));
        let (sha256, size) = sum(&deb);
        let _ = write!(self.stanzas, "{control}Filename: ./{file}\nSize: {size}\nSHA256: {sha256}\n\n");
        self
    }

    /// Lists packages that are not there, as they would stand in a Packages file.
    pub fn with_stanzas(mut self, text: &str) -> Self {
        self.stanzas.push_str(text);
        self
    }

    /// Writes and signs the index.
    pub fn publish(&self, key: &Key) {
        let dir = self.index_dir();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(self.stanzas.as_bytes()).unwrap();
        let gz = gz.finish().unwrap();
        std::fs::write(dir.join("Packages"), &self.stanzas).unwrap();
        std::fs::write(dir.join("Packages.gz"), &gz).unwrap();
        let mut release = format!(
            "Origin: NVIDIA\nLabel: {}\nArchitecture: {}\nDate: {}\nSHA256:\n",
            self.label, self.architecture, self.date
        );
        for (name, bytes) in [("Packages", self.stanzas.as_bytes()), ("Packages.gz", &gz)] {
            let (sha256, size) = sum(bytes);
            let _ = writeln!(release, " {sha256} {size} {name}");
        }
        sign(&dir, &release, key);
        std::fs::write(dir.join(format!("{}.pub", &key.fingerprint[32..])), &key.armoured).unwrap();
    }
}

/// Writes Release, Release.gpg and `InRelease`.
pub fn sign(dir: &Path, release: &str, key: &Key) {
    let at = |name: &str| dir.join(name).display().to_string();
    std::fs::write(at("Release"), release).unwrap();
    gpg(key.home.path(), &["--clearsign", "--output", &at("InRelease"), &at("Release")]);
    gpg(key.home.path(), &["--armor", "--detach-sign", "--output", &at("Release.gpg"), &at("Release")]);
}

/// Builds the package at `to` and returns its bytes.
fn build(package: &Package, control: &str, to: &Path) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    // mkdtemp makes 0700, which would become the mode of / in the package.
    std::fs::set_permissions(tree.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let put = |path: &str, text: &str| {
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("DEBIAN/control", control);
    put(&format!("usr/share/{}/version", package.name), &package.version);
    run(
        "dpkg-deb",
        &["--root-owner-group", "-Zgzip", "--build", tree.path().to_str().unwrap(), to.to_str().unwrap()],
    );
    std::fs::read(to).unwrap()
}

/// SHA-256 in hexadecimal, and the size.
pub fn sum(bytes: &[u8]) -> (String, usize) {
    let sum = format!("{:x}", Sha256::digest(bytes));
    (sum, bytes.len())
}

/// Runs a program; its standard output. Panics with all output when it cannot be run or fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program} ({e}): install it"));
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}{err}", output.status);
    out
}
