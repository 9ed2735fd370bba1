//! `deb`: packages as files, each by URL and SHA-256, or by URL and the signed index that has its SHA-256. Once installed,
//! neither network nor cache is needed to tell that they are there.

use std::io::Read;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::package_set::{self, Record, Spec, Wanted};
use super::repository::sums;
use super::{Applied, Check, Converge};
use crate::catalog::choose;
use crate::error::{Code, Error, Result};
use crate::host::dpkg::{self, Control};
use crate::host::fault::{self, Kind};
use crate::host::{Host, paths};
use crate::install::ahead::Wish;
use crate::install::{Installer, deb_into_cache};

/// Where files get a name that ends in `.deb`, which apt insists on. Kept until everything is on disk: after a
/// kill the packages are installed again from here.
pub(crate) const DEBS_DIR: &str = "/var/lib/gpu-bootstrap/debs";

/// Packages as files. Their dependencies come from apt's sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deb {
    /// URL of each file, and its SHA-256 or the index that has it.
    pub files: Vec<choose::Deb>,
    /// Whether the packages and what came with them are held, as far as they are NVIDIA's.
    #[serde(default)]
    pub hold: bool,
}

/// A verified file and what it says it is.
struct Ready {
    path: String,
    sha256: String,
    control: Control,
}

/// The same with every sum known.
struct Pinned<'a> {
    files: Vec<choose::Deb>,
    hold: bool,
    /// Where sums come from that nobody gave.
    origins: Vec<String>,
    what: &'a Deb,
}

impl Deb {
    /// With the sums that kept indexes have; the first file whose sum is not known otherwise.
    fn pinned(&self, host: &Host) -> Result<Result<Pinned<'_>, &choose::Deb>> {
        let mut pinned = Pinned { files: Vec::new(), hold: self.hold, origins: Vec::new(), what: self };
        for file in &self.files {
            let sum = file.index.as_ref().map(|index| sums::kept(host, file, index)).transpose()?;
            match (sum, &file.index) {
                (None, _) => pinned.files.push(file.clone()),
                (Some(Some(sum)), Some(index)) => pinned.add(file, index, sum),
                (Some(_), _) => return Ok(Err(file)),
            }
        }
        Ok(Ok(pinned))
    }

    /// With the sums that the indexes have now.
    async fn derived(&self, host: &Host) -> Result<Pinned<'_>> {
        let mut pinned = Pinned { files: Vec::new(), hold: self.hold, origins: Vec::new(), what: self };
        for file in &self.files {
            match &file.index {
                None => pinned.files.push(file.clone()),
                Some(index) => pinned.add(file, index, sums::derive(host, file, index).await?),
            }
        }
        Ok(pinned)
    }
}

