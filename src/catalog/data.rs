//! Reading the catalog: the embedded files, or a directory whose files take their place.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::tables::{
    CudnnFile, Distros, Drivers, FileIndexRow, Gpus, Instances, KeyRow, RepositoriesFile, RepositoryRow,
    ToolkitRow, Toolkits, matches,
};
use super::version::Version;
use crate::embedded::inflate_text;
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::facts::os::Arch;
use crate::text::position;

include!(concat!(env!("OUT_DIR"), "/catalog.rs")); // const EMBEDDED: &[embedded::File]
include!(concat!(env!("OUT_DIR"), "/catalog_keys.rs")); // const KEYS: &[embedded::File]

/// The one file that an override is laid over instead of replacing.
const REPOSITORIES: &str = "repositories.toml";
/// PCI vendor NVIDIA.
const NVIDIA: u16 = 0x10de;
/// 3D controller, the class of every data centre GPU since Kepler but the GRID K520 and the Tesla M60.
const CLASS_3D: u16 = 0x0302;

/// The catalog, read from the embedded files or from a directory given by `--catalog DIR`.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub(crate) gpus: Gpus,
    pub(crate) instances: Instances,
    pub(crate) drivers: Drivers,
    pub(crate) toolkits: Toolkits,
    pub(crate) cudnn: CudnnFile,
    pub(crate) repositories: Repositories,
    pub(crate) distros: Distros,
}

/// `repositories.toml` with its overrides applied and its keys read.
#[derive(Clone, Debug)]
pub(crate) struct Repositories {
    pub base: String,
    pub label: String,
    pub may_supply: Vec<String>,
    pub always_allow: Vec<String>,
    pub keys: Vec<Key>,
    pub rows: Vec<RepositoryRow>,
    pub file_indexes: Vec<FileIndexRow>,
}

/// A public key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub id: String,
    pub fingerprint: String,
    pub armour: String,
    pub retired: bool,
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
    /// Whether no source confirms how many GPUs there are.
    pub gpus_unverified: bool,
    /// NVSwitch PCI device id; `None` without NVSwitch.
    pub nvswitch: Option<u16>,
    /// NVSwitches on the bus.
    pub nvswitches: u32,
    /// Marketing name of the GPU, for people.
    pub gpu_name: String,
    /// MiB of each GPU's memory, as EC2 counts it; `None` where no source says it.
    pub memory: Option<u32>,
    /// EFA devices that it can have.
    pub efa: u32,
}

impl InstanceType {
    /// How many GPUs the machine must have. A number that no source confirms is none: it would call a healthy machine broken.
    pub fn expected_gpus(&self) -> Option<u32> {
        (!self.gpus_unverified).then_some(self.gpus)
    }
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

