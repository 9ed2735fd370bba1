//! The shapes of the catalog's files, `steps/catalog/*.toml`. Each file explains itself in its first lines;
//! here stands what serde must know. `unverified` names keys that no source confirms; `choose/unverified.rs` says so
//! wherever an answer rests on one.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::version::Version;
use crate::facts::os::Arch;

/// A PCI id as four hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Hex(pub u16);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u16::from_str_radix(&text, 16) {
            Ok(id) if text.len() == 4 => Ok(Self(id)),
            _ => Err(format!("{text:?} is not a PCI id of four hexadecimal digits")),
        }
    }
}

/// The first two digits of a PCI device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct HighByte(pub u8);

impl TryFrom<String> for HighByte {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u8::from_str_radix(&text, 16) {
            Ok(byte) if text.len() == 2 => Ok(Self(byte)),
            _ => Err(format!("{text:?} is not the beginning of a PCI id, two hexadecimal digits")),
        }
    }
}

/// `vendor:device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct VendorDevice(pub u16, pub u16);

impl TryFrom<String> for VendorDevice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let ids = text.split_once(':').and_then(|(vendor, device)| {
            Some((Hex::try_from(vendor.to_owned()).ok()?, Hex::try_from(device.to_owned()).ok()?))
        });
        let (vendor, device) =
            ids.ok_or_else(|| format!("{text:?} is not a PCI id such as \"1002:7362\""))?;
        Ok(Self(vendor.0, device.0))
    }
}

/// Every file says which shape it has; there is one so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub(crate) struct Schema;

impl TryFrom<u32> for Schema {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        if number == 1 { Ok(Self) } else { Err(format!("this program reads schema 1, not {number}")) }
    }
}

/// `gpus.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Gpus {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    /// Oldest first.
    pub architecture: Vec<Architecture>,
    pub gpu: Vec<Gpu>,
    pub nvswitch: Vec<Nvswitch>,
    pub fractional: Vec<Fractional>,
    #[serde(default)]
    pub proprietary_parameter: Vec<ProprietaryParameter>,
}

/// Which kernel modules run an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ModuleRule {
    Proprietary,
    Either,
    Open,
}

/// A GPU architecture and what it asks of driver and toolkit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Architecture {
    pub name: String,
    pub modules: ModuleRule,
    pub first_toolkit: Option<Version>,
    pub last_toolkit: Option<Version>,
    pub first_branch: Option<Version>,
    pub last_branch: Option<Version>,
    #[serde(default)]
    pub high_bytes: Vec<HighByte>,
    #[serde(default)]
    pub shared_high_bytes: Vec<HighByte>,
    #[serde(default)]
    pub ids: Vec<Hex>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// Who runs the fabric manager where the bus does not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fabric {
    Nvlink5,
    Rack,
}

/// A product.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Gpu {
    pub id: Hex,
    pub name: String,
    pub compute_capability: Version,
    pub first_toolkit: Option<Version>,
    pub last_toolkit: Option<Version>,
    pub first_branch: Option<Version>,
    pub modules: Option<ModuleRule>,
    pub fabric: Option<Fabric>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// An NVSwitch, for people.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Nvswitch {
    pub id: Hex,
    pub name: String,
}

/// A slice of a GPU.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Fractional {
    pub id: Hex,
    pub subsystem: Hex,
    pub name: String,
}

/// A parameter of the proprietary kernel module that some GPUs need.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ProprietaryParameter {
    /// As `/proc/driver/nvidia/params` calls it: without the `NVreg_` of modprobe's files.
    pub name: String,
    pub value: String,
    pub gpus: Vec<Hex>,
    pub first_branch: Version,
    /// One sentence.
    pub why: String,
}

/// `instances.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Instances {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    pub family: Vec<Family>,
    pub refused: Vec<Refused>,
}

/// A family with NVIDIA GPUs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Family {
    pub name: String,
    pub arch: Arch,
    pub gpu: Hex,
    pub class: Option<Hex>,
    pub nvswitch: Option<Hex>,
    #[serde(default)]
    pub nvswitches: u32,
    #[serde(default)]
    pub subsystems: BTreeMap<String, Hex>,
    pub sizes: BTreeMap<String, u32>,
    pub memory: Option<u32>,
    #[serde(default)]
    pub efa: BTreeMap<String, u32>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// Families with accelerators that CUDA cannot use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Refused {
    pub families: Vec<String>,
    pub accelerator: String,
    #[serde(default)]
    pub ids: Vec<VendorDevice>,
    pub class: Option<Hex>,
    pub next_step: String,
    #[serde(default, rename = "unverified")]
    pub _unverified: Vec<String>,
}

/// A range, both ends included.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Range {
    pub first: Version,
    pub last: Version,
}

impl Range {
    pub(crate) fn contains(&self, version: &Version) -> bool {
        self.first <= *version && *version <= self.last
    }
}

/// `drivers.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Drivers {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    pub modules: Vec<String>,
    pub open_by_default_from: Version,
    pub nvlink5_packages: Vec<String>,
    pub nvlink5_modules: Vec<String>,
    pub imex_packages: Vec<String>,
    pub pinned: Vec<String>,
    pub branch: Vec<Branch>,
    pub packages: Vec<DriverPackages>,
    pub fabric_manager: Vec<FabricManagerPackages>,
}

