//! The shapes of the catalog's files, `steps/catalog/*.toml`. Each file explains itself in its first lines;
//! here stands what serde must know. `unverified` is read everywhere, so that a typing error in it is found.

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
    #[serde(default, rename = "unverified")]
    pub _unverified: Vec<String>,
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
    pub fabric: Option<Fabric>,
    #[serde(default, rename = "unverified")]
    pub _unverified: Vec<String>,
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
    #[serde(default, rename = "unverified")]
    pub _unverified: Vec<String>,
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
