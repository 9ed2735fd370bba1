//! What a run says of each GPU: to the event stream, and from there to the status files, to `status` and to the page. First
//! the action itself over simulated drivers, then whole runs in rehearsals, through the real binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/json_schema.rs"]
mod json_schema;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use gpu_bootstrap::action::Action;
use gpu_bootstrap::action::device_query::DeviceQuery;
use gpu_bootstrap::device_query::checks::Verdict::{self, CouldNotTell, Fail, Pass, Warn};
use gpu_bootstrap::device_query::verdicts::{Finding, Verdicts};
use gpu_bootstrap::host::Host;
use serde_json::Value;
use simulated_driver::Simulated;

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

/// What a check of this machine says of its GPUs, each time that the driver was asked.
async fn heard(machine: &Simulated, gpus: u32) -> Vec<Verdicts> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    let host = Host::new(machine.at("/")).with_verdicts(move |verdicts| sink.lock().unwrap().push(verdicts));
    action(gpus).check(&host).await.unwrap();
    drop(host);
    Arc::into_inner(heard).unwrap().into_inner().unwrap()
}

/// Settings of the driver of a machine with two GPUs → result, verdict of each GPU, words of the sentence.
const CASES: &[(&str, Verdict, [Verdict; 2], &str)] = &[
    ("", Pass, [Pass, Pass], "2 of 2 pass"),
    ("pcie_x8=0", Pass, [Pass, Pass], "2 of 2 pass"),
    ("bitflip=1", Fail, [Pass, Fail], "1 of 2 pass; GPU 1: compute-1 fails"),
    ("ecc_uncorrected=0", Fail, [Fail, Pass], "1 of 2 pass; GPU 0: ecc fails"),
    (
        "bitflip=0\nnvlink_down=1",
        Fail,
        [Fail, Fail],
        "0 of 2 pass; GPU 0: compute-0 fails; GPU 1: nvlink fails",
    ),
    ("busy=1", CouldNotTell, [Pass, CouldNotTell], "1 of 2 pass; GPU 1: compute-1 could not tell"),
    ("cuda_gpus=1", Fail, [Pass, Fail], "1 of 2 pass; GPU 1: gpu-count fails; gpu-count fails"),
    ("nvml_gpus=1", Fail, [Pass, Fail], "1 of 2 pass; GPU 1: gpu-count fails; gpu-count fails"),
    ("lost=1", Fail, [Pass, Fail], "1 of 2 pass; GPU 1: nvml fails"),
    // Nobody asked the GPUs: none of them is known to be broken.
    ("fail=cuInit=802", Fail, [CouldNotTell, CouldNotTell], "0 of 2 pass; cuda fails"),
    ("abort=cudnnGetVersion", Fail, [Pass, Pass], "2 of 2 pass; library-cudnn fails"),
];

#[tokio::test]
async fn each_gpu_has_the_verdict_that_is_its_own() {
    for (settings, result, each, sentence) in CASES {
        let machine = Simulated::with(2, "H100", settings);
        let [verdicts] = &heard(&machine, 2).await[..] else {
            panic!("{settings}: the driver is asked once")
        };
        let all = format!("{settings}: {verdicts:#?}");
        assert_eq!(verdicts.result, *result, "{all}");
        assert_eq!((verdicts.found, verdicts.expected), (2, Some(2)), "{all}");
        assert_eq!(verdicts.gpus.iter().map(|g| g.verdict).collect::<Vec<_>>(), each, "{all}");
        assert!(
            verdicts.sentence().starts_with(sentence),
            "{} is not {sentence}\n{all}",
            verdicts.sentence()
        );
        for (number, gpu) in (0..).zip(&verdicts.gpus) {
            assert_eq!(gpu.index, number, "{all}");
            assert_eq!(gpu.pci, Some(format!("0000:{:02x}:00.0", 0x10 + number)), "{all}");
            assert!(gpu.findings.iter().all(|f| f.verdict != Pass && !f.evidence.is_empty()), "{all}");
        }
        // A check stands with its GPU or with the machine, not with both.
        let of_gpus: Vec<_> = verdicts.gpus.iter().flat_map(|g| &g.findings).map(|f| &f.check).collect();
        let twice = verdicts.machine.iter().find(|f| f.check != "gpu-count" && of_gpus.contains(&&f.check));
        assert_eq!(twice, None, "{all}");
    }
}

#[tokio::test]
async fn what_did_not_pass_stands_with_what_was_seen() {
    let machine = Simulated::with(2, "H100", "bitflip=1\npcie_x8=0");
    let verdicts = heard(&machine, 0).await.remove(0);
    assert_eq!(verdicts.expected, None);
    let finding = |check: &str, verdict, evidence: &str| Finding {
        check: check.into(),
        verdict,
        evidence: evidence.into(),
    };
    let wrong = "1 of 65536 results are wrong, the first at 12345";
    assert_eq!(verdicts.gpus[1].findings, [finding("compute-1", Fail, wrong)]);
    let narrow = "PCIe x8, and the link could do x16";
    assert_eq!(verdicts.gpus[0].findings, [finding("pcie-width", Warn, narrow)]);
    assert_eq!(verdicts.gpus[0].name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    // There is no modinfo in this root.
    assert!(verdicts.machine.iter().any(|f| f.check == "module-on-disk" && f.verdict == CouldNotTell));
    // Everybody may read it: nothing that tells this GPU from all others of the world.
    let json = serde_json::to_string(&verdicts).unwrap();
    assert!(!json.to_lowercase().contains("uuid") && !json.contains("GPU-"), "{json}");
}

/// Where files alone give the answer, nobody has examined the GPUs.
#[tokio::test]
async fn without_a_module_nothing_is_said_of_the_gpus() {
    let machine = Simulated::with(1, "T4", "").gone("/proc/driver/nvidia/version");
    assert_eq!(heard(&machine, 1).await, []);
}

fn rehearse(args: &[&str], script: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
    command.arg("rehearse").args(args).args(["--", "sh", "-ec", script]).stdin(Stdio::null());
    let output: Output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Runs, and then the result, the status, and the page, each behind a line of its own.
const RUN: &str = "
    gpu-bootstrap run --catalog /run/gpu-bootstrap-rehearsal/catalog >/tmp/said || true
    echo '== said'; cat /tmp/said
    echo '== result'; cat /run/gpu-bootstrap/result.json; echo
    echo '== status'; gpu-bootstrap status
    echo '== page'; gpu-bootstrap report --html";

fn part<'a>(said: &'a str, name: &str) -> &'a str {
    let (_, rest) = said.split_once(&format!("== {name}\n")).unwrap_or_else(|| panic!("no {name} in {said}"));
    rest.split("\n== ").next().unwrap()
}