    /// The embedded catalog with the files of `dir` taking the place of the embedded ones of the same name. Only
    /// `repositories.toml` is laid over the embedded one instead: it may state nothing but what differs (for a
    /// mirror that signs its index again, and for rehearsals). Its keys' files are looked for in `dir/keys`, too.
    pub fn with_overrides(dir: &Path) -> Result<Self> {
        let mut sources = embedded();
        let mut overlay = None;
        for entry in std::fs::read_dir(dir).map_err(|e| unreadable(dir, e))? {
            let path = entry.map_err(|e| unreadable(dir, e))?.path();
            if path.extension().is_none_or(|e| e != "toml") {
                continue;
            }
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, e))?;
            let source = Source { shown: path.display().to_string(), text };
            if !sources.contains_key(&name) {
                let known = sources.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(Error::new(
                    Code::CatalogInvalid,
                    format!("{} is no file of the catalog", source.shown),
                )
                .with_hint(format!("the catalog's files are {known}")));
            }
            if name == REPOSITORIES {
                overlay = Some(source);
            } else {
                sources.insert(name, source);
            }
        }
        let mut catalog = Self::read(&sources)?;
        if let Some(source) = overlay {
            catalog.repositories.overlay(&source, Some(dir))?;
        }
        Ok(catalog)
    }

    fn read(sources: &BTreeMap<String, Source>) -> Result<Self> {
        let mut repositories = Repositories {
            base: String::new(),
            label: String::new(),
            may_supply: Vec::new(),
            always_allow: Vec::new(),
            keys: Vec::new(),
            rows: Vec::new(),
            file_indexes: Vec::new(),
        };
        repositories.overlay(find(sources, REPOSITORIES)?, None)?;
        Ok(Self {
            gpus: parse(find(sources, "gpus.toml")?)?,
            instances: parse(find(sources, "instances.toml")?)?,
            drivers: parse(find(sources, "drivers.toml")?)?,
            toolkits: parse(find(sources, "toolkits.toml")?)?,
            cudnn: parse(find(sources, "cudnn.toml")?)?,
            distros: parse(find(sources, "distro.toml")?)?,
            repositories,
        })
    }

    /// An accelerated instance type by name; `None` for every other type, and for a size that is not known.
    pub fn instance_type(&self, name: &str) -> Option<InstanceType> {
        let (family, size) = name.split_once('.')?;
        self.nvidia_type(name, family, size).or_else(|| self.refused_type(name, family))
    }

    /// The type of this very instance.
    pub fn type_of(&self, facts: &Facts) -> Option<InstanceType> {
        self.instance_type(facts.identity.instance_type()?)
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
            gpus_unverified: row.unverified.iter().any(|key| key == "sizes"),
            nvswitch: nvswitch.map(|s| s.0),
            nvswitches: if nvswitch.is_some() { row.nvswitches } else { 0 },
            gpu_name: self.gpu_name(row.gpu.0),
            memory: row.memory,
            efa: row.efa.get(size).copied().unwrap_or(0),
        })
    }

    /// Accelerators that CUDA cannot use: one device stands for however many there are.
    fn refused_type(&self, name: &str, family: &str) -> Option<InstanceType> {
        let row = self.instances.refused.iter().find(|r| matches(&r.families, family))?;
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
            gpus_unverified: false,
            nvswitch: None,
            nvswitches: 0,
            gpu_name: row.accelerator.clone(),
            memory: None,
            efa: 0,
        })
    }

    /// The PCI class that an accelerator of the catalog has; 3D for a GPU by NVIDIA that it does not list.
    pub fn class_of(&self, vendor: u16, device: u16) -> Option<u16> {
        if vendor == NVIDIA {
            let family = self.instances.family.iter().find(|f| f.gpu.0 == device);
            return Some(family.and_then(|f| f.class).map_or(CLASS_3D, |c| c.0));
        }
        let is_it = |id: &super::tables::VendorDevice| (id.0, id.1) == (vendor, device);
        self.instances.refused.iter().find(|r| r.ids.iter().any(is_it))?.class.map(|c| c.0)
    }

    /// Whether this looks like a type of a family without accelerators: those with accelerators have these prefixes.
    pub fn is_plain_type(&self, name: &str) -> bool {
        const ACCELERATED: &[&str] = &["dl", "f", "g", "inf", "p", "trn", "vt"];
        let Some((family, size)) = name.split_once('.') else { return false };
        let letters = family.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        let has_generation = !letters.is_empty() && family.bytes().any(|b| b.is_ascii_digit());
        has_generation && !size.is_empty() && !ACCELERATED.contains(&letters)
    }

    /// The name of a GPU for people; its id when the catalog does not list it.
    pub fn gpu_name(&self, device: u16) -> String {
        let row = self.gpus.gpu.iter().find(|g| g.id.0 == device);
        row.map_or_else(|| format!("NVIDIA GPU 10de:{device:04x}"), |g| format!("NVIDIA {}", g.name))
    }
}

impl Catalog {
    /// What a GPU calls itself to CUDA (`7.5`), for the products that the catalog lists.
    pub fn compute_capability(&self, device: u16) -> Option<&Version> {
        self.gpus.gpu.iter().find(|g| g.id.0 == device).map(|g| &g.compute_capability)
    }

    /// The newest toolkit that came with this driver version or an older one: what the driver supports.
    pub fn newest_toolkit_of(&self, driver: &str) -> Option<String> {
        let driver = Version::parse(driver)?;
        let came_with = |row: &&ToolkitRow| row.releases.values().any(|needed| *needed <= driver);
        self.toolkits.toolkit.iter().filter(came_with).map(|row| &row.version).max().map(ToString::to_string)
    }

    /// The name of an NVSwitch, for people.
    pub fn nvswitch_name(&self, device: u16) -> Option<&str> {
        self.gpus.nvswitch.iter().find(|s| s.id.0 == device).map(|s| s.name.as_str())
    }
}

fn embedded() -> BTreeMap<String, Source> {
    let files = EMBEDDED.iter();
    files
        .map(|(name, compressed)| {
            let shown = format!("steps/catalog/{name}");
            ((*name).to_owned(), Source { shown, text: inflate_text(compressed) })
        })
        .collect()
}

fn find<'a>(sources: &'a BTreeMap<String, Source>, name: &str) -> Result<&'a Source> {
    sources.get(name).ok_or_else(|| Error::new(Code::CatalogInvalid, format!("the catalog has no {name}")))
}

fn parse<T: DeserializeOwned>(source: &Source) -> Result<T> {
    let Source { shown, text } = source;
    toml::from_str(text).map_err(|e| {
        let (line, column) = e.span().map_or((1, 1), |s| position(text, s.start));
        Error::new(Code::CatalogInvalid, format!("{shown}:{line}:{column}: {}", e.message()))
    })
}

