//! The administrator's own steps, through the real binary: where they stand in the plan, what `command` promises, and who
//! may have written them. docs/custom-steps.md says the same in words.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machine::{Machine, Ran};
use serde_json::Value;

/// Nothing is to be installed, so that the custom steps are the plan.
const NOTHING_BUILT_IN: &str = "
[driver]
branch = \"none\"
[cuda]
toolkit = \"none\"
[cudnn]
version = \"none\"
";

/// A machine with a GPU, busybox, and these steps.
fn machine(steps: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/none.toml", NOTHING_BUILT_IN);
    machine::programs::busybox(
        &machine.outside("/"),
        &["sh", "cp", "env", "grep", "mkdir", "pwd", "sleep", "test", "touch"],
    );
    for (name, text) in steps {
        machine = machine.file(&format!("/etc/gpu-bootstrap/steps.d/{name}"), text);
    }
    // Whatever umask the tests run under: root's alone.
    for path in ["", "/etc", "/etc/gpu-bootstrap", "/etc/gpu-bootstrap/steps.d"] {
        set_mode(&machine, path, 0o755);
    }
    for (name, _) in steps {
        set_mode(&machine, &format!("/etc/gpu-bootstrap/steps.d/{name}"), 0o644);
    }
    machine
}

fn set_mode(machine: &Machine, path: &str, mode: u32) {
    let path = machine.outside(path);
    if path.exists() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn step(scope: &str, actions: &str) -> String {
    format!("title = \"a step\"\nscope = \"{scope}\"\n{actions}\n")
}

fn run(machine: &Machine) -> Ran {
    machine.run(&["run"])
}

fn json(machine: &Machine, path: &str) -> Value {
    serde_json::from_str(&machine.read(path)).unwrap()
}

/// Names and sizes of all that lies in a directory of the machine.
fn listed(machine: &Machine, dir: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(machine.outside(dir))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_second_run_changes_nothing_and_damage_is_healed() {
    let made = step(
        "image",
        "[[action]]\nfile = { path = \"/etc/motd\", content = \"hello\\n\" }\n\
         [[action]]\ncommand = { run = [\"cp\", \"/etc/motd\", \"${output}\"], creates = \"/opt/tool/motd\" }\n\
         [[action]]\ncommand = { run = [\"touch\", \"/run/set\"], unless = [\"test\", \"-e\", \"/run/set\"] }",
    );
    let machine = machine(&[("50-motd.toml", &made)]);
    let first = run(&machine);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stdout.contains("done     a step"), "{first:?}");
    assert_eq!(machine.read("/opt/tool/motd"), "hello\n");
    assert!(machine.outside("/run/set").exists());
    assert_eq!(listed(&machine, "/opt/tool"), ["motd"]);
    let receipt = json(&machine, "/var/lib/gpu-bootstrap/receipt.json");
    let record = &receipt["steps"][0];
    assert_eq!((record["id"].as_str(), record["state"].as_str()), (Some("motd"), Some("done")), "{receipt}");
    assert_eq!(record["evidence"].as_array().unwrap().len(), 3, "{receipt}");

    let second = run(&machine);
    assert_eq!(second.code, 0, "{second:?}");
    assert!(second.stdout.contains("ok       a step: "), "{second:?}");
    assert_eq!(json(&machine, "/var/lib/gpu-bootstrap/receipt.json"), receipt);

    for path in ["/etc/motd", "/opt/tool/motd", "/run/set"] {
        fs::remove_file(machine.outside(path)).unwrap();
        let healed = run(&machine);
        assert!(healed.stdout.contains("done     a step"), "{path}: {healed:?}");
        assert!(machine.outside(path).exists(), "{path}");
    }
}

#[test]
fn a_whole_tree_can_be_created_and_the_output_has_its_final_name() {
    let made = step(
        "instance",
        "[[action]]\ncommand = { run = [\"sh\", \"-c\", \"mkdir $1 && touch $1/${instance.id} && echo at $1 && pwd && env\", \
         \"sh\", \"${output}\"], creates = \"/opt/tree.d\" }",
    );
    let machine = machine(&[("50-tree.toml", &made)]);
    let mut command = machine.command(&["run"]);
    command.env("SECRET", "geheim").env("LD_PRELOAD", "").env("APT_CONFIG", "/x").current_dir("/tmp");
    let ran = machine::ran(&mut command);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(listed(&machine, "/opt/tree.d"), ["local"]);
    let at = ran.stdout.lines().find_map(|l| l.strip_prefix("output   at ")).unwrap();
    assert!(at.starts_with("/opt/.gpu-bootstrap-") && at.ends_with("/tree.d"), "{at}");
    // The environment is the fixed one, the directory is the root.
    assert!(ran.stdout.contains("output   /\n") && ran.stdout.contains("output   HOME=/root\n"), "{ran:?}");
    assert!(!ran.stdout.contains("geheim") && !ran.stdout.contains("APT_CONFIG"), "{ran:?}");
}

#[test]
fn a_command_that_fails_ends_the_run_in_one_error_and_leaves_nothing() {
    let made = step(
        "image",
        "[[action]]\ncommand = { run = [\"sh\", \"-c\", \"echo half >$1; echo no room at https://u:geheim@h/p?geheim >&2; exit 3\", \
         \"sh\", \"${output}\"], creates = \"/opt/made\" }",
    );
    let machine = machine(&[("50-half.toml", &made)]);
    let ran = run(&machine);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("failed with status 3 [exec]"), "{ran:?}");
    assert!(ran.stdout.contains("because: no room at https://h/p"), "{ran:?}");
    assert!(listed(&machine, "/opt").is_empty());
    assert_eq!(json(&machine, "/run/gpu-bootstrap/result.json")["error"]["step"], "half");
    for path in ["/run/gpu-bootstrap/result.json", "/var/lib/gpu-bootstrap/receipt.json"] {
        assert!(!machine.read(path).contains("geheim"), "{path}");
    }
    assert!(!ran.stdout.contains("geheim") && !ran.stderr.contains("geheim"), "{ran:?}");
}

