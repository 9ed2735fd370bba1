//! Rehearsals through the real binary: what the inside looks like, that the host stays as it is, and that nothing
//! outlives the supervisor. They need root, as `tests/run` arranges.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

#[path = "support/json_schema.rs"]
mod json_schema;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const AGENT: &str = env!("CARGO_BIN_EXE_gpu-bootstrap");

fn rehearse(args: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command.arg("rehearse").args(args).stdin(Stdio::null());
    command
}

/// Runs a shell script inside and returns what it printed.
fn inside(instance_type: &str, script: &str) -> String {
    let output = rehearse(&["--instance-type", instance_type, "--", "sh", "-ec", script]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    said
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Inode, size, mode and times of everything that a run could touch, and the names of mounts and namespaces.
fn host() -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for top in [
        "/etc",
        "/usr/local/bin",
        "/usr/local/sbin",
        "/usr/share/keyrings",
        "/usr/src",
        "/lib/modules",
        "/var/lib/dpkg",
        "/var/lib/apt",
        "/var/cache/apt",
        "/var/lib/gpu-bootstrap",
        "/run/gpu-bootstrap",
        "/run/netns",
    ] {
        walk(Path::new(top), &mut seen, 4);
    }
    let mut mounts: Vec<_> =
        fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned).collect();
    mounts.sort();
    seen.insert("mounts".into(), mounts.join("\n"));
    seen.insert("host name".into(), fs::read_to_string("/proc/sys/kernel/hostname").unwrap());
    seen
}

fn walk(path: &Path, seen: &mut BTreeMap<String, String>, depth: u32) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let facts = format!(
        "inode {} size {} mode {:o} mtime {}.{}",
        meta.ino(),
        meta.size(),
        meta.mode(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    seen.insert(path.display().to_string(), facts);
    if meta.is_dir() && depth > 0 {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), seen, depth - 1);
        }
    }
}

#[test]
fn the_host_stays_as_it_is() {
    let before = host();
    let said = inside(
        "g4dn.xlarge",
        "rm -r /usr/share/keyrings /etc/apt/sources.list.d
         echo damaged >>/etc/passwd
         mkdir -p /lib/modules/x /usr/local/cuda-12.8 /var/lib/gpu-bootstrap
         echo x >/var/lib/dpkg/status
         mount -t tmpfs tmpfs /opt
         hostname damaged
         tail -n1 /etc/passwd; cat /var/lib/dpkg/status; hostname; test ! -e /usr/share/keyrings",
    );
    // The damage was real, and it was done to the copy.
    assert!(said.contains("damaged\nx\ndamaged\n"), "{said}");
    let after = host();
    let differ: Vec<_> = before
        .keys()
        .chain(after.keys())
        .filter(|k| before.get(*k) != after.get(*k))
        .map(|k| format!("{k}: {:?} → {:?}", before.get(k), after.get(k)))
        .collect();
    assert_eq!(differ, [] as [String; 0]);
}

