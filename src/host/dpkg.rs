//! dpkg: the authority over what is installed, read from its database without starting a program. Used by
//! every action that deals with packages; a run that changes nothing reads it once.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{Code, Error, Result};

use super::Host;
use super::exec::Call;
use super::files::Files;

const STATUS: &str = "/var/lib/dpkg/status";
/// Changes that dpkg has not merged into the status file yet; they stay behind when it is killed.
const UPDATES: &str = "/var/lib/dpkg/updates";

/// What the administrator wants of a package (first word of dpkg's `Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// To be kept installed and upgraded.
    Install,
    /// To be kept as it is.
    Hold,
    /// To be removed or purged, or nothing is known.
    Other,
}

/// How far dpkg has come with a package (third word of dpkg's `Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Unpacked and configured (its triggers may still be due).
    Installed,
    /// Work on it was begun and not ended.
    Broken,
    /// Not there, or only its configuration is.
    Absent,
}

/// One package as dpkg knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name without architecture.
    pub name: String,
    /// `amd64`, `all`, …
    pub arch: String,
    /// Version, with epoch and revision.
    pub version: String,
    /// What is wanted of it.
    pub want: Want,
    /// What it is.
    pub state: State,
    /// Whether dpkg was cut off while it unpacked the package, so that it has to be unpacked again.
    pub torn: bool,
    /// `Depends` and `Pre-Depends`, as written.
    pub depends: String,
    /// Its configuration files; they may change or vanish.
    pub conffiles: Vec<PathBuf>,
}

impl Package {
    /// `name:arch`, which apt and dpkg take for any package.
    pub fn id(&self) -> String {
        format!("{}:{}", self.name, self.arch)
    }

    /// The names in its dependencies, alternatives included.
    fn depended_names(&self) -> impl Iterator<Item = &str> {
        self.depends.split([',', '|']).filter_map(|one| one.trim().split([' ', ':', '(']).next())
    }
}

/// dpkg's database at one moment.
#[derive(Debug, Default)]
pub struct Database {
    packages: Vec<Package>,
    by_name: HashMap<String, Vec<usize>>,
}

/// The last database read and the state of the file that it was read from.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Option<(Stamp, Arc<Database>)>>);

type Stamp = (u64, i64, i64, u64);

impl Host {
    /// dpkg's database. Read again only when dpkg has changed it.
    pub fn packages(&self) -> Result<Arc<Database>> {
        let stamp = match self.files.lstat(STATUS)? {
            Some(m) if self.files.list(UPDATES)?.is_empty() => {
                Some((m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
            }
            _ => None,
        };
        let mut cache = self.dpkg.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(stamp), Some((at, database))) = (stamp, cache.as_ref())
            && *at == stamp
        {
            return Ok(database.clone());
        }
        let database = Arc::new(Database::read(&self.files)?);
        *cache = stamp.map(|s| (s, database.clone()));
        Ok(database)
    }
}

impl Database {
    /// Reads it anew.
    pub fn read(files: &Files) -> Result<Self> {
        let status = files.read(STATUS)?.ok_or_else(|| {
            Error::new(Code::DpkgBroken, format!("{STATUS} does not exist"))
                .with_hint("this is no Debian or Ubuntu system, or dpkg keeps a copy in /var/backups")
        })?;
        let mut database = Self::default();
        database.add(&status);
        for name in files.list(UPDATES)?.iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            if let Some(update) = files.read(format!("{UPDATES}/{name}"))? {
                database.add(&update);
            }
        }
        Ok(database)
    }

