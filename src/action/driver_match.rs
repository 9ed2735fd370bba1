//! `driver-match`: everything that belongs to the driver has one version: the libraries, the kernel modules on disk for
//! the running and for the newest kernel, fabric manager and IMEX. What DKMS has not built yet is built here.
//!
//! What is loaded is another question, [`super::kernel_module`]'s: here it is about the files that a boot will load.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::driver;
use super::module_build;
use super::package_set::Spec;
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::facts::gpu::MODULE_NAMES;
use crate::facts::os::secure_boot;
use crate::host::Host;
use crate::host::dpkg::compare_versions;
use crate::host::exec::Call;

/// It reads a few files.
const MODINFO_LIMIT: Duration = Duration::from_mins(1);
/// Ten minutes on two cores, half an hour without CPU credits, for each kernel.
const BUILD_LIMIT: Duration = Duration::from_hours(1);

/// One version of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DriverMatch {
    /// Packages that work with exactly their own version of the driver, as they were asked for.
    pub companions: Vec<String>,
}

/// A kernel's module file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    version: String,
    signer: Option<String>,
}

/// What differs.
#[derive(Debug, Default)]
struct Findings {
    /// For people: what is as it should be.
    evidence: Vec<String>,
    /// Kernels with headers and without a module.
    unbuilt: Vec<String>,
    /// Kernels whose module has another version, with that version.
    other: Vec<(String, String)>,
    /// Companions of another version, with that version.
    strangers: Vec<(String, String)>,
}

impl DriverMatch {
    async fn examine(&self, host: &Host, libraries: &str) -> Result<Findings> {
        let mut found = Findings::default();
        // Prebuilt modules are for some kernels only, and nothing can be done about the others here.
        let is_built_here = host.files.list("/var/lib/dkms")?.iter().any(|name| name.starts_with("nvidia"));
        for kernel in kernels(host)? {
            match module(host, &kernel).await? {
                Some(module) if module.version == libraries => {
                    let signed = signature(host, &module)?;
                    found.evidence.push(format!("module for {kernel} {signed}"));
                }
                Some(module) => found.other.push((kernel, module.version)),
                None if is_built_here && host.files.exists(format!("/lib/modules/{kernel}/build"))? => {
                    found.unbuilt.push(kernel);
                }
                // Without headers none can be built: loading it says so, with what to do.
                None => {}
            }
        }
        let database = host.packages()?;
        for spec in self.companions.iter().map(|text| Spec::parse(text)) {
            let Some(package) = spec.find(&database).filter(|p| goes_with_the_driver(&p.name)) else {
                continue;
            };
            let version = upstream(&package.version);
            if version == libraries {
                found.evidence.push(package.name.clone());
            } else {
                found.strangers.push((package.name.clone(), version.to_owned()));
            }
        }
        Ok(found)
    }
}

