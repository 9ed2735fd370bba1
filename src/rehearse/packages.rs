//! The simulated packages: small, with the names that the plan asks for, and with what later steps and the device
//! query look for: sonames, `nvcc`, a maintainer script with alternatives, a systemd unit, kernel modules.

use std::collections::BTreeMap;

use super::deb::{Content, Package};
use super::driver;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::facts::os::Arch;

/// Where the simulated module packages put their modules, below `/lib/modules/<kernel>`; DKMS's own place.
pub(super) const MODULES_DIR: &str = "updates/dkms";
/// A file of the simulated fabric manager that holds its version.
pub(super) const FABRIC_MANAGER_VERSION: &str = "/usr/share/nvidia/fabricmanager.version";

/// Every simulated driver has the second and third part of a release of branch 580.
const DRIVER_RELEASE: &str = "95.05";
const CUDNN_RELEASE: &str = "8.0.87";

/// What the packages depend on besides their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// The machine's architecture.
    pub(super) arch: Arch,
    /// Whether this is Debian or a child of it (as opposed to Ubuntu): library packages have other names.
    pub(super) debian: bool,
    /// Branch of the driver, where one is wanted.
    pub(super) driver_branch: &'a str,
    /// Version of the default toolkit, where one is wanted: the distribution's package does not name it.
    pub(super) toolkit: &'a str,
}

/// A package as the plan asks for it: `name` or `name=version`, where the version may end in a star.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted<'a> {
    name: &'a str,
    version: Option<String>,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, version) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
        Self { name, version: version.map(concrete) }
    }
}

/// Some version that the pattern matches: `580.95.05-*` → `580.95.05-1`.
fn concrete(pattern: &str) -> String {
    let stem = pattern.replace('*', "");
    match stem {
        s if s.ends_with('-') => s + "1",
        s if s.ends_with('.') => s + "1-1",
        s if s.contains('-') => s,
        s => s + "-1",
    }
}

/// Every package that installing `wanted` takes.
pub(super) fn make(wanted: &[String], setting: Setting) -> Result<Vec<Package>> {
    let wanted: Vec<Wanted> = wanted.iter().map(|w| Wanted::parse(w)).collect();
    let driver = Driver::of(&wanted, setting);
    let mut all = BTreeMap::new();
    for w in &wanted {
        for package in role(w.name).packages(w, &driver, setting)? {
            all.entry(package.name.clone()).or_insert(package);
        }
    }
    Ok(all.into_values().collect())
}

/// What a package is for, told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Toolkit,
    Cudnn,
    FabricManager,
    Driver,
    DriverLibrary,
    KernelModule,
    Other,
}

fn role(name: &str) -> Role {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    if name.contains("cudnn") {
        Role::Cudnn
    } else if name.contains("fabricmanager") || name.contains("fabric-manager") {
        Role::FabricManager
    } else if starts(&["cuda-toolkit", "nvidia-cuda-toolkit"]) {
        Role::Toolkit
    } else if starts(&["libcuda1", "libnvidia-compute"]) {
        Role::DriverLibrary
    } else if starts(&["nvidia-dkms", "nvidia-kernel", "linux-modules-nvidia"])
        || name.ends_with("kernel-dkms")
        || name.ends_with("kernel-open-dkms")
    {
        Role::KernelModule
    } else if starts(&["nvidia-open", "nvidia-driver", "nvidia-headless", "nvidia-tesla", "cuda-drivers"])
        && !name.contains("pinning")
    {
        Role::Driver
    } else {
        Role::Other
    }
}

/// The one driver that all driver packages of a plan make up.
struct Driver {
    /// `580.95.05`
    version: String,
    open: bool,
    library: String,
    module: String,
}

impl Driver {
    fn of(wanted: &[Wanted], setting: Setting) -> Self {
        let is_driver = |w: &&Wanted| {
            matches!(
                role(w.name),
                Role::Driver | Role::DriverLibrary | Role::KernelModule | Role::FabricManager
            ) || w.name.contains("pinning")
        };
        let named: Vec<_> = wanted.iter().filter(is_driver).collect();
        let exact = named.iter().find_map(|w| w.version.as_deref()).map(upstream);
        let branch = (exact.and_then(|v| v.split('.').next())).unwrap_or(setting.driver_branch).to_owned();
        let version = exact.map_or_else(|| format!("{branch}.{DRIVER_RELEASE}"), str::to_owned);
        let open = named.iter().any(|w| w.name.split('-').any(|part| part == "open"));
        let of_role = |wished: Role| named.iter().find(|w| role(w.name) == wished).map(|w| w.name.to_owned());
        let library = of_role(Role::DriverLibrary).unwrap_or_else(|| {
            if setting.debian { "libcuda1".to_owned() } else { format!("libnvidia-compute-{branch}") }
        });
        let module = of_role(Role::KernelModule).unwrap_or_else(|| match (setting.debian, open) {
            (true, true) => "nvidia-kernel-open-dkms".to_owned(),
            (true, false) => "nvidia-kernel-dkms".to_owned(),
            (false, true) => format!("nvidia-dkms-{branch}-open"),
            (false, false) => format!("nvidia-dkms-{branch}"),
        });
        Self { version, open, library, module }
    }