    /// Parses stanzas; a later one of the same package replaces the earlier.
    pub fn add(&mut self, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            let (package, after) = stanza(rest);
            rest = after;
            if let Some(package) = package {
                self.insert(package);
            }
        }
    }

    fn insert(&mut self, package: Package) {
        let same_name = self.by_name.entry(package.name.clone()).or_default();
        if let Some(&at) = same_name.iter().find(|&&i| self.packages[i].arch == package.arch) {
            self.packages[at] = package;
        } else {
            same_name.push(self.packages.len());
            self.packages.push(package);
        }
    }

    /// Every package dpkg has heard of.
    pub fn all(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter()
    }

    /// The packages of this name, one per architecture.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Package> {
        self.by_name.get(name).into_iter().flatten().map(|&i| &self.packages[i])
    }

    /// The installed package of this name, and of this architecture if one is given.
    pub fn installed(&self, name: &str, arch: Option<&str>) -> Option<&Package> {
        self.named(name).find(|p| p.state == State::Installed && arch.is_none_or(|a| p.arch == a))
    }

    /// The installed packages that `package` depends on by name (alternatives included, virtual names not).
    pub fn dependencies<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = &'a Package> {
        package.depended_names().filter_map(|name| {
            self.installed(name, Some(&package.arch)).or_else(|| self.installed(name, None))
        })
    }

    /// Whether an installed package names this one among its dependencies (alternatives included).
    pub fn is_depended_on(&self, name: &str) -> bool {
        let installed = self.packages.iter().filter(|p| p.state == State::Installed);
        installed.flat_map(Package::depended_names).any(|n| n == name)
    }

    /// Packages that dpkg began to work on and did not finish.
    pub fn broken(&self) -> Vec<&Package> {
        self.packages.iter().filter(|p| p.state == State::Broken).collect()
    }
}

/// Reads one stanza; returns it, if it names a package, and what follows.
fn stanza(text: &[u8]) -> (Option<Package>, &[u8]) {
    let mut package = Package {
        name: String::new(),
        arch: String::new(),
        version: String::new(),
        want: Want::Other,
        state: State::Absent,
        torn: false,
        depends: String::new(),
        conffiles: Vec::new(),
    };
    let mut rest = text;
    let mut in_conffiles = false;
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        rest = &rest[(end + 1).min(rest.len())..];
        if line.is_empty() {
            break;
        }
        if line[0] == b' ' || line[0] == b'\t' {
            if in_conffiles && let Some(path) = conffile(line) {
                package.conffiles.push(path);
            }
            continue;
        }
        in_conffiles = false;
        // Only these fields matter; the first byte sorts out nearly all others.
        match line[0] {
            b'P' if line.starts_with(b"Package:") => field(line, b"Package:", &mut package.name),
            b'P' => depends(line, b"Pre-Depends:", &mut package.depends),
            b'D' => depends(line, b"Depends:", &mut package.depends),
            b'A' => field(line, b"Architecture:", &mut package.arch),
            b'V' => field(line, b"Version:", &mut package.version),
            b'S' if line.starts_with(b"Status:") => {
                (package.want, package.state, package.torn) = status(&line[7..]);
            }
            b'C' => in_conffiles = line == b"Conffiles:",
            _ => {}
        }
    }
    ((!package.name.is_empty()).then_some(package), rest)
}

fn field(line: &[u8], name: &[u8], into: &mut String) {
    if let Some(value) = line.strip_prefix(name) {
        *into = String::from_utf8_lossy(value.trim_ascii()).into_owned();
    }
}

fn depends(line: &[u8], name: &[u8], into: &mut String) {
    if let Some(value) = line.strip_prefix(name) {
        into.push_str(&String::from_utf8_lossy(value));
        into.push(',');
    }
}

/// ` /etc/x.conf 0123…` (possibly with ` obsolete` or ` remove-on-upgrade` behind) → `/etc/x.conf`
fn conffile(line: &[u8]) -> Option<PathBuf> {
    let line = line.trim_ascii();
    let end = line.iter().position(|&b| b == b' ')?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&line[..end])))
}

