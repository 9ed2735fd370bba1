//! The probe's records, from lines of JSON to types. A record that does not fit is dropped; the stage that never
//! came then tells that something is missing.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line of the probe's output.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// `cuda.init`, or `cuda.init.begin` before the call.
    pub stage: String,
    #[serde(flatten)]
    fields: serde_json::Map<String, Value>,
}

/// The records among the lines of `output`; libraries may print lines of their own between them.
pub(super) fn records(output: &[u8]) -> Vec<Record> {
    output.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Every record of `stage`, as its type.
pub(super) fn of_stage<T: DeserializeOwned>(records: &[Record], stage: &str) -> Vec<T> {
    let wanted = records.iter().filter(|r| r.stage == stage);
    wanted.filter_map(|r| serde_json::from_value(Value::Object(r.fields.clone())).ok()).collect()
}

/// A driver's word for people, on one line: what would steer a terminal, or look like a line of ours, becomes `?`.
fn one_line<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Deserialize::deserialize(from)?;
    Ok(text.map(|text| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()))
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The function's name.
    pub call: String,
    /// What it returned; none where the library cannot be loaded, or has no such function.
    pub code: Option<i32>,
    /// The library's name for the code.
    pub name: String,
    /// The library's words.
    pub text: String,
}

/// `cuda.load`, `nvml.load`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    /// The file.
    pub library: String,
    /// CUDA version that the driver supports, major × 1000 + minor × 10.
    pub driver_version: Option<u32>,
    /// Why it could not be loaded.
    pub error: Option<Failure>,
}

/// `cuda.init`, `nvml.init`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Init {
    /// How many devices there are.
    pub devices: Option<u32>,
    /// NVML: the driver's version.
    #[serde(default, deserialize_with = "one_line")]
    pub driver_version: Option<String>,
    /// Why not.
    pub error: Option<Failure>,
}

/// `cuda.device`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CudaDevice {
    /// CUDA's ordinal, in the order of PCI addresses.
    pub index: u32,
    /// Marketing name.
    #[serde(default, deserialize_with = "one_line")]
    pub name: Option<String>,
    /// `GPU-…`
    pub uuid: Option<String>,
    /// `domain:bus:device.function`
    pub pci: Option<String>,
    /// Bytes.
    pub total_memory: Option<u64>,
    /// By the names in `src/probe/attributes.rs`; null where the driver does not know the attribute.
    #[serde(default)]
    pub attributes: BTreeMap<String, Option<i64>>,
    /// Why it cannot be described.
    pub error: Option<Failure>,
}

impl CudaDevice {
    /// An attribute, where this driver knows it.
    pub fn attribute(&self, name: &str) -> Option<i64> {
        self.attributes.get(name).copied().flatten()
    }
}

/// `cuda.peers`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peers {
    /// Whether the row's device reaches the column's memory.
    pub can_access: Vec<Vec<Option<bool>>>,
}

/// `nvml.device`. Numbers that this driver or GPU does not have are none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NvmlGpu {
    /// NVML's index.
    pub index: u32,
    /// Marketing name.
    #[serde(default, deserialize_with = "one_line")]
    pub name: Option<String>,
    /// `GPU-…`
    pub uuid: Option<String>,
    /// PCI address, domain with eight digits.
    pub pci: Option<String>,
    /// Rows of memory that were, or must be, replaced.
    pub remapped_rows: Option<RemappedRows>,
    /// `NVLink`.
    pub nvlink: Option<Links>,
    /// The NVSwitch fabric.
    pub fabric: Option<Fabric>,
    /// Why it cannot be asked.
    pub error: Option<Failure>,
    /// Everything that is one number, by its key.
    #[serde(flatten)]
    pub numbers: BTreeMap<String, Value>,
}

impl NvmlGpu {
    /// A number, where this driver and GPU have it.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.numbers.get(key).and_then(Value::as_u64)
    }
}

/// Row remapping of a GPU's memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RemappedRows {
    /// For correctable errors.
    pub corrected: u32,
    /// For uncorrectable errors.
    pub uncorrected: u32,
    /// Takes effect with the next reset.
    pub pending: u32,
    /// A row could not be replaced.
    pub failed: u32,
}

