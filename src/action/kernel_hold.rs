//! `kernel-hold`: the running kernel's packages on hold, so that no update brings a kernel for which the driver has no
//! modules. Held are the package that the kernel's file belongs to, and the packages that bring the next kernel: those
//! that depend on it.

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;
use crate::host::dpkg::{self, Package, State, Want};

/// A kernel that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelHold {
    /// Its release, as `uname -r` has it.
    pub release: String,
}

impl KernelHold {
    /// The ids of the kernel's packages, and of those among them that are not held.
    fn packages(&self, host: &Host) -> Result<(Vec<String>, Vec<String>)> {
        let database = host.packages()?;
        let file = format!("/boot/vmlinuz-{}", self.release);
        let mut owners: Vec<&Package> = Vec::new();
        for package in database.all().filter(|p| p.state == State::Installed && is_image(&p.name)) {
            if dpkg::file_list(host, package)?.unwrap_or_default().iter().any(|path| *path == *file) {
                owners.push(package);
            }
        }
        let mut all = owners.clone();
        // `linux-image-aws` depends on the image, `linux-aws` on that one.
        let mut level = owners;
        while !level.is_empty() {
            let above = database.all().filter(|p| {
                p.state == State::Installed
                    && p.name.starts_with("linux-")
                    && all.iter().all(|known| known.id() != p.id())
                    && database.dependencies(p).any(|d| level.iter().any(|below| below.id() == d.id()))
            });
            let above: Vec<&Package> = above.collect();
            all.extend(&above);
            level = above;
        }
        let unheld = all.iter().filter(|p| p.want != Want::Hold).map(|p| p.id()).collect();
        Ok((all.iter().map(|p| p.id()).collect(), unheld))
    }
}

fn is_image(name: &str) -> bool {
    name.starts_with("linux-image-") || name.starts_with("linux-modules-")
}

impl Converge for KernelHold {
    async fn check(&self, host: &Host) -> Result<Check> {
        let (all, unheld) = self.packages(host)?;
        if all.is_empty() {
            return Ok(Check::satisfied(format!(
                "kernel {} belongs to no package, so no update replaces it",
                self.release
            )));
        }
        if !unheld.is_empty() {
            return Ok(Check::needed(format!("not on hold: {}", unheld.join(", "))));
        }
        Ok(Check::satisfied(format!("on hold: {}", all.join(", "))))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let (_, unheld) = self.packages(host)?;
        // Before, so that an uninstall after a kill knows of it.
        host.note_packages(std::iter::empty(), unheld.iter().cloned())?;
        host.apt().hold(&unheld).await?;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("kernel {} on hold", self.release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(name: &str, depends: &str, want: &str) -> String {
        format!(
            "Package: {name}\nStatus: {want} ok installed\nArchitecture: amd64\nVersion: 1\nDepends: {depends}\n\n"
        )
    }

    #[tokio::test]
    async fn the_kernel_and_what_brings_the_next_one_are_held_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let action = KernelHold { release: "6.5.0-oem".into() };
        let put = |text: &str| host.files.write("/var/lib/dpkg/status", text.as_bytes(), 0o644).unwrap();
        put(&stanza("linux-image-6.5.0-oem", "kmod", "install"));
        let check = action.check(&host).await.unwrap();
        assert!(check.why().contains("belongs to no package"), "{check:?}");
        let list = "/.\n/boot\n/boot/vmlinuz-6.5.0-oem\n";
        host.files.write("/var/lib/dpkg/info/linux-image-6.5.0-oem.list", list.as_bytes(), 0o644).unwrap();
        put(&[
            stanza("linux-image-6.5.0-oem", "kmod", "install"),
            stanza("linux-image-oem", "linux-image-6.5.0-oem", "hold"),
            stanza("linux-oem", "linux-image-oem, linux-headers-oem", "install"),
            stanza("linux-headers-oem", "linux-headers-6.5.0-oem", "install"),
            stanza("my-tool", "linux-image-oem", "install"),
        ]
        .concat());
        let check = action.check(&host).await.unwrap();
        assert_eq!(check, Check::needed("not on hold: linux-image-6.5.0-oem:amd64, linux-oem:amd64"));
    }
}
