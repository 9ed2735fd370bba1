//! The text of NVIDIA's deviceQuery sample, line by line in its order and format (the runtime API's variant), for
//! people and scripts that know it. Numbers come from the driver API; see `docs/device-query.md`.

use std::fmt::Write as _;

use super::architecture::cores_per_multiprocessor;
use super::record::CudaDevice;
use super::{Examination, Runtime};

const MODES: [&str; 4] = [
    "Default (multiple host threads can use ::cudaSetDevice() with device simultaneously)",
    "Exclusive (only one host thread in one process is able to use ::cudaSetDevice() with this device)",
    "Prohibited (no host thread can use ::cudaSetDevice() with this device)",
    "Exclusive Process (many threads in one process is able to use ::cudaSetDevice() with this device)",
];
const CUDART_13: u32 = 13_000;

/// The whole text, up to and with `Result = PASS` or `Result = FAIL`.
pub(super) fn text(examination: &Examination) -> String {
    let mut out = String::from("gpu-bootstrap device-query Starting...\n\n");
    out += " CUDA Device Query (Driver API, in the form of the Runtime API's sample)\n\n";
    if let Some((code, words)) = examination.cuda_failure() {
        let _ = writeln!(out, "cudaGetDeviceCount returned {code}\n-> {words}");
        out += "Result = FAIL\n";
        return out;
    }
    let devices = &examination.devices;
    match devices.len() {
        0 => out += "There are no available device(s) that support CUDA\n",
        n => {
            let _ = writeln!(out, "Detected {n} CUDA Capable device(s)");
        }
    }
    for device in devices {
        describe(&mut out, device, examination);
    }
    peers(&mut out, examination);
    if !devices.is_empty() {
        let (driver, runtime) = versions(examination);
        let _ = writeln!(
            out,
            "\ndeviceQuery, CUDA Driver = CUDART, CUDA Driver Version = {driver}, CUDA Runtime Version = {runtime}, NumDevs = {}",
            devices.len()
        );
    }
    let result = if examination.passes() { "PASS" } else { "FAIL" };
    let _ = writeln!(out, "Result = {result}");
    out
}

/// `12.8` from 12080.
pub(super) fn version(number: Option<u32>) -> String {
    number.map_or_else(|| "n/a".to_owned(), |v| format!("{}.{}", v / 1000, v % 100 / 10))
}

fn versions(examination: &Examination) -> (String, String) {
    (
        version(examination.cuda_load.driver_version),
        version(examination.runtime.as_ref().map(Runtime::number)),
    )
}

/// A number, or `n/a` where this driver does not know it.
fn number(device: &CudaDevice, attribute: &str) -> String {
    device.attribute(attribute).map_or_else(|| "n/a".to_owned(), |n| n.to_string())
}

fn yes(device: &CudaDevice, attribute: &str) -> &'static str {
    device.attribute(attribute).map_or("n/a", |n| if n == 0 { "No" } else { "Yes" })
}

/// A number to reckon with; 0 where this driver does not know it.
fn raw(device: &CudaDevice, attribute: &str) -> i64 {
    device.attribute(attribute).unwrap_or_default()
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the sample rounds through single precision, and its text is what must come out"
)]
fn describe(out: &mut String, device: &CudaDevice, examination: &Examination) {
    let (driver, runtime) = versions(examination);
    line(out, &format!("\nDevice {}: \"{}\"", device.index, device.name.as_deref().unwrap_or("n/a")));
    line(out, &format!("  CUDA Driver Version / Runtime Version          {driver} / {runtime}"));
    line(
        out,
        &format!(
            "  CUDA Capability Major/Minor version number:    {}.{}",
            number(device, "compute_capability_major"),
            number(device, "compute_capability_minor")
        ),
    );
    let memory = device.total_memory.unwrap_or_default();
    line(
        out,
        &format!(
            "  Total amount of global memory:                 {:.0} MBytes ({memory} bytes)",
            memory as f32 / 1_048_576.0
        ),
    );
    let (cores, _) = cores_per_multiprocessor(
        raw(device, "compute_capability_major"),
        raw(device, "compute_capability_minor"),
    );
    let multiprocessors = raw(device, "multiprocessor_count");
    line(
        out,
        &format!(
            "  ({multiprocessors:03}) Multiprocessors, ({cores:03}) CUDA Cores/MP:    {} CUDA Cores",
            multiprocessors * i64::from(cores)
        ),
    );
    let clock = raw(device, "clock_rate") as f32;
    line(
        out,
        &format!(
            "  GPU Max Clock rate:                            {:.0} MHz ({:.2} GHz)",
            clock * 1e-3,
            clock * 1e-6
        ),
    );
    line(
        out,
        &format!(
            "  Memory Clock rate:                             {:.0} Mhz",
            raw(device, "memory_clock_rate") as f32 * 1e-3
        ),
    );
    line(
        out,
        &format!(
            "  Memory Bus Width:                              {}-bit",
            number(device, "memory_bus_width")
        ),
    );
    if raw(device, "l2_cache_size") != 0 {
        line(
            out,
            &format!(
                "  L2 Cache Size:                                 {} bytes",
                number(device, "l2_cache_size")
            ),
        );
    }
    limits(out, device);
    features(out, device, examination);
}