/// `NVLink` connections of a GPU.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Links {
    /// Links that the GPU has.
    pub present: u32,
    /// Links that are up.
    pub active: u32,
}

/// A GPU's registration with the fabric manager.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// NVML's status of a completed registration.
    pub status: u32,
}

/// A record of the smoke test: `smoke.context`, `smoke.compile`, `smoke.compute`, `smoke.multiprocessors`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Smoke {
    /// Elements computed.
    pub elements: Option<u32>,
    /// Elements that differ from the host's own result.
    pub mismatches: Option<u32>,
    /// The first of them.
    pub first_mismatch: Option<u32>,
    /// Multiprocessors that ran.
    pub ran: Option<u32>,
    /// Multiprocessors that the device has.
    pub multiprocessors: Option<u32>,
    /// How long it took.
    pub ms: Option<f64>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// `bandwidth.copies`, in 10⁹ bytes per second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Pinned host memory to the device.
    pub host_to_device: Rate,
    /// The device to pinned host memory.
    pub device_to_host: Rate,
    /// Within the device, reads and writes both counted.
    pub device_to_device: Rate,
}

/// `bandwidth.link`: the `PCIe` link while copies were under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link {
    /// `PCIe` generation.
    pub generation: Option<u32>,
    /// Lanes.
    pub width: Option<u32>,
    /// Packets that had to be sent again since the driver was loaded.
    pub replays: Option<u64>,
    /// Why NVML cannot say.
    pub error: Option<Failure>,
}

/// `peers.copy.begin`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The device that the copies come from.
    pub from: u32,
    /// The device that they go to.
    pub to: u32,
}

/// `peers.copy`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerCopy {
    /// The device that the copies come from.
    pub from: u32,
    /// The device that they go to.
    pub to: u32,
    /// How fast, in 10⁹ bytes per second.
    pub rate: Option<Rate>,
    /// Words that were looked at after the copies and are not what was sent.
    pub wrong: Option<u32>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// Of several copies.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// The fastest.
    pub best: f64,
    /// The middle one.
    pub median: f64,
}

/// `cudart`, `cudnn`, `cublas`, `nccl`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LibraryVersion {
    /// The file.
    pub library: String,
    /// The number by which the library calls its version.
    pub version: Option<u64>,
    /// Why it cannot say.
    pub error: Option<Failure>,
}

/// Any output as every type of record, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(output: &[u8]) {
    let all = records(output);
    for record in &all {
        let one = std::slice::from_ref(record);
        let stage = record.stage.as_str();
        let _ =
            (of_stage::<Load>(one, stage), of_stage::<Init>(one, stage), of_stage::<CudaDevice>(one, stage));
        let _ =
            (of_stage::<NvmlGpu>(one, stage), of_stage::<Smoke>(one, stage), of_stage::<Peers>(one, stage));
        for gpu in of_stage::<NvmlGpu>(one, stage) {
            let _ = serde_json::to_string(&gpu);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_cut_or_foreign_is_no_record() {
        let output = b"{\"stage\":\"cuda.init.begin\",\"at_ms\":1.5}\nlibcuda says hello\n\
                       {\"stage\":\"cuda.init\",\"at_ms\":2.5,\"devices\":8}\n{\"stage\":\"cuda.dev";
        let all = records(output);
        assert_eq!(
            all.iter().map(|r| r.stage.as_str()).collect::<Vec<_>>(),
            ["cuda.init.begin", "cuda.init"]
        );
        assert_eq!(of_stage::<Init>(&all, "cuda.init")[0].devices, Some(8));
    }

    #[test]
    fn what_a_driver_lacks_is_none() {
        let all = records(b"{\"stage\":\"nvml.device\",\"index\":3,\"pcie_width\":16,\"mig_mode\":null}\n");
        let gpu = &of_stage::<NvmlGpu>(&all, "nvml.device")[0];
        assert_eq!((gpu.index, gpu.number("pcie_width"), gpu.number("mig_mode")), (3, Some(16), None));
    }
}
