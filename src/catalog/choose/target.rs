//! Which GPUs to choose for: the ones on the PCI bus, or the ones of the instance types that an image is baked
//! for; and the refusals of machines that have none that CUDA can use.

use std::collections::BTreeSet;

use super::{Outcome, impossible};
use crate::catalog::Catalog;
use crate::catalog::data::InstanceType;
use crate::catalog::machine;
use crate::catalog::tables::{Architecture, Fabric, ModuleRule, Refused, matches};
use crate::catalog::version::Version;
use crate::config::Config;
use crate::config::schema::{ExpectGpus, OnNoGpu};
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::facts::gpu::{Accelerator, AcceleratorKind, GpuFacts, PciDevice};

/// One kind of GPU and what it asks of driver and toolkit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GpuClass {
    /// For people: `Tesla T4`, or its id.
    pub name: String,
    /// Position in the catalog's list of architectures, oldest first.
    pub generation: usize,
    pub architecture: String,
    pub modules: ModuleRule,
    pub first_toolkit: Option<Version>,
    pub last_toolkit: Option<Version>,
    pub first_branch: Option<Version>,
    pub last_branch: Option<Version>,
    /// Whether its device id is none that the catalog lists, so that its architecture is a guess.
    pub unlisted: bool,
    /// Whether this product is joined by NVLink 5, and no source confirms what that asks of the host.
    pub fabric_unverified: bool,
    /// Which of these limits no source confirms, by their names in the catalog.
    pub unverified: Vec<String>,
}

impl GpuClass {
    /// `Tesla T4 (Turing)`
    pub(super) fn title(&self) -> String {
        format!("{} ({})", self.name, self.architecture)
    }
}

/// Whether this host runs a fabric manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FabricNeed {
    None,
    /// For the NVSwitches on its bus.
    Nvswitch,
    /// For switches that it reaches through a ConnectX-7.
    Nvlink5,
}

/// What to choose for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// One of each kind, oldest architecture first; never empty.
    pub gpus: Vec<GpuClass>,
    pub fabric: FabricNeed,
    /// Whether the GPUs reach those of other hosts in their rack, for which this host runs IMEX.
    pub rack: bool,
    /// The GPUs' PCI device ids.
    pub ids: BTreeSet<u16>,
    pub expect: Option<u32>,
    /// The instance type of which no source says how many GPUs it has.
    pub uncounted: Option<String>,
}

impl Target {
    /// The architectures, oldest first.
    pub(super) fn architectures(&self) -> Vec<String> {
        let mut names: Vec<_> = self.gpus.iter().map(|g| g.architecture.clone()).collect();
        names.dedup();
        names
    }

    /// The modules that run all of the GPUs.
    pub(super) fn modules(&self) -> Result<ModuleRule> {
        let find = |rule| self.gpus.iter().find(|g| g.modules == rule);
        match (find(ModuleRule::Proprietary), find(ModuleRule::Open)) {
            (Some(old), Some(new)) => Err(impossible(format!(
                "{} runs with the proprietary kernel modules only, {} with the open ones only",
                old.title(),
                new.title()
            ))
            .with_hint("use one machine or image for each of them")),
            (Some(_), None) => Ok(ModuleRule::Proprietary),
            (None, Some(_)) => Ok(ModuleRule::Open),
            (None, None) => Ok(ModuleRule::Either),
        }
    }

    /// The GPU that knows the fewest older branches.
    pub(super) fn first_branch(&self) -> Option<(&GpuClass, &Version)> {
        let limited = self.gpus.iter().filter_map(|g| Some((g, g.first_branch.as_ref()?)));
        limited.max_by(|a, b| a.1.cmp(b.1))
    }

    /// The GPU that was dropped first.
    pub(super) fn last_branch(&self) -> Option<(&GpuClass, &Version)> {
        let limited = self.gpus.iter().filter_map(|g| Some((g, g.last_branch.as_ref()?)));
        limited.min_by(|a, b| a.1.cmp(b.1))
    }

