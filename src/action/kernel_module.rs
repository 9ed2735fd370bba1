//! `kernel-module`: loaded kernel modules, of the version that the installed libraries expect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::driver::{self, Remedy};
use super::unload;
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Initialising eight GPUs takes tens of seconds.
const LOAD_LIMIT: Duration = Duration::from_mins(3);

/// What the loaded driver was told.
const PARAMS: &str = "/proc/driver/nvidia/params";

/// Loaded kernel modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelModule {
    /// Modules, in order.
    pub modules: Vec<String>,
    /// `name=value` of the parameters that the driver must have been loaded with, by the names in
    /// `/proc/driver/nvidia/params`.
    #[serde(default)]
    pub parameters: Vec<String>,
}

impl KernelModule {
    fn has_driver(&self) -> bool {
        self.modules.iter().any(|m| m == "nvidia")
    }

    /// Why the loaded driver is not the wanted one; `None` if it is, or if none is loaded.
    fn wrong_driver(&self, host: &Host) -> Result<Option<String>> {
        let Some(loaded) = driver::module_version(host)?.filter(|_| self.has_driver()) else {
            return Ok(None);
        };
        if let Some(libraries) = driver::library_version(host)?
            && loaded != libraries
        {
            return Ok(Some(format!("module {loaded} is loaded, and libraries {libraries} are installed")));
        }
        let Some(params) = host.files.read_text(PARAMS)? else { return Ok(None) };
        let value = |name: &str| params.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        for (name, wanted) in self.parameters.iter().filter_map(|p| p.split_once('=')) {
            if let Some(value) = value(name).map(str::trim).filter(|v| *v != wanted) {
                return Ok(Some(format!("module {loaded} is loaded with {name}={value}, wanted {wanted}")));
            }
        }
        Ok(None)
    }
}

impl Converge for KernelModule {
    async fn check(&self, host: &Host) -> Result<Check> {
        let mut missing = Vec::new();
        for module in &self.modules {
            match loaded(host, module)? {
                Some(true) => {}
                Some(false) => missing.push(module.as_str()),
                None => {
                    return Ok(Check::unknown(format!(
                        "neither /sys/module nor /proc/modules exists, so nothing tells whether {module} is loaded"
                    )));
                }
            }
        }
        if !missing.is_empty() {
            return Ok(Check::needed(format!(
                "not loaded in kernel {}: {}",
                driver::kernel(host)?,
                missing.join(", ")
            )));
        }
        if let Some(why) = self.wrong_driver(host)? {
            return Ok(Check::needed(why));
        }
        let version = driver::module_version(host)?.map(|v| format!(" {v}")).unwrap_or_default();
        Ok(Check::satisfied(format!("loaded: {}{version}", self.modules.join(", "))))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        if self.has_driver() {
            if let Some(why) = self.wrong_driver(host)?
                && let Some(loaded) = driver::module_version(host)?
            {
                let libraries = driver::library_version(host)?;
                let reboot = match driver::remedy(host, &loaded, libraries.as_deref()).await? {
                    Remedy::Reboot(why) => why,
                    // The same module, loaded anew, takes the parameters.
                    Remedy::None(_) if libraries.is_none_or(|l| l == loaded) => {
                        format!("{why}; the next boot loads it as wanted")
                    }
                    Remedy::None(error) => return Err(error),
                };
                if !unload::driver(host).await? {
                    return Ok(Applied::RebootNeeded { why: reboot });
                }
            }
            if let Some(next) = driver::next_kernel(host)? {
                return Ok(Applied::RebootNeeded {
                    why: format!(
                        "kernel {} has no NVIDIA module; {next} has one and starts with the next boot",
                        driver::kernel(host)?
                    ),
                });
            }
            if driver::nouveau(host)?
                && driver::is_blacklisted(host, "nouveau")?
                && !unload::module(host, "nouveau").await?
            {
                return Ok(Applied::RebootNeeded {
                    why: "nouveau holds the GPU now; it is blacklisted from the next boot on".into(),
                });
            }
        }
        if self.has_driver() && !host.files.exists(format!("/lib/modules/{}", driver::kernel(host)?))? {
            return Err(driver::not_loaded(host, None)?); // modprobe could only say the same
        }
        let call =
            Call::new("modprobe").args(["-a", "-v"]).args(self.modules.iter().cloned()).limit(LOAD_LIMIT);
        let words = match host.exec.output(&call).await {
            Ok(output) if output.ok() => return Ok(Applied::Done),
            Ok(output) => output.tail(),
            // No modprobe at all: the reason is told just as well without its words.
            Err(e) if e.code() == Code::Exec => e.to_string(),
            Err(e) => return Err(e),
        };
        if self.has_driver() {
            return Err(driver::not_loaded(host, Some(&words))?);
        }
        let text = format!("{} does not load in kernel {}", self.modules.join(", "), driver::kernel(host)?);
        Err(Error::new(Code::Exec, text)
            .with_hint("dmesg says why: no such module for this kernel, a missing signature under Secure Boot, or no driver under it")
            .because(words))
    }

    fn describe(&self) -> String {
        format!("kernel modules {}", self.modules.join(", "))
    }
}