    fn package_version(&self) -> String {
        format!("{}-1", self.version)
    }
}

/// `1:580.95.05-1` → `580.95.05`
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, v)| v);
    version.rsplit_once('-').map_or(version, |(v, _)| v)
}

impl Role {
    fn packages(self, wanted: &Wanted, driver: &Driver, setting: Setting) -> Result<Vec<Package>> {
        Ok(match self {
            Self::Toolkit => toolkit(wanted, setting)?,
            Self::Cudnn => cudnn(wanted, setting)?,
            Self::FabricManager => vec![fabric_manager(wanted, driver, setting)],
            Self::Driver => {
                let version = wanted.version.clone().unwrap_or_else(|| driver.package_version());
                let mut package = base(wanted.name, &version, "NVIDIA driver", setting);
                package.depends = vec![driver.library.clone(), driver.module.clone()];
                vec![package, library(driver, setting)?, module(driver, setting)]
            }
            Self::DriverLibrary => vec![library(driver, setting)?],
            Self::KernelModule => vec![module(driver, setting)],
            Self::Other => {
                let version = wanted.version.clone().unwrap_or_else(|| "1.0-1".into());
                vec![base(wanted.name, &version, "package", setting)]
            }
        })
    }
}

/// A package that holds a note about itself and nothing else.
fn base(name: &str, version: &str, what: &str, setting: Setting) -> Package {
    let note =
        format!("{name} {version}: simulated by gpu-bootstrap rehearse; it holds nothing of NVIDIA's.\n");
    Package {
        name: name.into(),
        version: version.into(),
        architecture: match setting.arch {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        },
        depends: Vec::new(),
        description: format!("{what}, simulated by gpu-bootstrap rehearse"),
        scripts: BTreeMap::new(),
        linker_cache: false,
        files: BTreeMap::from([(format!("/usr/share/doc/{name}/README"), Content::File(note.into_bytes()))]),
    }
}

/// Debian's multiarch directory.
fn library_dir(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "/usr/lib/x86_64-linux-gnu",
        Arch::Arm64 => "/usr/lib/aarch64-linux-gnu",
    }
}

/// A library file and the links that its packages carry. `says` is the version that the library gives when it is
/// asked.
fn add_library(package: &mut Package, dir: &str, soname: &str, full: &str, says: &str) -> Result<()> {
    let file = soname.split(".so").next().unwrap_or(soname);
    let name = format!("{file}.so.{full}");
    package.linker_cache |= dir.starts_with("/usr/lib/");
    package.files.insert(format!("{dir}/{name}"), Content::File(driver::library(soname, says)?));
    if name != soname {
        package.files.insert(format!("{dir}/{soname}"), Content::Link(name));
    }
    Ok(())
}

fn library(driver: &Driver, setting: Setting) -> Result<Package> {
    let mut package = base(&driver.library, &driver.package_version(), "NVIDIA driver libraries", setting);
    let cuda = Catalog::embedded()?.newest_toolkit_of(&driver.version).unwrap_or_else(|| "11.0".into());
    for (soname, says) in [("libcuda.so.1", &cuda), ("libnvidia-ml.so.1", &driver.version)] {
        add_library(&mut package, library_dir(setting.arch), soname, &driver.version, says)?;
    }
    Ok(package)
}

/// "Builds" its modules for the running kernel when it is configured, as DKMS would.
fn module(driver: &Driver, setting: Setting) -> Package {
    let mut package = base(&driver.module, &driver.package_version(), "NVIDIA kernel modules", setting);
    let source = format!("/usr/src/nvidia-{}/simulated.ko", driver.version);
    let flavour = if driver.open { "open" } else { "proprietary" };
    let content = format!("version={}\nflavour={flavour}\n", driver.version);
    package.files.insert(source.clone(), Content::File(content.into_bytes()));
    let build = format!(
        "dir=\"/lib/modules/$(uname -r)/{MODULES_DIR}\"\nmkdir -p \"$dir\"\n\
         for module in nvidia nvidia-uvm nvidia-modeset nvidia-drm; do cp {source} \"$dir/$module.ko\"; done"
    );
    package.scripts.insert("postinst", build);
    package.scripts.insert("postrm", format!("rm -f \"/lib/modules/$(uname -r)/{MODULES_DIR}\"/nvidia*.ko"));
    package
}