#[test]
fn a_command_that_does_not_end_is_killed_with_all_that_it_started() {
    let made = step(
        "boot",
        "[[action]]\ncommand = { run = [\"sh\", \"-c\", \"(sleep 3; touch /run/late) & sleep 60\"], \
         unless = [\"test\", \"-e\", \"/nope\"], timeout = 1 }",
    );
    let machine = machine(&[("50-slow.toml", &made)]);
    let began = Instant::now();
    let ran = run(&machine);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("did not end within 1 s [exec-timeout]"), "{ran:?}");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!machine.outside("/run/late").exists());
}

#[test]
fn a_check_that_stays_needed_or_gives_no_answer_is_not_fine() {
    let of = |unless: &str| {
        let action =
            format!("[[action]]\ncommand = {{ run = [\"touch\", \"/run/ran\"], unless = {unless} }}");
        machine(&[("50-x.toml", &step("boot", &action))])
    };
    let machine = of("[\"test\", \"-e\", \"/nope\"]");
    let ran = run(&machine);
    assert!(ran.code == 1 && ran.stdout.contains("[verify-failed]"), "{ran:?}");
    assert!(machine.outside("/run/ran").exists());

    let machine = of("[\"sh\", \"-c\", \"kill -9 $$\"]");
    let ran = run(&machine);
    assert!(ran.code == 1 && ran.stdout.contains("[check-unknown]"), "{ran:?}");
    assert!(!machine.outside("/run/ran").exists());
}

#[test]
fn much_output_is_cut_and_what_steers_a_terminal_is_shown() {
    let made = step(
        "boot",
        "[[action]]\ncommand = { run = [\"sh\", \"-c\", \"i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done; \
         touch /run/ran\"], unless = [\"test\", \"-e\", \"/run/ran\"] }",
    );
    let machine = machine(&[("50-loud.toml", &made)]);
    let ran = run(&machine);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("output   line 200\noutput   … and 100 lines more\n"), "{ran:?}");
    // It is nobody's status: the file is for all to read.
    assert!(!machine.read("/run/gpu-bootstrap/result.json").contains("line 1"));
}