fn limits(out: &mut String, device: &CudaDevice) {
    line(
        out,
        &format!(
            "  Maximum Texture Dimension Size (x,y,z)         1D=({}), 2D=({}, {}), 3D=({}, {}, {})",
            number(device, "texture_1d_width"),
            number(device, "texture_2d_width"),
            number(device, "texture_2d_height"),
            number(device, "texture_3d_width"),
            number(device, "texture_3d_height"),
            number(device, "texture_3d_depth")
        ),
    );
    line(
        out,
        &format!(
            "  Maximum Layered 1D Texture Size, (num) layers  1D=({}), {} layers",
            number(device, "texture_1d_layered_width"),
            number(device, "texture_1d_layered_layers")
        ),
    );
    line(
        out,
        &format!(
            "  Maximum Layered 2D Texture Size, (num) layers  2D=({}, {}), {} layers",
            number(device, "texture_2d_layered_width"),
            number(device, "texture_2d_layered_height"),
            number(device, "texture_2d_layered_layers")
        ),
    );
    for (label, attribute, unit) in [
        ("Total amount of constant memory:               ", "total_constant_memory", " bytes"),
        ("Total amount of shared memory per block:       ", "shared_memory_per_block", " bytes"),
        ("Total shared memory per multiprocessor:        ", "shared_memory_per_multiprocessor", " bytes"),
        ("Total number of registers available per block: ", "registers_per_block", ""),
        ("Warp size:                                     ", "warp_size", ""),
        ("Maximum number of threads per multiprocessor:  ", "max_threads_per_multiprocessor", ""),
        ("Maximum number of threads per block:           ", "max_threads_per_block", ""),
    ] {
        line(out, &format!("  {label}{}{unit}", number(device, attribute)));
    }
    for (label, kind) in [
        ("Max dimension size of a thread block (x,y,z):", "max_block_dim"),
        ("Max dimension size of a grid size    (x,y,z):", "max_grid_dim"),
    ] {
        let [x, y, z] = ["x", "y", "z"].map(|axis| number(device, &format!("{kind}_{axis}")));
        line(out, &format!("  {label} ({x}, {y}, {z})"));
    }
    line(
        out,
        &format!("  Maximum memory pitch:                          {} bytes", number(device, "max_pitch")),
    );
    line(
        out,
        &format!(
            "  Texture alignment:                             {} bytes",
            number(device, "texture_alignment")
        ),
    );
}

fn features(out: &mut String, device: &CudaDevice, examination: &Examination) {
    line(
        out,
        &format!(
            "  Concurrent copy and kernel execution:          {} with {} copy engine(s)",
            yes(device, "gpu_overlap"),
            number(device, "async_engine_count")
        ),
    );
    line(
        out,
        &format!("  Run time limit on kernels:                     {}", yes(device, "kernel_exec_timeout")),
    );
    line(out, &format!("  Integrated GPU sharing Host Memory:            {}", yes(device, "integrated")));
    line(
        out,
        &format!("  Support host page-locked memory mapping:       {}", yes(device, "can_map_host_memory")),
    );
    line(
        out,
        &format!("  Alignment requirement for Surfaces:            {}", yes(device, "surface_alignment")),
    );
    let ecc = match yes(device, "ecc_enabled") {
        "Yes" => "Enabled",
        "No" => "Disabled",
        unknown => unknown,
    };
    line(out, &format!("  Device has ECC support:                        {ecc}"));
    line(
        out,
        &format!("  Device supports Unified Addressing (UVA):      {}", yes(device, "unified_addressing")),
    );
    line(out, &format!("  Device supports Managed Memory:                {}", yes(device, "managed_memory")));
    line(
        out,
        &format!("  Device supports Compute Preemption:            {}", yes(device, "compute_preemption")),
    );
    line(
        out,
        &format!("  Supports Cooperative Kernel Launch:            {}", yes(device, "cooperative_launch")),
    );
    // Toolkit 13 dropped the line with the feature.
    if examination.runtime.as_ref().is_none_or(|r| r.number() < CUDART_13) {
        line(
            out,
            &format!(
                "  Supports MultiDevice Co-op Kernel Launch:      {}",
                yes(device, "cooperative_multi_device_launch")
            ),
        );
    }
    line(
        out,
        &format!(
            "  Device PCI Domain ID / Bus ID / location ID:   {} / {} / {}",
            number(device, "pci_domain_id"),
            number(device, "pci_bus_id"),
            number(device, "pci_device_id")
        ),
    );
    let mode = usize::try_from(device.attribute("compute_mode").unwrap_or(-1)).ok();
    let mode = mode.and_then(|m| MODES.get(m)).unwrap_or(&"Unknown");
    line(out, &format!("  Compute Mode:\n     < {mode} >"));
}

fn peers(out: &mut String, examination: &Examination) {
    let name = |i: usize| examination.devices.get(i).and_then(|d| d.name.as_deref()).unwrap_or("n/a");
    for (from, row) in examination.peers.can_access.iter().enumerate() {
        for (to, answer) in row.iter().enumerate().filter(|(to, _)| *to != from) {
            let answer = match answer {
                Some(true) => "Yes",
                Some(false) => "No",
                None => "n/a",
            };
            let _ = writeln!(
                out,
                "> Peer access from {} (GPU{from}) -> {} (GPU{to}) : {answer}",
                name(from),
                name(to)
            );
        }
    }
}
