//! Acting on user-data without cloud-init: the real program over scratch machines with a real shell, and a metadata service
//! as strict as EC2's.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imds::{Imds, Running, document};
use machine::{Machine, Ran, binary, ran};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const FIRST: &str = "i-0123456789abcdef0";
const OTHER: &str = "i-0fedcba9876543210";
const LOG: &str = "/var/log/gpu-bootstrap/user-data.log";
const REPORT: &str = "/run/gpu-bootstrap/user-data.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A machine with a shell, `sleep`, `id` and `stat`.
fn image() -> Machine {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, for chroot: start it by tests/run");
    let machine = Machine::debian12().file("/dev/null", "").dir("/root").dir("/tmp");
    for program in ["dash", "sleep", "stat"] {
        machine.bring(program);
    }
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    machine
}

fn service(user_data: &str) -> Running {
    Imds::new().item("user-data", user_data).start()
}

/// The same user-data on another instance.
fn other(user_data: &str) -> Running {
    let document = document("g5.xlarge").replace(FIRST, OTHER);
    Imds::new().item("dynamic/instance-identity/document", document).item("user-data", user_data).start()
}

/// A MIME message of scripts: type, name, text.
fn message(parts: &[(&str, &str, &str)]) -> String {
    let part = |(content_type, name, body): &(&str, &str, &str)| {
        format!(
            "--b\nContent-Type: {content_type}\nContent-Disposition: attachment; filename=\"{name}\"\n\n{body}\n"
        )
    };
    let parts: String = parts.iter().map(part).collect();
    format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n{parts}--b--\n")
}

fn command(machine: &Machine, service: &Running, args: &[&str]) -> Command {
    let mut command = binary();
    command.args(["user-data", "run", "--root"]).arg(machine.root()).args(args);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    command
}

fn act(machine: &Machine, service: &Running, args: &[&str]) -> Ran {
    ran(&mut command(machine, service, args))
}

