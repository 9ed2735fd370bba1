//! A set of packages that was installed together: what dpkg and the disk must say about it, the record of its
//! files, and the smallest request that brings it back. Shared by `apt-package` and `deb`.
//!
//! dpkg's word alone is a marker: it does not notice a deleted or truncated library. So the size of each file
//! is recorded right after the installation, one record per set, below [`paths::PACKAGE_FILES_DIR`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Check;
use crate::error::{Code, Error, Result};
use crate::host::added::AddedPackage;
use crate::host::apt::{Request, nvidia};
use crate::host::dpkg::{self, Database, Package, State, Want, compare_versions};
use crate::host::{Host, paths};
use crate::install::Installer;
use crate::install::arriving::Arriving;
use crate::text::hex;

/// First line of a record; another one is not ours to interpret.
const HEADER: &str = "gpu-bootstrap packages 1";
/// How the name of a record ends.
const RECORD: &str = ".record";

/// A package that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    text: String,
    name: String,
    arch: Option<String>,
    version: Option<String>,
}

/// What must be there.
pub(super) struct Wanted {
    /// Names the record; another request has another record.
    pub(super) key: String,
    /// The packages asked for.
    pub(super) specs: Vec<Spec>,
    /// Packages that must not be there.
    pub(super) without: Vec<String>,
    /// Whether NVIDIA's packages in the set must be on hold.
    pub(super) hold: bool,
    /// What the versions of some of them must be.
    pub(super) pin: Option<Pin>,
}

/// A version for package names that a repository has in several branches.
pub(super) struct Pin {
    /// Patterns of names.
    pub(super) packages: Vec<String>,
    /// Pattern of the version.
    pub(super) version: String,
}

/// What was installed, with the files as they were then.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Package files by SHA-256: which package each of them is.
    pub(super) debs: Vec<(String, dpkg::Control)>,
    packages: Vec<Recorded>,
}

#[derive(Debug, PartialEq, Eq)]
struct Recorded {
    name: String,
    arch: String,
    version: String,
    files: Vec<(PathBuf, Content)>,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A regular file of this size.
    Size(u64),
    /// Something is there: a link, or a file that may change in use.
    Present,
}

/// What differs from what must be there.
#[derive(Debug, Default)]
pub(super) struct Findings {
    interrupted: bool,
    unrecorded: bool,
    /// (what to ask apt for, the sentence)
    absent: Vec<(Target, String)>,
    changed: Vec<(Target, String)>,
    /// (`name:arch`, the sentence)
    rivals: Vec<(String, String)>,
    damaged: BTreeMap<String, (Target, String)>,
    unheld: Vec<String>,
    packages: usize,
    files: usize,
}

/// One package to bring back.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: String,
    arch: Option<String>,
    /// The recorded version, or the one asked for.
    version: Option<String>,
    /// What was asked for, where it was.
    spec: Option<String>,
}

impl Spec {
    /// `name`, `name:arch`, `name=version`; the version may hold `*`.
    pub(super) fn parse(text: &str) -> Self {
        let (id, version) = match text.split_once('=') {
            Some((id, version)) => (id, Some(version.to_owned())),
            None => (text, None),
        };
        let (name, arch) = match id.split_once(':') {
            Some((name, arch)) => (name, Some(arch.to_owned())),
            None => (id, None),
        };
        Self { text: text.to_owned(), name: name.to_owned(), arch, version }
    }

    pub(super) fn find<'a>(&self, database: &'a Database) -> Option<&'a Package> {
        database.installed(&self.name, self.arch.as_deref())
    }
}

impl Pin {
    fn refuses(&self, name: &str, version: &str) -> bool {
        self.packages.iter().any(|p| nvidia::matches(p, name)) && !nvidia::matches(&self.version, version)
    }
}

impl Target {
    fn of(package: &Recorded, specs: &[Spec]) -> Self {
        Self {
            name: package.name.clone(),
            arch: Some(package.arch.clone()),
            version: Some(package.version.clone()),
            spec: specs.iter().find(|s| s.name == package.name).map(|s| s.text.clone()),
        }
    }

    /// `name:arch` as far as known. (`all` is no architecture to ask for on older apts.)
    fn id(&self) -> String {
        let arch = self.arch.as_deref().filter(|a| *a != "all").map(|a| format!(":{a}")).unwrap_or_default();
        format!("{}{arch}", self.name)
    }