/// `install ok installed` → what is wanted, what it is, and whether it has to be unpacked again.
fn status(value: &[u8]) -> (Want, State, bool) {
    let text = String::from_utf8_lossy(value);
    let mut words = text.split_ascii_whitespace();
    let want = match words.next() {
        Some("install") => Want::Install,
        Some("hold") => Want::Hold,
        _ => Want::Other,
    };
    let reinstall_required = words.next() != Some("ok");
    let word = words.next();
    let state = match word {
        Some("installed" | "triggers-pending" | "triggers-awaited") if !reinstall_required => {
            State::Installed
        }
        Some("not-installed" | "config-files") if !reinstall_required => State::Absent,
        _ => State::Broken,
    };
    (want, state, state == State::Broken && (reinstall_required || word == Some("half-installed")))
}

/// The paths that a package owns, directories included; `None` if dpkg has no list for it.
pub fn file_list(host: &Host, package: &Package) -> Result<Option<Vec<PathBuf>>> {
    // Packages that may be installed for several architectures have theirs in the file's name.
    let candidates = [
        format!("/var/lib/dpkg/info/{}.list", package.id()),
        format!("/var/lib/dpkg/info/{}.list", package.name),
    ];
    for path in candidates {
        if let Some(bytes) = host.files.read(&path)? {
            let lines = bytes.split(|&b| b == b'\n').filter(|l| l.len() > 1 && *l != b"/.");
            return Ok(Some(
                lines.map(|l| Path::new(std::ffi::OsStr::from_bytes(l)).to_path_buf()).collect(),
            ));
        }
    }
    Ok(None)
}

/// Looks at many files of packages: below a root, each directory is resolved once and not once per file.
pub struct Stats<'a> {
    host: &'a Host,
    directories: HashMap<PathBuf, PathBuf>,
}

impl<'a> Stats<'a> {
    /// Nothing resolved yet. Keep it no longer than nobody changes the tree.
    pub fn new(host: &'a Host) -> Self {
        Self { host, directories: HashMap::new() }
    }

    /// Metadata of the path itself (links not followed); `None` if it does not exist.
    pub fn lstat(&mut self, path: &Path) -> Result<Option<std::fs::Metadata>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.host.files.lstat(path);
        };
        if self.host.files.is_machine() {
            return self.host.files.lstat(path);
        }
        if !self.directories.contains_key(parent) {
            let outside = self.host.files.outside(path)?;
            let resolved = outside.parent().unwrap_or(&outside).to_path_buf();
            self.directories.insert(parent.to_path_buf(), resolved);
        }
        match std::fs::symlink_metadata(self.directories[parent].join(name)) {
            Ok(meta) => Ok(Some(meta)),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::io("stat", path, e)),
        }
    }
}

/// Name, version and architecture from the control data of a package file (path inside the root).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Package name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture it was built for, or `all`.
    pub arch: String,
}

/// Asks `dpkg-deb`, the authority over its own format.
pub async fn control(host: &Host, deb: &str) -> Result<Control> {
    let call = Call::new("dpkg-deb").args([
        "--show",
        "--showformat=${Package}\\n${Version}\\n${Architecture}\\n",
        deb,
    ]);
    let output = host.exec.output(&call).await?;
    let text = output.text();
    let fields: Vec<&str> = text.lines().collect();
    match fields[..] {
        [name, version, arch] if output.ok() => {
            Ok(Control { name: name.into(), version: version.into(), arch: arch.into() })
        }
        _ => Err(Error::new(Code::NotADeb, format!("{deb} is no Debian package")).because(output.tail())),
    }
}

/// The architectures dpkg installs packages of, the machine's own first.
pub async fn architectures(host: &Host) -> Result<Vec<String>> {
    let native = host.exec.run(&Call::new("dpkg").args(["--print-architecture"])).await?.text();
    let foreign = host.exec.run(&Call::new("dpkg").args(["--print-foreign-architectures"])).await?.text();
    Ok(native.lines().chain(foreign.lines()).map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect())
}

/// dpkg's order of versions: epoch, then upstream version, then revision.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a, b) = (split_version(a), split_version(b));
    a.0.cmp(&b.0).then_with(|| compare_part(a.1, b.1)).then_with(|| compare_part(a.2, b.2))
}