/// Whether the module is loaded or built in; `None` when the kernel shows neither list.
fn loaded(host: &Host, module: &str) -> Result<Option<bool>> {
    let name = module.replace('-', "_");
    if host.files.exists(format!("/sys/module/{name}"))? {
        return Ok(Some(true));
    }
    if module == "nvidia" && driver::module_version(host)?.is_some() {
        return Ok(Some(true));
    }
    if let Some(list) = host.files.read_text("/proc/modules")? {
        return Ok(Some(list.lines().any(|l| l.split(' ').next() == Some(name.as_str()))));
    }
    // A kernel without loadable modules has no /proc/modules; /sys/module still names what is built in.
    Ok(host.files.exists("/sys/module")?.then_some(false))
}

#[cfg(test)]
mod tests {
    use super::super::driver::tests::machine;
    use super::*;

    fn action() -> KernelModule {
        KernelModule { modules: vec!["nvidia".into(), "nvidia-uvm".into()], parameters: Vec::new() }
    }

    #[tokio::test]
    async fn modules_are_found_in_sysfs_or_proc() {
        let (_dir, host) = machine();
        let check = action().check(&host).await.unwrap();
        assert_eq!(check, Check::needed("not loaded in kernel 6.8.0-1021-aws: nvidia, nvidia-uvm"));
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Thu Apr  3\n";
        host.files.write("/proc/driver/nvidia/version", text.as_bytes(), 0o444).unwrap();
        assert_eq!(
            action().check(&host).await.unwrap().why(),
            "not loaded in kernel 6.8.0-1021-aws: nvidia-uvm"
        );
        host.files.write("/proc/modules", b"nvidia_uvm 1 0 - Live 0\n", 0o444).unwrap();
        let check = action().check(&host).await.unwrap();
        assert_eq!(check, Check::satisfied("loaded: nvidia, nvidia-uvm 535.216.03"));
    }

    #[tokio::test]
    async fn a_driver_that_was_loaded_with_other_parameters_is_loaded_anew_or_asks_for_a_reboot() {
        let (_dir, host) = machine();
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Thu Apr  3\n";
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o444).unwrap();
        put("/proc/driver/nvidia/version", text);
        put("/proc/modules", "nvidia_uvm 1 0 - Live 0\n");
        put(PARAMS, "EnableMSI: 1\nEnableGpuFirmware: 18\n");
        let action = KernelModule { parameters: vec!["EnableGpuFirmware=0".into()], ..action() };
        let check = action.check(&host).await.unwrap();
        assert_eq!(check, Check::needed("module 535.216.03 is loaded with EnableGpuFirmware=18, wanted 0"));
        match action.apply(&host).await.unwrap() {
            Applied::RebootNeeded { why } => {
                assert!(why.ends_with("the next boot loads it as wanted"), "{why}");
            }
            Applied::Done => panic!("nobody can unload it here"),
        }
        put(PARAMS, "EnableGpuFirmware: 0\n");
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
    }

    #[tokio::test]
    async fn a_kernel_that_shows_nothing_is_unknown_and_one_without_modules_is_not() {
        let (_dir, host) = machine();
        host.files.remove("/proc/modules").unwrap();
        assert_eq!(action().check(&host).await.unwrap().state(), "unknown");
        host.files.write("/sys/module/kernel/parameters/x", b"", 0o444).unwrap();
        assert_eq!(action().check(&host).await.unwrap().state(), "needed");
    }

    #[tokio::test]
    async fn a_module_that_is_not_the_drivers_is_not_told_as_the_drivers() {
        let (_dir, host) = machine();
        let module = KernelModule { modules: vec!["gdrdrv".into()], parameters: Vec::new() };
        let error = module.apply(&host).await.unwrap_err();
        assert_eq!(error.message(), "gdrdrv does not load in kernel 6.8.0-1021-aws");
        assert_eq!(error.causes().len(), 1, "modprobe's own words");
    }

    #[tokio::test]
    async fn a_newer_kernel_with_a_module_asks_for_the_boot_into_it() {
        let (_dir, host) = machine();
        let put = |path: &str| host.files.write(path, b"", 0o644).unwrap();
        for (kernel, dir) in [("6.8.0-1009-aws", "kernel"), ("6.8.0-1040-aws", "updates/dkms")] {
            put(&format!("/boot/vmlinuz-{kernel}"));
            put(&format!("/lib/modules/{kernel}/{dir}/nvidia.ko.zst"));
        }
        // Newer still, without a module; and one whose kernel was removed.
        put("/boot/vmlinuz-6.8.0-1050-aws");
        put("/lib/modules/6.8.0-1050-aws/kernel/drivers/perf/nvidia_cspmu.ko.zst");
        put("/lib/modules/6.8.0-1060-aws/updates/dkms/nvidia.ko.zst");
        let why = match action().apply(&host).await.unwrap() {
            Applied::RebootNeeded { why } => why,
            Applied::Done => panic!("no module can be loaded here"),
        };
        assert_eq!(
            why,
            "kernel 6.8.0-1021-aws has no NVIDIA module; 6.8.0-1040-aws has one and starts with the next boot"
        );
        put("/lib/modules/6.8.0-1021-aws/updates/dkms/nvidia.ko.zst");
        assert_eq!(driver::next_kernel(&host).unwrap(), None);
    }

    #[tokio::test]
    async fn nouveau_that_the_next_boot_keeps_away_asks_for_that_boot() {
        let (_dir, host) = machine();
        host.files.write("/sys/module/nouveau/refcnt", b"1", 0o444).unwrap();
        host.files.write("/etc/modprobe.d/nvidia.conf", b"blacklist   nouveau\n", 0o644).unwrap();
        assert!(matches!(action().apply(&host).await.unwrap(), Applied::RebootNeeded { .. }));
    }
}