impl Repositories {
    /// Takes over what `source` states, and checks that every repository's key is there.
    fn overlay(&mut self, source: &Source, dir: Option<&Path>) -> Result<()> {
        let file: RepositoriesFile = parse(source)?;
        take(&mut self.base, file.base.map(|b| b.trim_end_matches('/').to_owned()));
        take(&mut self.label, file.label);
        take(&mut self.may_supply, file.may_supply);
        take(&mut self.always_allow, file.always_allow);
        for row in file.key {
            let key = read_key(row, source, dir)?;
            self.keys.retain(|k| k.id != key.id);
            self.keys.push(key);
        }
        for row in file.repository {
            match self.rows.iter_mut().find(|r| r.distro == row.distro) {
                Some(known) => overlay_row(known, row),
                None => self.rows.push(row),
            }
        }
        for row in file.file_index {
            self.file_indexes.retain(|known| known.id != row.id);
            self.file_indexes.push(row);
        }
        let keyless = self.file_indexes.iter().find(|row| self.keys.iter().all(|k| k.id != row.key));
        let keyless = keyless.map(|row| format!("file-index {}: there is no key {}", row.id, row.key));
        let fault = self.rows.iter().find_map(|row| self.fault(row)).or(keyless);
        fault
            .map_or(Ok(()), |what| Err(Error::new(Code::CatalogInvalid, format!("{}: {what}", source.shown))))
    }

    /// The repository's key; `None` where nobody here knows it.
    pub(crate) fn key_of(&self, row: &RepositoryRow) -> Option<&Key> {
        self.keys.iter().find(|k| Some(&k.id) == row.key.as_ref())
    }

    fn fault(&self, row: &RepositoryRow) -> Option<String> {
        let distro = &row.distro;
        match (&row.key, self.key_of(row)) {
            (Some(id), None) => return Some(format!("{distro}: there is no key {id}")),
            (_, Some(key)) if key.retired => return Some(format!("{distro}: the key {} is retired", key.id)),
            _ => {}
        }
        let required = [
            ("directories", row.directories.is_none()),
            ("date-floor", row.date_floor.is_none()),
            ("toolkits", row.toolkits.is_none()),
            ("branches", row.branches.is_none()),
        ];
        required.iter().find(|(_, missing)| *missing).map(|(name, _)| format!("{distro}: {name} is missing"))
    }
}

fn take<T>(place: &mut T, stated: Option<T>) {
    if let Some(value) = stated {
        *place = value;
    }
}

/// What an override states is its author's to know: it counts as confirmed, unless the override says otherwise.
fn overlay_row(known: &mut RepositoryRow, stated: RepositoryRow) {
    let stated_keys = [
        ("toolkits", stated.toolkits.is_some()),
        ("branches", stated.branches.is_some()),
        ("cudnn-last", stated.cudnn_last.is_some()),
        ("directories", stated.directories.is_some()),
    ];
    let settled =
        |key: &String| stated_keys.iter().any(|(name, is)| *is && key.split('.').next() == Some(*name));
    known.unverified.retain(|key| !settled(key));
    known.unverified.extend(stated.unverified);
    known.title = stated.title.or(known.title.take());
    known.directories = stated.directories.or(known.directories.take());
    known.key = stated.key.or(known.key.take());
    known.label = stated.label.or(known.label.take());
    known.date_floor = stated.date_floor.or(known.date_floor.take());
    known.toolkits = stated.toolkits.or(known.toolkits.take());
    known.branches = stated.branches.or(known.branches.take());
    known.cudnn_last = stated.cudnn_last.or(known.cudnn_last.take());
    known.components = stated.components.or(known.components.take());
}

fn read_key(row: KeyRow, source: &Source, dir: Option<&Path>) -> Result<Key> {
    let invalid =
        |what: &str| Error::new(Code::CatalogInvalid, format!("{}: key {}: {what}", source.shown, row.id));
    let digits = row.fingerprint.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if row.fingerprint.len() != 40 || !digits {
        return Err(invalid("a fingerprint is 40 hexadecimal digits, in upper case"));
    }
    let armour = match (row.armour, &row.file) {
        (Some(armour), None) => armour,
        (None, Some(file)) => match dir.map(|d| d.join("keys").join(file)).filter(|p| p.exists()) {
            Some(path) => std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?,
            None => KEYS
                .iter()
                .find(|(name, _)| name == file)
                .map(|(_, compressed)| inflate_text(compressed))
                .ok_or_else(|| invalid(&format!("there is no file keys/{file}")))?,
        },
        _ => return Err(invalid("a key has either a file or an armour")),
    };
    if !armour.trim_start().starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        return Err(invalid("this is no ASCII-armoured public key"));
    }
    Ok(Key { id: row.id, fingerprint: row.fingerprint, armour, retired: row.retired })
}

/// A catalog that cannot be read is the caller's mistake, like one that is wrong.
fn unreadable(path: &Path, why: std::io::Error) -> Error {
    Error::new(Code::CatalogInvalid, format!("cannot read {}", path.display())).because(why)
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
