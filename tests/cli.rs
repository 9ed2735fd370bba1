//! The command line as a user meets it: exit codes, messages, status files, resume. The real binary over
//! scratch roots; packages are other tests' business.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use machine::{Machine, binary, ran};
use serde_json::Value;

/// A configuration that asks for no packages: the run is over in milliseconds.
const NO_PACKAGES: &str =
    "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n";

fn idle() -> Machine {
    Machine::debian12().t4().file("/etc/gpu-bootstrap/10-idle.toml", NO_PACKAGES)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn wrong_usage_exits_2_and_help_exits_0() {
    assert_eq!(ran(binary().arg("--nonsense")).code, 2);
    assert_eq!(ran(binary().args(["status", "--timeout", "1"])).code, 2);
    assert_eq!(ran(binary().arg("--help")).code, 0);
}

#[test]
fn a_user_who_is_not_root_is_told_so() {
    let machine = idle();
    let command = machine.command(&["run"]);
    // The binary lies below the checkout, which another user may not read: copy it to a place that is open.
    let copy = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let program = copy.path().join("gpu-bootstrap");
    fs::copy(command.get_program(), &program).unwrap();
    let mut as_nobody = std::process::Command::new(program);
    as_nobody.args(command.get_args()).uid(65534).gid(65534);
    let ran = ran(&mut as_nobody);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stderr.contains("[not-root]") && ran.stderr.contains("sudo"), "{}", ran.stderr);
}