/// Acts on the user-data, which must exit with 0.
#[track_caller]
fn boot(machine: &Machine, service: &Running) -> Ran {
    let ran = act(machine, service, &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

fn reboot(machine: &Machine, number: u32) {
    fs::write(machine.outside(BOOT_ID), format!("0b6d2a9c-7c3e-4c55-9f0a-{number:012}\n")).unwrap();
}

/// What scripts left in /marks.
fn marks(machine: &Machine) -> String {
    fs::read_to_string(machine.outside("/marks")).unwrap_or_default()
}

fn report(machine: &Machine) -> Value {
    serde_json::from_str(&machine.read(REPORT)).unwrap()
}

/// Name and outcome of each item.
fn outcomes(machine: &Machine) -> Vec<(String, String)> {
    let report = report(machine);
    let words = |item: &Value| {
        (item["name"].as_str().unwrap().to_owned(), item["outcome"].as_str().unwrap().to_owned())
    };
    report["items"].as_array().unwrap().iter().map(words).collect()
}

fn mode(machine: &Machine, path: &str) -> u32 {
    fs::symlink_metadata(machine.outside(path)).unwrap().mode() & 0o7777
}

/// Waits until scripts have left these marks.
fn wait_for_marks(machine: &Machine, wanted: &str) {
    let began = Instant::now();
    while marks(machine) != wanted {
        assert!(began.elapsed() < Duration::from_secs(20), "marks are {:?}, not {wanted:?}", marks(machine));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(machine: &Machine, service: &Running) -> Child {
    command(machine, service, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_script_runs_once_for_each_instance_and_what_it_says_is_kept() {
    let script = "#!/bin/sh\necho run >>/marks\necho \"$0 $PWD $HOME $INSTANCE_ID $DEBIAN_FRONTEND\"; echo odd >&2\n\
                  stat -c '%a %u' \"$0\" >/script; stat -c %a \"${0%/*}\" >>/script\ncat <&0\n";
    let machine = image();
    machine.bring("cat");
    let first = service(script);
    let ran = boot(&machine, &first);
    assert_eq!(marks(&machine), "run\n");
    let said = format!("/var/lib/gpu-bootstrap/scripts/part-001 / /root {FIRST} noninteractive\nodd\n");
    assert!(machine.read(LOG).ends_with(&said), "{}", machine.read(LOG));
    assert!(ran.stdout.contains("  odd\n") && ran.stdout.contains("part-001: ended well"), "{ran:#?}");
    assert_eq!(machine.read("/script"), "700 0\n700\n");
    assert!(!machine.outside("/var/lib/gpu-bootstrap/scripts").exists());
    assert_eq!(
        (mode(&machine, LOG), mode(&machine, "/var/lib/gpu-bootstrap/user-data.json")),
        (0o600, 0o600)
    );
    assert_eq!(
        (&report(&machine)["state"], &report(&machine)["instance_id"]),
        (&"done".into(), &FIRST.into())
    );

    reboot(&machine, 2);
    boot(&machine, &first);
    assert_eq!(
        (marks(&machine).as_str(), outcomes(&machine)),
        ("run\n", vec![("part-001".into(), "earlier".into())])
    );
    boot(&machine, &other(script));
    assert_eq!(marks(&machine), "run\nrun\n", "a copy of the disk is another instance");
    assert_eq!(act(&machine, &other(script), &["--again"]).code, 0);
    assert_eq!(marks(&machine), "run\nrun\nrun\n");
}

#[test]
fn scripts_of_each_frequency_run_in_cloud_inits_order_when_they_are_due() {
    let script = |name: &str| format!("#!/bin/sh\necho {name} >>/marks\n");
    let user_data = message(&[
        ("text/x-shellscript", "b", &script("b")),
        ("text/x-shellscript", "a", &script("a").replace('\n', "\r\n")),
        ("text/x-shellscript-per-boot", "boot", &script("boot")),
        ("text/x-shellscript-per-once", "once", &script("once")),
        ("text/cloud-boothook", "hook", &format!("#cloud-boothook\n{}", script("hook"))),
    ]);
    let (machine, first) = (image(), service(&user_data));
    boot(&machine, &first);
    assert_eq!(marks(&machine), "hook\nonce\nboot\na\nb\n");
    boot(&machine, &first);
    assert_eq!(marks(&machine), "hook\nonce\nboot\na\nb\n", "the same boot");
    reboot(&machine, 2);
    boot(&machine, &first);
    assert_eq!(marks(&machine), "hook\nonce\nboot\na\nb\nhook\nboot\n");
    fs::remove_file(machine.outside("/marks")).unwrap();
    reboot(&machine, 3);
    boot(&machine, &other(&user_data));
    assert_eq!(marks(&machine), "hook\nboot\na\nb\n");
}

#[test]
fn a_script_that_fails_is_told_everywhere_and_stops_no_other() {
    let user_data = message(&[
        ("text/x-shellscript", "a", "#!/bin/sh\necho it is broken\nexit 3"),
        ("text/x-shellscript", "b", "#!/no/such/shell\n"),
        ("text/x-shellscript", "c", "#!/bin/sh\necho c >>/marks\nkill -9 $$"),
    ]);
    let (machine, service) = (image(), service(&user_data));
    let ran = act(&machine, &service, &[]);
    assert_eq!((ran.code, marks(&machine).as_str()), (1, "c\n"), "{ran:#?}");
    for words in [
        "a ended with status 3",
        "/var/log/gpu-bootstrap/user-data.log has all",
        "b ended with status 127",
        "c ended with status 137",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran:#?}");
    }
    assert_eq!(report(&machine)["items"][0]["code"], "user-data-failed");
    assert_eq!(report(&machine)["exit_code"], 1);
    assert!(!machine.read(REPORT).contains("it is broken"), "what scripts say is for root's eyes");
    let status = ran_status(&machine);
    assert!(status.stdout.contains("user-data: failed\n  a: a ended with status 3"), "{status:#?}");
    // It has come to its end: cloud-init would not run it again, and neither do we.
    reboot(&machine, 2);
    let ran = act(&machine, &service, &[]);
    assert_eq!((ran.code, marks(&machine).as_str()), (0, "c\n"), "{ran:#?}");
    assert!(ran.stdout.contains("user-data run --again"), "{ran:#?}");
}

fn ran_status(machine: &Machine) -> Ran {
    machine.run(&["status"])
}

#[test]
fn changed_user_data_waits_for_a_word_and_the_rest_goes_on() {
    let always = ("text/x-shellscript-per-boot", "always", "#!/bin/sh\necho always >>/marks");
    let machine = image();
    boot(&machine, &Imds::new().start());
    boot(&machine, &service("#!/bin/sh\necho never >>/marks\n"));
    assert_eq!(marks(&machine), "", "what an instance is given after its first boot has come later");

    let machine = image();
    boot(
        &machine,
        &service(&message(&[always, ("text/x-shellscript", "a", "#!/bin/sh\necho old >>/marks")])),
    );
    reboot(&machine, 2);
    let changed = service(&message(&[always, ("text/x-shellscript", "a", "#!/bin/sh\necho new >>/marks")]));
    let ran = boot(&machine, &changed);
    assert_eq!(marks(&machine), "always\nold\nalways\n");
    assert!(
        ran.stdout
            .contains("a: it came after this instance was set up: `gpu-bootstrap user-data run --changed`")
    );
    assert_eq!(outcomes(&machine)[1], ("a".into(), "not-applied".into()));
    assert!(
        ran_status(&machine).stdout.contains("user-data: done\n  a: it came after"),
        "{:?}",
        ran_status(&machine)
    );
    assert_eq!(act(&machine, &changed, &["--changed"]).code, 0);
    boot(&machine, &changed);
    assert_eq!(marks(&machine), "always\nold\nalways\nnew\n");
}

#[test]
fn what_was_killed_is_begun_again_but_not_for_ever() {
    let script = "#!/bin/sh\necho $$ >/pid\necho begun >>/marks\nexec sleep 60\n";
    let (machine, service) = (image(), service(script));
    let mut wanted = String::new();
    for number in 1..=3 {
        reboot(&machine, number);
        wanted += "begun\n";
        let mut agent = start(&machine, &service);
        wait_for_marks(&machine, &wanted);
        // A power cut takes both.
        signal(&agent, Signal::SIGKILL);
        agent.wait().unwrap();
        let script: i32 = machine.read("/pid").trim().parse().unwrap();
        kill(Pid::from_raw(script), Signal::SIGKILL).unwrap();
        assert!(ran_status(&machine).stdout.contains("user-data: killed"), "{:?}", ran_status(&machine));
    }
    reboot(&machine, 4);
    let ran = act(&machine, &service, &[]);
    assert_eq!((ran.code, marks(&machine)), (1, wanted), "{ran:#?}");
    assert!(ran.stderr.contains("was begun 3 times and never came to its end"), "{ran:#?}");
    assert!(!machine.outside("/var/lib/gpu-bootstrap/scripts").exists(), "what a killed run left is swept");
}

#[test]
fn a_script_that_ends_while_the_machine_goes_down_is_done() {
    let script = "#!/bin/sh\necho begun >>/marks\nsleep 1\necho ended >>/marks\n";
    let (machine, service) = (image(), service(script));
    let mut agent = start(&machine, &service);
    wait_for_marks(&machine, "begun\n");
    signal(&agent, Signal::SIGTERM);
    assert_eq!(agent.wait().unwrap().code(), Some(143));
    reboot(&machine, 2);
    boot(&machine, &service);
    assert_eq!(marks(&machine), "begun\nended\n");
}

#[test]
fn a_script_that_does_not_end_is_ended_with_what_it_started() {
    let script = "#!/bin/sh\nsleep 300 &\necho $! >/pid\necho begun >>/marks\nwait\n";
    let (machine, service) = (image(), service(script));
    let mut agent = start(&machine, &service);
    wait_for_marks(&machine, "begun\n");
    signal(&agent, Signal::SIGTERM);
    assert_eq!(agent.wait().unwrap().code(), Some(143));
    let sleeper = Pid::from_raw(machine.read("/pid").trim().parse().unwrap());
    let began = Instant::now();
    while kill(sleeper, None).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "what the script started is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_a_script_left_running_goes_on_writing() {
    let script = "#!/bin/sh\n(sleep 5; echo late; echo late >>/marks) &\n";
    let (machine, service) = (image(), service(script));
    boot(&machine, &service);
    assert_eq!(marks(&machine), "", "nobody waits for it");
    wait_for_marks(&machine, "late\n");
    assert!(machine.read(LOG).ends_with("late\n"), "{}", machine.read(LOG));
}

#[test]
fn nothing_is_done_where_cloud_init_is_or_off_ec2_or_by_the_switch() {
    let user_data = message(&[
        ("text/x-gpu-bootstrap", "ours", "[instance]\nuser-data = \"ignore\""),
        ("text/x-shellscript", "a", "#!/bin/sh\necho a >>/marks"),
    ]);
    let machine = image();
    assert!(boot(&machine, &service(&user_data)).stdout.contains("user-data = \"ignore\""));
    assert_eq!(report(&machine)["state"], "ignored");

    let script = "#!/bin/sh\necho a >>/marks";
    let machine = machine.file("/usr/bin/cloud-init", "");
    assert!(
        boot(&machine, &service(script)).stdout.contains("cloud-init is at work here (/usr/bin/cloud-init)")
    );
    fs::remove_file(machine.outside("/usr/bin/cloud-init")).unwrap();

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, script).unwrap();
    let off_ec2 = machine.run(&["user-data", "run"]);
    assert!(off_ec2.code == 0 && off_ec2.stdout.contains("no EC2 instance"), "{off_ec2:#?}");
    assert_eq!(marks(&machine), "");
    let by_hand = machine.run(&["user-data", "run", "--file", file.path().to_str().unwrap()]);
    assert_eq!((by_hand.code, marks(&machine).as_str()), (0, "a\n"), "{by_hand:#?}");
}

#[test]
fn a_mistake_in_our_configuration_keeps_no_script_from_running() {
    let user_data = message(&[
        ("text/x-gpu-bootstrap", "ours", "[instanze]"),
        ("text/x-shellscript", "a", "#!/bin/sh\necho a >>/marks"),
    ]);
    let machine = image();
    let ran = act(&machine, &service(&user_data), &[]);
    assert_eq!((ran.code, marks(&machine).as_str()), (1, "a\n"), "{ran:#?}");
    assert!(ran.stderr.contains("instanze"), "{ran:#?}");
}

#[test]
fn what_is_not_supported_stops_everything_before_anything_is_done() {
    let user_data = message(&[
        ("text/x-shellscript", "a", "#!/bin/sh\necho a >>/marks"),
        ("text/part-handler", "handler.py", "#part-handler\n"),
    ]);
    let machine = image();
    let ran = act(&machine, &service(&user_data), &[]);
    assert_eq!((ran.code, marks(&machine).as_str()), (2, ""), "{ran:#?}");
    assert!(
        ran.stderr.contains("handler.py (text/part-handler): a part handler is not supported"),
        "{ran:#?}"
    );
    assert_eq!(report(&machine)["state"], "refused");
    assert!(ran_status(&machine).stdout.contains("user-data: refused"), "{:?}", ran_status(&machine));
}

#[test]
fn our_own_stub_is_read_and_never_run() {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(&config, "#gpu-bootstrap\n[instance]\nuser-data = \"ignore\"\n").unwrap();
    let sum = "0".repeat(64);
    let render = |args: &[&str]| {
        let ran = ran(binary()
            .args(["user-data", "render", "--url", "https://a.b/c", "--sha256", &sum])
            .args(args));
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.stdout
    };
    let machine = image();
    boot(&machine, &service(&render(&[])));
    assert!(outcomes(&machine).is_empty() && !machine.outside("/usr/local/bin/gpu-bootstrap").exists());
    boot(&machine, &service(&render(&["--config", config.path().to_str().unwrap()])));
    assert_eq!(report(&machine)["state"], "ignored", "the stub's configuration counts");
    // The file that the stub writes where it is run is the one that counts then.
    let machine = machine.file("/etc/gpu-bootstrap/90-user-data.toml", "[instance]\nuser-data = \"run\"\n");
    boot(&machine, &service(&render(&["--config", config.path().to_str().unwrap()])));
    assert_eq!(report(&machine)["state"], "done");
}

#[test]
fn a_script_that_calls_us_is_refused_and_does_not_wait_for_itself() {
    let script = "#!/bin/sh\n/agent user-data run --no-imds\necho $? >>/marks\n";
    let (machine, service) = (image(), service(script));
    fs::copy(env!("CARGO_BIN_EXE_gpu-bootstrap"), machine.outside("/agent")).unwrap();
    boot(&machine, &service);
    assert_eq!(marks(&machine), "4\n", "{}", machine.read(LOG));
}

#[test]
fn a_script_does_not_lie_where_nothing_may_be_executed() {
    let (machine, service) = (image(), service("#!/bin/sh\necho \"${0%/*}\" >>/marks\n"));
    let state = machine.outside("/var/lib/gpu-bootstrap");
    fs::create_dir_all(&state).unwrap();
    let inside = command(&machine, &service, &[]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", "mount -t tmpfs -o noexec none \"$1\"; shift; exec \"$@\"", "sh"]);
    command.arg(&state).arg(inside.get_program()).args(inside.get_args());
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    let ran = ran(&mut command);
    assert_eq!((ran.code, marks(&machine).as_str()), (0, "/run/gpu-bootstrap/scripts\n"), "{ran:#?}");
}

#[test]
fn a_log_that_somebody_put_a_link_for_is_not_written_to() {
    let (machine, service) =
        (image().dir("/var/log/gpu-bootstrap").file("/etc/passwd", "mine"), service("#!/bin/sh\n"));
    symlink("/etc/passwd", machine.outside(LOG)).unwrap();
    let ran = act(&machine, &service, &[]);
    assert_eq!((ran.code, machine.read("/etc/passwd").as_str()), (1, "mine"), "{ran:#?}");
}

/// `systemd-analyze verify` of a boot with all of our units and somebody's, which a script starts and waits for.
fn verify(change: impl Fn(String) -> String) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let wants = dir.path().join("multi-user.target.wants");
    fs::create_dir(&wants).unwrap();
    let mut units = vec![("theirs.service".to_owned(), "[Service]\nExecStart=/bin/true\n".to_owned())];
    for part in ["", "-early", "-rsa", "-cloud-config", "-user-data"] {
        let name = format!("gpu-bootstrap{part}.service");
        let packaged = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(&name);
        let unit = fs::read_to_string(packaged).unwrap().replace("/usr/bin/gpu-bootstrap", "/bin/true");
        units.push((name, change(unit)));
    }
    for (name, unit) in units {
        fs::write(dir.path().join(&name), unit).unwrap();
        symlink(dir.path().join(&name), wants.join(&name)).unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "multi-user.target"]);
    command.arg(dir.path().join("gpu-bootstrap-user-data.service"));
    ran(command.env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display())))
}

#[test]
fn systemd_takes_the_units_without_a_ring() {
    let good = verify(|unit| unit);
    assert!(good.code == 0 && !good.stderr.contains("gpu-bootstrap"), "{good:#?}");
    let ring = verify(|unit| {
        unit.replace(
            "Before=gpu-bootstrap.service\nDefault",
            "After=gpu-bootstrap-user-data.service\nDefault",
        )
    });
    assert!(ring.stderr.contains("cycle"), "it would be seen: {ring:#?}");
}