    /// The GPU that needs the newest toolkit.
    pub(super) fn first_toolkit(&self) -> Option<(&GpuClass, &Version)> {
        let limited = self.gpus.iter().filter_map(|g| Some((g, g.first_toolkit.as_ref()?)));
        limited.max_by(|a, b| a.1.cmp(b.1))
    }

    /// The GPU that toolkits dropped first.
    pub(super) fn last_toolkit(&self) -> Option<(&GpuClass, &Version)> {
        let limited = self.gpus.iter().filter_map(|g| Some((g, g.last_toolkit.as_ref()?)));
        limited.min_by(|a, b| a.1.cmp(b.1))
    }
}

/// Finds what to choose for, or why there is nothing to do, or refuses.
pub(super) fn find(
    catalog: &Catalog,
    facts: &Facts,
    config: &Config,
    reasons: &mut Vec<String>,
) -> Result<Outcome<Target>> {
    let instance_type = catalog.type_of(facts);
    if !facts.gpu.gpus.is_empty() {
        return on_bus(catalog, facts, config, instance_type.as_ref(), reasons).map(Outcome::Go);
    }
    let refusal = no_gpu(catalog, facts, instance_type.as_ref());
    match config.policy.on_no_gpu {
        OnNoGpu::Fail => Err(refusal),
        OnNoGpu::Skip => Ok(Outcome::Nothing(format!("{} (policy.on-no-gpu = \"skip\")", refusal.message()))),
        OnNoGpu::Install => baked_for(catalog, facts, config, reasons).map(Outcome::Go),
    }
}

fn on_bus(
    catalog: &Catalog,
    facts: &Facts,
    config: &Config,
    instance_type: Option<&InstanceType>,
    reasons: &mut Vec<String>,
) -> Result<Target> {
    let devices: Vec<&PciDevice> = facts.gpu.gpus.iter().map(|f| &f.value).collect();
    for device in &devices {
        if let Some(name) = catalog.fraction(device.device, device.subsystem) {
            return Err(fractional(&format!("the GPU at {} is a slice, {name}", device.address)));
        }
    }
    if let Some(t) = instance_type.filter(|t| t.subsystem.is_some()) {
        return Err(fractional(&format!("{} has a slice of a GPU", t.name)));
    }
    let ids: BTreeSet<u16> = devices.iter().map(|d| d.device).collect();
    let gpus = catalog.classes(&ids, reasons)?;
    let names: Vec<_> = gpus.iter().map(GpuClass::title).collect();
    reasons.push(format!("The PCI bus shows {}: {}.", count(devices.len(), "NVIDIA GPU"), names.join(", ")));
    let rack = ids.iter().any(|id| catalog.fabric(*id) == Some(Fabric::Rack));
    if rack {
        reasons.push("The fabric manager of these GPUs runs in the rack, not on this host.".into());
    }
    let expect = match &config.policy.expect_gpus {
        ExpectGpus::Count(number) => Some(*number),
        ExpectGpus::Auto(_) => {
            instance_type.filter(|t| t.vendor == devices[0].vendor).and_then(InstanceType::expected_gpus)
        }
    };
    let uncounted = instance_type.filter(|t| t.gpus_unverified).map(|t| t.name.clone());
    let fabric = fabric_need(catalog, &facts.gpu);
    Ok(Target { gpus, fabric, rack, ids, expect, uncounted })
}