impl Pinned<'_> {
    fn add(&mut self, file: &choose::Deb, index: &choose::DebIndex, sum: sums::Sum) {
        let (name, sums::Sum { sha256, date }) = (file_name(&file.url), sum);
        let (url, key) = (&index.url, &index.fingerprint);
        self.origins
            .push(format!("sha256 {sha256} of {name} is from the index of {url} of {date}, signed by {key}"));
        self.files.push(choose::Deb { url: file.url.clone(), sha256, index: None });
    }

    /// Only the bytes count: a file that moved to another URL is still the same file.
    fn key(&self) -> String {
        let mut sums: Vec<String> = self.files.iter().map(|f| f.sha256.clone()).collect();
        sums.sort();
        package_set::key("deb", &sums)
    }

    fn wanted(&self, debs: &[(String, Control)]) -> Wanted {
        let spec = |(_, c): &(String, Control)| Spec::parse(&format!("{}:{}={}", c.name, c.arch, c.version));
        Wanted {
            key: self.key(),
            specs: debs.iter().map(spec).collect(),
            without: Vec::new(),
            hold: self.hold,
            pin: None,
        }
    }

    /// What the record says the files are; `None` unless it knows every one.
    fn known(&self, host: &Host) -> Result<Option<Vec<(String, Control)>>> {
        let Some(record) = Record::read(host, &self.key())? else { return Ok(None) };
        let knows = |f: &choose::Deb| record.debs.iter().any(|(sha256, _)| *sha256 == f.sha256);
        Ok(self.files.iter().all(knows).then_some(record.debs))
    }

    /// Downloads what is not in the cache, hashes everything again, and asks each file what it is.
    async fn fetch(&self, host: &Host) -> Result<Vec<Ready>> {
        host.files.make_dir(DEBS_DIR, 0o755)?;
        let architectures = dpkg::architectures(host).await?;
        let mut ready = Vec::new();
        for file in &self.files {
            let url = reachable(host, file).await?;
            let cached = deb_into_cache(host, &url, &file.sha256).await?;
            let path = format!("{DEBS_DIR}/{}.deb", file.sha256);
            place(host, &cached, &path, &file.sha256)?;
            let control = dpkg::control(host, &path).await.map_err(|e| {
                Error::new(Code::NotADeb, format!("{} is no Debian package", file_name(&file.url)))
                    .with_hint(
                        "the URL may lead to a login or licence page: download the file by hand and compare",
                    )
                    .because(e)
            })?;
            if control.arch != "all" && !architectures.contains(&control.arch) {
                return Err(Error::new(
                    Code::WrongArchitecture,
                    format!(
                        "{} is built for {}, and this machine runs {}",
                        file_name(&file.url),
                        control.arch,
                        architectures.join(", ")
                    ),
                )
                .with_hint("give the URL and sha256 of the file for this architecture"));
            }
            ready.push(Ready { path, sha256: file.sha256.clone(), control });
        }
        Ok(ready)
    }

    async fn examine(&self, host: &Host) -> Result<Check> {
        let Some(debs) = self.known(host)? else {
            return Ok(Check::needed(format!("{} was not installed by us", self.what.name())));
        };
        let names: Vec<_> = debs.iter().map(|(_, c)| format!("{} {}", c.name, c.version)).collect();
        Ok(match package_set::examine(host, &self.wanted(&debs))?.verdict(&names.join(", ")) {
            Check::Satisfied { evidence } => {
                let all: Vec<_> = [evidence].into_iter().chain(self.origins.iter().cloned()).collect();
                Check::satisfied(all.join("; "))
            }
            other => other,
        })
    }

    async fn install(&self, host: &Host) -> Result<Applied> {
        let before = package_set::not_arriving(host, &self.key())?;
        Installer::new(host).recover().await?;
        let known = self.known(host)?;
        let found = package_set::examine(host, &self.wanted(known.as_deref().unwrap_or_default()))?;
        let debs = match known {
            Some(debs) if !found.need_apt() => debs,
            known => {
                let ready = self.fetch(host).await?;
                let debs: Vec<_> = ready.iter().map(|r| (r.sha256.clone(), r.control.clone())).collect();
                let path = |name: &str| ready.iter().find(|r| r.control.name == name).map(|r| r.path.clone());
                if known.is_some() {
                    package_set::install(host, &self.wanted(&debs), &found, false, path).await?;
                } else {
                    self.install_all(host, &ready).await?;
                }
                debs
            }
        };
        package_set::hold_and_record(host, &self.wanted(&debs), &before, debs).await?;
        for file in &self.files {
            host.files.remove(format!("{DEBS_DIR}/{}.deb", file.sha256))?;
        }
        Ok(Applied::Done)
    }
}

impl Deb {
    fn name(&self) -> String {
        self.files.iter().map(|f| file_name(&f.url)).collect::<Vec<_>>().join(", ")
    }
}

