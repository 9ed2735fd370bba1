//! The last step of a run: what `device-query` makes of each answer of a (simulated) driver. First the action itself
//! in a root of its own, then whole runs in rehearsals, through the real binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpu_bootstrap::action::device_query::DeviceQuery;
use gpu_bootstrap::action::{Action, Applied};
use gpu_bootstrap::error::Error;
use gpu_bootstrap::host::Host;
use serde_json::Value;
use simulated_driver::{DRIVER, LIBRARIES, Simulated};

/// What the simulated machines' newer driver is called.
const NEWER: &str = "595.58.03";

fn action(gpus: u32) -> Action {
    Action::DeviceQuery(DeviceQuery {
        gpus,
        libraries: Vec::new(),
        driver: true,
        toolkits: Vec::new(),
        cudnn: "none".into(),
        library_dirs: Vec::new(),
    })
}

fn host(machine: &Simulated) -> Host {
    Host::new(machine.at("/"))
}

/// What must come of a machine.
#[derive(Debug)]
enum Wanted {
    /// A reboot, for this reason.
    Reboot(&'static str),
    /// An error: code, words of the sentence, words of the hint.
    Broken(&'static str, &'static str, &'static str),
}
use Wanted::{Broken, Reboot};

/// The driver's settings, what modinfo says of the module on disk, the version in libcuda's file name → what comes of it.
/// The loaded module is 580.95.05 throughout.
type Case = (&'static str, Option<&'static str>, Option<&'static str>, Wanted);

const CASES: &[Case] = &[
    // The module on disk is the libraries': the next boot loads it.
    ("version=595.58.03", Some(NEWER), None, Reboot("580.95.05 is loaded and in use; 595.58.03 takes over")),
    ("fail=nvmlInit_v2=18", Some(NEWER), Some(NEWER), Reboot("595.58.03 takes over with the next boot")),
    ("fail=cuInit=803", Some(NEWER), None, Reboot("595.58.03 takes over with the next boot")),
    // It is not: a reboot would change nothing.
    (
        "version=595.58.03",
        Some(DRIVER),
        None,
        Broken(
            "driver-mismatch",
            "libraries 595.58.03 are installed, and on disk is 580.95.05",
            "dkms status",
        ),
    ),
    (
        "version=595.58.03",
        Some("590.44.01"),
        None,
        Broken(
            "driver-mismatch",
            "libraries 595.58.03 are installed, and on disk is 590.44.01",
            "dkms status",
        ),
    ),
    (
        "version=595.58.03",
        None,
        None,
        Broken(
            "driver-mismatch",
            "libraries 595.58.03 are installed, and there is none on disk",
            "dkms status",
        ),
    ),
    (
        "",
        Some(DRIVER),
        Some(NEWER),
        Broken("driver-mismatch", "libraries 595.58.03 are installed", "dkms status"),
    ),
    // Module, libraries and disk are the same, and it still fails.
    (
        "fail=cuInit=803",
        Some(DRIVER),
        Some(DRIVER),
        Broken(
            "driver-mismatch",
            "the driver's libraries refuse it, and on disk is 580.95.05",
            "second copy of libcuda",
        ),
    ),
    (
        "fail=nvmlInit_v2=18",
        Some(DRIVER),
        None,
        Broken("driver-mismatch", "the driver's libraries refuse it", "a reboot would change nothing"),
    ),
    // The driver itself asks.
    ("recovery=1", Some(DRIVER), None, Reboot("the driver asks for a reboot to recover GPU 1")),
    // Nothing that a reboot mends.
    (
        "fail=cuInit=802",
        Some(NEWER),
        None,
        Broken("cuda-failed", "cuda: cuInit returned 802", "start nvidia-fabricmanager of exactly"),
    ),
    (
        "fail=nvmlInit_v2=17",
        None,
        None,
        Broken("nvml-failed", "nvml: nvmlInit_v2 returned 17", "look at dmesg"),
    ),
    (
        "bitflip=1",
        None,
        None,
        Broken("compute-failed", "compute-1: 1 of 65536 results are wrong", "stop and start"),
    ),
    ("cuda_gpus=1", None, None, Broken("gpu-count", "gpu-count: PCI 2, driver 2, NVML 2, CUDA 1", "dmesg")),
    ("ecc_uncorrected=0", None, None, Broken("gpu-unhealthy", "ecc: GPU 0: 2 uncorrected", "reset the GPU")),
    ("abort=cudnnGetVersion", None, None, Broken("library-broken", "library-cudnn", "reinstall the package")),
];

fn machine(settings: &str, on_disk: Option<&str>, named: Option<&str>) -> Simulated {
    let machine = Simulated::with(2, "H100", settings);
    let machine = match on_disk {
        Some(version) => machine.program("/usr/sbin/modinfo", &format!("echo {version}")),
        None => machine,
    };
    let Some(version) = named else { return machine };
    let link = machine.at(&format!("{LIBRARIES}/libcuda.so.1"));
    fs::rename(&link, machine.at(&format!("{LIBRARIES}/libcuda.so.{version}"))).unwrap();
    std::os::unix::fs::symlink(format!("libcuda.so.{version}"), link).unwrap();
    machine.linked(&[])
}

#[tokio::test]
async fn each_answer_of_the_driver_leads_to_a_reboot_or_to_an_error_of_its_own() {
    for (settings, on_disk, named, wanted) in CASES {
        let machine = machine(settings, *on_disk, *named);
        let what = format!("{settings}, on disk {on_disk:?}, named {named:?}: {wanted:?}");
        let check = action(2).check(&host(&machine)).await.unwrap();
        assert_eq!(check.state(), "needed", "{what}: {check:?}");
        let applied = action(2).apply(&host(&machine)).await;
        match (wanted, applied) {
            (Reboot(words), Ok(Applied::RebootNeeded { why })) => {
                assert!(why.contains(words), "{what}: {why}");
                assert_eq!(check.why(), why);
            }
            (Broken(code, words, hint), Err(error)) => {
                assert_eq!((error.code().name(), error.code().exit_code()), (*code, 5), "{what}: {error}");
                assert!(error.message().contains(words), "{what}: {error}");
                assert!(error.hint().unwrap().contains(hint), "{what}: {:?}", error.hint());
                assert_eq!(check.why(), error.message());
            }
            (_, other) => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn further_failures_are_the_causes_of_the_first() {
    let machine = Simulated::with(2, "H100", "bitflip=0\nnvlink_down=1");
    let error: Error = action(2).apply(&host(&machine)).await.unwrap_err();
    assert_eq!(error.message(), "nvlink: GPU 1: 17 of 18 NVLinks are up");
    assert_eq!(error.causes(), ["compute-0: 1 of 65536 results are wrong, the first at 12345"]);
}

#[tokio::test]
async fn health_is_one_sentence_that_says_what_was_not_computed_on() {
    let evidence = async |settings: &str, gpus| {
        let machine = Simulated::with(2, "H100", settings);
        let check = action(gpus).check(&host(&machine)).await.unwrap();
        assert_eq!(check.state(), "satisfied", "{settings}: {check:?}");
        check.why().to_owned()
    };
    let healthy = "driver 580.95.05 loaded; 2 × NVIDIA H100 80GB HBM3; CUDA 12.8; computed on 2 of 2";
    assert_eq!(evidence("", 2).await, healthy);
    // A plan that asks for fewer is content with more.
    assert_eq!(evidence("", 1).await, healthy);
    assert_eq!(
        evidence("busy=1", 0).await,
        "driver 580.95.05 loaded; 2 × NVIDIA H100 80GB HBM3; CUDA 12.8; computed on 1 of 2; \
         GPU 1: 3 processes compute on it; nothing was run beside them"
    );
    assert!(evidence("pcie_x8=0", 2).await.ends_with("; device-query warns of pcie-width"));
}

#[tokio::test]
async fn a_library_that_the_plan_installed_and_is_gone_has_the_code_for_that() {
    let machine = Simulated::with(1, "T4", "");
    let Action::DeviceQuery(plain) = action(1) else { unreachable!() };
    let planned = DeviceQuery { toolkits: vec!["12.8".into()], cudnn: "9.28.0".into(), ..plain.clone() };
    let error = Action::DeviceQuery(planned.clone()).apply(&host(&machine)).await.unwrap_err();
    assert_eq!((error.code().name(), error.code().exit_code()), ("library-missing", 5), "{error}");
    let machine = machine.library(&format!("{LIBRARIES}/libcudart.so.12"), "12.8.90");
    let check = Action::DeviceQuery(planned).check(&host(&machine)).await.unwrap();
    let evidence = "driver 580.95.05 loaded; 1 × Tesla T4; CUDA 12.8; CUDA runtime 12.8; cuDNN 9.28.0; computed on 1 of 1";
    assert_eq!((check.state(), check.why()), ("satisfied", evidence));
    let other = DeviceQuery { cudnn: "9.8.0".into(), ..plain };
    let error = Action::DeviceQuery(other).apply(&host(&machine)).await.unwrap_err();
    assert_eq!(error.code().name(), "library-broken", "{error}");
}

/// A driver that hangs would cost a run two deadlines otherwise.
#[tokio::test]
async fn the_work_uses_what_its_check_has_just_seen_once_and_no_other() {
    let broken = "bitflip=1\nhang=nvmlDeviceGetTemperature";
    let settings = |machine: &Simulated, lines: &str| {
        fs::write(machine.at("/etc/simulated-driver"), format!("gpus=2xH100\n{lines}\n")).unwrap();
    };
    let code = |applied: Result<Applied, Error>| applied.map_err(|e| e.code().name());
    let machine = Simulated::with(2, "H100", "bitflip=1");
    let host = host(&machine);
    assert_eq!(action(2).check(&host).await.unwrap().state(), "needed");
    // Whoever asks the driver now never gets an answer in this test's time.
    settings(&machine, broken);
    let began = Instant::now();
    assert_eq!(code(action(2).apply(&host).await), Err("compute-failed"));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());

    // Taken out: the next one asks again, and so does another action.
    settings(&machine, "");
    assert_eq!(code(action(2).apply(&host).await), Ok(Applied::Done));
    settings(&machine, "bitflip=1");
    assert_eq!(action(2).check(&host).await.unwrap().state(), "needed");
    settings(&machine, "");
    assert_eq!(code(action(1).apply(&host).await), Ok(Applied::Done));
    assert_eq!(code(action(2).apply(&host).await), Ok(Applied::Done));
}

/// The probe may be loaded from nowhere: that says nothing about the GPUs.
#[tokio::test]
async fn what_cannot_be_told_is_unknown_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Simulated::with(1, "T4", "");
    fs::set_permissions(machine.at(LIBRARIES), fs::Permissions::from_mode(0o777)).unwrap();
    let check = action(1).check(&host(&machine)).await.unwrap();
    assert_eq!(check.state(), "unknown", "{check:?}");
    assert!(
        check.why().contains("may be written by others") && check.why().contains("Let root own"),
        "{check:?}"
    );
}

/// Right after its manager has started, the fabric is not ready yet.
#[tokio::test]
async fn a_fabric_that_is_being_set_up_is_waited_for_where_its_manager_runs() {
    let machine =
        Simulated::with(2, "H100", "needs=/run/fabric-is-ready").program("/usr/bin/systemctl", "exit 0");
    let check = action(2).check(&host(&machine)).await.unwrap();
    assert_eq!(check.state(), "needed", "{check:?}");
    let ready = machine.at("/run/fabric-is-ready");
    let soon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        fs::write(ready, "").unwrap();
    });
    assert_eq!(action(2).apply(&host(&machine)).await.unwrap(), Applied::Done);
    soon.join().unwrap();

    let machine =
        Simulated::with(2, "H100", "needs=/run/fabric-is-ready").program("/usr/bin/systemctl", "exit 3");
    let began = Instant::now();
    assert_eq!(action(2).apply(&host(&machine)).await.unwrap_err().code().name(), "cuda-failed");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Its manager runs, and never gets there.
#[tokio::test]
async fn a_fabric_whose_manager_is_of_another_version_is_not_waited_for() {
    let machine = Simulated::with(2, "H100", "needs=/run/fabric-is-ready").switched("570.195.03");
    let began = Instant::now();
    let error = action(2).apply(&host(&machine)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(error.code().name(), "cuda-failed");
    assert!(error.causes().iter().any(|cause| cause.starts_with("fabric-manager: ")), "{error:?}");
}

fn rehearse(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
    command.arg("rehearse").args(args).stdin(Stdio::null()).output().unwrap()
}

/// A whole rehearsal: exit code and JSON document.
fn whole(args: &[&str]) -> (i32, Value) {
    let output = rehearse(&[args, &["--json"]].concat());
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap(), document)
}

#[test]
fn a_rehearsal_of_every_kind_of_gpu_computes_on_it() {
    // Volta to Blackwell, with and without NVSwitches.
    for (name, model, computed) in [
        ("p3.16xlarge", "8 × Tesla V100-SXM2-16GB (simulated)", "computed on 8 of 8"),
        ("p5en.48xlarge", "8 × NVIDIA H200 (simulated)", "computed on 8 of 8"),
        ("p6-b200.48xlarge", "8 × NVIDIA B200 (simulated)", "computed on 8 of 8"),
    ] {
        let script = "gpu-bootstrap run --catalog /run/gpu-bootstrap-rehearsal/catalog";
        let output = rehearse(&["--instance-type", name, "--", "sh", "-c", script]);
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said
            .lines()
            .find(|l| l.contains("device query: driver"))
            .unwrap_or_else(|| panic!("{name}: {output:?}"));
        assert!(line.contains(model) && line.contains(computed) && line.contains("CUDA runtime"), "{line}");
    }
}

#[test]
fn a_fault_ends_the_run_with_its_code_sentence_and_hint_and_the_plan_shows_it() {
    let script = r#"
        catalog="--catalog /run/gpu-bootstrap-rehearsal/catalog"
        code=0; gpu-bootstrap run --quiet $catalog || code=$?; echo "first: $code"
        cp /run/gpu-bootstrap/result.json /tmp/first
        code=0; gpu-bootstrap run $catalog >/tmp/second 2>&1 || code=$?; echo "second: $code"
        grep -E "^(done|ok)" /tmp/second | sed "s/:.*//"
        gpu-bootstrap plan $catalog | grep -A1 "^device query"
        echo "as nobody:"
        setpriv --reuid 65534 --regid 65534 --clear-groups gpu-bootstrap plan $catalog | grep -A1 "^device query"
        cat /tmp/first"#;
    let output =
        rehearse(&["--instance-type", "g5.12xlarge", "--fault", "bitflip=2", "--", "sh", "-ec", script]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let sentence = "compute-2: 1 of 65536 results are wrong, the first at 12345";
    assert!(said.contains("first: 5\nsecond: 5\n"), "{said}");
    // The second run finds everything else as it is to be.
    let seen: Vec<_> = said.lines().filter(|l| l.starts_with("ok ")).collect();
    assert!(seen.len() >= 7 && !said.contains("\ndone"), "{said}");
    assert!(
        said.contains(&format!(
            "device query (device-query, boot)\n  needed     4 working GPUs: {sentence}\n"
        )),
        "{said}"
    );
    let nobody = said.split("as nobody:\n").nth(1).unwrap();
    assert!(nobody.contains("unknown    4 working GPUs: nvml: there is no /dev/nvidiactl"), "{said}");
    let result: Value = serde_json::from_str(&nobody[nobody.find('{').unwrap()..]).unwrap();
    assert_eq!(result["error"]["code"], "compute-failed");
    assert_eq!(result["error"]["message"], sentence);
    assert_eq!(result["error"]["hint"], "stop and start the instance to move it to other hardware");
}

#[test]
fn a_driver_that_asks_for_a_reboot_gets_one() {
    let (code, document) = whole(&["--fault", "recovery=0"]);
    assert_eq!((code, &document["status"]["outcome"]), (10, &"reboot-needed".into()), "{document:#}");
}

#[test]
fn without_its_fabric_manager_a_machine_with_switches_is_not_ready() {
    let script = "
        catalog='--catalog /run/gpu-bootstrap-rehearsal/catalog'
        gpu-bootstrap run --quiet $catalog
        systemctl stop nvidia-fabricmanager
        gpu-bootstrap device-query 2>&1 | grep -A1 '^fail' || true
        gpu-bootstrap run --quiet $catalog && echo healed";
    let output = rehearse(&["--instance-type", "p5.48xlarge", "--", "sh", "-ec", script]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("fail cuda: cuInit returned 802"), "{said}");
    assert!(said.trim_end().ends_with("healed"), "{said}");
}

#[test]
fn a_fault_that_does_not_exist_is_refused() {
    for (fault, words) in [
        ("bitflop=1", "a fault is one of hang=FUNCTION"),
        ("bitflip=one", "write bitflip=GPU"),
        ("fail=cuInnit=802", "with a function that the simulated driver has"),
        ("bitflip=1", "g4dn.xlarge has no such GPU"),
    ] {
        let output = rehearse(&["--fault", fault]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{fault}: {output:?}");
    }
}