fn result(said: &str) -> Value {
    let result = serde_json::from_str(part(said, "result")).unwrap();
    let schema = serde_json::from_str(include_str!("../packaging/status.schema.json")).unwrap();
    json_schema::validate(&schema, &result);
    result
}

#[test]
fn a_run_whose_gpu_computes_wrongly_names_it_everywhere() {
    let said = rehearse(&["--instance-type", "g5.12xlarge", "--fault", "bitflip=3"], RUN);
    let gpus = &result(&said)["gpus"];
    assert_eq!((&gpus["found"], &gpus["expected"], &gpus["result"]), (&4.into(), &4.into(), &"fail".into()));
    let each: Vec<_> =
        gpus["gpus"].as_array().unwrap().iter().map(|g| g["verdict"].as_str().unwrap()).collect();
    assert_eq!(each, ["pass", "pass", "pass", "fail"], "{gpus:#}");
    let bad = &gpus["gpus"][3];
    assert!(bad["name"].as_str().unwrap().contains("A10G"), "{bad:#}");
    assert_eq!(bad["findings"][0]["check"], "compute-3");
    let sentence = "3 of 4 pass; GPU 3: compute-3 fails";
    assert!(part(&said, "status").lines().any(|l| l == format!("GPUs: {sentence}")), "{said}");
    assert!(part(&said, "said").lines().any(|l| l == format!("GPUs     {sentence}")), "{said}");
    // The page looks again, and computes nothing: it must not hide what the run saw.
    let page = part(&said, "page");
    let evidence = "<code>compute-3</code> 1 of 65536 results are wrong, the first at 12345";
    for words in [sentence, "As the run saw them", evidence] {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
}

#[test]
fn a_run_whose_gpus_work_says_it_in_one_line_and_a_later_loss_is_told_apart() {
    let script = format!(
        "{RUN}
        echo lost=0 >>/etc/simulated-driver
        echo '== later'; gpu-bootstrap report --html"
    );
    let said = rehearse(&["--instance-type", "g5.12xlarge"], &script);
    let gpus = &result(&said)["gpus"];
    assert_eq!((&gpus["result"], &gpus["gpus"][0]["findings"]), (&"pass".into(), &Value::Array(Vec::new())));
    assert!(part(&said, "status").lines().any(|l| l == "GPUs: 4 of 4 pass"), "{said}");
    assert!(!part(&said, "said").contains("\nGPUs "), "{said}");
    for (name, in_full) in [("page", false), ("later", true)] {
        let page = part(&said, name);
        assert!(page.contains("When the run asked: 4 of 4 pass."), "{name}: {page}");
        assert_eq!(page.contains("As the run saw them"), in_full, "{name}: {page}");
    }
}

/// The real binary on a simulated machine whose driver somebody else installed, and nothing wanted: exit code, status.
fn nothing_wanted(machine: &Simulated) -> (i32, Value) {
    let config = "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n[profile]\npath = false\n";
    std::fs::write(machine.at("/none.toml"), config).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"))
        .args(["run", "--no-imds", "--root"])
        .arg(machine.at("/"))
        .arg("--config")
        .arg(machine.at("/none.toml"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let result = std::fs::read(machine.at("/var/lib/gpu-bootstrap/result.json"))
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&run.stderr)));
    (run.status.code().unwrap(), serde_json::from_slice(&result).unwrap())
}

#[test]
fn a_driver_that_somebody_else_installed_is_proved_too() {
    let ubuntu = "ID=ubuntu\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble\n";
    let machine = |settings| {
        let machine = Simulated::with(2, "H100", settings).file("/etc/os-release", ubuntu);
        let boot = "00000000-0000-4000-8000-000000000001\n";
        let machine = machine.file("/proc/sys/kernel/random/boot_id", boot);
        machine.file("/proc/sys/kernel/osrelease", "6.8.0-1021-aws\n").file("/var/lib/dpkg/arch", "amd64\n")
    };
    let (code, result) = nothing_wanted(&machine(""));
    assert_eq!((code, &result["gpus"]["result"]), (0, &"pass".into()), "{result:#}");
    let (code, result) = nothing_wanted(&machine("bitflip=1"));
    assert_eq!((code, &result["error"]["code"]), (5, &"compute-failed".into()), "{result:#}");
    // A container sees its host's driver, whether or not it was given the GPUs.
    let (code, result) = nothing_wanted(&machine("bitflip=1").file("/.dockerenv", ""));
    assert_eq!((code, &result["gpus"]), (0, &Value::Null), "{result:#}");
    assert_eq!(result["steps"], serde_json::json!([]));
}