/// `policy.on-no-gpu = "install"`: everything follows from the instance types, which must agree.
fn baked_for(catalog: &Catalog, facts: &Facts, config: &Config, reasons: &mut Vec<String>) -> Result<Target> {
    let names = &config.policy.bake_for;
    if names.is_empty() {
        return Err(Error::new(
            Code::ConfigType,
            "policy.on-no-gpu = \"install\" needs policy.for, the instance types that this image is for",
        )
        .with_hint("for example: for = [\"g5.xlarge\"]"));
    }
    let types = names.iter().map(|n| bakeable(catalog, facts, n)).collect::<Result<Vec<_>>>()?;
    let needs: Vec<_> = types.iter().map(|t| fabric_need(catalog, &machine::bus(t))).collect();
    if let Some(other) = needs.iter().position(|n| *n != needs[0]) {
        let (with, without) = if needs[other] == FabricNeed::None { (0, other) } else { (other, 0) };
        return Err(impossible(format!(
            "{} needs a fabric manager that {} must not or cannot run",
            names[with], names[without]
        ))
        .with_hint("bake one image for each of them"));
    }
    let ids: BTreeSet<u16> = types.iter().filter_map(|t| t.device).collect();
    let gpus = catalog.classes(&ids, reasons)?;
    let titles: Vec<_> = gpus.iter().map(GpuClass::title).collect();
    reasons.push(format!("No GPU is here; the image is for {}: {}.", names.join(", "), titles.join(", ")));
    let counts = types.iter().map(InstanceType::expected_gpus).collect::<BTreeSet<_>>();
    let same_count = if counts.len() == 1 { types[0].expected_gpus() } else { None };
    let expect = match &config.policy.expect_gpus {
        ExpectGpus::Count(number) => Some(*number),
        ExpectGpus::Auto(_) => same_count,
    };
    let uncounted = types.iter().find(|t| t.gpus_unverified).map(|t| t.name.clone());
    let rack = ids.iter().any(|id| catalog.fabric(*id) == Some(Fabric::Rack));
    Ok(Target { gpus, fabric: needs[0], rack, ids, expect, uncounted })
}

fn bakeable(catalog: &Catalog, facts: &Facts, name: &str) -> Result<InstanceType> {
    let family = name.split('.').next().unwrap_or_default();
    if let Some(row) = catalog.refused_family(family) {
        return Err(not_nvidia(&format!("{name} has {}", row.accelerator), row));
    }
    let found = catalog.instance_type(name).ok_or_else(|| {
        Error::new(Code::UnknownInstanceType, format!("policy.for: {name} is not in the catalog"))
            .with_hint(catalog.sizes_hint(family))
    })?;
    if found.subsystem.is_some() {
        return Err(fractional(&format!("policy.for: {name} has a slice of a GPU")));
    }
    if found.arch != facts.os.arch.value {
        return Err(Error::new(
            Code::UnsupportedArch,
            format!("policy.for: {name} has another processor architecture than this machine"),
        )
        .with_hint("bake the image on an instance with the processor architecture of its types"));
    }
    Ok(found)
}

/// What a bus asks for, be it here or that of an instance type for which an image is baked.
fn fabric_need(catalog: &Catalog, bus: &GpuFacts) -> FabricNeed {
    let is_nvlink5 = |id| catalog.fabric(id) == Some(Fabric::Nvlink5);
    let nvlink5 = bus.gpus.iter().filter(|gpu| is_nvlink5(gpu.value.device)).count();
    match (bus.nvswitches.len(), nvlink5) {
        (0, 0 | 1) => FabricNeed::None,
        (0, _) => FabricNeed::Nvlink5,
        _ => FabricNeed::Nvswitch,
    }
}

/// Why a machine without NVIDIA GPU is refused, and what to do instead.
fn no_gpu(catalog: &Catalog, facts: &Facts, instance_type: Option<&InstanceType>) -> Error {
    let name = facts.identity.instance_type();
    let family = name.and_then(|n| n.split('.').next()).unwrap_or_default();
    if let Some(found) = facts.gpu.other_accelerators.first() {
        return other_accelerator(catalog, &found.value);
    }
    if let (Some(name), Some(row)) = (name, catalog.refused_family(family)) {
        return not_nvidia(&format!("{name} has {}", row.accelerator), row);
    }
    if let Some(t) = instance_type {
        let shown =
            format!("{} has {}, but the PCI bus shows none", t.name, count(t.gpus as usize, &t.gpu_name));
        return Error::new(Code::NoGpu, shown)
            .with_hint("stop and start the instance, which moves it to another host; a reboot does not");
    }
    let suggestion = match facts.os.arch.value {
        crate::facts::os::Arch::Amd64 => "g4dn.xlarge (T4) or g6.xlarge (L4)",
        crate::facts::os::Arch::Arm64 => "g5g.xlarge (T4G)",
    };
    let what = name
        .map_or_else(|| "the PCI bus shows no NVIDIA GPU".to_owned(), |n| format!("{n} has no NVIDIA GPU"));
    Error::new(Code::NoGpu, what).with_hint(format!(
        "launch a type with one, such as {suggestion}; to bake an image here, set policy.on-no-gpu = \"install\" \
         and policy.for"
    ))
}