impl Converge for Deb {
    async fn check(&self, host: &Host) -> Result<Check> {
        package_set::refuse_empty(self.files.is_empty(), "deb")?;
        match self.pinned(host)? {
            Ok(pinned) => pinned.examine(host).await,
            Err(file) => {
                let (name, from) = (file_name(&file.url), file.index.as_ref().map_or("", |i| &i.url));
                Ok(Check::needed(format!(
                    "the sha256 of {name} has not been taken from the index of {from} yet"
                )))
            }
        }
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        // What is installed already needs no index to be held, or recorded.
        if let Ok(pinned) = self.pinned(host)?
            && let Some(debs) = pinned.known(host)?
            && !package_set::examine(host, &pinned.wanted(&debs))?.need_apt()
        {
            return pinned.install(host).await;
        }
        self.derived(host).await?.install(host).await
    }

    fn wish(&self, host: &Host) -> Result<Wish> {
        let Ok(pinned) = self.pinned(host)? else { return Ok(Wish::default()) };
        let is_there = match pinned.known(host)? {
            Some(debs) => !package_set::examine(host, &pinned.wanted(&debs))?.need_apt(),
            None => false,
        };
        // What lies in a bucket gets its URL when it is asked for.
        let wanted = pinned.files.iter().filter(|f| !is_there && !f.url.starts_with("s3://"));
        let files = wanted.map(|f| (f.url.clone(), f.sha256.clone())).collect();
        Ok(Wish { files, ..Wish::default() })
    }

    fn describe(&self) -> String {
        format!("package file {}", self.name())
    }
}

impl Pinned<'_> {
    /// `--reinstall`: what is installed must be these bytes, even if dpkg has the same version already.
    async fn install_all(&self, host: &Host, ready: &[Ready]) -> Result<()> {
        let request = crate::host::apt::Request {
            reinstall: ready.iter().map(|r| r.path.clone()).collect(),
            change_held: true,
            record: Some(self.key()),
            ..Default::default()
        };
        package_set::install_renewed(host, &request).await
    }
}

/// A URL by which the file can be had: a signed one where it lies in a bucket. What is in the cache already (a bundle's files
/// are) needs no credentials.
async fn reachable(host: &Host, file: &choose::Deb) -> Result<String> {
    let Some(object) = file.url.strip_prefix("s3://") else { return Ok(file.url.clone()) };
    if host.files.exists(format!("{}/{}", paths::CACHE_DIR, file.sha256))? {
        return Ok(format!("https://s3.amazonaws.com/{object}"));
    }
    match host.buckets() {
        Some(buckets) => buckets.object(&file.url).await,
        None => {
            Err(Error::new(Code::Fetch, format!("{}: nobody here knows how to reach a bucket", file.url)))
        }
    }
}

/// Copies the cached file to where apt takes it from, hashing on the way: the cache is never believed unseen.
fn place(host: &Host, cached: &std::path::Path, to: &str, sha256: &str) -> Result<()> {
    let from = host.files.outside(cached)?;
    let target = host.files.outside(to)?;
    let fail = |e: std::io::Error| Error::io("copy", cached, e);
    match fault::point(Kind::Remove, &target).and_then(|()| std::fs::remove_file(&target)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", to, e)),
        _ => {}
    }
    // A second name costs no space; where the file system has none, a copy does.
    let linked = fault::point(Kind::Link, &target).and_then(|()| std::fs::hard_link(&from, &target));
    if linked.is_err() {
        fault::point(Kind::Write, &target).and_then(|()| std::fs::copy(&from, &target)).map_err(fail)?;
    }
    let mut file = std::fs::File::open(&target).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).map_err(fail)? {
            0 => break,
            n => hash.update(&chunk[..n]),
        }
    }
    let found = crate::text::hex(&hash.finalize());
    if found == sha256 {
        return Ok(());
    }
    host.files.remove(to)?;
    host.files.remove(cached)?;
    Err(Error::new(
        Code::ChecksumMismatch,
        format!(
            "sha256 of {} is {found}, expected {sha256}; it was removed from the cache",
            cached.display()
        ),
    )
    .with_hint("run again to download it anew"))
}

/// The file's name alone: a URL may carry a signature in its query.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    path.rsplit('/').next().filter(|n| !n.is_empty()).unwrap_or("the file")
}