    /// `name:arch=version` as far as known.
    fn exact(&self) -> String {
        let version = self.version.as_deref().map(|v| format!("={v}")).unwrap_or_default();
        format!("{}{version}", self.id())
    }

    /// Without the recorded version, for a repository that no longer has it.
    fn any(&self) -> String {
        self.spec.clone().unwrap_or_else(|| self.name.clone())
    }
}

impl Findings {
    /// The answer of a check.
    pub(super) fn verdict(&self, what: &str) -> Check {
        let mut reasons: Vec<String> = Vec::new();
        if self.interrupted {
            reasons.push("an earlier run was killed while it installed packages".into());
        }
        reasons.extend(self.rivals.iter().map(|(_, why)| why.clone()));
        reasons.extend(self.absent.iter().chain(&self.changed).map(|(_, why)| why.clone()));
        reasons.extend(self.damaged.values().map(|(_, why)| why.clone()));
        reasons.extend(self.unheld.iter().map(|id| format!("{id} is not on hold")));
        if reasons.is_empty() && self.unrecorded {
            reasons.push(format!("{what} is installed, but the sizes of its files are not recorded yet"));
        }
        match reasons.len() {
            0 => {
                let more = match self.packages.saturating_sub(1) {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                Check::satisfied(format!(
                    "{what}{more} installed, {} files as recorded",
                    thousands(self.files)
                ))
            }
            n @ 1..=3 => Check::needed(reasons[..n].join("; ")),
            n => Check::needed(format!("{}; and {} more", reasons[..3].join("; "), n - 3)),
        }
    }

    /// Whether apt has anything to do (a hold or a record need no apt).
    pub(super) fn need_apt(&self) -> bool {
        let as_wanted = self.absent.is_empty() && self.changed.is_empty() && self.rivals.is_empty();
        self.interrupted || !(as_wanted && self.damaged.is_empty())
    }

    /// The smallest request that mends what was found. `path` names the package file of those packages that
    /// come from one; `exact` asks for the recorded versions.
    pub(super) fn request(
        &self,
        recommends: bool,
        exact: bool,
        path: impl Fn(&str) -> Option<String>,
    ) -> Request {
        let ask = |t: &Target| path(&t.name).unwrap_or_else(|| if exact { t.exact() } else { t.any() });
        let from_file = |t: &Target| path(&t.name).is_some();
        let mut request = Request { recommends, change_held: true, ..Request::default() };
        for (target, _) in self.absent.iter().chain(&self.changed) {
            // A file is installed whatever of that version may be there already.
            let list = if from_file(target) { &mut request.reinstall } else { &mut request.packages };
            list.push(ask(target));
        }
        // apt's word for a package that has to go.
        request.packages.extend(self.rivals.iter().map(|(id, _)| format!("{id}-")));
        request.reinstall.extend(self.damaged.values().map(|(t, _)| ask(t)));
        request.downgrade = !self.changed.is_empty();
        request
    }

    /// Packages that the request names although nobody asked for them: they came as dependencies, and apt must
    /// go on regarding them as such, or `apt autoremove` would keep them for ever.
    fn dependencies(&self) -> Vec<String> {
        let named = self.absent.iter().chain(&self.changed).map(|(target, _)| target);
        named.filter(|t| t.spec.is_none()).map(Target::id).collect()
    }
}

/// Looks at dpkg's database, the record and the files.
pub(super) fn examine(host: &Host, wanted: &Wanted) -> Result<Findings> {
    let database = host.packages()?;
    let record = Record::read(host, &wanted.key)?;
    let mut found = Findings {
        interrupted: host.packages_in_flight()?,
        unrecorded: record.is_none() || Arriving::read(host, &wanted.key)?.is_some(),
        ..Findings::default()
    };
    let record = record.unwrap_or_default();
    for spec in &wanted.specs {
        requested(&database, &record, spec, wanted.hold, &mut found);
        if let Some(pin) = &wanted.pin {
            of_another_branch(&database, spec, pin, &mut found);
        }
    }
    for rival in wanted.without.iter().filter_map(|name| database.installed(name, None)) {
        let why = format!("{} {} would keep another driver in use", rival.name, rival.version);
        found.rivals.push((rival.id(), why));
    }
    let mut stats = dpkg::Stats::new(host);
    for package in &record.packages {
        recorded(host, &mut stats, &database, wanted, package, &mut found)?;
    }
    Ok(found)
}

/// A package that was asked for. Those on record are looked at by [`recorded`].
fn requested(database: &Database, record: &Record, spec: &Spec, hold: bool, found: &mut Findings) {
    if record.packages.iter().any(|r| r.name == spec.name && spec.arch.as_ref().is_none_or(|a| r.arch == *a))
    {
        return;
    }
    let target = Target {
        name: spec.name.clone(),
        arch: spec.arch.clone(),
        version: spec.version.clone(),
        spec: Some(spec.text.clone()),
    };
    let Some(package) = spec.find(database) else {
        let half = database.named(&spec.name).any(|p| p.state == State::Broken);
        let state = if half { "only half installed" } else { "not installed" };
        found.absent.push((target, format!("{} is {state}", spec.text)));
        return;
    };
    found.packages += 1;
    found.unrecorded = true;
    match &spec.version {
        Some(version) if !nvidia::matches(version, &package.version) => {
            let why = format!("{} is installed as {}, wanted {version}", spec.name, package.version);
            found.changed.push((target, why));
        }
        _ => not_held(package, hold, found),
    }
}

/// A package that was asked for by its name alone, and is there as another branch's: its record says nothing against that.
fn of_another_branch(database: &Database, spec: &Spec, pin: &Pin, found: &mut Findings) {
    let package = spec.find(database).filter(|p| spec.version.is_none() && pin.refuses(&p.name, &p.version));
    if let Some(package) = package {
        let target = Target {
            name: spec.name.clone(),
            arch: spec.arch.clone(),
            version: None,
            spec: Some(spec.text.clone()),
        };
        let why = format!("{} is {}, wanted {}", spec.name, package.version, pin.version);
        found.changed.push((target, why));
    }
}

fn recorded(
    host: &Host,
    stats: &mut dpkg::Stats<'_>,
    database: &Database,
    wanted: &Wanted,
    package: &Recorded,
    found: &mut Findings,
) -> Result<()> {
    let target = Target::of(package, &wanted.specs);
    let Some(there) = database.installed(&package.name, Some(&package.arch)) else {
        let half = database.named(&package.name).any(|p| p.arch == package.arch && p.state == State::Broken);
        // Updates replace some packages by others of another name (`linux-headers-6.8.0-1021-aws`), and remove the
        // old ones, which the archive soon has no more. Missed is what somebody asked for, or what still depends on it.
        if !half && target.spec.is_none() && !database.is_depended_on(&package.name) {
            return Ok(());
        }
        let how = if half { "only half installed" } else { "no longer installed" };
        found.absent.push((target, format!("{} {} is {how}", package.name, package.version)));
        return Ok(());
    };
    found.packages += 1;
    if there.version != package.version {
        let held = wanted.hold && nvidia::belongs_to_the_set(&package.name);
        // What is on record is of another branch than the one that is wanted now.
        let is_outdated = wanted.pin.as_ref().is_some_and(|pin| pin.refuses(&package.name, &package.version));
        if !is_outdated && (held || compare_versions(&there.version, &package.version).is_lt()) {
            let word = if held { "held version" } else { "version" };
            let why =
                format!("changed {word}: {} is {}, was {}", package.name, there.version, package.version);
            found.changed.push((target, why));
            return Ok(());
        }
        return upgraded(host, stats, there, package, target, found);
    }
    for (path, content) in &package.files {
        found.files += 1;
        if let Some(why) = damage(stats, path, *content)? {
            let why = format!("{} of {}", why, package.name);
            found.damaged.insert(there.id(), (target, why));
            return Ok(());
        }
    }
    not_held(there, wanted.hold, found);
    Ok(())
}

/// A package that the system's own updates have replaced: the sizes on record do not hold, but what both
/// versions list must be there.
fn upgraded(
    host: &Host,
    stats: &mut dpkg::Stats<'_>,
    there: &Package,
    package: &Recorded,
    target: Target,
    found: &mut Findings,
) -> Result<()> {
    let listed: HashSet<PathBuf> = dpkg::file_list(host, there)?.unwrap_or_default().into_iter().collect();
    for (path, _) in package.files.iter().filter(|(path, _)| listed.contains(path)) {
        found.files += 1;
        if let Some(why) = damage(stats, path, Content::Present)? {
            let target = Target { version: Some(there.version.clone()), ..target };
            found.damaged.insert(there.id(), (target, format!("{why} of {}", package.name)));
            return Ok(());
        }
    }
    Ok(())
}

fn not_held(package: &Package, hold: bool, found: &mut Findings) {
    if hold && package.want != Want::Hold && nvidia::belongs_to_the_set(&package.name) {
        found.unheld.push(package.name.clone());
    }
}

/// How the file differs from what was recorded, if it does.
fn damage(stats: &mut dpkg::Stats<'_>, path: &Path, content: Content) -> Result<Option<String>> {
    let Some(meta) = stats.lstat(path)? else {
        return Ok(Some(format!("{} is missing", path.display())));
    };
    Ok(match content {
        Content::Size(size) if !meta.is_file() => {
            Some(format!("{} is no regular file (was {size} bytes)", path.display()))
        }
        Content::Size(size) if meta.len() != size => {
            Some(format!("{} has {} bytes, not {size}", path.display(), meta.len()))
        }
        _ => None,
    })
}

/// The ids of the packages that are none of what comes into the record `key` now; to be taken before apt works, or
/// repairs what a killed run left. What that run was bringing for this record is new: it belongs into the record as if
/// nothing had happened, and what it was bringing for another one does not.
pub(super) fn not_arriving(host: &Host, key: &str) -> Result<HashSet<String>> {
    let ours = Arriving::read(host, key)?.unwrap_or_default().new;
    let mut before = Arriving::into_others(host, key)?;
    let in_flight = host.packages_arriving()?;
    let database = host.packages()?;
    // A package whose trigger was running is half configured at this moment, and was there before all the same.
    let there = database.all().filter(|p| p.state != State::Absent).map(Package::id);
    before.extend(there.filter(|id| !in_flight.contains(id)).collect::<Vec<_>>());
    before.retain(|id| !ours.contains(id));
    Ok(before)
}

/// Marks what apt has to regard as a dependency, holds what must be held, and writes the record: the packages asked
/// for, what came with them, and what of NVIDIA's they depend on. `before` is [`not_arriving`].
pub(super) async fn hold_and_record(
    host: &Host,
    wanted: &Wanted,
    before: &HashSet<String>,
    debs: Vec<(String, dpkg::Control)>,
) -> Result<()> {
    if let Some(arriving) = Arriving::read(host, &wanted.key)? {
        let database = host.packages()?;
        let still = |id: &String| {
            let spec = Spec::parse(id);
            spec.find(&database).is_some() && wanted.specs.iter().all(|s| s.name != spec.name)
        };
        let automatic: Vec<String> = arriving.automatic.into_iter().filter(still).collect();
        host.apt().mark_automatic(&automatic).await?;
    }
    let database = host.packages()?;
    let set = members(&database, wanted, before, Record::read(host, &wanted.key)?.as_ref());
    let unheld: Vec<String> = set
        .iter()
        .filter(|p| wanted.hold && p.want != Want::Hold && nvidia::belongs_to_the_set(&p.name))
        .map(|p| p.id())
        .collect();
    if !unheld.is_empty() {
        host.apt().hold(&unheld).await?;
    }
    let new = set.iter().filter(|p| !before.contains(&p.id())).map(|p| {
        let asked = wanted.specs.iter().any(|s| s.name == p.name);
        (p.id(), AddedPackage { version: p.version.clone(), asked })
    });
    host.note_packages(new, unheld.into_iter())?;
    let mut record = Record { debs, packages: Vec::new() };
    let mut stats = dpkg::Stats::new(host);
    for package in set {
        record.packages.push(Recorded {
            name: package.name.clone(),
            arch: package.arch.clone(),
            version: package.version.clone(),
            files: measure(host, &mut stats, package)?,
        });
    }
    record.write(host, &wanted.key)?;
    Arriving::arrived(host, &wanted.key)
}

fn members<'a>(
    database: &'a Database,
    wanted: &Wanted,
    before: &HashSet<String>,
    earlier: Option<&Record>,
) -> Vec<&'a Package> {
    let mut ids = BTreeSet::new();
    let mut pending: Vec<&Package> = wanted.specs.iter().filter_map(|s| s.find(database)).collect();
    let known = earlier.into_iter().flat_map(|r| &r.packages);
    pending.extend(known.filter_map(|r| database.installed(&r.name, Some(&r.arch))));
    pending.extend(database.all().filter(|p| p.state == State::Installed && !before.contains(&p.id())));
    let mut set = Vec::new();
    while let Some(package) = pending.pop() {
        if ids.insert(package.id()) {
            pending.extend(database.dependencies(package).filter(|d| nvidia::belongs_to_the_set(&d.name)));
            set.push(package);
        }
    }
    set.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
    set
}

