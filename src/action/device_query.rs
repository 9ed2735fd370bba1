//! `device-query`: GPUs that work, as far as `/proc` and the installed libraries tell.
//!
//! Nothing can be applied here. So that a plan can show the verdict without failing, `check` says `Needed` with
//! the reason, and `apply` returns that reason as the error, with its own code and the exit code for an
//! unhealthy GPU.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge, driver};
use crate::error::{Code, Error, Result};
use crate::facts::gpu::driver::{DrivenGpu, information};
use crate::host::Host;

const GPUS: &str = "/proc/driver/nvidia/gpus";

/// A GPU that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceQuery {
    /// How many GPUs there must be; 0 when unknown (then one is enough).
    pub gpus: u32,
    /// Sonames that the dynamic linker must know.
    pub libraries: Vec<String>,
    /// Whether a driver was asked for.
    #[serde(default)]
    pub driver: bool,
}

impl DeviceQuery {
    /// Evidence, or what is wrong. Libraries first: they are what an image without a GPU can be judged by.
    fn verdict(&self, host: &Host) -> Result<Result<String, Error>> {
        let mut evidence = Vec::new();
        if let Err(e) = self.libraries(host)? {
            return Ok(Err(e));
        }
        if !self.libraries.is_empty() {
            evidence.push(format!("{} found by the linker", self.libraries.join(", ")));
        }
        if self.driver {
            let Some(module) = driver::module_version(host)? else {
                return Ok(Err(driver::not_loaded(host, None)?));
            };
            if let Some(libraries) = driver::library_version(host)?
                && libraries != module
            {
                return Ok(Err(Error::new(
                    Code::DriverMismatch,
                    format!("kernel module {module} is loaded, and libraries {libraries} are installed"),
                )
                .with_hint("reboot, so that the module of the installed version is loaded")));
            }
            evidence.push(format!("driver {module} loaded"));
            match self.count(host)? {
                Ok(counted) => evidence.push(counted),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(evidence.join("; ")))
    }

    fn libraries(&self, host: &Host) -> Result<Result<(), Error>> {
        let cache = host.linker_cache()?;
        for soname in &self.libraries {
            let Some(library) = cache.iter().find(|l| l.soname == *soname) else {
                return Ok(Err(Error::new(
                    Code::LibraryMissing,
                    format!("the dynamic linker does not know {soname}"),
                )
                .with_hint("run ldconfig; if it stays, the package that ships it is damaged: run again")));
            };
            if !host.files.exists(&library.path)? {
                return Ok(Err(Error::new(
                    Code::LibraryMissing,
                    format!(
                        "{} is gone, although the dynamic linker's cache lists it",
                        library.path.display()
                    ),
                )
                .with_hint("run again: the package that ships it is installed anew")));
            }
        }
        Ok(Ok(()))
    }

    fn count(&self, host: &Host) -> Result<Result<String, Error>> {
        let mut models: HashMap<String, u32> = HashMap::new();
        for gpu in working(host)? {
            *models.entry(gpu.model.unwrap_or_else(|| "GPU of unknown model".into())).or_default() += 1;
        }
        let found: u32 = models.values().sum();
        let wanted = self.gpus.max(1);
        if found < wanted {
            return Ok(Err(Error::new(
                Code::GpuCount,
                format!("the driver shows {found} of {wanted} GPUs in {GPUS}"),
            )
            .with_hint("dmesg | grep -i -e nvrm -e xid names the lost GPU; stop and start the instance to move it to other hardware")));
        }
        let mut shown: Vec<String> = models.iter().map(|(model, n)| format!("{n} × {model}")).collect();
        shown.sort();
        Ok(Ok(shown.join(", ")))
    }
}

/// The GPUs that the kernel module drives and that are not excluded by the administrator.
fn working(host: &Host) -> Result<Vec<DrivenGpu>> {
    let mut gpus = Vec::new();
    for name in host.files.list(GPUS)? {
        let text = host.files.read_text(format!("{GPUS}/{name}/information"))?.unwrap_or_default();
        gpus.push(information(&name, &text));
    }
    gpus.retain(|g| !g.excluded);
    Ok(gpus)
}

impl Converge for DeviceQuery {
    async fn check(&self, host: &Host) -> Result<Check> {
        Ok(match self.verdict(host)? {
            Ok(evidence) => Check::satisfied(evidence),
            Err(error) => Check::needed(error.message()),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        self.verdict(host)??;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        match self.gpus {
            0 => "working GPUs".into(),
            1 => "1 working GPU".into(),
            n => format!("{n} working GPUs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::tests::machine;
    use super::*;
    use crate::host::ld_cache::tests::cache;

    #[tokio::test]
    async fn each_fault_has_its_code_and_health_has_evidence() {
        let (_dir, host) = machine();
        let write = |path: &str, bytes: &[u8]| host.files.write(path, bytes, 0o644).unwrap();
        let action = DeviceQuery { gpus: 2, libraries: vec!["libcuda.so.1".into()], driver: true };
        let code = async || action.apply(&host).await.unwrap_err().code();

        assert_eq!(code().await, Code::LibraryMissing);
        write("/etc/ld.so.cache", &cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1")]));
        assert_eq!(code().await, Code::LibraryMissing);
        host.files.symlink("/usr/lib/libcuda.so.1", "libcuda.so.570.195.03").unwrap();
        assert_eq!(code().await, Code::DriverNotLoaded);
        assert!(action.check(&host).await.unwrap().why().contains("has no NVIDIA module"));

        write(
            "/proc/driver/nvidia/version",
            b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.103.01  Thu\n",
        );
        assert_eq!(code().await, Code::DriverMismatch);
        write(
            "/proc/driver/nvidia/version",
            b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.195.03  Thu\n",
        );
        assert_eq!(code().await, Code::GpuCount);
        write(&format!("{GPUS}/0000:00:1e.0/information"), b"Model: \t\t NVIDIA A10G\n");
        write(&format!("{GPUS}/0000:00:1f.0/information"), b"Model: \t\t NVIDIA A10G\nGPU Excluded:\t Yes\n");
        assert_eq!(code().await, Code::GpuCount);
        write(&format!("{GPUS}/0000:00:1f.0/information"), b"Model: \t\t NVIDIA A10G\nGPU Excluded:\t No\n");
        action.apply(&host).await.unwrap();
        assert_eq!(
            action.check(&host).await.unwrap(),
            Check::satisfied("libcuda.so.1 found by the linker; driver 570.195.03 loaded; 2 × NVIDIA A10G")
        );
    }
}