#[test]
fn the_inside_is_the_instance() {
    let said = inside(
        "p5.48xlarge",
        "cat /sys/class/dmi/id/product_name
         awk '$2 == \"10de2330\"' /proc/bus/pci/devices | wc -l
         awk '$2 == \"10de22a3\"' /proc/bus/pci/devices | wc -l
         cat /sys/bus/pci/devices/*/class | grep -c 0x0302
         test ! -e /proc/driver/nvidia && test ! -e /sys/module/nvidia && echo no driver
         ls /sys/class/net; hostname; cat /proc/self/status | grep ^NSpid",
    );
    assert!(said.contains("p5.48xlarge\n8\n4\n8\nno driver\nlo\nip-10-0-0-23\n"), "{said}");
    // The agent's own view, by way of the metadata service, whose token it needs.
    let facts = inside("p5.48xlarge", "gpu-bootstrap detect --json");
    assert!(facts.contains("\"p5.48xlarge\"") && facts.contains("i-00000000000000000"), "{facts}");
    assert_eq!(facts.matches("\"0000:53:00.0\"").count(), 1, "{facts}");
}

#[test]
fn everything_simulated_is_labelled() {
    let said = inside("p5.48xlarge", "true");
    for label in ["EC2 instance", "metadata service", "package repositories", "modprobe", "no network"] {
        let labelled = said.lines().any(|l| l.starts_with("simulated: ") && l.contains(label));
        assert!(labelled, "{label} is not labelled in {said}");
    }
}

#[test]
fn metadata_is_as_strict_as_the_real_service() {
    let script = "
        curl -s -o /dev/null -w '%{http_code} ' http://169.254.169.254/latest/user-data
        token=$(curl -sf -X PUT -H 'x-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
        curl -sf -H \"x-aws-ec2-metadata-token: $token\" http://169.254.169.254/latest/user-data";
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "[cudnn]\nversion = \"none\"\n").unwrap();
    let config = config.to_str().unwrap();
    let output = rehearse(&["--config", config, "--", "sh", "-ec", script]).output().unwrap();
    let said = text(&output);
    assert!(said.contains("401 #gpu-bootstrap\n[cudnn]\nversion = \"none\"\n"), "{said}");
}

#[test]
fn there_is_no_way_out() {
    let said = inside(
        "t3.micro",
        "ip route show table all | grep -v 'dev lo' || echo no route
         for pid in /proc/[0-9]*; do tr '\\0' ' ' <$pid/cmdline; echo; done | grep -c 'inside sandbo[x]' || echo no sandbox in sight",
    );
    assert!(said.contains("no route"), "{said}");
    assert!(said.contains("0\nno sandbox in sight"), "{said}");
}

#[test]
fn the_exit_code_is_that_of_the_inside() {
    let status = rehearse(&["--", "sh", "-c", "exit 37"]).output().unwrap().status;
    assert_eq!(status.code(), Some(37));
}

#[test]
fn a_misspelt_instance_type_is_refused() {
    let output = rehearse(&["--instance-type", "p5.48xlrge", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("the catalog has no instance type p5.48xlrge"), "{}", text(&output));
}

/// A rehearsal that sleeps, and its throw-away directory.
#[expect(
    clippy::zombie_processes,
    reason = "every caller waits for it; without a caller the test has failed"
)]
fn sleeping() -> (Child, PathBuf) {
    let mut child =
        rehearse(&["--", "sh", "-c", "echo asleep; sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut dir = PathBuf::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once("a copy of this machine on ") {
            dir = rest.split_once(';').unwrap().0.into();
        }
        if line == "asleep" {
            assert!(dir.is_dir(), "{}", dir.display());
            return (child, dir);
        }
    }
    panic!("the rehearsal ended too early");
}

/// Processes whose command line names this directory: the sandbox's init does.
fn processes_of(dir: &Path) -> usize {
    let name = dir.file_name().unwrap().to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| fs::read(e.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(name))
        .count()
}

fn gone_within(dir: &Path, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if !dir.exists() && processes_of(dir) == 0 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn killing_the_supervisor_ends_everything() {
    let (mut child, dir) = sleeping();
    assert!(processes_of(&dir) > 0);
    child.kill().unwrap(); // SIGKILL: it cannot clean up itself
    child.wait().unwrap();
    assert!(gone_within(&dir, Duration::from_secs(10)), "{} or its processes are left", dir.display());
}

#[test]
fn a_termination_ends_everything_and_is_told_by_the_exit_code() {
    for (signal, code) in [(nix::sys::signal::Signal::SIGTERM, 143), (nix::sys::signal::Signal::SIGINT, 130)]
    {
        let (mut child, dir) = sleeping();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(gone_within(&dir, Duration::from_secs(1)), "{signal}: {} is left", dir.display());
    }
}

#[test]
fn a_user_is_sent_to_sudo_with_the_built_binary() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sudo = dir.path().join("sudo");
    fs::write(&sudo, "#!/bin/sh\necho \"asked: $*\"\n").unwrap();
    fs::set_permissions(&sudo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The binary must be one that a user may run.
    let agent = dir.path().join("gpu-bootstrap");
    fs::copy(AGENT, &agent).unwrap();
    let run = |path: &Path| {
        let mut command = Command::new(&agent);
        command.args(["rehearse", "--instance-type", "g5.xlarge"]).uid(65534).gid(65534);
        text(&command.env("PATH", path).stdin(Stdio::null()).output().unwrap())
    };
    let asked = run(dir.path());
    let wanted = format!("asked: -- {} rehearse --instance-type g5.xlarge", agent.display());
    assert!(asked.contains(&wanted), "{asked}");
    let refused = run(Path::new("/nowhere"));
    assert!(refused.contains("sudo cannot be run"), "{refused}");
}

/// The agent must not behave differently in a rehearsal, so that nothing outside may know of it: not in code.
/// Comments may name it, and so may the command line, the list of modules, and the table of error codes.
#[test]
fn no_code_outside_knows_that_it_is_rehearsing() {
    let allowed = ["src/cli.rs", "src/lib.rs", "src/error.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut looked_at = 0;
    let mut found = Vec::new();
    let mut pending = vec![root.join("src"), root.join("steps"), root.join("build.rs")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if name.starts_with("src/rehearse/") || allowed.contains(&name.as_str()) {
            continue;
        }
        looked_at += 1;
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).to_lowercase();
        let knows = |l: &&str| l.contains("rehears") && !l.trim_start().starts_with(['#', '/']);
        found.extend(text.lines().filter(knows).map(|l| format!("{name}: {l}")));
    }
    assert!(looked_at > 30, "only {looked_at} files were looked at");
    assert_eq!(found, [] as [String; 0]);
}

/// Real apt, real dpkg, gpgv: the repository's signature, its index and its packages are what they accept.
#[test]
fn apt_installs_the_simulated_packages_and_the_driver_loads_as_on_a_gpu_machine() {
    let said = inside(
        "p5.48xlarge",
        r#". /etc/os-release
        case $(dpkg --print-architecture) in amd64) arch=x86_64;; *) arch=sbsa;; esac
        url=http://192.0.2.1/compute/cuda/repos/$ID$(echo "$VERSION_ID" | tr -d .)/$arch/
        echo "deb [signed-by=/usr/share/keyrings/gpu-bootstrap-rehearsal.asc] $url /" >/etc/apt/sources.list.d/x.list
        apt-get update -qq
        modprobe nvidia || echo "no module yet"
        systemctl start nvidia-fabricmanager || echo "no unit yet"
        toolkit=$(apt-cache pkgnames cuda-toolkit- | grep -E '^cuda-toolkit-[0-9]+-[0-9]+$')
        apt-get install -qq -y nvidia-open nvidia-fabricmanager $toolkit >/dev/null
        systemctl start nvidia-fabricmanager || echo "no driver yet"
        modprobe nvidia-uvm
        echo "gpus: $(ls /proc/driver/nvidia/gpus | wc -l)"
        systemctl enable --now nvidia-fabricmanager
        echo "fabric manager: $(systemctl is-active nvidia-fabricmanager.service)"
        /usr/local/cuda/bin/nvcc
        ldconfig -p | grep -c libcuda.so.1
        head -n1 /proc/driver/nvidia/version"#,
    );
    for wanted in [
        "no module yet",
        "no unit yet",
        "no driver yet",
        "gpus: 8",
        "fabric manager: active",
        "nvcc: simulated by gpu-bootstrap rehearse",
        "NVIDIA UNIX Open Kernel Module for x86_64",
    ] {
        assert!(said.contains(wanted), "{wanted} is missing in {said}");
    }
}

/// A whole rehearsal; its exit code, its JSON document, and what else was printed.
fn whole(args: &[&str]) -> (i32, serde_json::Value, String) {
    let output = rehearse(args).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice::<serde_json::Value>(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let schema = serde_json::from_str(include_str!("../packaging/status.schema.json")).unwrap();
    json_schema::validate(&schema, &document["status"]);
    (output.status.code().unwrap(), document, said)
}

#[test]
fn eight_gpus_behind_switches_converge_and_the_files_are_kept() {
    let kept = tempfile::tempdir().unwrap();
    let (code, document, said) =
        whole(&["--instance-type", "p5.48xlarge", "--keep", kept.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(document["status"]["outcome"], "converged");
    assert!(said.contains("8 × NVIDIA H100"), "{said}");
    let steps = document["status"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["id"] == "fabric-service" && s["changed"] == true), "{steps:?}");
    assert!(steps.iter().all(|s| s["seconds"].is_number()), "{steps:?}");
    for name in ["status.json", "result.json", "receipt.json"] {
        let text = fs::read_to_string(kept.path().join(name)).unwrap();
        assert!(text.contains("\"simulated\": \"by gpu-bootstrap rehearse\""), "{name}: {text}");
    }
    // What the run says of itself is labelled line by line.
    assert!(said.lines().all(|l| l.starts_with("simulated") || l.starts_with("rehearsal:")), "{said}");
}

#[test]
fn an_old_gpu_gets_the_modules_that_run_it() {
    let (code, document, said) = whole(&["--instance-type", "p3.2xlarge"]);
    assert_eq!(code, 0, "{said}");
    let choices = document["status"]["choices"].to_string();
    assert!(choices.contains("proprietary"), "{choices}");
}

#[test]
fn a_machine_without_gpu_ends_as_it_would_on_ec2() {
    let (code, document, said) = whole(&["--instance-type", "t3.micro"]);
    assert_eq!((code, &document["status"]["error"]["code"]), (3, &"no-gpu".into()), "{said}");
}

#[test]
fn the_users_own_configuration_is_rehearsed() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("mine.toml");
    fs::write(&config, "[source]\npackages = \"distro\"\n").unwrap();
    let (code, document, said) = whole(&["--config", config.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let steps = document["plan"]["steps"].to_string();
    assert!(steps.contains("nvidia-cuda-toolkit") && !steps.contains("cuda-toolkit-1"), "{steps}");
}

#[test]
fn what_cannot_be_reached_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("mirror.toml");
    fs::write(&config, "[source]\npackages = \"https://mirror.example/cuda\"\n").unwrap();
    let output = rehearse(&["--config", config.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("cannot reach https://mirror.example/"), "{}", text(&output));
}

/// Inside a copy, `/var/tmp` can be made to lie on an overlay, which cannot carry another one's upper layer.
#[test]
fn a_file_system_that_carries_no_overlay_gives_way_to_memory() {
    let said = inside("t3.micro", "umount /var/tmp; gpu-bootstrap rehearse -- sh -c 'echo deep inside'");
    assert!(said.contains("a copy of this machine on memory"), "{said}");
    assert!(said.trim_end().ends_with("deep inside"), "{said}");
}

/// Signals in the middle of an installation: real apt and dpkg must not work on unseen. The outcome, the step and,
/// for SIGINT, the error code are called "interrupted".
#[test]
fn a_signal_leaves_no_step_that_seems_to_run_and_no_program_behind() {
    let said = inside(
        "g4dn.xlarge",
        r#"run="gpu-bootstrap run --quiet --catalog /run/gpu-bootstrap-rehearsal/catalog"
        for signal in INT TERM; do
            $run & pid=$!
            n=0
            # The run itself and a step of it.
            until [ -e /var/lib/gpu-bootstrap/in-flight.json ] &&
                [ "$(grep -cs '"running"' /run/gpu-bootstrap/status.json)" = 2 ]; do
                sleep 0.02
                n=$((n + 1))
                [ $n -lt 1500 ] || { echo "nothing is installed"; exit 1; }
            done
            kill -$signal $pid
            code=0; wait $pid || code=$?
            sleep 0.2
            for program in apt-get dpkg; do
                for comm in /proc/[0-9]*/comm; do
                    if [ "$(cat $comm 2>/dev/null)" = $program ]; then echo "stray $program"; fi
                done
            done
            echo "$signal $code: $(grep -c '"interrupted"' /run/gpu-bootstrap/result.json) interrupted,"\
                "$(grep -c '"running"' /run/gpu-bootstrap/result.json || true) running"
            rm /run/gpu-bootstrap/status.json
        done
        $run --resume; echo "resumed $?"
        dpkg --audit; test ! -e /var/lib/gpu-bootstrap/in-flight.json; echo clean"#,
    );
    for wanted in
        ["INT 130: 3 interrupted, 0 running", "TERM 143: 2 interrupted, 0 running", "resumed 0\nclean"]
    {
        assert!(said.contains(wanted), "{wanted} is missing in {said}");
    }
    assert!(!said.contains("stray"), "{said}");
}