/// What a branch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BranchKind {
    Legacy,
    Feature,
    Production,
    Lts,
}

/// A driver branch.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Branch {
    pub name: Version,
    pub kind: BranchKind,
    pub until: Option<String>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// Kernel module flavour, in the catalog's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PackagedFlavour {
    Open,
    Proprietary,
}

/// How NVIDIA's repository packages a driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DriverPackages {
    pub flavour: PackagedFlavour,
    pub distros: Vec<String>,
    pub first_branch: Option<Version>,
    pub packages: Vec<String>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// How NVIDIA's repository packages fabric manager.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FabricManagerPackages {
    pub first_branch: Option<Version>,
    pub last_branch: Option<Version>,
    pub packages: Vec<String>,
}

/// `toolkits.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Toolkits {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    pub package: String,
    pub home: String,
    pub minor_compatibility: BTreeMap<String, Version>,
    pub toolkit: Vec<ToolkitRow>,
}

/// A toolkit: its releases, each with the driver it came with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ToolkitRow {
    pub version: Version,
    pub releases: BTreeMap<Version, Version>,
    /// All, unless given.
    pub architectures: Option<Vec<Arch>>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// `cudnn.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CudnnFile {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    /// Newest first.
    pub series: Vec<CudnnSeries>,
    pub versions: BTreeMap<Version, Vec<Version>>,
}

fn yes() -> bool {
    true
}

/// Versions of cuDNN that are packaged alike and run on the same GPUs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CudnnSeries {
    pub first: Version,
    pub last: Option<Version>,
    pub cuda: Vec<Version>,
    pub first_architecture: Option<String>,
    pub last_architecture: Option<String>,
    #[serde(default = "yes")]
    pub auto: bool,
    #[serde(default = "yes")]
    pub apt: bool,
    #[serde(default)]
    pub packages: Vec<String>,
    #[serde(default)]
    pub version_suffix: String,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// `repositories.toml`, whole or as an override: then only what differs is stated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RepositoriesFile {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    pub base: Option<String>,
    pub label: Option<String>,
    pub may_supply: Option<Vec<String>>,
    pub always_allow: Option<Vec<String>>,
    #[serde(default)]
    pub key: Vec<KeyRow>,
    #[serde(default)]
    pub repository: Vec<RepositoryRow>,
    #[serde(default)]
    pub file_index: Vec<FileIndexRow>,
}

/// Repositories of which only the sums are taken, for package files by URL; apt never sees them as sources.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FileIndexRow {
    pub id: String,
    pub key: String,
    pub urls: Vec<String>,
    pub date_floor: Option<String>,
}

/// A public key: in a file of `keys/`, or in place.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KeyRow {
    pub id: String,
    pub fingerprint: String,
    pub file: Option<String>,
    pub armour: Option<String>,
    #[serde(default)]
    pub retired: bool,
}

/// One distribution's repository.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RepositoryRow {
    pub distro: String,
    pub title: Option<String>,
    pub directories: Option<BTreeMap<String, String>>,
    pub key: Option<String>,
    pub label: Option<String>,
    pub date_floor: Option<String>,
    pub toolkits: Option<Range>,
    pub branches: Option<Range>,
    pub cudnn_last: Option<Version>,
    pub components: Option<Vec<String>>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// `distro.toml`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Distros {
    #[serde(rename = "schema")]
    pub _schema: Schema,
    pub kernel: Vec<KernelRow>,
    pub distro: Vec<DistroRow>,
}

/// Packages that go with a kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KernelRow {
    pub distros: Vec<String>,
    pub flavours: Vec<String>,
    pub headers: Vec<String>,
    pub image: Vec<String>,
    #[serde(default)]
    pub infiniband: Vec<String>,
}

/// What a distribution packages itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DistroRow {
    pub name: String,
    pub title: String,
    pub components: Vec<String>,
    pub architectures: Vec<Arch>,
    pub toolkit: Version,
    pub toolkit_packages: Vec<String>,
    pub driver: Vec<DistroDriver>,
    #[serde(default)]
    pub unverified: Vec<String>,
}

/// Drivers that are packaged alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DistroDriver {
    /// Branch → the version seen.
    pub branches: BTreeMap<Version, Version>,
    pub open: Option<ModulePackages>,
    pub proprietary: Option<ModulePackages>,
    pub libraries: Vec<String>,
    pub fabric_manager: Option<Vec<String>>,
    /// What everything else of it depends on, where branches can be installed beside each other.
    #[serde(default)]
    pub base: Vec<String>,
}

/// Kernel modules, compiled already or here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ModulePackages {
    pub prebuilt: Option<Vec<String>>,
    pub dkms: Option<Vec<String>>,
    /// What the modules depend on, where both flavours can be installed beside each other.
    #[serde(default)]
    pub base: Vec<String>,
}

/// Whether `name` is one of `patterns`, in which a star at the end stands for anything.
pub(crate) fn matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    })
}