impl Findings {
    /// What is wrong, in one sentence; `None` if nothing is.
    fn why(&self, libraries: &str) -> Option<String> {
        let mut parts = Vec::new();
        if !self.unbuilt.is_empty() {
            parts.push(format!("no module was built for kernel {}", self.unbuilt.join(", ")));
        }
        let differs = |(what, version): &(String, String)| format!("{what} is {version}");
        let modules =
            self.other.iter().map(|(kernel, version)| format!("the module for kernel {kernel} is {version}"));
        let others: Vec<String> = modules.chain(self.strangers.iter().map(differs)).collect();
        if !others.is_empty() {
            parts.push(format!("{}, and the driver's libraries are {libraries}", others.join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

impl Converge for DriverMatch {
    async fn check(&self, host: &Host) -> Result<Check> {
        let Some(libraries) = driver::library_version(host)? else {
            return Ok(Check::unknown("the dynamic linker knows no libcuda whose file names its version"));
        };
        let found = self.examine(host, &libraries).await?;
        Ok(match found.why(&libraries) {
            Some(why) => Check::needed(why),
            None if found.evidence.is_empty() => Check::satisfied(format!("libraries {libraries} are alone")),
            None => Check::satisfied(format!("libraries {libraries}, {}", found.evidence.join(", "))),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let libraries = driver::library_version(host)?.unwrap_or_default();
        let found = self.examine(host, &libraries).await?;
        for kernel in found.unbuilt.iter().chain(found.other.iter().map(|(kernel, _)| kernel)) {
            build(host, kernel).await?;
        }
        let left = self.examine(host, &libraries).await?;
        let Some(why) = left.why(&libraries) else { return Ok(Applied::Done) };
        if let Some(kernel) = left.unbuilt.first() {
            return Err(module_build::failure(host, kernel)?.unwrap_or_else(|| {
                Error::new(Code::ModuleBuildFailed, why.clone()).with_hint(format!(
                    "`dkms status` shows what there is to build, `dkms autoinstall -k {kernel}` why it is not"
                ))
            }));
        }
        Err(Error::new(Code::DriverMismatch, why).with_hint(
            "`apt-cache policy` of these packages shows where each comes from: take all of them from one source, in one version",
        ))
    }

    fn describe(&self) -> String {
        "one version of modules, libraries and services of the driver".into()
    }
}

/// The kernels that a boot may start now: the running one and the newest, where their modules are installed.
fn kernels(host: &Host) -> Result<Vec<String>> {
    let running = driver::kernel(host)?;
    let mut installed = host.files.list("/lib/modules")?;
    installed.sort_by(|a, b| compare_versions(a, b));
    let mut newest = None;
    for kernel in installed.iter().rev() {
        if newest.is_none() && host.files.exists(format!("/boot/vmlinuz-{kernel}"))? {
            newest = Some(kernel.clone());
        }
    }
    let mut kernels: Vec<String> = installed.into_iter().filter(|k| *k == running).collect();
    kernels.extend(newest.filter(|k| *k != running));
    Ok(kernels)
}

/// The module that a boot of the kernel would load.
async fn module(host: &Host, kernel: &str) -> Result<Option<Module>> {
    for name in MODULE_NAMES {
        let call = Call::new("modinfo").args(["-k", kernel, *name]).limit(MODINFO_LIMIT);
        match host.exec.output(&call).await {
            Ok(output) if output.ok() => return Ok(read_modinfo(&output.text())),
            Ok(_) => {}
            Err(e) if e.code() == Code::Exec => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// From `name:   value` lines.
fn read_modinfo(text: &str) -> Option<Module> {
    let field = |name: &str| {
        let values = text.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        values.map(str::trim).find(|v| !v.is_empty()).map(str::to_owned)
    };
    Some(Module { version: field("version")?, signer: field("signer") })
}

/// `signed by …`, or why nobody asks for that.
fn signature(host: &Host, module: &Module) -> Result<String> {
    Ok(match &module.signer {
        Some(signer) => format!("(signed by {signer})"),
        None if secure_boot(host)?.value => "(not signed, although Secure Boot is on)".into(),
        None => "(not signed; Secure Boot is off)".into(),
    })
}

/// Whether the package has the driver's version: what comes along (`nvlsm`, `libibumad3`) has one of its own.
fn goes_with_the_driver(name: &str) -> bool {
    ["nvidia-fabricmanager", "nvidia-fabric-manager", "nvidia-imex"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// `1:580.95.05-1` → `580.95.05`
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split_once('-').map_or(version, |(upstream, _)| upstream)
}

async fn build(host: &Host, kernel: &str) -> Result<()> {
    let call = Call::new("dkms").args(["autoinstall", "-k", kernel]).limit(BUILD_LIMIT);
    match host.exec.output(&call).await {
        Ok(output) if output.ok() => Ok(()),
        Ok(output) => {
            let error = module_build::failure(host, kernel)?.unwrap_or_else(|| {
                Error::new(
                    Code::ModuleBuildFailed,
                    format!("DKMS could not build modules for kernel {kernel}"),
                )
            });
            Err(error.because(output.tail()))
        }
        // Modules that the distribution has built: there is nothing to build them with.
        Err(e) if e.code() == Code::Exec => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::tests::machine;
    use super::*;
    use crate::host::ld_cache::tests::cache;

    const KERNEL: &str = "6.8.0-1021-aws";
    const NEWER: &str = "6.8.0-1040-aws";

    #[test]
    fn modinfo_and_package_versions_are_read() {
        let text = "filename:       /lib/modules/x/nvidia.ko\nversion:        580.82.07\nsrcversion:     AB\nsigner:         DKMS key\n";
        let module = Module { version: "580.82.07".into(), signer: Some("DKMS key".into()) };
        assert_eq!(read_modinfo(text), Some(module));
        assert_eq!(read_modinfo("filename: x\nsrcversion: AB\n"), None);
        assert_eq!(upstream("1:580.82.07-0ubuntu1"), "580.82.07");
        assert_eq!(upstream("535.261.03-1"), "535.261.03");
    }

    #[tokio::test]
    async fn the_running_and_the_newest_kernel_count() {
        let (_dir, host) = machine();
        for kernel in [KERNEL, NEWER, "6.8.0-1009-aws", "6.8.0-1050-aws"] {
            host.files.make_dir(format!("/lib/modules/{kernel}"), 0o755).unwrap();
        }
        // The last one's kernel has been removed.
        for kernel in [KERNEL, NEWER, "6.8.0-1009-aws"] {
            host.files.write(format!("/boot/vmlinuz-{kernel}"), b"", 0o644).unwrap();
        }
        assert_eq!(kernels(&host).unwrap(), [KERNEL, NEWER]);
    }

    #[tokio::test]
    async fn a_kernel_with_headers_and_without_a_module_is_built_for_or_the_compiler_says_why_not() {
        let (_dir, host) = machine();
        host.files.symlink("/usr/lib/libcuda.so.1", "libcuda.so.580.82.07").unwrap();
        let listed = cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1")]);
        host.files.write("/etc/ld.so.cache", &listed, 0o644).unwrap();
        host.files.write(format!("/lib/modules/{KERNEL}/build/Makefile"), b"", 0o644).unwrap();
        host.files.write("/var/lib/dpkg/status", b"", 0o644).unwrap();
        let action = DriverMatch { companions: Vec::new() };
        let check = action.check(&host).await.unwrap();
        assert_eq!(
            check,
            Check::satisfied("libraries 580.82.07 are alone"),
            "nothing is built on this machine"
        );
        let log =
            format!("DKMS make.log for nvidia-580.82.07 for kernel {KERNEL} (x86_64)\nnv.c:1:2: error: no\n");
        host.files.write("/var/lib/dkms/nvidia/580.82.07/build/make.log", log.as_bytes(), 0o644).unwrap();
        let check = action.check(&host).await.unwrap();
        assert_eq!(check, Check::needed(format!("no module was built for kernel {KERNEL}")));
        let error = action.apply(&host).await.unwrap_err();
        assert_eq!(error.code(), Code::ModuleBuildFailed);
        assert!(error.message().contains("nv.c:1:2: error: no"), "{error}");
    }

    #[tokio::test]
    async fn a_companion_of_another_version_is_named_and_others_are_not_asked() {
        let (_dir, host) = machine();
        host.files.symlink("/usr/lib/libcuda.so.1", "libcuda.so.580.82.07").unwrap();
        host.files
            .write("/etc/ld.so.cache", &cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1")]), 0o644)
            .unwrap();
        let stanza = |name: &str, version: &str| {
            format!("Package: {name}\nStatus: hold ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
        };
        let put = |fabric: &str| {
            let text = [stanza("nvidia-fabricmanager", fabric), stanza("nvlsm", "2025.03-1")].concat();
            host.files.write("/var/lib/dpkg/status", text.as_bytes(), 0o644).unwrap();
        };
        let action = DriverMatch { companions: vec!["nvidia-fabricmanager=580.*".into(), "nvlsm".into()] };
        put("580.82.07-1");
        let check = action.check(&host).await.unwrap();
        assert_eq!(check, Check::satisfied("libraries 580.82.07, nvidia-fabricmanager"));
        put("580.95.05-1");
        let check = action.check(&host).await.unwrap();
        assert_eq!(
            check,
            Check::needed("nvidia-fabricmanager is 580.95.05, and the driver's libraries are 580.82.07")
        );
        let error = action.apply(&host).await.unwrap_err();
        assert_eq!(error.code(), Code::DriverMismatch);
    }
}