/// The package's files as they are now. Directories are left out, and so are configuration files and files
/// that are not there: an administrator may change and exclude them.
fn measure(host: &Host, stats: &mut dpkg::Stats<'_>, package: &Package) -> Result<Vec<(PathBuf, Content)>> {
    let mut files = Vec::new();
    for path in dpkg::file_list(host, package)?.unwrap_or_default() {
        if package.conffiles.contains(&path) {
            continue;
        }
        let Some(meta) = stats.lstat(&path)? else { continue };
        // What lies here is made to change in use.
        let changes = path.starts_with("/etc") || path.starts_with("/var");
        if meta.is_file() && !changes {
            files.push((path, Content::Size(meta.len())));
        } else if !meta.is_dir() {
            files.push((path, Content::Present));
        }
    }
    Ok(files)
}

/// The record's name: short, and the same for the same request.
pub(super) fn key(kind: &str, parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    format!("{kind}-{}", hex(&digest[..8]))
}

impl Record {
    fn path(key: &str) -> String {
        format!("{}/{key}{RECORD}", paths::PACKAGE_FILES_DIR)
    }

    /// The record of this request; `None` when there is none that this version can read (it is then made anew).
    pub(super) fn read(host: &Host, key: &str) -> Result<Option<Self>> {
        let Some(bytes) = host.files.read(Self::path(key))? else { return Ok(None) };
        let record = Self::parse(&bytes);
        if record.is_none() {
            tracing::warn!("{} is not readable; it will be made anew", Self::path(key));
        }
        Ok(record)
    }