fn split_version(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((e, rest)) => (e.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Alternates between text without digits (`~` before the end, letters before other characters) and numbers.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let x = a.first().copied().filter(|c| !c.is_ascii_digit());
            let y = b.first().copied().filter(|c| !c.is_ascii_digit());
            if x.is_none() && y.is_none() {
                break;
            }
            match weight(x).cmp(&weight(y)) {
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                other => return other,
            }
        }
        let (x, y) = (number(&mut a), number(&mut b));
        let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

fn weight(c: Option<u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(c),
        Some(c) => i32::from(c) + 256,
    }
}

/// Takes the leading digits, without leading zeros.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    &digits[digits.iter().position(|&c| c != b'0').unwrap_or(digits.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS_TEXT: &str = "\
Package: libcuda1
Status: hold ok installed
Architecture: amd64
Multi-Arch: same
Pre-Depends: tzdata (>= 1)
Depends: absent-a | libnvidia-ptxjitcompiler1 (= 535), gone
Version: 535.261.03-1~deb12u1
Description: NVIDIA CUDA Driver Library
 Package: not-a-package

Package: tzdata
Status: install ok half-configured
Architecture: all
Version: 1
Conffiles:
 /etc/a b91a 0
 /etc/default/x d41d8cd98f00b204e9800998ecf8427e obsolete

Package: libnvidia-ptxjitcompiler1
Status: install ok installed
Architecture: amd64
Version: 535

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 2

Package: torn
Status: install reinstreq installed
Architecture: amd64
Version: 2
";

    #[test]
    fn the_status_file_is_read() {
        let mut db = Database::default();
        db.add(STATUS_TEXT.as_bytes());
        let cuda = db.installed("libcuda1", None).unwrap();
        assert_eq!((cuda.version.as_str(), cuda.want), ("535.261.03-1~deb12u1", Want::Hold));
        assert_eq!(cuda.id(), "libcuda1:amd64");
        assert!(db.installed("libcuda1", Some("i386")).is_none());
        assert!(db.installed("gone", None).is_none() && db.installed("not-a-package", None).is_none());
        let needs: Vec<_> = db.dependencies(cuda).map(|p| p.name.as_str()).collect();
        assert_eq!(needs, ["libnvidia-ptxjitcompiler1"]); // tzdata is broken, gone is gone
        let broken: Vec<_> = db.broken().iter().map(|p| (p.name.as_str(), p.torn)).collect();
        assert_eq!(broken, [("tzdata", false), ("torn", true)]);
        let conffiles = &db.named("tzdata").next().unwrap().conffiles;
        assert_eq!(conffiles, &[PathBuf::from("/etc/a"), PathBuf::from("/etc/default/x")]);
    }

    #[test]
    fn pending_updates_win_over_the_status_file() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        host.files.write(STATUS, STATUS_TEXT.as_bytes(), 0o644).unwrap();
        assert_eq!(host.packages().unwrap().broken().len(), 2);
        let update = "Package: libcuda1\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 3\n";
        host.files.write(format!("{UPDATES}/0001"), update.as_bytes(), 0o644).unwrap();
        let db = host.packages().unwrap();
        assert_eq!(db.broken().len(), 3);
        assert_eq!(db.named("libcuda1").count(), 1);
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ascending = [
            "0~~",
            "0~",
            "0",
            "0.1",
            "1.0~rc1",
            "1.0",
            "1.0-1",
            "1.0-1ubuntu1",
            "1.0a",
            "1.0+b1",
            "1.2",
            "1.10",
            "12.8.1-1",
            "12.10-1",
            "535.54.03",
            "535.261.03",
            "580.142",
            "1:0.1",
            "1:1.0-0",
            "2:0",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare_versions("1.00-01", "1.0-1"), Ordering::Equal);
        assert_eq!(compare_versions("0:1.0", "1.0"), Ordering::Equal);
        assert_eq!(compare_versions("1.0-0", "1.0"), Ordering::Equal);
    }
}
