//! The specification itself: its shape, and what the machine says now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::counted;
use crate::action::driver::module_version;
use crate::error::Result;
use crate::facts::gpu::driver::{DrivenGpu, information};
use crate::host::Host;

/// The oldest version that has what is used here: a device's name may begin with a digit since 0.5.0.
const CDI_VERSION: &str = "0.5.0";
pub(super) const KIND: &str = "nvidia.com/gpu";
const DRIVEN: &str = "/proc/driver/nvidia/gpus";
/// Without these nothing computes; they may lie under a name without a version.
const ESSENTIAL: [&str; 2] = ["libcuda.so.1", "libnvidia-ml.so.1"];
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
const MOUNT_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    pub(super) container_edits: Edits,
    pub(super) devices: Vec<Device>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) container_edits: Edits,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) device_nodes: Vec<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) hooks: Vec<Hook>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    pub(super) options: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    #[serde(rename = "hookName")]
    pub(super) stage: String,
    pub(super) path: String,
    pub(super) args: Vec<String>,
}

/// What the machine says now, or why it says nothing.
pub(super) fn describe(host: &Host) -> Result<Result<Spec, String>> {
    let Some(version) = module_version(host)? else {
        return Ok(
            Err("no NVIDIA driver is loaded, so nothing says which GPUs a container could get".into()),
        );
    };
    let gpus = driven(host)?;
    if gpus.is_empty() {
        return Ok(Err(format!("the loaded driver {version} drives no GPU")));
    }
    let mounts = match libraries(host, &version)? {
        Ok(libraries) => libraries.into_iter().chain(programs(host)?),
        Err(why) => return Ok(Err(why)),
    };
    let mounts: Vec<Mount> = mounts
        .map(|(container_path, host_path)| Mount {
            host_path,
            container_path,
            options: MOUNT_OPTIONS.map(str::to_owned).to_vec(),
        })
        .collect();
    let mut devices = Vec::new();
    for (index, gpu) in gpus.iter().enumerate() {
        let nodes = nodes(host, gpu, index)?;
        for name in std::iter::once(index.to_string()).chain(gpu.uuid.clone()) {
            devices.push(Device { name, container_edits: with_nodes(nodes.clone()) });
        }
    }
    let mut all: Vec<Node> = devices.iter().flat_map(|d| d.container_edits.device_nodes.clone()).collect();
    all.dedup();
    devices.push(Device { name: "all".into(), container_edits: with_nodes(all) });
    let container_edits = Edits {
        // NVIDIA's runtime, were it asked for the same container, must not add the GPUs a second time.
        env: vec!["NVIDIA_VISIBLE_DEVICES=void".into()],
        device_nodes: common_nodes(host)?,
        hooks: hook(host, &mounts)?.into_iter().collect(),
        mounts,
    };
    Ok(Ok(Spec { cdi_version: CDI_VERSION.into(), kind: KIND.into(), container_edits, devices }))
}

/// The GPUs that the loaded module drives, in the order of their addresses, which is NVML's.
pub(in crate::action) fn driven(host: &Host) -> Result<Vec<DrivenGpu>> {
    let mut gpus = Vec::new();
    for name in host.files.list(DRIVEN)? {
        let text = host.files.read_text(format!("{DRIVEN}/{name}/information"))?.unwrap_or_default();
        gpus.push(information(&name, &text));
    }
    gpus.retain(|gpu| !gpu.excluded);
    Ok(gpus)
}

fn with_nodes(device_nodes: Vec<Node>) -> Edits {
    Edits { device_nodes, ..Edits::default() }
}

fn nodes(host: &Host, gpu: &DrivenGpu, index: usize) -> Result<Vec<Node>> {
    let minor = gpu.minor.map_or_else(|| index.to_string(), |minor| minor.to_string());
    let mut paths = vec![format!("/dev/nvidia{minor}")];
    // Only where nvidia-drm is loaded: for graphics and video.
    let drm = host.files.list(format!("/sys/bus/pci/devices/{}/drm", gpu.address))?;
    paths.extend(
        drm.iter()
            .filter(|n| n.starts_with("card") || n.starts_with("render"))
            .map(|n| format!("/dev/dri/{n}")),
    );
    Ok(paths.into_iter().map(|path| Node { path }).collect())
}

fn common_nodes(host: &Host) -> Result<Vec<Node>> {
    let mut names = vec!["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"];
    if host.files.exists("/sys/module/nvidia_modeset")? {
        names.push("nvidia-modeset");
    }
    Ok(names.into_iter().map(|name| Node { path: format!("/dev/{name}") }).collect())
}