fn other_accelerator(catalog: &Catalog, found: &Accelerator) -> Error {
    let device = &found.device;
    let (what, family) = match found.kind {
        AcceleratorKind::AmdGpu => ("an AMD GPU", "g4ad"),
        AcceleratorKind::Inferentia => ("AWS Inferentia", "inf1"),
        AcceleratorKind::Trainium => ("AWS Trainium", "trn1"),
        AcceleratorKind::Gaudi => ("Habana Gaudi", "dl1"),
    };
    let listed = catalog.refused_device(device);
    let what = listed.map_or(what, |row| row.accelerator.as_str());
    let message = format!(
        "the PCI bus shows {what} ({:04x}:{:04x} at {}) and no NVIDIA GPU",
        device.vendor, device.device, device.address
    );
    match listed.or_else(|| catalog.refused_family(family)) {
        Some(row) => not_nvidia(&message, row),
        None => Error::new(Code::NotNvidia, message)
            .with_hint("launch a type with an NVIDIA GPU such as g5.xlarge"),
    }
}

fn not_nvidia(message: &str, row: &Refused) -> Error {
    Error::new(Code::NotNvidia, message).with_hint(row.next_step.clone())
}

fn fractional(what: &str) -> Error {
    Error::new(
        Code::FractionalGpu,
        format!("{what}; a slice needs AWS's GRID driver, which no apt repository has"),
    )
    .with_hint("launch a type with whole GPUs, such as g6.xlarge (L4)")
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// How sure the catalog is of a device's architecture.
enum Match<'a> {
    Exact(&'a Architecture),
    Range(&'a Architecture),
    Unknown(&'a Architecture),
}

impl Catalog {
    fn architecture_of(&self, device: u16) -> Result<Match<'_>> {
        let high = u8::try_from(device >> 8).unwrap_or_default();
        let all = &self.gpus.architecture;
        if let Some(exact) = all.iter().find(|a| a.ids.iter().any(|id| id.0 == device)) {
            return Ok(Match::Exact(exact));
        }
        let alone = all.iter().find(|a| a.high_bytes.iter().any(|b| b.0 == high));
        let shared = || all.iter().rfind(|a| a.shared_high_bytes.iter().any(|b| b.0 == high));
        if let Some(found) = alone.or_else(shared) {
            return Ok(Match::Range(found));
        }
        all.last()
            .map(Match::Unknown)
            .ok_or_else(|| Error::new(Code::CatalogInvalid, "gpus.toml lists no architecture"))
    }

    /// The architecture of a GPU by its PCI device id; an id that the catalog does not know belongs to the
    /// newest one.
    pub fn architecture(&self, device: u16) -> Result<String> {
        let (Match::Exact(a) | Match::Range(a) | Match::Unknown(a)) = self.architecture_of(device)?;
        Ok(a.name.clone())
    }

    /// The kinds of GPU behind `ids`, oldest architecture first, with a notice for each that is not listed.
    fn classes(&self, ids: &BTreeSet<u16>, reasons: &mut Vec<String>) -> Result<Vec<GpuClass>> {
        let mut classes = Vec::new();
        for id in ids {
            let found = self.architecture_of(*id)?;
            match &found {
                Match::Exact(_) => {}
                Match::Range(a) => reasons.push(format!(
                    "The catalog does not list GPU 10de:{id:04x}; its id lies among those of {}.",
                    a.name
                )),
                Match::Unknown(a) => reasons.push(format!(
                    "The catalog does not know GPU 10de:{id:04x}; it is taken for one of the newest architecture, {}, \
                     with the open kernel modules.",
                    a.name
                )),
            }
            let unlisted = !matches!(found, Match::Exact(_));
            let (Match::Exact(a) | Match::Range(a) | Match::Unknown(a)) = found;
            classes.push(self.class(*id, a, unlisted));
        }
        classes.sort_by(|a, b| (a.generation, &a.name).cmp(&(b.generation, &b.name)));
        Ok(classes)
    }

    fn class(&self, id: u16, a: &Architecture, unlisted: bool) -> GpuClass {
        let product = self.gpus.gpu.iter().find(|g| g.id.0 == id);
        let narrower =
            |of_product: Option<&Version>, of_all: &Option<Version>| of_product.or(of_all.as_ref()).cloned();
        let stated = |key: &str| match key {
            "first-toolkit" => product.is_some_and(|g| g.first_toolkit.is_some()),
            "last-toolkit" => product.is_some_and(|g| g.last_toolkit.is_some()),
            "first-branch" => product.is_some_and(|g| g.first_branch.is_some()),
            _ => false,
        };
        let of_product = product.map(|g| g.unverified.as_slice()).unwrap_or_default();
        let unverified = a.unverified.iter().filter(|key| !stated(key)).chain(of_product).cloned().collect();
        GpuClass {
            name: product.map_or_else(|| format!("GPU 10de:{id:04x}"), |g| g.name.clone()),
            generation: self.gpus.architecture.iter().position(|x| x.name == a.name).unwrap_or_default(),
            architecture: a.name.clone(),
            modules: product.and_then(|g| g.modules).unwrap_or(a.modules),
            first_toolkit: narrower(product.and_then(|g| g.first_toolkit.as_ref()), &a.first_toolkit),
            last_toolkit: narrower(product.and_then(|g| g.last_toolkit.as_ref()), &a.last_toolkit),
            first_branch: narrower(product.and_then(|g| g.first_branch.as_ref()), &a.first_branch),
            last_branch: a.last_branch.clone(),
            unlisted,
            fabric_unverified: of_product.iter().any(|key| key == "fabric"),
            unverified,
        }
    }

    fn fabric(&self, device: u16) -> Option<Fabric> {
        self.gpus.gpu.iter().find(|g| g.id.0 == device)?.fabric
    }

    fn fraction(&self, device: u16, subsystem: Option<u16>) -> Option<&str> {
        let rows = self.gpus.fractional.iter();
        let row = rows.filter(|f| f.id.0 == device).find(|f| Some(f.subsystem.0) == subsystem)?;
        Some(&row.name)
    }

    fn refused_family(&self, family: &str) -> Option<&Refused> {
        self.instances.refused.iter().find(|r| matches(&r.families, family))
    }

    fn refused_device(&self, device: &PciDevice) -> Option<&Refused> {
        let is_it = |r: &&Refused| r.ids.iter().any(|id| (id.0, id.1) == (device.vendor, device.device));
        self.instances.refused.iter().find(is_it)
    }

    /// Which instance types there are instead of one that is not known.
    pub(crate) fn sizes_hint(&self, family: &str) -> String {
        let row = self.instances.family.iter().find(|f| f.name == family);
        if let Some(row) = row.filter(|f| !f.sizes.is_empty()) {
            let sizes: Vec<_> = row.sizes.keys().map(|size| format!("{family}.{size}")).collect();
            return format!("known types of the family are {}", sizes.join(", "));
        }
        let families: Vec<_> = self.instances.family.iter().map(|f| f.name.as_str()).collect();
        format!("known families are {}", families.join(", "))
    }
}
