//! The JSON document: every field with its unit and its source. Its shape is fixed by
//! `packaging/device-query.schema.json`, which a test compares.

use serde_json::{Map, Value, json};

use super::attributes::ATTRIBUTES;
use super::checks::compute_word;
use super::copies::PeerCopies;
use super::libraries::Installed;
use super::record::{CudaDevice, NvmlGpu};
use super::{Examination, Run, Runtime, SmokeTest};

/// The document's own version: raised when a field changes its meaning or goes away.
const FORMAT: u32 = 1;

/// NVML's numbers: key, unit, function.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("memory_total", "bytes", "nvmlDeviceGetMemoryInfo"),
    ("persistence_mode", "boolean", "nvmlDeviceGetPersistenceMode"),
    ("compute_mode", "mode", "nvmlDeviceGetComputeMode"),
    ("pcie_generation", "number", "nvmlDeviceGetCurrPcieLinkGeneration"),
    ("pcie_generation_max", "number", "nvmlDeviceGetMaxPcieLinkGeneration"),
    ("pcie_width", "lanes", "nvmlDeviceGetCurrPcieLinkWidth"),
    ("pcie_width_max", "lanes", "nvmlDeviceGetMaxPcieLinkWidth"),
    ("pcie_replays", "count", "nvmlDeviceGetPcieReplayCounter"),
    ("power_usage", "mW", "nvmlDeviceGetPowerUsage"),
    ("power_limit", "mW", "nvmlDeviceGetEnforcedPowerLimit"),
    ("temperature", "°C", "nvmlDeviceGetTemperature"),
    ("ecc_mode", "boolean", "nvmlDeviceGetEccMode"),
    ("ecc_mode_pending", "boolean", "nvmlDeviceGetEccMode"),
    ("mig_mode", "boolean", "nvmlDeviceGetMigMode"),
    ("mig_mode_pending", "boolean", "nvmlDeviceGetMigMode"),
    ("mig_devices", "count", "nvmlDeviceGetMigDeviceHandleByIndex"),
    ("gsp_firmware", "boolean", "nvmlDeviceGetGspFirmwareMode"),
    ("retired_pages_single_bit", "pages", "nvmlDeviceGetRetiredPages"),
    ("retired_pages_double_bit", "pages", "nvmlDeviceGetRetiredPages"),
    ("retired_pages_pending", "boolean", "nvmlDeviceGetRetiredPagesPendingStatus"),
    ("compute_processes", "count", "nvmlDeviceGetComputeRunningProcesses_v3"),
    ("recovery_action", "action", "nvmlDeviceGetFieldValues(230)"),
    ("ecc_uncorrected_volatile", "count", "nvmlDeviceGetTotalEccErrors"),
    ("ecc_uncorrected_aggregate", "count", "nvmlDeviceGetTotalEccErrors"),
    ("ecc_corrected_volatile", "count", "nvmlDeviceGetTotalEccErrors"),
    ("clock_event_reasons", "bit mask", "nvmlDeviceGetCurrentClocksEventReasons"),
];

/// A value with its unit (null for text and numbers without one) and its source.
fn field(value: impl Into<Value>, unit: Option<&str>, source: impl Into<String>) -> Value {
    json!({ "value": value.into(), "unit": unit, "source": source.into() })
}

/// The whole document.
pub(super) fn document(e: &Examination) -> Value {
    let driver = e.facts.driver.as_ref();
    let compute: Vec<_> = e.smoke.iter().map(|test| smoke(e, test)).collect();
    json!({
        "format": FORMAT,
        "program": concat!("gpu-bootstrap ", env!("CARGO_PKG_VERSION")),
        "result": if e.passes() { "PASS" } else { "FAIL" },
        "instance_type": field(e.instance_type.as_ref().map(|t| t.name.clone()), None, "/sys/class/dmi/id/product_name"),
        "expected_gpus": e.options.expect_gpus.map(|e| e.number),
        "driver": {
            "module_version": field(driver.map(|d| d.value.version.clone()), None, "/proc/driver/nvidia/version"),
            "open_module": field(driver.map(|d| d.value.open), Some("boolean"), "/proc/driver/nvidia/version"),
            "nvml_version": field(e.nvml_init.driver_version.clone(), None, "nvmlSystemGetDriverVersion"),
            "cuda_version": field(e.cuda_load.driver_version, Some("major*1000+minor*10"), "cuDriverGetVersion"),
            "runtime_version": field(
                e.runtime.as_ref().map(Runtime::number),
                Some("major*1000+minor*10"),
                e.runtime.as_ref().map_or("cudaRuntimeGetVersion", |r| r.source.as_str()),
            ),
        },
        "pci": e.facts.gpus.iter().map(|g| field(g.value.address.clone(), None, g.source.clone())).collect::<Vec<_>>(),
        "devices": e.devices.iter().map(device).collect::<Vec<_>>(),
        "peer_access": field(json!(e.peers.can_access), Some("boolean"), "cuDeviceCanAccessPeer"),
        "peer_bandwidth": field(
            peer_bandwidth(e.devices.len(), &e.peer_copies),
            Some("GB/s (10^9 bytes)"),
            "cuMemcpyPeerAsync, cuEventElapsedTime",
        ),
        "nvml": e.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "compute_mode": compute_word(e.options.compute),
        "compute": compute,
        "libraries": e.libraries.iter().filter_map(library).collect::<Vec<_>>(),
        "xids": e.log.as_ref().map_or(Value::Null, |log| json!(log.xids)),
        "sxids": e.log.as_ref().map_or(Value::Null, |log| json!(log.sxids)),
        "processes": processes(e),
        "checks": e.checks,
    })
}