type Paths = BTreeMap<PathBuf, PathBuf>;

/// The driver's libraries as the dynamic linker finds them: path in a container → file here. A library belongs to the
/// loaded driver when its file's name ends with the driver's version.
fn libraries(host: &Host, version: &str) -> Result<Result<Paths, String>> {
    let ending = format!(".so.{version}");
    let mut paths = Paths::new();
    let mut missing: Vec<&str> = ESSENTIAL.to_vec();
    let mut other = None;
    for library in host.linker_cache()? {
        // Libraries for 32-bit programs.
        if library.path.components().any(|c| c.as_os_str() == "i386-linux-gnu" || c.as_os_str() == "lib32") {
            continue;
        }
        let Some(real) = host.files.real_path(&library.path)? else { continue };
        let file = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_essential = ESSENTIAL.contains(&library.soname.as_str());
        let is_ours = file.ends_with(&ending) || is_essential && file == library.soname;
        if !is_ours {
            if is_essential {
                other = Some(real.display().to_string());
            }
            continue;
        }
        missing.retain(|soname| *soname != library.soname);
        let path = in_usr(&library.path);
        paths.insert(path.with_file_name(&file), real.clone());
        paths.insert(path, real);
    }
    Ok(match (missing.first(), other) {
        (None, _) => Ok(paths),
        (Some(soname), None) => {
            Err(format!("the dynamic linker knows no {soname}, so there is no driver to give a container"))
        }
        (Some(_), Some(other)) => Err(format!(
            "driver {version} is loaded, and the dynamic linker finds the libraries of another: {other}"
        )),
    })
}

/// `/lib/…` is the same directory, but not in every image.
fn in_usr(path: &Path) -> PathBuf {
    path.strip_prefix("/lib").map_or_else(|_| path.to_path_buf(), |rest| Path::new("/usr/lib").join(rest))
}

fn programs(host: &Host) -> Result<Paths> {
    let mut paths = Paths::new();
    for name in PROGRAMS {
        let path = Path::new("/usr/bin").join(name);
        if let Some(real) = host.files.real_path(&path)? {
            paths.insert(path, real);
        }
    }
    Ok(paths)
}

/// NVIDIA's own hook, by the program that has it.
fn hook(host: &Host, mounts: &[Mount]) -> Result<Option<Hook>> {
    let mut folders: Vec<String> = mounts
        .iter()
        .filter(|m| m.container_path.to_string_lossy().contains(".so"))
        .filter_map(|m| Some(m.container_path.parent()?.display().to_string()))
        .collect();
    folders.dedup();
    for (program, before) in [("nvidia-cdi-hook", &[][..]), ("nvidia-ctk", &["hook"][..])] {
        let path = format!("/usr/bin/{program}");
        if !host.files.exists(&path)? {
            continue;
        }
        let mut args: Vec<String> =
            std::iter::once(&program).chain(before).map(|s| (*s).to_owned()).collect();
        args.push("update-ldcache".into());
        args.extend(folders.into_iter().flat_map(|folder| ["--folder".to_owned(), folder]));
        return Ok(Some(Hook { stage: "createContainer".into(), path, args }));
    }
    Ok(None)
}

impl Spec {
    pub(super) fn gpus(&self) -> usize {
        self.devices.iter().filter(|d| d.name.bytes().all(|b| b.is_ascii_digit())).count()
    }

    pub(super) fn all_nodes(&self) -> impl Iterator<Item = &str> {
        let edits =
            std::iter::once(&self.container_edits).chain(self.devices.iter().map(|d| &d.container_edits));
        edits.flat_map(|e| &e.device_nodes).map(|n| n.path.as_str())
    }

    /// How what was found is not this.
    pub(super) fn differs(&self, found: &Self) -> Option<String> {
        if self == found {
            return None;
        }
        if self.devices != found.devices {
            return Some(format!("describes other devices than the {} here", counted(self.gpus())));
        }
        let gone = found.container_edits.mounts.iter().find(|m| !self.container_edits.mounts.contains(m));
        let new = self.container_edits.mounts.iter().find(|m| !found.container_edits.mounts.contains(m));
        Some(match (gone, new) {
            (Some(gone), _) => {
                format!("names {}, which is not the driver's any more", gone.host_path.display())
            }
            (None, Some(new)) => format!("lacks {}", new.host_path.display()),
            (None, None) => "is not what this machine's driver asks for".into(),
        })
    }
}
