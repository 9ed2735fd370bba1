//! `kernel-packages`: what modules are built with, for the kernel that runs and for those that its updates bring.
//!
//! The package that follows the updates (`linux-headers-aws`) brings the newest kernel's headers, and an image is
//! often older than that: without headers of the running kernel DKMS builds nothing that can be loaded now. Debian's
//! archive drops old kernels with every point release; where the running kernel's packages are no longer offered, the
//! newest kernel is installed, and a later step asks for the reboot into it.

use serde::{Deserialize, Serialize};

use super::package_set::{self, Record, Spec, Wanted};
use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;
use crate::install::Installer;

/// Packages that go with the kernel. None of them is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelPackages {
    /// For exactly the running kernel (`linux-headers-6.8.0-1021-aws`).
    pub running: Vec<String>,
    /// Those that follow the kernel's updates (`linux-headers-aws`).
    pub following: Vec<String>,
    /// The newest kernel itself (`linux-image-aws`), for when nobody offers `running` any more.
    pub image: Vec<String>,
}

impl KernelPackages {
    /// Another running kernel is another request, with a record of its own.
    fn key(&self) -> String {
        let mut parts = [&self.running[..], &self.following].concat();
        parts.sort();
        package_set::key("kernel", &parts)
    }

    fn wanted(&self, names: &[String]) -> Wanted {
        Wanted {
            key: self.key(),
            specs: names.iter().map(|p| Spec::parse(p)).collect(),
            without: Vec::new(),
            hold: false,
            pin: None,
        }
    }

    /// What an earlier run chose, as its record tells; without a record, what is wanted in any case.
    fn chosen(&self, host: &Host) -> Result<Vec<String>> {
        let record = Record::read(host, &self.key())?.unwrap_or_default();
        let others = self.running.iter().chain(&self.image).filter(|name| record.names(name));
        Ok(self.following.iter().chain(others).cloned().collect())
    }

    /// What is to be installed: the running kernel's packages if apt can have them, else the newest kernel.
    async fn choose(&self, host: &Host) -> Result<Vec<String>> {
        let mut offered = self.are_offered(host).await?;
        if !offered {
            host.apt().update_for(&[]).await?;
            offered = self.are_offered(host).await?;
        }
        if offered {
            return Ok([&self.running[..], &self.following].concat());
        }
        host.notice(format!(
            "no source offers {} any more: installing the newest kernel ({}), which needs a reboot",
            self.running.join(", "),
            self.image.join(", ")
        ));
        Ok([&self.following[..], &self.image].concat())
    }

    async fn are_offered(&self, host: &Host) -> Result<bool> {
        for name in &self.running {
            let is_here = host.packages()?.installed(name, None).is_some();
            if !is_here && !host.apt().can_install(name).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Converge for KernelPackages {
    async fn check(&self, host: &Host) -> Result<Check> {
        package_set::refuse_empty(self.following.is_empty(), "kernel-packages")?;
        Ok(package_set::examine(host, &self.wanted(&self.chosen(host)?))?.verdict(&self.following.join(", ")))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let before = package_set::not_arriving(host, &self.key())?;
        Installer::new(host).recover().await?;
        let wanted = self.wanted(&self.choose(host).await?);
        let found = package_set::examine(host, &wanted)?;
        if found.need_apt() {
            package_set::install(host, &wanted, &found, false, |_| None).await?;
        }
        package_set::hold_and_record(host, &wanted, &before, Vec::new()).await?;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("packages of the kernel {}", [&self.running[..], &self.following].concat().join(", "))
    }
}
