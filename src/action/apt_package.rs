//! `apt-package`: packages from apt's sources, installed, whole, and held.

use serde::{Deserialize, Serialize};

use super::module_build;
use super::package_set::{self, Pin, Spec, Wanted};
use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;
use crate::install::Installer;
use crate::install::ahead::Wish;

/// Packages, by apt. Satisfied when dpkg has each of them and everything that came with them installed, in the
/// recorded versions as far as they are held, and every file of theirs has the size recorded at installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptPackage {
    /// Names, possibly `name=version`; the version may hold `*`.
    pub packages: Vec<String>,
    /// Names of NVIDIA's driver packages that must not be there: they would keep another driver in use. What depends on
    /// them goes, too.
    #[serde(default)]
    pub without: Vec<String>,
    /// Whether recommended packages come along.
    #[serde(default)]
    pub recommends: bool,
    /// Whether the packages and what came with them are held, as far as they are NVIDIA's: other dependencies
    /// must get their security updates, and kernel packages must follow the kernel.
    #[serde(default)]
    pub hold: bool,
    /// Patterns of the packages that must have `pinned-version`, where the names alone do not tell branches apart.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// Pattern of that version (`580.*`); empty for none.
    #[serde(default)]
    pub pinned_version: String,
}

impl AptPackage {
    fn wanted(&self) -> Wanted {
        let mut parts = self.packages.clone();
        parts.sort();
        Wanted {
            key: package_set::key("apt", &parts),
            specs: self.packages.iter().map(|p| Spec::parse(p)).collect(),
            without: self.without.clone(),
            hold: self.hold,
            pin: self.pin(),
        }
    }

    fn pin(&self) -> Option<Pin> {
        let version = self.pinned_version.clone();
        (!version.is_empty()).then(|| Pin { packages: self.pinned.clone(), version })
    }

    /// For people: the first package, and how many more were asked for.
    fn name(&self) -> String {
        match &self.packages[..] {
            [] => "no package".into(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} (+{})", rest.len()),
        }
    }
}

impl Converge for AptPackage {
    async fn check(&self, host: &Host) -> Result<Check> {
        package_set::refuse_empty(self.packages.is_empty(), "apt-package")?;
        Ok(package_set::examine(host, &self.wanted())?.verdict(&self.name()))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let wanted = self.wanted();
        let before = package_set::not_arriving(host, &wanted.key)?;
        Installer::new(host).recover().await?;
        let found = package_set::examine(host, &wanted)?;
        if found.need_apt() {
            let installed = package_set::install(host, &wanted, &found, self.recommends, |_| None).await;
            installed.map_err(|e| module_build::explain(host, e))?;
        }
        package_set::hold_and_record(host, &wanted, &before, Vec::new()).await?;
        Ok(Applied::Done)
    }

    fn wish(&self, host: &Host) -> Result<Wish> {
        let found = package_set::examine(host, &self.wanted())?;
        let request = found.request(self.recommends, true, |_| None);
        Ok(Wish { request, files: Vec::new() })
    }

    fn describe(&self) -> String {
        format!("package {}", self.packages.join(", "))
    }
}