fn fabric_manager(wanted: &Wanted, driver: &Driver, setting: Setting) -> Package {
    let version = wanted.version.clone().unwrap_or_else(|| driver.package_version());
    let mut package = base(wanted.name, &version, "NVIDIA fabric manager", setting);
    let unit = "[Unit]\nDescription=NVIDIA fabric manager (simulated)\n\n\
                [Service]\nExecStart=/usr/bin/nv-fabricmanager\n\n[Install]\nWantedBy=multi-user.target\n";
    let program = "#!/bin/sh\necho 'simulated by gpu-bootstrap rehearse'\n";
    let running = upstream(&version).to_owned().into_bytes();
    package.files.extend([
        ("/lib/systemd/system/nvidia-fabricmanager.service".to_owned(), Content::File(unit.into())),
        ("/usr/bin/nv-fabricmanager".to_owned(), Content::Program(program.into())),
        (FABRIC_MANAGER_VERSION.to_owned(), Content::File(running)),
    ]);
    package
}

/// `cuda-toolkit-12-8` with its compiler, runtime and alternatives as packages of their own; or the distribution's
/// toolkit, whose files lie in `/usr`.
fn toolkit(wanted: &Wanted, setting: Setting) -> Result<Vec<Package>> {
    let numbers = wanted.name.strip_prefix("cuda-toolkit-").unwrap_or_default();
    let Some((major, minor)) = numbers.split_once('-').filter(|_| wanted.name.starts_with("cuda-toolkit-"))
    else {
        let version = wanted.version.clone().unwrap_or_else(|| format!("{}.0-1", setting.toolkit));
        let mut package = base(wanted.name, &version, "CUDA toolkit", setting);
        package.files.insert("/usr/bin/nvcc".into(), compiler(upstream(&version)));
        let (major, minor) = setting.toolkit.split_once('.').unwrap_or(("11", "8"));
        for library in libraries(major, minor) {
            library.add(&mut package, library_dir(setting.arch))?;
        }
        return Ok(vec![package]);
    };
    let version = wanted.version.clone().unwrap_or_else(|| format!("{major}.{minor}.0-1"));
    let home = format!("/usr/local/cuda-{major}.{minor}");
    let target = match setting.arch {
        Arch::Amd64 => "targets/x86_64-linux/lib",
        Arch::Arm64 => "targets/sbsa-linux/lib",
    };
    let part = |name: &str| format!("cuda-{name}-{numbers}");

    let mut nvcc = base(&part("nvcc"), &version, "CUDA compiler", setting);
    nvcc.files.insert(format!("{home}/bin/nvcc"), compiler(&format!("{major}.{minor}")));
    nvcc.files.insert(format!("{home}/lib64"), Content::Link(target.into()));
    let mut parts = vec![nvcc];
    for (library, name) in
        libraries(major, minor).iter().zip([part("cudart"), format!("libcublas-{numbers}")])
    {
        let mut package = base(&name, &format!("{}-1", library.version), "CUDA library", setting);
        library.add(&mut package, &format!("{home}/{target}"))?;
        parts.push(package);
    }
    let mut config = base(&format!("{}-config-common", wanted.name), &version, "CUDA alternatives", setting);
    let priority = format!("{major}{minor}");
    let install = format!("update-alternatives --install /usr/local/cuda cuda {home} {priority}");
    config.scripts.insert("postinst", install);
    config.scripts.insert("prerm", format!("update-alternatives --remove cuda {home}"));
    parts.push(config);

    let mut whole = base(wanted.name, &version, "CUDA toolkit", setting);
    whole.depends = parts.iter().map(|p| p.name.clone()).collect();
    parts.push(whole);
    Ok(parts)
}

/// A library of a toolkit.
struct Library {
    soname: String,
    version: String,
}

impl Library {
    fn add(&self, package: &mut Package, dir: &str) -> Result<()> {
        add_library(package, dir, &self.soname, &self.version, &self.version)
    }
}

