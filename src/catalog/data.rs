//! Reading the catalog: the embedded files, or a directory whose files take their place.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::tables::{Gpus, Instances};
use crate::error::{Code, Error, Result};
use crate::facts::os::Arch;
use crate::plan::step::position;

include!(concat!(env!("OUT_DIR"), "/catalog.rs")); // pub const EMBEDDED: &[(&str, &str)]

/// PCI vendor NVIDIA.
const NVIDIA: u16 = 0x10de;
/// 3D controller, the class of every data centre GPU since Kepler but the GRID K520 and the Tesla M60.
const CLASS_3D: u16 = 0x0302;

/// The catalog, read from the embedded files or from a directory given by `--catalog DIR`.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub(crate) gpus: Gpus,
    pub(crate) instances: Instances,
}

/// An accelerated EC2 instance type: what its PCI bus holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceType {
    /// `g5.xlarge`
    pub name: String,
    /// `g5`
    pub family: String,
    /// Processor architecture.
    pub arch: Arch,
    /// PCI vendor of the accelerator (0x10de: NVIDIA).
    pub vendor: u16,
    /// PCI device id of the GPU, where known.
    pub device: Option<u16>,
    /// PCI class of the GPU (0x0300 or 0x0302 on NVIDIA).
    pub class: u16,
    /// PCI subsystem device id, for fractional GPUs.
    pub subsystem: Option<u16>,
    /// GPUs.
    pub gpus: u32,
    /// NVSwitch PCI device id; `None` without NVSwitch.
    pub nvswitch: Option<u16>,
    /// NVSwitches on the bus.
    pub nvswitches: u32,
    /// Marketing name of the GPU, for people.
    pub gpu_name: String,
}

/// A file of the catalog: its name for messages, and its text.
struct Source {
    shown: String,
    text: String,
}

impl Catalog {
    /// The catalog that was built in.
    pub fn embedded() -> Result<Self> {
        Self::read(&embedded())
    }

    /// The embedded catalog with the files of `dir` taking the place of the embedded ones of the same name
    /// (for a repository that is signed again by its mirror, and for rehearsals).
    pub fn with_overrides(dir: &Path) -> Result<Self> {
        let mut sources = embedded();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
            let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(source) = sources.get_mut(&name) {
                source.text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
                source.shown = path.display().to_string();
            }
        }
        Self::read(&sources)
    }

    fn read(sources: &BTreeMap<String, Source>) -> Result<Self> {
        Ok(Self { gpus: parse(sources, "gpus.toml")?, instances: parse(sources, "instances.toml")? })
    }

    /// An accelerated instance type by name; `None` for every other type, and for a size that is not known.
    pub fn instance_type(&self, name: &str) -> Option<InstanceType> {
        let (family, size) = name.split_once('.')?;
        self.nvidia_type(name, family, size).or_else(|| self.refused_type(name, family))
    }

    fn nvidia_type(&self, name: &str, family: &str, size: &str) -> Option<InstanceType> {
        let row = self.instances.family.iter().find(|f| f.name == family)?;
        let gpus = *row.sizes.get(size)?;
        // One GPU alone has no switch: p5.4xlarge.
        let nvswitch = row.nvswitch.filter(|_| gpus > 1);
        Some(InstanceType {
            name: name.to_owned(),
            family: family.to_owned(),
            arch: row.arch,
            vendor: NVIDIA,
            device: Some(row.gpu.0),
            class: row.class.map_or(CLASS_3D, |c| c.0),
            subsystem: row.subsystems.get(size).map(|s| s.0),
            gpus,
            nvswitch: nvswitch.map(|s| s.0),
            nvswitches: if nvswitch.is_some() { row.nvswitches } else { 0 },
            gpu_name: self.gpu_name(row.gpu.0),
        })
    }

    /// Accelerators that CUDA cannot use: one device stands for however many there are.
    fn refused_type(&self, name: &str, family: &str) -> Option<InstanceType> {
        let row = self.instances.refused.iter().find(|r| r.families.iter().any(|f| f == family))?;
        let id = row.ids.first();
        Some(InstanceType {
            name: name.to_owned(),
            family: family.to_owned(),
            arch: Arch::Amd64,
            vendor: id.map_or(0, |id| id.0),
            device: id.map(|id| id.1),
            class: row.class.map_or(0, |c| c.0),
            subsystem: None,
            gpus: 1,
            nvswitch: None,
            nvswitches: 0,
            gpu_name: row.accelerator.clone(),
        })
    }

    /// The name of a GPU for people; its id when the catalog does not list it.
    pub fn gpu_name(&self, device: u16) -> String {
        let row = self.gpus.gpu.iter().find(|g| g.id.0 == device);
        row.map_or_else(|| format!("NVIDIA GPU 10de:{device:04x}"), |g| format!("NVIDIA {}", g.name))
    }
}

fn embedded() -> BTreeMap<String, Source> {
    let files = EMBEDDED.iter();
    files
        .map(|(name, text)| {
            let shown = format!("steps/catalog/{name}");
            ((*name).to_owned(), Source { shown, text: (*text).to_owned() })
        })
        .collect()
}

fn parse<T: DeserializeOwned>(sources: &BTreeMap<String, Source>, name: &str) -> Result<T> {
    let Some(Source { shown, text }) = sources.get(name) else {
        return Err(Error::new(Code::CatalogInvalid, format!("the catalog has no {name}")));
    };
    toml::from_str(text).map_err(|e| {
        let (line, column) = e.span().map_or((1, 1), |s| position(text, s.start));
        Error::new(Code::CatalogInvalid, format!("{shown}:{line}:{column}: {}", e.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_type_tells_what_its_bus_holds() {
        let catalog = Catalog::embedded().unwrap();
        let p5 = catalog.instance_type("p5.48xlarge").unwrap();
        assert_eq!((p5.device, p5.gpus, p5.nvswitch, p5.nvswitches), (Some(0x2330), 8, Some(0x22a3), 4));
        let small = catalog.instance_type("p5.4xlarge").unwrap();
        assert_eq!((small.gpus, small.nvswitch, small.nvswitches), (1, None, 0));
        let slice = catalog.instance_type("g6f.2xlarge").unwrap();
        assert_eq!((slice.device, slice.subsystem), (Some(0x27b8), Some(0x1735)));
        assert_eq!(catalog.instance_type("g3.8xlarge").unwrap().class, 0x0300);
        assert_eq!(catalog.instance_type("g5g.xlarge").unwrap().arch, Arch::Arm64);
        assert_eq!(catalog.instance_type("g4ad.xlarge").unwrap().vendor, 0x1002);
        for unknown in ["t2.medium", "g5.12345xlarge", "g5", "", "g5.xlarge.extra"] {
            assert!(catalog.instance_type(unknown).is_none(), "{unknown}");
        }
    }
}
