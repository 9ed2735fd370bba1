//! `deb`: packages as files, each by URL and SHA-256. Once installed, neither network nor cache is needed to
//! tell that they are there.

use std::io::Read;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::package_set::{self, Record, Spec, Wanted};
use super::{Applied, Check, Converge};
use crate::catalog::choose;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::dpkg::{self, Control};
use crate::host::fault::{self, Kind};
use crate::install::ahead::Wish;
use crate::install::{Installer, deb_into_cache};

/// Where files get a name that ends in `.deb`, which apt insists on. Kept until everything is on disk: after a
/// kill the packages are installed again from here.
pub(crate) const DEBS_DIR: &str = "/var/lib/gpu-bootstrap/debs";

/// Packages as files. Their dependencies come from apt's sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deb {
    /// URL and SHA-256 of each file.
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

impl Deb {
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
            let cached = deb_into_cache(host, &file.url, &file.sha256).await?;
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

    fn name(&self) -> String {
        self.files.iter().map(|f| file_name(&f.url)).collect::<Vec<_>>().join(", ")
    }
}

impl Converge for Deb {
    async fn check(&self, host: &Host) -> Result<Check> {
        package_set::refuse_empty(self.files.is_empty(), "deb")?;
        let Some(debs) = self.known(host)? else {
            return Ok(Check::needed(format!("{} was not installed by us", self.name())));
        };
        let names: Vec<_> = debs.iter().map(|(_, c)| format!("{} {}", c.name, c.version)).collect();
        Ok(package_set::examine(host, &self.wanted(&debs))?.verdict(&names.join(", ")))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
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

    fn wish(&self, host: &Host) -> Result<Wish> {
        let is_there = match self.known(host)? {
            Some(debs) => !package_set::examine(host, &self.wanted(&debs))?.need_apt(),
            None => false,
        };
        let wanted = self.files.iter().filter(|_| !is_there);
        let files = wanted.map(|f| (f.url.clone(), f.sha256.clone())).collect();
        Ok(Wish { files, ..Wish::default() })
    }

    fn describe(&self) -> String {
        format!("package file {}", self.name())
    }
}

impl Deb {
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