    /// Whether the package belongs to the set.
    pub(super) fn names(&self, package: &str) -> bool {
        self.packages.iter().any(|p| p.name == package)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.split(|&b| b == b'\n');
        if lines.next()? != HEADER.as_bytes() {
            return None;
        }
        let mut record = Self::default();
        for line in lines.filter(|l| !l.is_empty()) {
            if let Some(at) = line.iter().position(|&b| b == b'/')
                && matches!(line[0], b'0'..=b'9' | b'-')
            {
                let content = match line[..at].trim_ascii() {
                    b"-" => Content::Present,
                    digits => Content::Size(std::str::from_utf8(digits).ok()?.parse().ok()?),
                };
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(&line[at..]));
                record.packages.last_mut()?.files.push((path, content));
                continue;
            }
            let text = std::str::from_utf8(line).ok()?;
            match text.split(' ').collect::<Vec<_>>()[..] {
                ["package", name, arch, version] => record.packages.push(Recorded {
                    name: name.into(),
                    arch: arch.into(),
                    version: version.into(),
                    files: Vec::new(),
                }),
                ["deb", sha256, name, arch, version] => record.debs.push((
                    sha256.into(),
                    dpkg::Control { name: name.into(), version: version.into(), arch: arch.into() },
                )),
                _ => return None,
            }
        }
        Some(record)
    }

    /// Lines: `deb SHA256 NAME ARCH VERSION`, `package NAME ARCH VERSION`, and below it `SIZE PATH` or `- PATH`.
    fn text(&self) -> Vec<u8> {
        let mut out = format!("{HEADER}\n").into_bytes();
        for (sha256, c) in &self.debs {
            out.extend(format!("deb {sha256} {} {} {}\n", c.name, c.arch, c.version).bytes());
        }
        for package in &self.packages {
            out.extend(format!("package {} {} {}\n", package.name, package.arch, package.version).bytes());
            for (path, content) in &package.files {
                match content {
                    Content::Size(size) => out.extend(format!("{size} ").bytes()),
                    Content::Present => out.extend(b"- "),
                }
                out.extend(path.as_os_str().as_bytes());
                out.push(b'\n');
            }
        }
        out
    }

    fn write(&self, host: &Host, key: &str) -> Result<()> {
        host.files.write(Self::path(key), &self.text(), 0o644)
    }
}

