//! `device-query` with a simulated driver: the real agent and the real probe in a root whose libcuda and
//! libnvidia-ml are stand-ins with faults. Each fault must be told apart by its check, its exit code and the stage
//! in which the probe's process ended.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/json_schema.rs"]
mod json_schema;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use simulated_driver::{DRIVER, Simulated};

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn json(machine: &Simulated, args: &[&str]) -> (i32, Value) {
    let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
    let out = output(&mut machine.query(&all));
    let value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    // Every document of every test.
    json_schema::validate(&schema(), &value);
    (out.status.code().unwrap_or(-1), value)
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../packaging/device-query.schema.json")).unwrap()
}

#[test]
fn the_schema_refuses_what_does_not_belong() {
    let (_, mut document) = json(&Simulated::with(1, "T4", ""), &[]);
    document["devices"][0]["name"]["unit"] = 5.into();
    assert!(std::panic::catch_unwind(|| json_schema::validate(&schema(), &document)).is_err());
}

fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let all = document["checks"].as_array().unwrap();
    all.iter().find(|c| c["check"] == name).unwrap_or_else(|| panic!("no check {name} in {all:#?}"))
}

/// The last stage of the process whose first argument is `kind`.
fn last_stage(document: &Value, kind: &str) -> String {
    let all = document["processes"].as_array().unwrap();
    let process = all.iter().find(|p| p["arguments"][0] == kind);
    process.map(|p| p["last_stage"].as_str().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn healthy_gpus_pass_every_check() {
    for (gpus, model) in [(1, "T4"), (8, "H100"), (8, "B200"), (4, "A10G")] {
        let machine = Simulated::with(gpus, model, "");
        let (code, document) = json(&machine, &["--expect-gpus", &gpus.to_string(), "--bandwidth"]);
        assert_eq!((code, &document["result"]), (0, &Value::from("PASS")), "{document:#}");
        for check in document["checks"].as_array().unwrap() {
            let expected: &[&str] = match check["check"].as_str().unwrap() {
                // These have neither NVLink nor a fabric.
                "nvlink" | "fabric" if model == "T4" || model == "A10G" => &["could-not-tell"],
                // Only old GPUs retire pages; there is no modinfo.
                "retired-pages" | "module-on-disk" => &["could-not-tell"],
                _ => &["pass"],
            };
            assert!(expected.contains(&check["verdict"].as_str().unwrap()), "{model}: {check}");
        }
        let compute = &document["compute"][0];
        assert_eq!(compute["mismatches"]["value"], 0);
        assert_eq!(compute["bandwidth"]["value"]["host_to_device"]["median"], 53.687);
        assert_eq!(compute["bandwidth"]["value"]["device_to_device"]["best"], 107.374);
        // The link's speed under load, not at rest.
        assert_eq!(document["nvml"][0]["numbers"]["pcie_generation"]["value"], 1);
        assert_eq!(compute["pcie_generation_loaded"]["value"], 5);
        let pairs = document["peer_bandwidth"]["value"].as_array().unwrap_or(&Vec::new()).len();
        assert_eq!(pairs, if gpus == 1 { 0 } else { gpus as usize });
        if gpus > 1 {
            assert_eq!(document["peer_bandwidth"]["value"][0][1]["best"], 13.422);
            assert_eq!(document["peer_bandwidth"]["value"][1][1], Value::Null);
        }
        let process = &document["processes"][0];
        assert_eq!(
            (&process["launched_from"], &process["ended"]["how"]),
            (&"memfd".into(), &"exited".into())
        );
    }
}

/// settings, arguments → (check, verdict, words of its evidence, exit code), (process, its last stage)
struct Fault(
    &'static str,
    &'static [&'static str],
    (&'static str, &'static str, &'static str, i32),
    (&'static str, &'static str),
);

const FAULTS: &[Fault] = &[
    Fault(
        "hang=cuInit",
        &["--deadline", "0.5"],
        ("cuda", "fail", "did not answer within 500 ms", 5),
        ("cuda", "cuda.init.begin"),
    ),
    Fault(
        "hang=nvmlInit_v2",
        &["--deadline", "0.5"],
        ("nvml", "fail", "did not answer within 500 ms", 5),
        ("nvml", "nvml.init.begin"),
    ),
    Fault(
        "hang=cuLaunchKernel",
        &["--deadline", "0.5"],
        ("compute-0", "fail", "in stage smoke.compute", 5),
        ("smoke", "smoke.compute.begin"),
    ),
    Fault(
        "crash=cuInit",
        &[],
        ("cuda", "fail", "SIGSEGV in stage cuda.init", 5),
        ("cuda", "cuda.init.begin"),
    ),
    Fault(
        "crash=cuDeviceGetName",
        &[],
        ("cuda", "fail", "SIGSEGV in stage cuda.device", 5),
        ("cuda", "cuda.device.begin"),
    ),
    Fault(
        "crash=nvmlDeviceGetTemperature",
        &[],
        ("nvml", "fail", "SIGSEGV in stage nvml.device", 5),
        ("nvml", "nvml.device.begin"),
    ),
    Fault(
        "crash=cuModuleLoadDataEx",
        &[],
        ("compute-0", "fail", "SIGSEGV in stage smoke.compile", 5),
        ("smoke", "smoke.compile.begin"),
    ),
    Fault(
        "abort=cuInit",
        &[],
        ("cuda", "fail", "the simulated driver aborts", 5),
        ("cuda", "cuda.init.begin"),
    ),
    Fault("abort=cudnnGetVersion", &[], ("library-cudnn", "fail", "SIGABRT", 5), ("cudnn", "cudnn.begin")),
    Fault("fail=cuInit=34", &[], ("cuda", "fail", "toolkit's stub", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=100", &[], ("cuda", "fail", "shows CUDA no device", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=802", &[], ("cuda", "fail", "fabric manager", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=803", &[], ("driver-version", "fail", "803", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=804", &[], ("cuda", "fail", "forward-compatibility", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=919", &[], ("cuda", "fail", "fabric is not ready", 5), ("cuda", "cuda.init")),
    Fault("fail=cuInit=999", &[], ("cuda", "fail", "no name for", 5), ("cuda", "cuda.init")),
    Fault(
        "fail=cuDevicePrimaryCtxRetain=46",
        &[],
        ("compute-0", "could-not-tell", "exclusive mode", 0),
        ("smoke", "smoke.context"),
    ),
    Fault(
        "fail=cuDevicePrimaryCtxRetain=2",
        &[],
        ("compute-0", "fail", "no memory is left", 5),
        ("smoke", "smoke.context"),
    ),
    Fault(
        "fail=cuDevicePrimaryCtxRetain=2\nbusy=0",
        &["--compute", "always"],
        ("compute-0", "could-not-tell", "3 processes hold its memory", 5),
        ("smoke", "smoke.context"),
    ),
    Fault(
        "fail=cuCtxSynchronize=214",
        &[],
        ("compute-0", "fail", "uncorrectable memory error", 5),
        ("smoke", "smoke.compute"),
    ),
    Fault(
        "fail=cuCtxSynchronize=220",
        &[],
        ("compute-0", "fail", "NVLink failed", 5),
        ("smoke", "smoke.compute"),
    ),
    Fault(
        "fail=cuModuleLoadDataEx=221",
        &[],
        ("compute-0", "fail", "PTX compiler is not installed", 5),
        ("smoke", "smoke.compile"),
    ),
    Fault(
        "fail=cuModuleLoadDataEx=222",
        &[],
        ("compute-0", "fail", "a simulated compiler message / of two lines", 5),
        ("smoke", "smoke.compile"),
    ),
    Fault("fail=nvmlInit_v2=9", &[], ("nvml", "fail", "Driver Not Loaded", 5), ("nvml", "nvml.init")),
    Fault("fail=nvmlInit_v2=17", &[], ("nvml", "fail", "operating system blocks", 5), ("nvml", "nvml.init")),
    Fault("fail=nvmlInit_v2=18", &[], ("driver-version", "fail", "18", 5), ("nvml", "nvml.init")),
    Fault(
        "fail=nvmlDeviceGetHandleByIndex_v2=16",
        &[],
        ("nvml", "fail", "must be reset", 5),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "version=570.1.2",
        &[],
        ("driver-version", "fail", "NVML says 570.1.2", 5),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "lost=3",
        &[],
        ("nvml", "fail", "GPU 3: nvmlDeviceGetHandleByIndex_v2 returned 15", 5),
        ("nvml", "nvml.device"),
    ),
    Fault("cuda_gpus=7", &[], ("gpu-count", "fail", "CUDA 7", 5), ("cuda", "cuda.peers")),
    Fault("nvml_gpus=7", &[], ("gpu-count", "fail", "NVML 7", 5), ("nvml", "nvml.device")),
    Fault(
        "",
        &["--expect-gpus", "9"],
        ("gpu-count", "fail", "expected by --expect-gpus 9", 5),
        ("cuda", "cuda.peers"),
    ),
    Fault(
        "bitflip=2",
        &[],
        ("compute-2", "fail", "1 of 65536 results are wrong, the first at 12345", 5),
        ("smoke", "smoke.multiprocessors"),
    ),
    Fault(
        "idle_multiprocessor=1",
        &[],
        ("multiprocessors-1", "warn", "131 of 132", 0),
        ("smoke", "smoke.multiprocessors"),
    ),
    Fault("ecc_uncorrected=5", &[], ("ecc", "fail", "GPU 5: 2 uncorrected", 5), ("nvml", "nvml.device")),
    Fault(
        "remap_pending=1",
        &[],
        ("row-remap", "warn", "GPU 1: a memory row waits", 0),
        ("nvml", "nvml.device"),
    ),
    Fault("remap_failed=1", &[], ("row-remap", "fail", "could not be replaced", 5), ("nvml", "nvml.device")),
    Fault("nvlink_down=6", &[], ("nvlink", "fail", "GPU 6: 17 of 18", 5), ("nvml", "nvml.device")),
    Fault("fabric_waits=0", &[], ("fabric", "fail", "state 2", 5), ("nvml", "nvml.device")),
    Fault("pcie_x8=4", &[], ("pcie-width", "warn", "GPU 4: PCIe x8", 0), ("nvml", "nvml.device")),
    Fault("too_hot=0", &[], ("throttle", "fail", "too hot", 5), ("nvml", "nvml.device")),
    Fault(
        "persistence_off=0",
        &[],
        ("persistence", "warn", "persistence mode is off", 0),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "recovery=7",
        &[],
        ("recovery-action", "fail", "GPU 7: the driver asks for a reboot", 5),
        ("nvml", "nvml.device"),
    ),
    Fault("no_peer=0-5", &[], ("peer-access", "fail", "0→5", 5), ("cuda", "cuda.peers")),
    Fault(
        "nvlink_few=6",
        &[],
        ("nvlink", "fail", "GPU 6: 16 of 18 NVLinks are up", 5),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "retired_double=1",
        &[],
        ("retired-pages", "warn", "GPU 1: 2 memory pages were retired", 0),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "retired_full=1",
        &[],
        ("retired-pages", "fail", "GPU 1: 64 memory pages", 5),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "prohibited=2",
        &[],
        ("compute-mode", "warn", "GPU 2: its compute mode", 0),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "mig_pending=0",
        &[],
        ("mig-mode", "warn", "GPU 0: its MIG mode changes", 0),
        ("nvml", "nvml.device"),
    ),
    Fault(
        "slow_link=4",
        &["--bandwidth"],
        (
            "pcie-bandwidth",
            "warn",
            "GPU 4: 10.7 GB/s to it, 10.7 GB/s from it, of 63.0 that PCIe 5 x16 carries",
            0,
        ),
        ("bandwidth", "bandwidth.link"),
    ),
    Fault(
        "fail=nvmlDeviceGetCurrPcieLinkGeneration=3",
        &["--bandwidth"],
        ("pcie-bandwidth", "could-not-tell", "GPU 7: NVML does not say how fast the link is", 0),
        ("bandwidth", "bandwidth.link"),
    ),
    Fault(
        "replays=3",
        &["--bandwidth"],
        ("pcie-replays", "warn", "GPU 3: 7 packets were sent again", 0),
        ("bandwidth", "bandwidth.link"),
    ),
    Fault(
        "fail=cuMemHostAlloc=2",
        &["--bandwidth"],
        ("copies-3", "fail", "bandwidth.context: cuMemHostAlloc returned 2", 5),
        ("bandwidth", "bandwidth.context"),
    ),
    Fault(
        "hang=cuMemcpyDtoHAsync_v2",
        &["--bandwidth", "--deadline", "0.5"],
        ("copies-0", "fail", "did not answer within 500 ms and was killed in stage bandwidth.copies", 5),
        ("bandwidth", "bandwidth.copies.begin"),
    ),
    Fault(
        "hang=nvmlDeviceGetHandleByPciBusId_v2",
        &["--bandwidth", "--deadline", "0.5"],
        ("copies-0", "fail", "in stage bandwidth.link", 5),
        ("bandwidth", "bandwidth.link.begin"),
    ),
    Fault(
        "fail_pair=2-5",
        &["--bandwidth"],
        ("peer-copies", "fail", "2→5: cuMemcpyPeerAsync returned 719", 5),
        ("peers", "peers.copy"),
    ),
    Fault(
        "wrong_pair=0-1",
        &["--bandwidth"],
        ("peer-copies", "fail", "0→1: 2048 words arrived wrong", 5),
        ("peers", "peers.copy"),
    ),
    Fault(
        "fail=cuCtxEnablePeerAccess=217",
        &["--bandwidth"],
        ("peer-copies", "fail", "7→6: cuCtxEnablePeerAccess returned 217", 5),
        ("peers", "peers.copy"),
    ),
    Fault(
        "hang_pair=3-4",
        &["--bandwidth", "--deadline", "1"],
        (
            "peer-copies",
            "fail",
            "3→4: the probe did not answer within 1000 ms and was killed in stage peers.copy",
            5,
        ),
        ("peers", "peers.copy.begin"),
    ),
    Fault("busy=2", &[], ("compute-2", "could-not-tell", "3 processes", 0), ("nvml", "nvml.device")),
];

/// What is done to a machine with a switch, its fabric manager, and the loaded module on disk → (check, verdict, words
/// of its evidence, exit code).
type Around = (fn(Simulated) -> Simulated, (&'static str, &'static str, &'static str, i32));

const AROUND: &[Around] = &[
    (
        |m| m.gone("/proc/4242").program("/usr/bin/systemctl", "exit 3"),
        (
            "fabric-manager",
            "fail",
            "nvidia-fabricmanager does not run; its package is nvidia-fabricmanager 580.95.05-1",
            5,
        ),
    ),
    (
        |m| m.gone("/proc/4242").gone("/var/lib/dpkg").program("/usr/bin/systemctl", "exit 4"),
        ("fabric-manager", "fail", "does not run; no package of it is installed", 5),
    ),
    (
        |m| m.gone("/var/lib/dpkg").package("nvidia-fabricmanager-570", "570.195.03-0ubuntu0.22.04.1", &[]),
        (
            "fabric-manager",
            "fail",
            "580.95.05 is loaded, and fabric manager is another version: its package is nvidia-fabricmanager-570 570.195.03",
            5,
        ),
    ),
    (|m| m.gone("/dev/nvidia-nvswitch0"), ("fabric-manager", "warn", "there is no /dev/nvidia-nvswitch*", 0)),
    (|m| m.gone("/proc/4242"), ("fabric-manager", "could-not-tell", "neither a process nor systemd", 0)),
    (
        |m| m.program("/usr/sbin/modinfo", "echo 595.58.03"),
        ("module-on-disk", "warn", "580.95.05 is loaded, and the next boot loads 595.58.03", 0),
    ),
    (
        |m| m.program("/usr/sbin/modinfo", "echo Module nvidia not found. >&2; exit 1"),
        ("module-on-disk", "could-not-tell", "knows of no NVIDIA module", 0),
    ),
];

fn with_switch() -> Simulated {
    Simulated::with(2, "H100", "").switched(DRIVER).program("/usr/sbin/modinfo", &format!("echo {DRIVER}"))
}

#[test]
fn fabric_manager_and_the_module_on_disk_are_in_order() {
    let (code, document) = json(&with_switch(), &[]);
    assert_eq!(code, 0, "{document:#}");
    let manager = check(&document, "fabric-manager");
    assert_eq!(manager["verdict"], "pass");
    assert_eq!(
        manager["evidence"],
        "nvidia-fabricmanager runs with 1 device nodes; its package is nvidia-fabricmanager 580.95.05-1"
    );
    // As a unit alone, where processes are hidden.
    let hidden = with_switch().gone("/proc/4242").program("/usr/bin/systemctl", "exit 0");
    assert_eq!(check(&json(&hidden, &[]).1, "fabric-manager")["verdict"], "pass");
    assert_eq!(check(&document, "module-on-disk")["verdict"], "pass");
}

#[test]
fn every_fault_has_its_own_verdict_exit_code_and_last_stage() {
    let mut seen = std::collections::HashSet::new();
    for (damage, (name, verdict, words, exit_code)) in AROUND {
        let (code, document) = json(&damage(with_switch()), &[]);
        let found = check(&document, name);
        assert_eq!((code, &found["verdict"]), (*exit_code, &Value::from(*verdict)), "{words}: {found}");
        assert!(found["evidence"].as_str().unwrap().contains(words), "{words}: {found}");
        assert!(seen.insert(found.to_string()), "{words} cannot be told from another: {found}");
    }
    for Fault(settings, args, (name, verdict, words, exit_code), (process, stage)) in FAULTS {
        let machine = Simulated::with(8, "H100", settings);
        let (code, document) = json(&machine, args);
        let found = check(&document, name);
        assert_eq!(found["verdict"], *verdict, "{settings}: {found}");
        let evidence = found["evidence"].as_str().unwrap();
        assert!(evidence.contains(words) && !evidence.contains('\n'), "{settings}: {found}");
        assert!(found["advice"].as_str().unwrap().len() > 20, "{settings}: {found}");
        assert_eq!(code, *exit_code, "{settings}: {document:#}");
        assert_eq!(last_stage(&document, process), *stage, "{settings}");
        assert!(seen.insert(found.to_string()), "{settings} cannot be told from another: {found}");
    }
    println!("{} faults tried and told apart", seen.len());
}

/// The stand-in must run wherever the probe does, and its C is to be as clean as the rest.
#[test]
fn the_stand_in_compiles_without_a_warning_and_asks_for_no_new_symbol() {
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]);
    for source in ["cuda.c", "nvml.c", "libraries.c", "settings.c"] {
        command.arg(format!("{}/src/rehearse/driver/{source}", env!("CARGO_MANIFEST_DIR")));
    }
    let out = output(&mut command);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let file = tempfile::NamedTempFile::new().unwrap();
    let library = gpu_bootstrap::rehearse::driver::library("libcuda.so.1", "13.0").unwrap();
    assert!(library.len() < 32_000, "{} bytes", library.len());
    std::fs::write(file.path(), library).unwrap();
    let out = output(Command::new("readelf").args(["-W", "--version-info", "--dynamic"]).arg(file.path()));
    let said = String::from_utf8(out.stdout).unwrap();
    let versions: std::collections::BTreeSet<&str> =
        said.split_ascii_whitespace().filter(|word| word.starts_with("GLIBC_")).collect();
    let first = if cfg!(target_arch = "aarch64") { "GLIBC_2.17" } else { "GLIBC_2.2.5" };
    assert_eq!(versions, [first].into());
    assert_eq!(said.matches("(NEEDED)").count(), 1, "{said}");
    assert!(said.contains("Library soname: [libcuda.so.1]"), "{said}");
}

const CUDART: &str = "/usr/local/cuda-12.8/targets/x86_64-linux/lib/libcudart.so.12";
const CUBLAS: &str = "/usr/local/cuda-12.8/targets/x86_64-linux/lib/libcublas.so.12";
const CUDNN: &str = "/usr/lib/x86_64-linux-gnu/libcudnn.so.9";

/// A machine on which a plan has installed CUDA 12.8 and cuDNN 9.28, by packages.
fn planned() -> Simulated {
    let machine = Simulated::with(1, "H100", "").planned("12.8", "9.28.0.15");
    let machine = machine.library(CUDART, "12.8.90").library(CUBLAS, "12.8.4");
    std::os::unix::fs::symlink("targets/x86_64-linux/lib", machine.at("/usr/local/cuda-12.8/lib64")).unwrap();
    machine
        .package("cuda-cudart-12-8", "12.8.90-1", &[CUDART])
        .package("libcublas-12-8", "12.8.4.1-1", &[CUBLAS])
        .package("libcudnn9-cuda-12", "9.28.0.15-1", &[CUDNN])
        .linked(&["/usr/local/lib", "/usr/local/cuda-12.8/lib64"])
}

#[test]
fn libraries_say_their_version_for_people_and_who_owns_them() {
    let (code, document) = json(&planned(), &[]);
    assert_eq!(code, 0, "{document:#}");
    let shown: Vec<_> = document["libraries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| {
            let text = |key: &str| l[key].as_str().unwrap().to_owned();
            (
                text("name"),
                l["version"]["value"].as_u64().unwrap(),
                text("version_text"),
                text("planned_version"),
            )
        })
        .collect();
    let row =
        |name: &str, number, text: &str, planned: &str| (name.into(), number, text.into(), planned.into());
    assert_eq!(
        shown,
        [
            row("cudart", 12080, "12.8", "12.8"),
            row("cudnn", 92800, "9.28.0", "9.28.0.15"),
            row("cublas", 120_804, "12.8.4", "12")
        ]
    );
    assert_eq!(document["libraries"][0]["package"]["version"], "12.8.90-1");
    let cudart = check(&document, "library-cudart");
    let says =
        "/usr/local/cuda-12.8/lib64/libcudart.so.12 says 12.8; its package is cuda-cudart-12-8 12.8.90-1";
    assert_eq!((&cudart["verdict"], &cudart["evidence"]), (&"pass".into(), &says.into()));
}

/// What is done to the planned machine → (check, words of its evidence, words of its advice).
type LibraryFault = (fn(Simulated) -> Simulated, (&'static str, &'static str, &'static str));

const LIBRARY_FAULTS: &[LibraryFault] = &[
    // Another copy in front of it.
    (
        |m| m.library("/usr/local/lib/libcudnn.so.9", "9.5.0.50").linked(&["/usr/local/lib"]),
        (
            "library-cudnn",
            "/usr/local/lib/libcudnn.so.9 says 9.5.0 and belongs to no package; it hides /lib/x86_64-linux-gnu/libcudnn.so.9 of libcudnn9-cuda-12 9.28.0.15-1",
            "Remove this copy",
        ),
    ),
    // Half an upgrade: the new package's file did not arrive.
    (
        |m| m.package("libcudnn9-cuda-12", "9.29.0.3-1", &[CUDNN]),
        (
            "library-cudnn",
            "says 9.28.0, and its package is libcudnn9-cuda-12 9.29.0.3-1",
            "--reinstall libcudnn9-cuda-12",
        ),
    ),
    // Another package than the planned one.
    (
        |m| m.library(CUDART, "12.6.77").package("cuda-cudart-12-8", "12.6.77-1", &[CUDART]),
        (
            "library-cudart",
            "says 12.6, and the plan installed 12.8; its package is cuda-cudart-12-8 12.6.77-1",
            "Run gpu-bootstrap again",
        ),
    ),
    // No package's, and not the planned one.
    (
        |m| m.library(CUBLAS, "11.11.3").package("libcublas-12-8", "12.8.4.1-1", &["/gone"]),
        (
            "library-cublas",
            "says 11.11.3, and the plan installed 12; it belongs to no package",
            "Remove this copy",
        ),
    ),
    // Gone.
    (
        |m| {
            std::fs::remove_file(m.at(CUDART)).unwrap();
            m
        },
        (
            "library-cudart",
            "libcudart.so.12 is not found, and the plan installed it in version 12.8",
            "Run gpu-bootstrap again",
        ),
    ),
    (
        |m| {
            std::fs::remove_file(m.at(CUDNN)).unwrap();
            m.planned("12.8", "auto")
        },
        (
            "library-cudnn",
            "libcudnn.so.9, libcudnn.so.8 is not found, and the plan installed it",
            "Run gpu-bootstrap again",
        ),
    ),
];

#[test]
fn every_fault_of_a_library_is_told_with_both_versions_and_what_to_do() {
    for (damage, (name, words, advice)) in LIBRARY_FAULTS {
        let (code, document) = json(&damage(planned()), &[]);
        let found = check(&document, name);
        assert_eq!((code, &found["verdict"]), (5, &"fail".into()), "{words}: {found}");
        assert!(found["evidence"].as_str().unwrap().contains(words), "{words}: {found}");
        assert!(found["advice"].as_str().unwrap().contains(advice), "{words}: {found}");
        let failures = document["checks"].as_array().unwrap().iter().filter(|c| c["verdict"] == "fail");
        assert_eq!(failures.count(), 1, "{words}: {document:#}");
    }
}

/// Without a record of a plan, a copy of one's own is nobody's fault, and nothing has to be there.
#[test]
fn without_a_plan_a_library_of_ones_own_is_fine() {
    let machine = planned().library("/usr/local/lib/libnccl.so.2", "2.26.2").linked(&["/usr/local/lib"]);
    std::fs::remove_file(machine.at("/var/lib/gpu-bootstrap/choice.json")).unwrap();
    std::fs::remove_file(machine.at(CUDNN)).unwrap();
    let (code, document) = json(&machine, &[]);
    assert_eq!(code, 0, "{document:#}");
    let nccl = check(&document, "library-nccl");
    assert!(nccl["evidence"].as_str().unwrap().ends_with("says 2.26.2; it belongs to no package"), "{nccl}");
}

#[test]
fn a_pair_that_fails_or_hangs_keeps_what_the_others_gave() {
    let measured = |document: &Value| {
        let rows = document["peer_bandwidth"]["value"].as_array().unwrap();
        rows.iter().flat_map(|row| row.as_array().unwrap()).filter(|rate| !rate.is_null()).count()
    };
    let (_, failed) = json(&Simulated::with(3, "H100", "fail_pair=1-0"), &["--bandwidth"]);
    assert_eq!(measured(&failed), 5, "{failed:#}");
    assert_eq!(failed["peer_bandwidth"]["value"][1][0], Value::Null);
    let began = Instant::now();
    let args = &["--bandwidth", "--deadline", "1"];
    let (_, hung) = json(&Simulated::with(3, "H100", "hang_pair=1-0"), args);
    // 0→1 and 0→2 came before it.
    assert_eq!(measured(&hung), 2, "{hung:#}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn copies_that_were_asked_for_and_not_made_are_no_pass() {
    let (code, document) = json(&Simulated::with(2, "H100", "busy=1"), &["--bandwidth"]);
    assert_eq!((code, &check(&document, "copies-1")["verdict"]), (0, &"could-not-tell".into()));
    assert_eq!(check(&document, "copies-0")["verdict"], "pass");
    assert_eq!(check(&document, "pcie-bandwidth")["verdict"], "could-not-tell");
    assert_eq!(document["peer_bandwidth"]["value"], Value::Null);
}

#[test]
fn who_asks_for_bandwidth_in_text_sees_the_numbers() {
    let machine = numa(Simulated::with(2, "H100", ""), "3", "0");
    let out = output(&mut machine.query(&["--bandwidth"]));
    assert!(
        String::from_utf8(out.stdout).unwrap().ends_with("Result = PASS\n"),
        "the sample's own last line"
    );
    let said = String::from_utf8(out.stderr).unwrap();
    for line in [
        "bandwidth of GPU 0: to it 53.7 GB/s (median 53.7), from it 53.7 GB/s (median 53.7), on it 107.4 GB/s (median 107.4), PCIe 5 x16, from NUMA node 3",
        "bandwidth of GPU 1: to it 53.7 GB/s (median 53.7), from it 53.7 GB/s (median 53.7), on it 107.4 GB/s (median 107.4), PCIe 5 x16",
        "bandwidth between GPUs in GB/s, the best from the row's GPU to the column's",
        "           0      1",
        "    0      -   13.4",
        "    1   13.4      -",
    ] {
        assert!(said.lines().any(|l| l == line), "{line:?} is not in\n{said}");
    }
}

/// What the kernel tells of the first GPU's NUMA node.
fn numa(machine: Simulated, node: &str, cpus: &str) -> Simulated {
    machine
        .file("/sys/bus/pci/devices/0000:10:00.0/numa_node", format!("{node}\n"))
        .file(&format!("/sys/devices/system/node/node{node}/cpulist"), format!("{cpus}\n"))
}

#[test]
fn a_gpu_is_tested_from_the_cpus_of_its_own_node() {
    use nix::sched::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let mine: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap()).collect();
    assert!(mine.len() > 1, "with one CPU nothing can be told apart");
    let last = mine.last().unwrap();
    // The driver gives memory for copies to a process on that one CPU alone.
    let machine = || Simulated::with(1, "T4", &format!("only_cpu={last}"));
    let (code, document) = json(&numa(machine(), "1", &last.to_string()), &["--bandwidth"]);
    assert_eq!((code, &check(&document, "copies-0")["verdict"]), (0, &"pass".into()), "{document:#}");
    let node = &document["compute"][0]["numa_node"]["value"];
    assert_eq!((&node["node"], &node["cpus"]), (&1.into(), &last.to_string().into()));
    // Without a node (the kernel says -1), or with one whose CPUs are not ours, it runs anywhere.
    for (number, cpus) in [("-1", last.to_string()), ("1", "1000".to_owned())] {
        let (code, document) = json(&numa(machine(), number, &cpus), &["--bandwidth"]);
        assert_eq!(code, 5);
        let evidence = check(&document, "copies-0")["evidence"].as_str().unwrap();
        assert!(evidence.contains("cuMemHostAlloc returned 2"), "{evidence}");
    }
    let (_, document) = json(&numa(machine(), "-1", "0"), &[]);
    assert_eq!(document["compute"][0]["numa_node"]["value"], Value::Null);
}

#[test]
fn a_driver_without_the_older_functions_is_asked_by_the_newer() {
    let temperature = |settings: &str| {
        let (_, document) = json(&Simulated::with(1, "T4", settings), &[]);
        document["nvml"][0]["numbers"]["temperature"]["value"].clone()
    };
    // The simulated driver tells the two apart by a degree.
    assert_eq!((temperature(""), temperature("fail=nvmlDeviceGetTemperature=3")), (41.into(), 42.into()));
}

#[test]
fn a_lone_gpu_of_a_linked_board_needs_no_nvlink() {
    let (code, document) = json(&Simulated::with(1, "H100", "nvlink_down=0"), &[]);
    // 17 of 18 are up: that is a fault of its own; with none up it would be nobody's.
    assert_eq!((code, &check(&document, "nvlink")["verdict"]), (5, &"fail".into()));
    let (code, document) = json(&Simulated::with(1, "H100", "nvlink_off=0"), &[]);
    assert_eq!((code, &check(&document, "nvlink")["verdict"]), (0, &"could-not-tell".into()));
    let (code, document) = json(&Simulated::with(2, "H100", "nvlink_off=0"), &[]);
    assert_eq!((code, &check(&document, "nvlink")["verdict"]), (5, &"fail".into()));
}

#[test]
fn a_switchs_report_in_the_kernels_log_is_judged() {
    for (severity, verdict, code) in [("Fatal", "fail", 5), ("Non-fatal", "warn", 0)] {
        let line = format!(
            "4,1,2,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, {severity}, Link 30 LTSSM Fault Up\n"
        );
        let (is, document) = json(&Simulated::with(2, "H100", "").file("/dev/kmsg", line), &[]);
        assert_eq!((is, &check(&document, "sxid")["verdict"]), (code, &verdict.into()));
        assert_eq!(document["sxids"][0]["sxid"], 20034);
    }
}

#[test]
fn a_busy_gpu_computes_when_asked_to() {
    let machine = Simulated::with(1, "T4", "busy=0");
    let (_, document) = json(&machine, &["--compute", "always"]);
    assert_eq!(check(&document, "compute-0")["verdict"], "pass");
}

#[test]
fn mig_is_counted_as_such() {
    let (code, document) = json(&Simulated::with(2, "H100", "mig=1\ncuda_gpus=1"), &[]);
    let count = check(&document, "gpu-count");
    assert_eq!((code, &count["verdict"]), (0, &"pass".into()), "{count}");
    assert!(count["evidence"].as_str().unwrap().contains("3 MIG devices"));
}

#[test]
fn a_hanging_driver_ends_with_its_deadline() {
    let machine = Simulated::with(1, "T4", "hang=cuInit");
    let began = Instant::now();
    let (code, _) = json(&machine, &["--deadline", "1"]);
    assert_eq!(code, 5);
    // The deadline, and generous room for two shared cores.
    assert!(began.elapsed() < Duration::from_millis(1600), "{:?}", began.elapsed());
}

#[test]
fn programs_that_hang_hold_nobody_up() {
    let machine = with_switch().gone("/proc/4242");
    let hang = "while :; do :; done";
    let machine = machine.program("/usr/sbin/modinfo", hang).program("/usr/bin/systemctl", hang);
    let began = Instant::now();
    let (code, document) = json(&machine, &["--deadline", "1"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(code, 0, "{document:#}");
    for name in ["module-on-disk", "fabric-manager"] {
        assert_eq!(check(&document, name)["verdict"], "could-not-tell");
    }
}

#[test]
fn hangs_in_several_places_cost_one_deadline() {
    let everywhere = "hang=cuInit\nhang=nvmlInit_v2\nhang=cudnnGetVersion";
    let machine = Simulated::with(1, "T4", everywhere);
    let began = Instant::now();
    let (code, document) = json(&machine, &["--deadline", "1"]);
    assert_eq!(code, 5);
    assert!(began.elapsed() < Duration::from_millis(1600), "{:?}", began.elapsed());
    for name in ["cuda", "nvml", "library-cudnn"] {
        let evidence = check(&document, name)["evidence"].as_str().unwrap();
        assert!(evidence.contains("did not answer within 1000 ms"), "{evidence}");
    }
}

#[test]
fn a_grandchild_that_holds_the_output_open_holds_nobody_up() {
    let machine = Simulated::with(1, "T4", "grandchild=cuInit");
    let began = Instant::now();
    let (code, document) = json(&machine, &[]);
    assert_eq!(code, 0, "{document:#}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn without_a_module_no_library_is_loaded() {
    let machine = Simulated::with(1, "T4", "crash=cuInit");
    std::fs::remove_dir_all(machine.at("/proc/driver")).unwrap();
    let (code, document) = json(&machine, &[]);
    assert_eq!(code, 5);
    assert_eq!(document["processes"], Value::Array(Vec::new()));
    assert!(check(&document, "driver")["evidence"].as_str().unwrap().contains("no library was loaded"));
    let out = output(&mut machine.query(&["--text"]));
    assert!(String::from_utf8(out.stdout).unwrap().ends_with("Result = FAIL\n"));
}

#[test]
fn a_library_that_others_may_replace_is_not_loaded() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Simulated::with(1, "T4", "");
    let directory = machine.at("/usr/lib/x86_64-linux-gnu");
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (code, document) = json(&machine, &[]);
    assert_eq!(code, 5);
    let cuda = check(&document, "cuda");
    assert_eq!(cuda["verdict"], "could-not-tell");
    assert!(cuda["evidence"].as_str().unwrap().contains("may be written by others"), "{cuda}");
}

#[test]
fn an_xid_in_the_kernels_log_is_judged() {
    let line = "3,9,9,-;NVRM: Xid (PCI:0000:10:00): 79, pid=12, GPU has fallen off the bus.\n";
    let (code, document) = json(&Simulated::with(1, "T4", "").file("/dev/kmsg", line), &[]);
    assert_eq!((code, &check(&document, "xid")["verdict"]), (5, &"fail".into()));
}

#[test]
fn a_dead_pci_function_is_named() {
    let machine = Simulated::with(1, "T4", "").file("/sys/bus/pci/devices/0000:10:00.0/config", [0xff; 64]);
    let (code, document) = json(&machine, &[]);
    assert_eq!((code, &check(&document, "pci")["verdict"]), (5, &"fail".into()));
}

#[test]
fn the_text_is_that_of_device_query() {
    let out = output(&mut Simulated::with(2, "H100", "").query(&["--text"]));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    let expected = [
        "Detected 2 CUDA Capable device(s)",
        "Device 0: \"NVIDIA H100 80GB HBM3\"",
        "  CUDA Driver Version / Runtime Version          12.8 / n/a",
        "  CUDA Capability Major/Minor version number:    9.0",
        "  Total amount of global memory:                 81559 MBytes (85520809984 bytes)",
        "  (132) Multiprocessors, (128) CUDA Cores/MP:    16896 CUDA Cores",
        "  GPU Max Clock rate:                            1980 MHz (1.98 GHz)",
        "  Memory Clock rate:                             2619 Mhz",
        "  Memory Bus Width:                              5120-bit",
        "  L2 Cache Size:                                 52428800 bytes",
        "  Maximum Texture Dimension Size (x,y,z)         1D=(131072), 2D=(131072, 65536), 3D=(16384, 16384, 16384)",
        "  Maximum Layered 1D Texture Size, (num) layers  1D=(32768), 2048 layers",
        "  Maximum Layered 2D Texture Size, (num) layers  2D=(32768, 32768), 2048 layers",
        "  Total amount of constant memory:               65536 bytes",
        "  Total amount of shared memory per block:       49152 bytes",
        "  Total shared memory per multiprocessor:        233472 bytes",
        "  Total number of registers available per block: 65536",
        "  Warp size:                                     32",
        "  Maximum number of threads per multiprocessor:  2048",
        "  Maximum number of threads per block:           1024",
        "  Max dimension size of a thread block (x,y,z): (1024, 1024, 64)",
        "  Max dimension size of a grid size    (x,y,z): (2147483647, 65535, 65535)",
        "  Maximum memory pitch:                          2147483647 bytes",
        "  Texture alignment:                             512 bytes",
        "  Concurrent copy and kernel execution:          Yes with 3 copy engine(s)",
        "  Run time limit on kernels:                     No",
        "  Integrated GPU sharing Host Memory:            No",
        "  Support host page-locked memory mapping:       Yes",
        "  Alignment requirement for Surfaces:            Yes",
        "  Device has ECC support:                        Enabled",
        "  Device supports Unified Addressing (UVA):      Yes",
        "  Device supports Managed Memory:                Yes",
        "  Device supports Compute Preemption:            Yes",
        "  Supports Cooperative Kernel Launch:            Yes",
        "  Supports MultiDevice Co-op Kernel Launch:      Yes",
        "  Device PCI Domain ID / Bus ID / location ID:   0 / 16 / 0",
        "  Compute Mode:",
        "     < Default (multiple host threads can use ::cudaSetDevice() with device simultaneously) >",
        "> Peer access from NVIDIA H100 80GB HBM3 (GPU0) -> NVIDIA H100 80GB HBM3 (GPU1) : Yes",
        "> Peer access from NVIDIA H100 80GB HBM3 (GPU1) -> NVIDIA H100 80GB HBM3 (GPU0) : Yes",
        "deviceQuery, CUDA Driver = CUDART, CUDA Driver Version = 12.8, CUDA Runtime Version = n/a, NumDevs = 2",
        "Result = PASS",
    ];
    let mut lines = text.lines();
    for line in expected {
        assert!(lines.any(|l| l == line), "{line:?} is missing, or out of order, in\n{text}");
    }
}

#[test]
fn a_driver_that_prints_records_of_its_own_and_megabytes_changes_nothing() {
    let machine = Simulated::with(2, "H100", "noise=cuInit\nnoise=nvmlInit_v2\nnoise=cuCtxSynchronize");
    let (code, document) = json(&machine, &[]);
    assert_eq!((code, &document["result"]), (0, &"PASS".into()), "{document:#}");
    assert_eq!(
        check(&document, "cuda")["evidence"],
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1 shows 2 devices"
    );
    let machine = Simulated::with(2, "H100", "noise=cuInit\ncrash=cuDeviceGetName");
    let out = output(&mut machine.query(&[]));
    let said = String::from_utf8(out.stderr).unwrap();
    let line = said.lines().find(|l| l.starts_with("fail cuda: ")).unwrap();
    assert!(line.contains("SIGSEGV in stage cuda.device") && line.len() < 1000, "{line}");
    assert!(!said.contains('\u{1b}'));
}

#[test]
fn what_a_driver_calls_a_gpu_is_one_line_that_steers_nothing() {
    let machine = Simulated::with(1, "T4", "");
    let label = b"gpus=1xT4\nlabel=\x1b]0;owned\x07\rResult = PASS\n";
    let out = output(&mut machine.file("/etc/simulated-driver", label).query(&[]));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("Device 0: \"Tesla T4 ?]0;owned??Result = PASS\""), "{text}");
    // Not UTF-8 at all.
    let machine = Simulated::with(1, "T4", "").file("/etc/simulated-driver", b"gpus=1xT4\nlabel=\xff\xfe\n");
    let (code, document) = json(&machine, &[]);
    assert_eq!((code, &document["devices"][0]["name"]["value"]), (0, &"?".into()));
}

/// Each ends soon, in a fault that names the number, without a panic.
#[test]
fn numbers_that_no_machine_has_are_faults_and_no_hang() {
    for (settings, name, words) in [
        ("cuda_gpus=2147483647", "gpu-count", "CUDA 64"),
        ("cuda_gpus=-2147483648", "cuda", "shows no device"),
        ("nvml_gpus=4294967295", "gpu-count", "NVML 64"),
        ("nvml_gpus=0", "gpu-count", "NVML 0"),
        ("multiprocessors=0", "multiprocessors-0", "1 of 0"),
        ("multiprocessors=2147483647", "multiprocessors-0", "4096 of 2147483647"),
    ] {
        let began = Instant::now();
        let machine = Simulated::with(1, "T4", settings);
        let (code, document) = json(&machine, &["--deadline", "20"]);
        let found = check(&document, name);
        assert!(found["evidence"].as_str().unwrap().contains(words), "{settings}: {found}");
        let (verdict, expected) = if name == "multiprocessors-0" { ("warn", 0) } else { ("fail", 5) };
        assert_eq!((&found["verdict"], code), (&verdict.into(), expected), "{settings}: {document:#}");
        assert!(began.elapsed() < Duration::from_secs(15), "{settings}: {:?}", began.elapsed());
    }
    let (code, document) = json(&Simulated::with(1, "T4", "multiprocessors=-7"), &[]);
    assert_eq!((code, &check(&document, "compute-0")["verdict"]), (0, &"pass".into()));
}

#[test]
fn a_busy_gpu_is_known_by_its_address_where_its_uuids_differ() {
    let (code, document) = json(&Simulated::with(2, "H100", "busy=1\nother_uuids=1"), &[]);
    assert_eq!((code, &check(&document, "compute-1")["verdict"]), (0, &"could-not-tell".into()));
    assert_eq!(check(&document, "compute-0")["verdict"], "pass");
}

/// NVIDIA's older drivers refuse the numbers of newer attributes with code 1.
#[test]
fn attributes_that_an_old_driver_does_not_know_are_null() {
    let (code, document) = json(&Simulated::with(1, "T4", "fail=cuDeviceGetAttribute=1"), &[]);
    assert_eq!(code, 0, "{document:#}");
    let attributes = document["devices"][0]["attributes"].as_object().unwrap();
    assert!(attributes.len() > 50, "{attributes:?}");
    assert!(attributes.values().all(|a| a["value"].is_null()), "{attributes:?}");
}

#[test]
fn whoever_expects_no_gpu_is_told_to_correct_the_number() {
    let (code, document) = json(&Simulated::with(1, "T4", ""), &["--expect-gpus", "0"]);
    let found = check(&document, "gpu-count");
    assert_eq!((code, &found["verdict"]), (5, &"fail".into()));
    assert!(found["advice"].as_str().unwrap().starts_with("Correct the expected number"), "{found}");
}

#[test]
fn a_kernel_log_without_an_end_is_read_in_part() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let machine = Simulated::with(1, "T4", "").gone("/dev/kmsg");
    std::os::unix::fs::symlink("zero", machine.at("/dev/kmsg")).unwrap();
    mknod(&machine.at("/dev/zero"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap();
    let began = Instant::now();
    let (code, document) = json(&machine, &[]);
    assert_eq!((code, &check(&document, "xid")["verdict"]), (0, &"pass".into()));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

/// The probe's processes of an agent, while there are any.
fn probes(agent: u32) -> Vec<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A process that has not ended; a zombie has.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// As the kernel does when memory runs out.
#[test]
fn a_probe_that_is_killed_is_no_fault_of_the_drivers_packages() {
    use nix::sys::signal::{Signal, kill};
    let machine = Simulated::with(1, "T4", "hang=cuInit");
    let agent = machine.query(&["--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let hanging: Vec<u32> = probes(agent.id()).into_iter().filter(|&pid| lives(pid)).collect();
    assert_eq!(hanging.len(), 1);
    kill(nix::unistd::Pid::from_raw(hanging[0].try_into().unwrap()), Signal::SIGKILL).unwrap();
    let out = agent.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    let found = check(&document, "cuda");
    assert_eq!(
        (out.status.code(), &found["evidence"]),
        (Some(5), &"the probe was ended by SIGKILL in stage cuda.init".into())
    );
    assert!(found["advice"].as_str().unwrap().contains("Out of memory"), "{found}");
}

/// `ulimit` in front of the agent.
fn limited(machine: &Simulated, limit: &str) -> Output {
    let agent = env!("CARGO_BIN_EXE_gpu-bootstrap");
    let script =
        format!("ulimit {limit}; exec {agent} device-query --json --root {}", machine.at("/").display());
    output(Command::new("sh").args(["-c", &script]))
}

#[test]
fn a_limit_on_files_or_descriptors_ends_in_a_sentence() {
    let machine = Simulated::with(1, "T4", "");
    for (limit, words) in [("-f 0", "File too large"), ("-n 12", "Too many open files")] {
        let out = limited(&machine, limit);
        let document: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
        let found = check(&document, "cuda");
        assert_eq!((out.status.code(), &found["verdict"]), (Some(5), &"could-not-tell".into()), "{found}");
        assert!(found["evidence"].as_str().unwrap().contains(words), "{found}");
    }
    let left = std::fs::read_dir(machine.at("/run")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn without_dev_null_the_probe_starts_all_the_same() {
    let machine = Simulated::with(1, "T4", "");
    let script = format!(
        "mount -t tmpfs none /dev && exec {} device-query --json --root {}",
        env!("CARGO_BIN_EXE_gpu-bootstrap"),
        machine.at("/").display()
    );
    let out = output(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
}

/// Whatever ends the agent: as root, and where the probe has given up root.
#[test]
fn no_probe_outlives_its_agent() {
    use nix::sys::signal::{Signal, kill};
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    use nix::unistd::Pid;
    use std::os::unix::fs::PermissionsExt;
    for unprivileged in [false, true] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let machine = Simulated::with(1, "T4", "hang=cuInit\nhang=nvmlInit_v2");
            std::fs::set_permissions(machine.at("/"), std::fs::Permissions::from_mode(0o755)).unwrap();
            if unprivileged {
                for (name, minor) in [("nvidiactl", 255), ("nvidia0", 0), ("nvidia-uvm", 1)] {
                    let node = machine.at("/dev").join(name);
                    mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(195, minor)).unwrap();
                    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666)).unwrap();
                }
            }
            let mut agent = machine.query(&["--json"]).stdout(std::process::Stdio::null()).spawn().unwrap();
            // The two that hang; the library's own has ended by then.
            std::thread::sleep(Duration::from_millis(700));
            let hanging: Vec<u32> = probes(agent.id()).into_iter().filter(|&pid| lives(pid)).collect();
            assert_eq!(hanging.len(), 2);
            kill(Pid::from_raw(agent.id().try_into().unwrap()), signal).unwrap();
            agent.wait().unwrap();
            let began = Instant::now();
            while hanging.iter().any(|&pid| lives(pid)) {
                assert!(began.elapsed() < Duration::from_secs(3), "{signal}, unprivileged {unprivileged}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Who loads the driver's libraries.
fn user(machine: &Simulated) -> u64 {
    let (code, document) = json(machine, &[]);
    assert_eq!(code, 0, "{document:#}");
    document["nvml"][0]["numbers"]["power_usage"]["value"].as_u64().unwrap()
}

#[test]
fn root_is_given_up_where_the_device_nodes_are_there_and_open_to_all() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    use std::os::unix::fs::PermissionsExt;
    let machine = Simulated::with(1, "T4", "report_user=1");
    std::fs::set_permissions(machine.at("/"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(user(&machine), 0, "without device nodes, root must make them");
    for (name, minor) in [("nvidiactl", 255), ("nvidia0", 0), ("nvidia-uvm", 1)] {
        let node = machine.at("/dev").join(name);
        mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(195, minor)).unwrap();
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    assert_eq!(user(&machine), 65534);
    let restricted = machine.at("/dev/nvidia0");
    std::fs::set_permissions(restricted, std::fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(user(&machine), 0, "an administrator has restricted the device");
}
