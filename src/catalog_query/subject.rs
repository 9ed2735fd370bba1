//! The machine that is asked about: an instance type, or GPUs by their PCI ids.

use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::catalog::data::InstanceType;
use crate::catalog::machine;
use crate::catalog::{Distribution, distributions};
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::facts::gpu::GpuFacts;
use crate::facts::os::Arch;

/// NVIDIA's PCI vendor id, and the class of its data centre GPUs.
const NVIDIA: u16 = 0x10de;
const CLASS_3D: u16 = 0x0302;

/// A machine that need not be here.
pub(super) struct Subject {
    /// `g5.xlarge`, or nothing for GPUs alone.
    instance_type: Option<String>,
    arch: Arch,
    bus: GpuFacts,
    /// For people.
    title: String,
}

impl Subject {
    /// What the flags name.
    pub(super) fn named(
        catalog: &Catalog,
        name: Option<&str>,
        gpus: &[String],
        arch: Option<&str>,
    ) -> Result<Self> {
        let found = name.and_then(|name| catalog.instance_type(name));
        if let (Some(name), None) = (name, &found)
            && !catalog.is_plain_type(name)
        {
            return Err(unknown_type(catalog, name, gpus.is_empty()));
        }
        let ids = gpus.iter().map(|text| pci_id(text)).collect::<Result<Vec<_>>>()?;
        let mut bus = found.as_ref().map(machine::bus).unwrap_or_default();
        if !ids.is_empty() {
            bus.gpus.clear();
        }
        // One id with a type stands for all of the type's GPUs.
        let count = if ids.len() == 1 { found.as_ref().map_or(1, |t| t.gpus) } else { 1 };
        for (vendor, device) in &ids {
            for _ in 0..count {
                let class = catalog.class_of(*vendor, *device).unwrap_or(CLASS_3D);
                if !machine::plug(&mut bus, machine::function(*vendor, *device, class)) {
                    return Err(Error::new(
                        Code::Usage,
                        format!("--gpu {vendor:04x}:{device:04x} is no accelerator that the catalog knows"),
                    )
                    .with_hint("NVIDIA's ids begin with 10de; `lspci -nn` shows them"));
                }
            }
        }
        let asked = arch.map(parse_arch).transpose()?;
        let arch = match (&found, asked) {
            (Some(t), Some(asked)) if t.arch != asked => {
                let (has, asked) = (t.arch.debian_name(), asked.debian_name());
                return Err(Error::new(Code::Usage, format!("{} is an {has} machine, not {asked}", t.name))
                    .with_hint(format!("leave --arch away, or write --arch {has}")));
            }
            (Some(t), _) => t.arch,
            (None, Some(asked)) => asked,
            (None, None) => arch_of(catalog, &ids),
        };
        let title = title(catalog, name, &bus, found.as_ref());
        Ok(Self { instance_type: name.map(Into::into), arch, bus, title })
    }

    /// One of each family, and two where the sizes differ in what joins their GPUs; then the families to refuse.
    pub(super) fn all(catalog: &Catalog) -> Vec<Self> {
        let mut all = Vec::new();
        for family in &catalog.instances.family {
            let mut types: Vec<_> = family
                .sizes
                .keys()
                .filter_map(|size| catalog.instance_type(&format!("{}.{size}", family.name)))
                .collect();
            types.sort_by_key(|t| (t.gpus, rank(&t.name)));
            let differs = |a: &InstanceType, b: &InstanceType| a.nvswitches != b.nvswitches;
            let last = types.last().filter(|last| differs(&types[0], last)).cloned();
            all.extend(types.into_iter().take(1).chain(last).map(|t| Self::of_type(catalog, &t)));
            if family.sizes.is_empty() {
                let mut bus = GpuFacts::default();
                machine::plug(&mut bus, machine::function(NVIDIA, family.gpu.0, CLASS_3D));
                let title = format!("{}, {}", family.name, title(catalog, None, &bus, None));
                all.push(Self { instance_type: None, arch: family.arch, bus, title });
            }
        }
        for family in catalog.instances.refused.iter().flat_map(|row| &row.families) {
            // Every size of it: the catalog lists none.
            let name = format!("{}.*", family.trim_end_matches('*'));
            if let Some(t) = catalog.instance_type(&name) {
                all.push(Self::of_type(catalog, &t));
            }
        }
        all
    }

    fn of_type(catalog: &Catalog, t: &InstanceType) -> Self {
        let bus = machine::bus(t);
        let title = title(catalog, Some(&t.name), &bus, Some(t));
        Self { instance_type: Some(t.name.clone()), arch: t.arch, bus, title }
    }

    /// For people: `g5.xlarge (1 x A10G, Ampere)`.
    pub(super) fn title(&self) -> String {
        self.title.clone()
    }

    pub(super) fn facts(&self, system: &Distribution) -> Facts {
        let mut facts = machine::facts(&system.name, self.arch);
        if let Some(name) = &self.instance_type {
            machine::name(&mut facts, name);
        }
        facts.gpu = self.bus.clone();
        facts
    }
}

/// Sizes of instances from small to large: `large`, `xlarge`, `2xlarge`, `metal`.
pub(super) fn rank(instance_type: &str) -> u32 {
    let size = instance_type.split_once('.').map_or(instance_type, |(_, size)| size);
    match size.strip_suffix("xlarge") {
        Some("") => 1,
        Some(number) => number.parse().unwrap_or(u32::MAX),
        None if size == "large" => 0,
        None => u32::MAX,
    }
}