/// Every regular file of every package that runs have installed, as recorded then.
pub(crate) fn recorded_files(host: &Host) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for name in host.files.list(paths::PACKAGE_FILES_DIR)? {
        let Some(key) = name.strip_suffix(RECORD) else { continue };
        let files = Record::read(host, key)?.into_iter().flat_map(|record| record.packages);
        let files = files.flat_map(|package| package.files);
        paths.extend(files.filter(|(_, content)| matches!(content, Content::Size(_))).map(|(path, _)| path));
    }
    Ok(paths)
}

/// Installs what was found missing, and looks again: apt's success is no proof. The package lists are renewed
/// only when they prove too old; a version that the repository no longer has is given up for packages that are
/// gone, never for one whose version was changed.
pub(super) async fn install(
    host: &Host,
    wanted: &Wanted,
    found: &Findings,
    recommends: bool,
    path: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let for_record = |request: Request| Request {
        record: Some(wanted.key.clone()),
        automatic: found.dependencies(),
        ..request
    };
    let exact = for_record(found.request(recommends, true, &path));
    let any = for_record(found.request(recommends, false, &path));
    let error = match install_renewed(host, &exact).await {
        Ok(()) => return installed(host, wanted),
        Err(e) => e,
    };
    let same = any.packages == exact.packages && any.reinstall == exact.reinstall;
    if error.code() != Code::AptUnsolvable || !found.changed.is_empty() || same {
        return Err(error);
    }
    tracing::warn!("{error}: the recorded versions are no longer to be had; taking what the repository has");
    Installer::new(host).install(&any).await.map(drop)
}