fn device(d: &CudaDevice) -> Value {
    let mut attributes = Map::new();
    for attribute in ATTRIBUTES {
        let source = format!("cuDeviceGetAttribute({})", attribute.number);
        attributes
            .insert(attribute.name.into(), field(d.attribute(attribute.name), Some(attribute.unit), source));
    }
    json!({
        "index": d.index,
        "name": field(d.name.clone(), None, "cuDeviceGetName"),
        "uuid": field(d.uuid.clone(), None, "cuDeviceGetUuid_v2"),
        "pci": field(d.pci.clone(), None, "cuDeviceGetPCIBusId"),
        "total_memory": field(d.total_memory, Some("bytes"), "cuDeviceTotalMem_v2"),
        "attributes": attributes,
        "error": d.error,
    })
}

fn gpu(g: &NvmlGpu) -> Value {
    let mut numbers = Map::new();
    for (key, unit, source) in NUMBERS {
        numbers.insert((*key).into(), field(g.number(key), Some(unit), *source));
    }
    json!({
        "index": g.index,
        "name": field(g.name.clone(), None, "nvmlDeviceGetName"),
        "uuid": field(g.uuid.clone(), None, "nvmlDeviceGetUUID"),
        "pci": field(g.pci.clone(), None, "nvmlDeviceGetPciInfo_v3"),
        "numbers": numbers,
        "remapped_rows": field(json!(g.remapped_rows), Some("rows"), "nvmlDeviceGetRemappedRows"),
        "nvlink": field(json!(g.nvlink), Some("links"), "nvmlDeviceGetNvLinkState"),
        "fabric": field(json!(g.fabric), Some("state"), "nvmlDeviceGetGpuFabricInfoV"),
        "error": g.error,
    })
}

/// Row to column, like the access; null where nothing was measured, and instead of a table where nothing was at all.
fn peer_bandwidth(devices: usize, copies: &PeerCopies) -> Value {
    if copies.measured.is_empty() {
        return Value::Null;
    }
    let row = |from| (0..devices).map(|to| json!(copies.rate(from, to))).collect::<Vec<_>>();
    json!((0..devices).map(row).collect::<Vec<_>>())
}

fn smoke(e: &Examination, test: &SmokeTest) -> Value {
    let copies = e.copies.iter().find(|c| c.index == test.index);
    let link = copies.and_then(|c| c.link.as_ref());
    let stage = |name: &str| test.stages.iter().find(|(stage, _)| *stage == name).map(|(_, s)| s);
    let computed = stage("smoke.compute");
    let counted = stage("smoke.multiprocessors");
    let probe = "the probe's kernel mix, recomputed on the host";
    json!({
        "index": test.index,
        "busy_processes": field(test.busy, Some("count"), "nvmlDeviceGetComputeRunningProcesses_v3"),
        "elements": field(computed.and_then(|s| s.elements), Some("elements"), probe),
        "mismatches": field(computed.and_then(|s| s.mismatches), Some("elements"), probe),
        "first_mismatch": field(computed.and_then(|s| s.first_mismatch), Some("index"), probe),
        "multiprocessors_ran": field(counted.and_then(|s| s.ran), Some("multiprocessors"), "the probe's kernel where_ran (%smid)"),
        "context_ms": field(stage("smoke.context").and_then(|s| s.ms), Some("ms"), "the probe's clock"),
        "compile_ms": field(stage("smoke.compile").and_then(|s| s.ms), Some("ms"), "the probe's clock"),
        "compute_ms": field(computed.and_then(|s| s.ms), Some("ms"), "the probe's clock"),
        "numa_node": field(json!(e.node(test.index)), None, "/sys/bus/pci/devices/*/numa_node, /sys/devices/system/node/node*/cpulist"),
        "bandwidth": field(json!(copies.and_then(|c| c.rates.as_ref())), Some("GB/s (10^9 bytes)"), "cuEventElapsedTime"),
        "pcie_generation_loaded": field(link.and_then(|l| l.generation), Some("number"), "nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_width_loaded": field(link.and_then(|l| l.width), Some("lanes"), "nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_replays_after": field(link.and_then(|l| l.replays), Some("count"), "nvmlDeviceGetPcieReplayCounter"),
        "error": test.stages.iter().find_map(|(_, s)| s.error.as_ref()),
    })
}

/// `None` where the library said nothing at all: the checks tell why.
fn library(l: &Installed) -> Option<Value> {
    let said = l.version.as_ref()?;
    Some(json!({
        "name": l.name,
        "path": said.library,
        "version": field(said.version, Some("the library's own number"), said.library.clone()),
        "version_text": l.says(),
        "package": l.owner.as_ref().map(|o| json!({ "name": o.name, "version": o.version })),
        "planned_version": l.wanted_words(),
        "error": said.error,
    }))
}

/// How each process of the probe went.
fn processes(e: &Examination) -> Vec<Value> {
    let runs = [&e.nvml, &e.cuda];
    let runs =
        runs.into_iter().chain(e.smoke.iter().map(|s| &s.run)).chain(e.libraries.iter().map(|l| &l.run));
    let runs = runs.chain(e.copies.iter().map(|c| &c.run)).chain(&e.peer_copies.runs);
    runs.filter_map(|run: &Run| run.as_ref().ok()).map(|launch| json!(launch)).collect()
}