fn title(catalog: &Catalog, name: Option<&str>, bus: &GpuFacts, t: Option<&InstanceType>) -> String {
    let mut kinds: Vec<(u16, usize)> = Vec::new();
    for gpu in &bus.gpus {
        match kinds.iter_mut().find(|(id, _)| *id == gpu.value.device) {
            Some((_, count)) => *count += 1,
            None => kinds.push((gpu.value.device, 1)),
        }
    }
    let shown = |(id, count): &(u16, usize)| {
        let name = catalog.gpu_name(*id);
        let architecture = catalog.architecture(*id).unwrap_or_default();
        format!("{count} x {} ({architecture})", name.trim_start_matches("NVIDIA "))
    };
    let mut what: Vec<_> = kinds.iter().map(shown).collect();
    if what.is_empty() {
        what.extend(t.filter(|t| t.vendor != NVIDIA).map(|t| t.gpu_name.clone()));
    }
    let what = if what.is_empty() { "no GPU".to_owned() } else { what.join(", ") };
    name.map_or_else(|| what.clone(), |name| format!("{name}: {what}"))
}

/// `10de:1eb8`, or the device id alone.
fn pci_id(text: &str) -> Result<(u16, u16)> {
    let is_hex = |part: &str| part.len() == 4 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let hex = |part: &str| u16::from_str_radix(part, 16).ok().filter(|_| is_hex(part));
    let parsed = match text.split_once(':') {
        Some((vendor, device)) => hex(vendor).zip(hex(device)),
        None => hex(text).map(|device| (NVIDIA, device)),
    };
    parsed.ok_or_else(|| {
        Error::new(Code::Usage, format!("--gpu {text:?} is no PCI id"))
            .with_hint("write vendor:device in hexadecimal digits, such as 10de:1eb8; `lspci -nn` shows it")
    })
}

fn parse_arch(text: &str) -> Result<Arch> {
    Arch::parse(text).ok_or_else(|| {
        Error::new(Code::Usage, format!("--arch {text:?} is no processor architecture that is known here"))
            .with_hint("write amd64 or arm64")
    })
}

/// That of the instance types with these GPUs, where they agree; else amd64.
fn arch_of(catalog: &Catalog, ids: &[(u16, u16)]) -> Arch {
    let has = |gpu: u16| ids.iter().any(|(vendor, device)| *vendor == NVIDIA && *device == gpu);
    let families = catalog.instances.family.iter().filter(|f| has(f.gpu.0));
    let archs: BTreeSet<_> = families.map(|f| f.arch.debian_name()).collect();
    if archs.len() == 1 && archs.contains("arm64") { Arch::Arm64 } else { Arch::Amd64 }
}

/// The distribution of this name: as the catalog spells it, or with the dot of its version.
pub(super) fn distribution(catalog: &Catalog, text: &str) -> Result<Distribution> {
    let plain: String = text.chars().filter(|c| !matches!(c, '.' | ' ' | '-' | ':')).collect();
    let plain = plain.to_ascii_lowercase();
    let known = distributions(catalog);
    if let Some(found) = known.iter().find(|d| d.name == plain) {
        return Ok(found.clone());
    }
    let names: Vec<_> = known.iter().map(Distribution::written).collect();
    Err(Error::new(Code::UnsupportedOs, format!("--os {text:?} is no distribution that the catalog knows"))
        .with_hint(format!("write one of {}", names.join(", "))))
}

fn unknown_type(catalog: &Catalog, name: &str, gpu_would_help: bool) -> Error {
    let family = name.split('.').next().unwrap_or_default();
    let row = catalog.instances.family.iter().find(|f| f.name == family && f.sizes.is_empty());
    let hint = match row {
        Some(row) if gpu_would_help => {
            format!("no source says which sizes {family} has; ask by --gpu 10de:{:04x}", row.gpu.0)
        }
        _ => catalog.sizes_hint(family),
    };
    Error::new(Code::UnknownInstanceType, format!("{name} is not in the catalog")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_read_in_every_usual_spelling() {
        let catalog = Catalog::embedded().unwrap();
        for text in ["ubuntu22.04", "ubuntu2204", "Ubuntu 22.04", "ubuntu-22.04"] {
            assert_eq!(distribution(&catalog, text).unwrap().name, "ubuntu2204", "{text}");
        }
        let error = distribution(&catalog, "ubuntu23.10").unwrap_err();
        assert_eq!(error.code(), Code::UnsupportedOs);
        assert!(error.hint().unwrap().contains("ubuntu24.04, "), "{error:?}");
    }

    #[test]
    fn a_pci_id_has_four_and_four_digits() {
        assert_eq!(pci_id("10de:1eb8").unwrap(), (0x10de, 0x1eb8));
        assert_eq!(pci_id("1EB8").unwrap(), (0x10de, 0x1eb8));
        for text in ["", "10de:", "10de:1eb", "0x1eb8", "10de:1eb8:1", "+123"] {
            assert_eq!(pci_id(text).unwrap_err().code(), Code::Usage, "{text}");
        }
    }

    #[test]
    fn a_gpu_that_only_graviton_has_is_asked_for_on_arm64() {
        let catalog = Catalog::embedded().unwrap();
        let arch = |id: &str| Subject::named(&catalog, None, &[id.into()], None).unwrap().arch;
        assert_eq!(arch("10de:31c2"), Arch::Arm64);
        assert_eq!(arch("10de:1eb8"), Arch::Amd64);
    }
}