/// Installs; when the package lists prove too old, renews them and tries once more.
pub(super) async fn install_renewed(host: &Host, request: &Request) -> Result<()> {
    match Installer::new(host).install(request).await {
        // A mirror that is being updated has other packages than the lists say: none, or ones with other sums.
        Err(e) if matches!(e.code(), Code::AptUnsolvable | Code::IndexOutdated | Code::ChecksumMismatch) => {
            tracing::info!("the package lists may be old ({e}): renewing them");
        }
        other => return other.map(drop),
    }
    host.apt().update_for(&[]).await?;
    Installer::new(host).install(request).await.map(drop)
}

/// Fails if apt left something undone: the record must never be made from that.
fn installed(host: &Host, wanted: &Wanted) -> Result<()> {
    let left = examine(host, wanted)?;
    if !left.need_apt() {
        return Ok(());
    }
    Err(Error::new(Code::AptFailed, format!("apt reports success, but {}", left.verdict("the set").why()))
        .with_hint("run again; if it stays, compare with `apt-cache policy` and /var/log/apt/history.log"))
}

/// `5812` → `5,812`
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// An empty list of packages would be "satisfied" whatever the machine looks like.
pub(super) fn refuse_empty(is_empty: bool, what: &str) -> Result<()> {
    if is_empty {
        return Err(Error::new(Code::StepInvalid, format!("{what}: the list is empty")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_being_written_and_read() {
        let record = Record {
            debs: vec![(
                "ab".repeat(32),
                dpkg::Control { name: "libcudnn9".into(), version: "9.8.0-1".into(), arch: "amd64".into() },
            )],
            packages: vec![Recorded {
                name: "libcudnn9".into(),
                arch: "amd64".into(),
                version: "1:9.8.0-1".into(),
                files: vec![
                    ("/usr/lib/a b.so".into(), Content::Size(12)),
                    (PathBuf::from(std::ffi::OsStr::from_bytes(b"/usr/\xff")), Content::Size(0)),
                    ("/usr/lib/libcudnn.so".into(), Content::Present),
                ],
            }],
        };
        assert_eq!(Record::parse(&record.text()), Some(record));
    }

    #[test]
    fn a_torn_or_newer_record_is_none() {
        for text in [
            "",
            "gpu-bootstrap packages 2\n",
            "gpu-bootstrap packages 1\npackage a\n",
            "gpu-bootstrap packages 1\n12 /before/any/package\n",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn specs_are_taken_apart() {
        let spec = Spec::parse("libcuda1:amd64=535.*");
        assert_eq!(
            (spec.name.as_str(), spec.arch.as_deref(), spec.version.as_deref()),
            ("libcuda1", Some("amd64"), Some("535.*"))
        );
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [thousands(0), thousands(999), thousands(5812), thousands(1_234_567)],
            ["0", "999", "5,812", "1,234,567"]
        );
    }
}
