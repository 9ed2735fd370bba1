//! GPUs and what else sits on the PCI bus in their place. Parsers are pure and total; [`gather`](gather()) reads
//! the machine and says where its sources disagree. Catalog and plan decide by what stands here.

pub mod compare;
pub mod driver;
mod gather;
pub mod lspci;
pub mod pci;

pub use gather::{MODULE_NAMES, Witnesses, gather, module_on_disk};

use serde::Serialize;

use super::Fact;

/// A PCI function, ids as numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PciDevice {
    /// `domain:bus:device.function`, lower case, domain with at least four digits.
    pub address: String,
    /// Vendor id (0x10de is NVIDIA).
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class and subclass (0x0302 is a 3D controller).
    pub class: u16,
    /// Subsystem device id, where the source has it (it tells fractional GPUs apart).
    pub subsystem: Option<u16>,
}

/// The loaded kernel driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Version, two or three dotted parts.
    pub version: String,
    /// Whether these are the open kernel modules.
    pub open: bool,
}

/// Makers and families of accelerators that CUDA does not run on, each refused by its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcceleratorKind {
    /// A GPU by AMD (g4ad).
    AmdGpu,
    /// AWS Inferentia, first or second generation (inf1, inf2).
    Inferentia,
    /// AWS Trainium, any generation (trn1, trn2, trn3).
    Trainium,
    /// Intel Habana Gaudi (dl1).
    Gaudi,
}

/// An accelerator that is not NVIDIA's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accelerator {
    /// What it is.
    pub kind: AcceleratorKind,
    /// Where it is and its ids.
    #[serde(flatten)]
    pub device: PciDevice,
}

/// Everything about accelerators on this machine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GpuFacts {
    /// NVIDIA GPUs: vendor 10de with class 0300 or 0302.
    pub gpus: Vec<Fact<PciDevice>>,
    /// `NVSwitch`es: vendor 10de with class 0680.
    pub nvswitches: Vec<Fact<PciDevice>>,
    /// Other accelerators that explain a refusal (AMD GPUs, Inferentia, Trainium, Gaudi), never EC2's console VGA.
    pub other_accelerators: Vec<Fact<Accelerator>>,
    /// The loaded NVIDIA kernel module.
    pub driver: Option<Fact<Driver>>,
    /// The GPUs that the loaded module drives, as it describes them.
    pub driven: Vec<Fact<driver::DrivenGpu>>,
    /// The device number of `nvidia-uvm`, without which CUDA fails although `nvidia-smi` works.
    pub uvm_major: Option<Fact<u32>>,
    /// The sources of the PCI bus that answered.
    pub sources: Vec<String>,
    /// One sentence for each point where two sources disagree, or where one cannot be used.
    pub disagreements: Vec<String>,
}
