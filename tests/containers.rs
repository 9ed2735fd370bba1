//! Containers and Kubernetes, through the real binary, on a machine with a simulated driver: what a run writes, what it
//! leaves of others', what the next run and an uninstall make of it. With containerd itself: tests/e2e/containers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use simulated_driver::{LIBRARIES, Simulated};

const SPEC: &str = "/etc/cdi/gpu-bootstrap-nvidia.json";
const CONFIG: &str = r#"
[driver]
branch = "none"
[cuda]
toolkit = "none"
[cudnn]
version = "none"
[containers]
runtime = ["docker", "containerd"]
toolkit = "none"
node-labels = true
"#;
const DAEMON: &str = "{\n\t\"data-root\": \"/srv/docker\"\n}\n";
const CONTAINERD: &str =
    "version = 2\n# by hand\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause:3.9\"\n";

/// Two GPUs, their device nodes, and runtimes that others have configured.
fn machine(config: &str) -> Simulated {
    let machine = Simulated::with(2, "2330", "")
        .file("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n")
        .file("/var/lib/dpkg/arch", "amd64\n")
        .file("/var/lib/dpkg/status", "")
        .file("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
        .file("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n")
        .file("/etc/gpu-bootstrap/a.toml", config)
        .file("/etc/docker/daemon.json", DAEMON)
        .file("/etc/containerd/config.toml", CONTAINERD)
        .linked(&[LIBRARIES]);
    for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
        mknod(&machine.at("/dev").join(node), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))
            .unwrap();
    }
    machine
}

fn agent(machine: &Simulated, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(args)
        .arg("--root")
        .arg(machine.at("/"));
    if args[0] != "uninstall" {
        command.arg("--no-imds");
    }
    command.output().unwrap()
}

