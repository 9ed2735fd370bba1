//! `module-blacklist`: a kernel module that must not take the devices of another. Where no installed kernel has the module
//! there is nothing to do, and the initial file systems are made anew only where the module is inside one of them.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::driver::is_blacklisted;
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Reading one takes a second, on an instance without CPU credits half a minute.
const LIST_LIMIT: Duration = Duration::from_mins(2);
/// Making one takes half a minute on two cores.
const MAKE_LIMIT: Duration = Duration::from_mins(15);

/// A module that the next boot does not load by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModuleBlacklist {
    /// File below /etc/modprobe.d.
    pub path: String,
    /// The module.
    pub module: String,
}

impl ModuleBlacklist {
    fn content(&self) -> String {
        format!(
            "# Written by gpu-bootstrap: this module would take the GPU before NVIDIA's can.\n\
             blacklist {0}\noptions {0} modeset=0\n",
            self.module
        )
    }

    /// The kernels that have the module on disk.
    fn kernels(&self, host: &Host) -> Result<Vec<String>> {
        let mut kernels = Vec::new();
        for kernel in host.files.list("/lib/modules")? {
            let dir = format!("/lib/modules/{kernel}/kernel/drivers/gpu/drm/{}", self.module);
            let file = format!("{}.ko", self.module);
            if host.files.list(dir)?.iter().any(|name| name.starts_with(&file)) {
                kernels.push(kernel);
            }
        }
        Ok(kernels)
    }

    /// The kernels whose initial file system holds the module and not the word against it. Those made after our file
    /// was written have it; with another's file (the driver's packages bring one), they are looked into while the module
    /// is loaded.
    async fn stale(&self, host: &Host, kernels: &[String]) -> Result<Vec<String>> {
        let ours = host.files.lstat(&self.path)?;
        let is_loaded = host.files.exists(format!("/sys/module/{}", self.module))?;
        let mut stale = Vec::new();
        for kernel in kernels {
            let image = format!("/boot/initrd.img-{kernel}");
            let Some(made) = host.files.lstat(&image)? else { continue };
            let older = ours
                .as_ref()
                .is_some_and(|ours| (made.mtime(), made.mtime_nsec()) < (ours.mtime(), ours.mtime_nsec()));
            if (older || is_loaded) && self.is_inside(host, &image).await? {
                stale.push(kernel.clone());
            }
        }
        Ok(stale)
    }

    async fn is_inside(&self, host: &Host, image: &str) -> Result<bool> {
        let output = match host.exec.output(&Call::new("lsinitramfs").args([image]).limit(LIST_LIMIT)).await {
            Ok(output) => output,
            // Not made by initramfs-tools: nobody here knows how it would be made anew.
            Err(e) if e.code() == Code::Exec => return Ok(false),
            Err(e) => return Err(e),
        };
        let text = output.text();
        let file = format!("/{}.ko", self.module);
        let has_module = text.lines().any(|line| line.contains(&file));
        // Every file of modprobe's is copied into it; which of them has the word is not to be seen.
        let has_word = text.lines().any(|line| {
            let name = line.trim_start_matches("./").trim_start_matches('/');
            name == self.path.trim_start_matches('/')
                || name.ends_with(&format!("blacklists-{}.conf", self.module))
        });
        Ok(has_module && !has_word)
    }
}

impl Converge for ModuleBlacklist {
    async fn check(&self, host: &Host) -> Result<Check> {
        let kernels = self.kernels(host)?;
        let is_loaded = host.files.exists(format!("/sys/module/{}", self.module))?;
        if kernels.is_empty() && !is_loaded {
            return Ok(Check::satisfied(format!("no installed kernel has {}", self.module)));
        }
        if !is_blacklisted(host, &self.module)? {
            let why = if is_loaded { "is loaded, and" } else { "is on the disk, and" };
            return Ok(Check::needed(format!(
                "{} {why} the next boot would let it take the GPU",
                self.module
            )));
        }
        let stale = self.stale(host, &kernels).await?;
        if !stale.is_empty() {
            return Ok(Check::needed(format!(
                "{} is in the initial file system of {}",
                self.module,
                stale.join(", ")
            )));
        }
        Ok(Check::satisfied(format!("the next boot leaves {} alone", self.module)))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let stale_before = self.stale(host, &self.kernels(host)?).await?;
        // With another's word against it ours is needed only for the initial file system to show it.
        if !is_blacklisted(host, &self.module)? || !stale_before.is_empty() {
            host.files.write(&self.path, self.content().as_bytes(), 0o644)?;
        }
        for kernel in self.stale(host, &self.kernels(host)?).await? {
            let call = Call::new("update-initramfs").args(["-u", "-k", &kernel]).limit(MAKE_LIMIT);
            host.exec.run(&call).await.map_err(|e| {
                Error::new(
                    Code::Exec,
                    format!(
                        "the initial file system of kernel {kernel} cannot be made without {}",
                        self.module
                    ),
                )
                .with_hint(format!(
                    "`update-initramfs -u -k {kernel}` says why; a full /boot is the usual reason"
                ))
                .because(e)
            })?;
        }
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("no kernel module {}", self.module)
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::tests::machine;
    use super::*;

    const KERNEL: &str = "6.8.0-1021-aws";

    fn action() -> ModuleBlacklist {
        ModuleBlacklist {
            path: "/etc/modprobe.d/gpu-bootstrap-nouveau.conf".into(),
            module: "nouveau".into(),
        }
    }

    #[tokio::test]
    async fn nothing_is_written_where_no_kernel_has_it() {
        let (_dir, host) = machine();
        host.files
            .write(format!("/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/ast/ast.ko"), b"", 0o644)
            .unwrap();
        let check = action().check(&host).await.unwrap();
        assert_eq!(check, Check::satisfied("no installed kernel has nouveau"));
    }

    #[tokio::test]
    async fn a_kernel_that_has_it_gets_the_word_and_somebody_else_s_word_will_do() {
        let (_dir, host) = machine();
        let module = format!("/lib/modules/{KERNEL}/kernel/drivers/gpu/drm/nouveau/nouveau.ko.zst");
        host.files.write(module, b"", 0o644).unwrap();
        let why = action().check(&host).await.unwrap();
        assert_eq!(why, Check::needed("nouveau is on the disk, and the next boot would let it take the GPU"));
        action().apply(&host).await.unwrap();
        assert_eq!(action().check(&host).await.unwrap().state(), "satisfied");
        host.files.remove(action().path).unwrap();
        host.files.write("/usr/lib/modprobe.d/nvidia.conf", b"blacklist nouveau\n", 0o644).unwrap();
        assert_eq!(action().check(&host).await.unwrap().state(), "satisfied");
        assert!(!host.files.exists(action().path).unwrap());
    }
}