/// The runtime and cuBLAS of a toolkit.
fn libraries(major: &str, minor: &str) -> [Library; 2] {
    // Up to 11 the runtime's soname holds the minor version (11.x: always 11.0), from 12 on the major one only.
    let (cudart, cublas) = match major.parse().unwrap_or(0) {
        12.. => (format!("libcudart.so.{major}"), format!("{major}.{minor}.5")),
        11 => ("libcudart.so.11.0".to_owned(), "11.11.3".to_owned()),
        _ => (format!("libcudart.so.{major}.{minor}"), format!("{major}.{minor}.0")),
    };
    [
        Library { soname: cudart, version: format!("{major}.{minor}.90") },
        Library { soname: format!("libcublas.so.{major}"), version: cublas },
    ]
}

fn compiler(version: &str) -> Content {
    Content::Program(format!(
        "#!/bin/sh\necho 'nvcc: simulated by gpu-bootstrap rehearse, release {version}'\n"
    ))
}

/// cuDNN's major version follows the word in the package's name: `libcudnn9-cuda-12`, `cudnn9-cuda-12`, `libcudnn8`.
/// Only the library package owns the library; `cudnn9-…` is a metapackage above it.
fn cudnn(wanted: &Wanted, setting: Setting) -> Result<Vec<Package>> {
    let tail = wanted.name.split_once("cudnn").map_or("", |(_, tail)| tail);
    let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
    let major = if digits.is_empty() { "8".to_owned() } else { digits };
    let version = wanted.version.clone().unwrap_or_else(|| format!("{major}.{CUDNN_RELEASE}-1"));
    let mut asked = base(wanted.name, &version, "cuDNN", setting);
    if wanted.name.contains("-dev") || wanted.name.contains("-headers") {
        return Ok(vec![asked]);
    }
    let add_files = |package: &mut Package| {
        let soname = format!("libcudnn.so.{major}");
        add_library(package, library_dir(setting.arch), &soname, upstream(&version), upstream(&version))
    };
    if !wanted.name.starts_with("cudnn") {
        add_files(&mut asked)?;
        return Ok(vec![asked]);
    }
    let mut library = base(&format!("lib{}", wanted.name), &version, "cuDNN", setting);
    add_files(&mut library)?;
    asked.depends = vec![library.name.clone()];
    Ok(vec![asked, library])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: Setting =
        Setting { arch: Arch::Amd64, debian: true, driver_branch: "580", toolkit: "11.8" };
    const UBUNTU: Setting = Setting { debian: false, ..DEBIAN };

    fn names(packages: &[Package]) -> Vec<&str> {
        packages.iter().map(|p| p.name.as_str()).collect()
    }

    fn made(wanted: &[&str], setting: Setting) -> Vec<Package> {
        make(&wanted.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(), setting).unwrap()
    }

    fn named<'a>(all: &'a [Package], name: &str) -> &'a Package {
        all.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name} in {:?}", names(all)))
    }

    #[test]
    fn a_driver_brings_its_libraries_and_modules_in_one_version() {
        let all = made(&["nvidia-open-580", "nvidia-fabricmanager"], DEBIAN);
        assert_eq!(names(&all).len(), 4);
        assert!(all.iter().all(|p| p.version == "580.95.05-1"), "{all:?}");
        let library = named(&all, "libcuda1");
        assert!(library.files.contains_key("/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05"));
        assert!(named(&all, "nvidia-kernel-open-dkms").scripts.contains_key("postinst"));
        named(&made(&["cuda-drivers-535=535.309.01-*"], UBUNTU), "nvidia-dkms-535");
    }

    #[test]
    fn wished_versions_are_met() {
        for (pattern, version) in
            [("580.95.05-*", "580.95.05-1"), ("9.8.0.*", "9.8.0.1-1"), ("12.8.1-1", "12.8.1-1")]
        {
            assert_eq!(concrete(pattern), version);
        }
        let all = made(&["libcudnn9-cuda-12=9.8.0.*"], UBUNTU);
        assert!(all[0].files.contains_key("/usr/lib/x86_64-linux-gnu/libcudnn.so.9.8.0.1"), "{all:?}");
    }

    #[test]
    fn every_dependency_is_there() {
        let wanted = ["nvidia-open-580", "cuda-toolkit-12-8", "cuda-toolkit-11-8", "cudnn9-cuda-12", "dkms"];
        for setting in [DEBIAN, UBUNTU] {
            let all = made(&wanted, setting);
            for dependency in all.iter().flat_map(|p| &p.depends) {
                named(&all, dependency);
            }
        }
    }
}