#[test]
fn the_plan_shows_where_a_step_comes_from_and_runs_nothing_but_checks() {
    let made = step(
        "image",
        "[[action]]\ncommand = { run = [\"touch\", \"${output}\"], creates = \"/opt/made\" }\n\
         [[action]]\nlink = { path = \"/opt/link\", target = \"/opt/${instance.id}\" }",
    );
    let machine = machine(&[("50-plain.toml", &made)]);
    let shown = machine.run(&["plan"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(
        shown.stdout.contains("a step (plain, image, /etc/gpu-bootstrap/steps.d/50-plain.toml)\n"),
        "{shown:?}"
    );
    assert!(
        shown.stdout.contains("needed     command touch ${output}: /opt/made does not exist"),
        "{shown:?}"
    );
    assert!(shown.stdout.contains("link /opt/link → /opt/local"), "{shown:?}");
    assert!(!machine.outside("/opt").exists());
    let before: Value = serde_json::from_str(&machine.run(&["plan", "--json"]).stdout).unwrap();
    assert_eq!(before["steps"][0]["origin"], "/etc/gpu-bootstrap/steps.d/50-plain.toml");

    // Another argument is another step: its digest and the plan's change, and the next run says so.
    assert_eq!(run(&machine).code, 0);
    let machine =
        machine.file("/etc/gpu-bootstrap/steps.d/50-plain.toml", &made.replace("/opt/link", "/opt/other"));
    let after: Value = serde_json::from_str(&machine.run(&["plan", "--json"]).stdout).unwrap();
    assert_ne!(before["plan_digest"], after["plan_digest"]);
    assert_ne!(before["steps"][0]["digest"], after["steps"][0]["digest"]);
    assert!(run(&machine).stdout.contains("the plan is not the last run's: plain changed"));
}

#[test]
fn steps_sort_by_their_files_names_and_what_is_no_step_is_left_alone() {
    let of = |n: u32| step("image", &format!("[[action]]\nfile = {{ path = \"/opt/{n}\", content = \"\" }}"));
    let (a, b, c) = (of(1), of(2), of(3));
    let broken = "this is no TOML";
    let machine = machine(&[
        ("90-last.toml", &c),
        ("10-first.toml", &a),
        ("50-middle.toml", &b),
        ("50-middle.toml.dpkg-old", broken),
        (".60-half.toml", broken),
        ("README", broken),
    ]);
    let plan: Value = serde_json::from_str(&machine.run(&["plan", "--json"]).stdout).unwrap();
    let ids: Vec<_> = plan["steps"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["first", "middle", "last"]);
}

/// Runs over a machine whose steps are refused: nothing of the plan runs.
fn refused(machine: &Machine, code: &str, message: &str) {
    for ran in [run(machine), machine.run(&["plan"])] {
        assert_eq!(ran.code, 2, "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(&format!("[{code}]")) && said.contains(message), "wanted {message}: {said}");
        assert!(said.contains("what to do: "), "{said}");
    }
    assert!(!machine.outside("/opt/good").exists(), "the good step ran");
}

/// Comes first, so that it would run.
const GOOD: (&str, &str) = (
    "10-good.toml",
    "title = \"good\"\nscope = \"image\"\n[[action]]\nfile = { path = \"/opt/good\", content = \"\" }\n",
);

#[test]
fn a_mistake_is_named_with_file_line_and_column_and_nothing_runs() {
    let name = "/etc/gpu-bootstrap/steps.d/50-x.toml";
    for (action, place, what) in [
        ("fiel = { path = \"/a\" }", "4:1", "unknown variant `fiel`"),
        ("file = { path = \"/a\", content = \"\", mod = \"0644\" }", "4:37", "unknown field `mod`"),
        (
            "file = { path = \"/a\", content = \"${driver.packages}\" }",
            "4:34",
            "no value is called driver.packages",
        ),
        ("file = { path = \"/a\", content = \"x ${output}\" }", "4:36", "no value is called output"),
        (
            "file = { path = \"/a\", content = \"${cuda.home}\" }",
            "4:34",
            "cuda.home has no value on this machine",
        ),
        ("command = { run = [\"make\"] }", "4:11", "a command needs `creates`"),
        (
            "command = { run = \"make it\", unless = [\"x\"] }",
            "4:11",
            "run is a list of words, not a shell line: [\"make\", \"it\"]",
        ),
    ] {
        let text = step("image", &format!("[[action]]\n{action}"));
        refused(&machine(&[GOOD, ("50-x.toml", &text)]), "step-invalid", &format!("{name}:{place}: {what}"));
    }
    let text = "title = \"x\"\nscope = \"image\"\nwhen = { driver = \"yes\" }\n[[action]]\nx = 1\n";
    let what = format!("{name}:3:19: driver is never \"yes\", only wanted, none");
    refused(&machine(&[GOOD, ("50-x.toml", text)]), "step-invalid", &what);
}

#[test]
fn a_name_that_is_taken_or_none_is_refused() {
    let text = step("image", "[[action]]\nfile = { path = \"/opt/x\", content = \"\" }");
    for (name, what) in [
        ("99-driver.toml", "a built-in step is called driver, too"),
        ("50-device-query.toml", "a built-in step is called device-query, too"),
        ("50-good.toml", "/etc/gpu-bootstrap/steps.d/10-good.toml is called good, too"),
        ("docker.toml", "a step's file is called NN-name.toml"),
    ] {
        refused(&machine(&[GOOD, (name, &text)]), "step-invalid", what);
    }
}

#[test]
fn what_others_than_root_could_have_written_is_refused() {
    let dir = "/etc/gpu-bootstrap/steps.d";
    for (path, mode) in
        [("/etc", 0o777), (dir, 0o775), (dir, 0o1777), ("/etc/gpu-bootstrap/steps.d/10-good.toml", 0o666)]
    {
        let machine = machine(&[GOOD]);
        set_mode(&machine, path, mode);
        refused(
            &machine,
            "step-untrusted",
            &format!("{path} may be written by others than root (mode {mode:04o})"),
        );
    }
    let machine = machine(&[GOOD]);
    chown(machine.outside("/etc/gpu-bootstrap"), Some(1000), None).unwrap();
    refused(&machine, "step-untrusted", "/etc/gpu-bootstrap belongs to user 1000, not to root");
}

#[test]
fn no_link_leads_to_a_step() {
    for path in ["/etc/gpu-bootstrap/steps.d", "/etc/gpu-bootstrap/steps.d/10-good.toml"] {
        let machine = machine(&[GOOD]);
        let (real, moved) = (machine.outside(path), machine.outside("/moved"));
        fs::rename(&real, &moved).unwrap();
        std::os::unix::fs::symlink(Path::new("/moved"), &real).unwrap();
        refused(&machine, "step-untrusted", &format!("{path} is a link"));
    }
}

#[test]
fn while_an_image_is_baked_only_steps_of_the_image_run() {
    let file = |n: &str| format!("[[action]]\nfile = {{ path = \"/opt/{n}\", content = \"\" }}");
    let steps = ["image", "instance", "boot"].map(|scope| step(scope, &file(scope)));
    let bake = format!("{NOTHING_BUILT_IN}[policy]\non-no-gpu = \"install\"\nfor = [\"g4dn.xlarge\"]\n");
    let machine = machine(&[("10-a.toml", &steps[0]), ("20-b.toml", &steps[1]), ("30-c.toml", &steps[2])])
        .file("/etc/gpu-bootstrap/none.toml", &bake);
    let gpu = machine.outside("/sys/bus/pci/devices/0000:00:1e.0");
    fs::rename(&gpu, machine.outside("/gpu")).unwrap();
    let baked = run(&machine);
    assert_eq!(baked.code, 0, "{baked:?}");
    assert_eq!(listed(&machine, "/opt"), ["image"]);
    fs::rename(machine.outside("/gpu"), gpu).unwrap();
    let booted = run(&machine);
    assert_eq!(booted.code, 0, "{booted:?}");
    assert_eq!(listed(&machine, "/opt"), ["boot", "image", "instance"]);
}

#[test]
fn what_a_killed_run_left_is_gone_after_the_next() {
    let made = step(
        "image",
        "[[action]]\ncommand = { run = [\"sh\", \"-c\", \"echo half >$1; touch /run/begun; sleep 60\", \"sh\", \"${output}\"], \
         creates = \"/opt/made\" }",
    );
    let machine = machine(&[("50-made.toml", &made)]);
    let mut agent = machine.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !machine.outside("/run/begun").exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "the command did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(listed(&machine, "/opt").len(), 1, "what was half made lies there, under another name");
    assert!(!machine.outside("/opt/made").exists());

    let machine = machine
        .file("/etc/gpu-bootstrap/steps.d/50-made.toml", &made.replace("; touch /run/begun; sleep 60", ""));
    let ran = run(&machine);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(listed(&machine, "/opt"), ["made"]);
}

/// The steps of this machine, in a rehearsal of the whole job: with real apt, between the toolkit and the proof.
#[test]
fn a_rehearsal_runs_this_machines_steps_before_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("kept");
    fs::create_dir(&keep).unwrap();
    let step = "title = \"a tool\"\nscope = \"image\"\nwhen = { driver = \"wanted\" }\n\
                [[action]]\napt-package = { packages = [\"simulated-tool\"] }\n\
                [[action]]\ncommand = { run = [\"sh\", \"-c\", \"grep -c . /proc/driver/nvidia/version >$1\", \"sh\", \"${output}\"], \
                creates = \"/opt/seen\" }\n";
    fs::write(dir.path().join("step"), step).unwrap();
    // A namespace's own /etc, so that this machine's stays as it is.
    let script = "mkdir \"$1/etc\"; mount -t tmpfs -o mode=0755 tmpfs \"$1/etc\"; cp -a /etc/. \"$1/etc\"
        install -D -m 0644 \"$1/step\" \"$1/etc/gpu-bootstrap/steps.d/50-tool.toml\"
        chmod 0755 \"$1/etc/gpu-bootstrap\" \"$1/etc/gpu-bootstrap/steps.d\"
        mount --bind \"$1/etc\" /etc; umask 022
        exec \"$2\" rehearse --keep \"$1/kept\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec", script, "sh"])
        .arg(dir.path())
        .arg(env!("CARGO_BIN_EXE_gpu-bootstrap"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("a tool (tool, image, /etc/gpu-bootstrap/steps.d/50-tool.toml)"), "{said}");
    let result: Value = serde_json::from_slice(&fs::read(keep.join("result.json")).unwrap()).unwrap();
    let steps: Vec<_> =
        result["steps"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(steps[steps.len() - 3..], ["persistence", "tool", "device-query"], "{said}");
    assert!(!Path::new("/etc/gpu-bootstrap/steps.d/50-tool.toml").exists());
}