fn ok(machine: &Simulated, args: &[&str]) -> String {
    let output = agent(machine, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn read(machine: &Simulated, path: &str) -> String {
    fs::read_to_string(machine.at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn spec(machine: &Simulated) -> Value {
    serde_json::from_str(&read(machine, SPEC)).unwrap()
}

/// What the schema of CDI (its `schema.json` and `defs.json`, version 0.5.0) asks for.
fn assert_valid(spec: &Value) {
    let text = |v: &Value| v.as_str().is_some_and(|s| !s.is_empty());
    assert_eq!(spec["cdiVersion"], "0.5.0");
    assert_eq!(spec["kind"], "nvidia.com/gpu");
    let devices = spec["devices"].as_array().unwrap();
    let name = |n: &str| {
        n.starts_with(|c: char| c.is_ascii_alphanumeric())
            && n.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
    };
    assert!(!devices.is_empty() && devices.iter().all(|d| name(d["name"].as_str().unwrap())));
    let edits = devices.iter().chain([spec]).map(|d| d["containerEdits"].as_object().unwrap());
    for edit in edits {
        assert!(!edit.is_empty());
        for (key, value) in edit {
            let items = value.as_array().unwrap();
            assert!(!items.is_empty(), "{key}");
            match key.as_str() {
                "env" => assert!(items.iter().all(|i| i.as_str().unwrap().contains('='))),
                "deviceNodes" => assert!(items.iter().all(|i| text(&i["path"]))),
                "mounts" => assert!(items.iter().all(|i| text(&i["hostPath"]) && text(&i["containerPath"]))),
                "hooks" => assert!(items.iter().all(|i| text(&i["hookName"]) && text(&i["path"]))),
                other => panic!("no such edit: {other}"),
            }
        }
    }
}

#[test]
fn a_run_describes_the_gpus_and_extends_what_others_have_configured() {
    let machine = machine(CONFIG);
    ok(&machine, &["run"]);
    let spec = spec(&machine);
    assert_valid(&spec);
    let names: Vec<_> =
        spec["devices"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["0", "1", "all"]);
    let docker: Value = serde_json::from_str(&read(&machine, "/etc/docker/daemon.json")).unwrap();
    assert_eq!(docker, json!({"data-root": "/srv/docker", "features": {"cdi": true}}));
    let containerd = read(&machine, "/etc/containerd/config.toml");
    assert_eq!(containerd, CONTAINERD.replace("cri\"]\n", "cri\"]\n  enable_cdi = true\n"));
    let labels = read(&machine, "/etc/default/gpu-bootstrap-node-labels");
    assert!(
        labels.contains("nvidia.com/gpu.count=2") && labels.contains("cuda.driver-version.major=580"),
        "{labels}"
    );
    // As NVML counts it, which the file says nothing about.
    assert!(labels.contains("nvidia.com/gpu.memory=81559,") && !labels.contains("EC2's figure"), "{labels}");

    let again = ok(&machine, &["plan"]);
    assert!(!again.contains("needed"), "{again}");
    // The driver got another library: the description is made anew, and by that step alone.
    let machine =
        machine.library(&format!("{LIBRARIES}/libnvcuvid.so.580.95.05"), "580.95.05").linked(&[LIBRARIES]);
    let plan = ok(&machine, &["plan"]);
    assert_eq!(plan.matches("needed").count(), 1, "{plan}");
    ok(&machine, &["run"]);
    assert!(read(&machine, SPEC).contains("libnvcuvid.so.580.95.05"));

    ok(&machine, &["uninstall", "--yes"]);
    assert_eq!(read(&machine, "/etc/docker/daemon.json"), DAEMON);
    assert_eq!(read(&machine, "/etc/containerd/config.toml"), CONTAINERD);
    assert!(!machine.at("/etc/cdi").exists() && !machine.at("/etc/default").exists());
}

#[test]
fn nothing_is_touched_unless_it_is_asked_for() {
    let machine = machine(CONFIG.split("[containers]").next().unwrap());
    ok(&machine, &["run"]);
    assert_eq!(read(&machine, "/etc/docker/daemon.json"), DAEMON);
    assert_eq!(read(&machine, "/etc/containerd/config.toml"), CONTAINERD);
    assert!(!machine.at("/etc/cdi").exists());
}

#[test]
fn a_configuration_that_cannot_be_read_stays_and_the_error_names_its_line() {
    for (path, text, place) in [
        ("/etc/docker/daemon.json", "{\n  \"debug\": true,\n}\n", "line 3"),
        ("/etc/containerd/config.toml", "version = 2\n[plugins\n", "line 2"),
    ] {
        let machine = machine(CONFIG).file(path, text);
        let output = agent(&machine, &["run"]);
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("container-config") && said.contains(path) && said.contains(place), "{said}");
        assert_eq!(read(&machine, path), text);
    }
}

#[test]
fn without_a_driver_s_device_nodes_the_error_says_what_makes_them() {
    let machine = machine(CONFIG).gone("/dev/nvidia-uvm");
    let output = agent(&machine, &["run"]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("nvidia-modprobe"), "{said}");
    assert!(!machine.at(SPEC).exists());
}

#[test]
fn wrong_wishes_are_refused_with_their_place() {
    for (written, words) in [
        ("runtime = [\"podman\"]", "\"docker\" or \"containerd\""),
        ("runtime = \"docker\"", "[\"docker\"]"),
        ("toolkit = \"latest\"", "\"none\""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, format!("[containers]\n{written}\n")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"))
            .args(["config", "check"])
            .arg(&file)
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(":2:") && said.contains(words), "{written}: {said}");
    }
}

/// Calls of `systemctl` go to a script: the daemon runs, and starts with no configuration that says `cdi`.
#[test]
fn a_daemon_that_does_not_start_with_the_extended_file_gets_its_own_back() {
    let machine = machine(&CONFIG.replace("\"docker\", \"containerd\"", "\"docker\""))
        .file("/proc/77/stat", "77 (dockerd) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 8 0 1000 1 1\n")
        .file("/proc/uptime", "20.00 30.00\n")
        .file("/run/systemd/system/.keep", "")
        .file(
            "/usr/bin/systemctl",
            "#!/bin/sh\necho \"$*\" >>/calls\ncase $1 in\nshow) echo ActiveState=active; echo MainPID=77 ;;\n\
             restart) ! grep -q cdi /etc/docker/daemon.json ;;\nesac\n",
        );
    programs::busybox(&machine.at("/"), &["sh", "grep"]);
    fs::set_permissions(machine.at("/usr/bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = agent(&machine, &["run"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("[container-config]") && said.contains("it runs again with the old one"), "{said}");
    assert_eq!(read(&machine, "/etc/docker/daemon.json"), DAEMON);
    let restarts = read(&machine, "/calls").lines().filter(|l| *l == "restart docker.service").count();
    assert_eq!(restarts, 2, "with the new file, and with the old one");
}