#[test]
fn a_machine_without_gpu_is_refused_in_one_sentence_and_in_the_status_file() {
    let machine = Machine::debian12();
    let ran = machine.run(&["run"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let result = json(&machine.read("/run/gpu-bootstrap/result.json"));
    assert_eq!(result["state"], "finished");
    assert_eq!(result["outcome"], "failed");
    assert_eq!(result["exit_code"], 3);
    assert_eq!(result["error"]["code"], "no-gpu");
    assert!(result["error"]["hint"].as_str().is_some_and(|h| !h.is_empty()));
    assert_eq!(json(&machine.read("/var/lib/gpu-bootstrap/result.json")), result);
}

#[test]
fn a_machine_without_gpu_may_be_skipped_by_policy() {
    let machine = Machine::debian12().file("/etc/gpu-bootstrap/a.toml", "[policy]\non-no-gpu = \"skip\"\n");
    let ran = machine.run(&["run"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(json(&machine.read("/run/gpu-bootstrap/result.json"))["outcome"], "skipped");
}

#[test]
fn bad_configuration_names_file_line_and_column_and_changes_nothing() {
    let machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/a.toml", "[cuda]\ntoolkit = 12.10\n");
    let ran = machine.run(&["run"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stdout.contains("/etc/gpu-bootstrap/a.toml:2:11"), "{}", ran.stdout);
    assert!(!machine.outside("/var/lib/gpu-bootstrap/receipt.json").exists());
}

#[test]
fn resume_without_an_earlier_run_exits_7() {
    let machine = idle();
    assert_eq!(machine.run(&["--resume"]).code, 7);
    assert_eq!(machine.run(&["run"]).code, 0);
    assert_eq!(machine.run(&["--resume"]).code, 0);
}

#[test]
fn the_second_run_leaves_receipt_and_choice_as_they_are() {
    let machine = idle();
    assert_eq!(machine.run(&["run"]).code, 0);
    let receipt = machine.outside("/var/lib/gpu-bootstrap/receipt.json");
    let before = (fs::read(&receipt).unwrap(), fs::metadata(&receipt).unwrap().modified().unwrap());
    assert_eq!(machine.run(&["run"]).code, 0);
    assert_eq!(before, (fs::read(&receipt).unwrap(), fs::metadata(&receipt).unwrap().modified().unwrap()));
}

#[test]
fn a_second_run_at_the_same_time_exits_4_and_names_the_holder() {
    let machine = idle().file("/var/lib/gpu-bootstrap/lock", "");
    let held = fs::File::options()
        .read(true)
        .write(true)
        .open(machine.outside("/var/lib/gpu-bootstrap/lock"))
        .unwrap();
    let held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| e)
        .unwrap();
    fs::write(machine.outside("/var/lib/gpu-bootstrap/lock"), "pid 4711\n").unwrap();
    let refused = machine.run(&["run"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("pid 4711") && refused.stderr.contains("[locked]"), "{}", refused.stderr);
    assert!(
        !machine.outside("/run/gpu-bootstrap/status.json").exists(),
        "the other run's status was overwritten"
    );
    drop(held);
    assert_eq!(machine.run(&["run"]).code, 0);
}

#[test]
fn whoever_waits_for_cloud_init_is_told_in_its_words() {
    let machine = idle();
    machine.run(&["run", "--cloud-init-compat"]);
    let status = json(&machine.read("/run/cloud-init/status.json"));
    assert_eq!(
        (&status["v1"]["stage"], &status["v1"]["datasource"]),
        (&Value::Null, &"DataSourceNone".into())
    );
    for stage in ["init-local", "init", "modules-config", "modules-final"] {
        assert!(status["v1"][stage]["finished"].is_number(), "{status:#}");
    }
    let result = json(&machine.read("/run/cloud-init/result.json"));
    assert_eq!(result["v1"]["errors"], status["v1"]["modules-final"]["errors"]);
    assert!(
        machine
            .read("/var/lib/cloud/instances/iid-datasource-none/boot-finished")
            .contains(" - v. gpu-bootstrap ")
    );

    let broken = Machine::debian12();
    assert_eq!(broken.run(&["run", "--cloud-init-compat"]).code, 3);
    let errors = json(&broken.read("/run/cloud-init/result.json"))["v1"]["errors"].to_string();
    assert!(errors.contains("[no-gpu]"), "{errors}");
    assert!(broken.outside("/var/lib/cloud/instances/iid-datasource-none/boot-finished").exists());
}

#[test]
fn a_machine_with_cloud_init_keeps_its_files_and_one_without_the_flag_gets_none() {
    let machine = Machine::debian12().file("/etc/cloud/cloud.cfg", "users: []\n");
    let ran = machine.run(&["run", "--cloud-init-compat"]);
    assert!(ran.stderr.contains("/etc/cloud/cloud.cfg is there"), "{ran:?}");
    assert!(!machine.outside("/run/cloud-init").exists() && !machine.outside("/var/lib/cloud").exists());
    let machine = Machine::debian12();
    machine.run(&["run"]);
    assert!(!machine.outside("/run/cloud-init").exists() && !machine.outside("/var/lib/cloud").exists());
}

#[test]
fn status_tells_a_killed_run_from_one_that_works() {
    let machine =
        idle().file("/run/gpu-bootstrap/status.json", r#"{"schema":1,"state":"running","pid":4711}"#);
    let killed = machine.run(&["status", "--wait"]);
    assert_eq!(killed.code, 1, "{killed:?}");
    assert!(killed.stdout.starts_with("killed"), "{}", killed.stdout);
}

#[test]
fn a_run_that_has_not_said_anything_yet_is_running() {
    let machine = idle().file("/var/lib/gpu-bootstrap/lock", "pid 4711\n");
    assert_eq!(machine.run(&["status"]).code, 7);
    let lock = fs::File::open(machine.outside("/var/lib/gpu-bootstrap/lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| e)
        .unwrap();
    let status = machine.run(&["status"]);
    assert_eq!((status.code, status.stdout.as_str()), (0, "running\n"), "{status:?}");
}

#[test]
fn status_waits_for_the_end_and_exits_with_the_runs_code() {
    let machine = Machine::debian12();
    let mut waiting = machine.command(&["status", "--wait", "--timeout", "30"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none(), "it did not wait");
    assert_eq!(machine.run(&["run"]).code, 3);
    assert_eq!(waiting.wait().unwrap().code(), Some(3));
}

/// What `status --watch` prints of a run whose second step ends while it looks, and its exit code.
fn watched(on_a_terminal: bool) -> (i32, String) {
    let machine = idle().file("/var/lib/gpu-bootstrap/lock", "pid 4711\n");
    let lock = fs::File::open(machine.outside("/var/lib/gpu-bootstrap/lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock);
    let held = held.map_err(|(_, e)| e).unwrap();
    let path = machine.outside("/run/gpu-bootstrap/status.json");
    let write = |second: &str, state: &str, outcome: Value| {
        let steps = serde_json::json!([
            {"id": "a", "title": "first", "state": "done", "seconds": 1.5},
            {"id": "b", "title": "second", "state": second, "seconds": (second == "done").then_some(2.5)},
        ]);
        let status = serde_json::json!({"state": state, "outcome": outcome, "exit_code": 10, "steps": steps});
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("new"), status.to_string()).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
    };
    write("running", "running", Value::Null);
    let mut command = machine.command(&["status", "--watch", "--timeout", "30"]);
    if on_a_terminal {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let line = words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        command = std::process::Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    }
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let (mut output, mut printed) = (BufReader::new(watching.stdout.take().unwrap()), String::new());
    let mut until = |words: &str| {
        while !printed.contains(words) {
            assert_ne!(output.read_line(&mut printed).unwrap(), 0, "no {words:?} in {printed:?}");
        }
    };
    until(if on_a_terminal { "running  second" } else { "done     first" });
    write("done", "running", Value::Null);
    until("done     second");
    write("done", "finished", "reboot-needed".into());
    drop(held);
    output.read_to_string(&mut printed).unwrap();
    (watching.wait().unwrap().code().unwrap(), printed.replace('\r', ""))
}

#[test]
fn status_watches_until_the_end() {
    let lines = "  done     first 1.5 s\n  done     second 2.5 s\n";
    let whole = format!("reboot-needed (exit code 10)\n{lines}");
    assert_eq!(watched(false), (10, format!("{lines}{whole}")));
    let (code, drawn) = watched(true);
    assert_eq!(code, 10, "{drawn:?}");
    // Drawn three times, each time over the last one.
    assert_eq!(drawn.matches("\u{1b}[3F\u{1b}[J").count(), 2, "{drawn:?}");
    assert!(drawn.contains("  running  second\n") && drawn.ends_with(&whole), "{drawn:?}");
}

#[test]
fn status_gives_up_after_its_time_out() {
    let began = Instant::now();
    let ran = Machine::debian12().run(&["status", "--wait", "--timeout", "1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("[wait-timeout]"), "{}", ran.stderr);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_receipt_of_another_instance_is_set_aside_not_trusted() {
    let other = r#"{"schema":1,"instance_id":"i-0other","outcome":"converged","steps":[]}"#;
    let machine = idle().file("/var/lib/gpu-bootstrap/receipt.json", other);
    let ran = machine.run(&["run"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(machine.read("/var/lib/gpu-bootstrap/set-aside/var__lib__gpu-bootstrap__receipt.json"), other);
    assert_eq!(json(&machine.read("/var/lib/gpu-bootstrap/receipt.json"))["instance_id"], "local");
}

#[test]
fn a_choice_is_kept_only_once_it_is_installed() {
    let choice = "/var/lib/gpu-bootstrap/choice.json";
    let unreachable = format!(
        "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n\
         [cudnn]\ndeb = [{{ url = \"http://127.0.0.1:9/x.deb\", sha256 = \"{}\" }}]\n",
        "0".repeat(64)
    );
    let machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/a.toml", &unreachable);
    assert_eq!(machine.run(&["run"]).code, 1);
    assert!(!machine.outside(choice).exists(), "kept although nothing was installed");
    let machine = machine.file("/etc/gpu-bootstrap/a.toml", NO_PACKAGES);
    assert_eq!(machine.run(&["run"]).code, 0);
    let kept = machine.read(choice);
    // Another plan that fails takes nothing of it away, although the receipt knows steps that once were done.
    let machine = machine.file("/etc/gpu-bootstrap/a.toml", &unreachable);
    assert_eq!(machine.run(&["run"]).code, 1);
    assert_eq!(machine.read(choice), kept);
}

#[test]
fn a_plan_that_takes_back_what_is_installed_is_refused_unless_replanned() {
    let machine = idle();
    assert_eq!(machine.run(&["run"]).code, 0);
    let edit = |path: &str, change: &dyn Fn(&mut Value)| {
        let mut value = json(&machine.read(path));
        change(&mut value);
        fs::write(machine.outside(path), value.to_string()).unwrap();
    };
    // As if an earlier run had installed a toolkit from the distribution.
    edit("/var/lib/gpu-bootstrap/choice.json", &|v| {
        v["source"] = serde_json::json!({"distro": {"components": []}});
    });
    edit("/var/lib/gpu-bootstrap/receipt.json", &|v| {
        v["steps"] = serde_json::json!([{"id": "cuda-toolkit", "state": "done"}]);
    });
    let refused = machine.run(&["run"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(
        refused.stdout.contains("[plan-changed]") && refused.stdout.contains("--replan"),
        "{}",
        refused.stdout
    );
    assert_eq!(machine.run(&["run", "--replan"]).code, 0);
}

#[test]
fn a_failed_step_that_is_mended_converges_on_resume() {
    let toolkit = "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\ndeb = [{ url = \"http://127.0.0.1:9/x.deb\", sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\" }]\n";
    let machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/a.toml", toolkit);
    let failed = machine.run(&["run"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    let receipt = json(&machine.read("/var/lib/gpu-bootstrap/receipt.json"));
    assert_eq!(receipt["outcome"], "failed");
    assert!(receipt["steps"].as_array().unwrap().iter().any(|s| s["state"] == "failed"), "{receipt}");
    let machine = machine.file("/etc/gpu-bootstrap/a.toml", NO_PACKAGES);
    let resumed = machine.run(&["--resume"]);
    assert_eq!(resumed.code, 0, "{resumed:?}");
    assert!(resumed.stdout.contains("the plan is not the last run's"), "{}", resumed.stdout);
}

#[test]
fn a_result_of_an_earlier_boot_does_not_end_the_wait() {
    let earlier =
        r#"{"schema":1,"state":"finished","outcome":"converged","exit_code":0,"boot_id":"another"}"#;
    let machine = idle().file("/var/lib/gpu-bootstrap/result.json", earlier);
    assert_eq!(machine.run(&["status"]).code, 0);
    let waited = machine.run(&["status", "--wait", "--timeout", "1"]);
    assert!(waited.stderr.contains("[wait-timeout]"), "{waited:?}");
}

#[test]
fn analyze_blames_the_longest_step_first_as_text_and_as_json() {
    let step = |id: &str, seconds: f64| serde_json::json!({"id": id, "title": format!("The {id}\u{1b}[31m"), "seconds": seconds});
    let status = serde_json::json!({"state": "finished", "seconds": 3.0, "steps": [step("first", 0.5), step("second", 2.5)]});
    let machine = Machine::debian12();
    let machine = machine.file("/var/lib/gpu-bootstrap/last-installation.json", &status.to_string());
    let blame = |more: &[&str]| {
        let ran = ran(binary().args(["analyze", "--blame", "--root"]).arg(machine.root()).args(more));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    };
    assert_eq!(blame(&[]), "    2.50 s  The second?[31m\n    0.50 s  The first?[31m\n");
    assert_eq!(json(&blame(&["--json"]))["steps"][0]["id"], "second");
}
