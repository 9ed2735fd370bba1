//! What nobody should do and somebody will: closed terminals, full disks, wrong roots, damaged files. The
//! real binary over scratch roots; each test is named after what once went wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use machine::{Machine, binary, ran};

const NO_PACKAGES: &str =
    "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n";

fn idle() -> Machine {
    Machine::debian12().t4().file("/etc/gpu-bootstrap/10-idle.toml", NO_PACKAGES)
}

/// The writing end of a pipe whose reader has gone away.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn code(command: &mut Command, stdout: Stdio, stderr: Stdio) -> Option<i32> {
    command.stdout(stdout).stderr(stderr).status().unwrap().code()
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let machine = idle();
    for (args, expected) in [
        (&["run", "-vv"][..], 0),
        (&["status"], 0),
        (&["status", "--json"], 0),
        (&["plan", "-vv"], 0),
        (&["detect"], 0),
        (&["status", "--wait", "--timeout", "0", "--root", "/dev/null"], 2),
    ] {
        let mut command = if args.contains(&"--root") { binary() } else { machine.command(args) };
        if args.contains(&"--root") {
            command.args(args);
        }
        assert_eq!(code(&mut command, broken_pipe(), broken_pipe()), Some(expected), "{args:?}");
    }
    let mut refused = binary();
    refused.args(["config", "check", "/nowhere"]);
    assert_eq!(code(&mut refused, broken_pipe(), full_disk()), Some(2));
}

#[test]
fn a_run_goes_on_without_any_place_to_log() {
    let machine = idle();
    assert_eq!(code(&mut machine.command(&["run", "-vv"]), full_disk(), full_disk()), Some(0));
    assert!(machine.read("/run/gpu-bootstrap/result.json").contains("converged"));
}

#[test]
fn an_answer_cut_off_by_a_full_disk_is_no_success() {
    let machine = idle();
    assert_eq!(machine.run(&["run"]).code, 0);
    for args in [&["plan"][..], &["detect", "--json"], &["status", "--json"]] {
        assert_eq!(code(&mut machine.command(args), full_disk(), Stdio::null()), Some(1), "{args:?}");
    }
}

#[test]
fn a_misspelt_root_is_refused_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("rot");
    fs::write(dir.path().join("file"), "").unwrap();
    for root in [&missing, &dir.path().join("file")] {
        for args in [&["run", "--no-imds"][..], &["plan", "--no-imds"], &["detect", "--no-imds"], &["status"]]
        {
            let ran = ran(binary().args(args).arg("--root").arg(root));
            assert_eq!(ran.code, 2, "{ran:?}");
            assert!(ran.stderr.contains("[usage]") && ran.stderr.contains("--root"), "{}", ran.stderr);
        }
    }
    assert!(!missing.exists());
}

#[test]
fn a_time_out_beyond_the_clock_is_wrong_usage() {
    for seconds in ["18446744073709551615", "0", "-1"] {
        let ran = idle().run(&["plan", &format!("--imds-timeout={seconds}")]);
        assert_eq!(ran.code, 2, "{ran:?}");
    }
}

#[test]
fn a_strict_umask_hides_nothing_from_apts_user_or_from_status() {
    let machine = idle();
    let command = machine.command(&["run"]);
    let mut strict = Command::new("sh");
    strict.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    assert_eq!(ran(&mut strict).code, 0);
    for (path, mode) in [
        ("/var/lib/gpu-bootstrap", 0o755),
        ("/run/gpu-bootstrap", 0o755),
        ("/var/lib/gpu-bootstrap/lock", 0o644),
        ("/var/lib/gpu-bootstrap/receipt.json", 0o600),
    ] {
        let found = fs::metadata(machine.outside(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
}

#[test]
fn a_damaged_fact_of_megabytes_is_shown_without_a_panic() {
    let machine = idle().file("/proc/sys/kernel/osrelease", &"6".repeat(1_000_000));
    assert_eq!(machine.run(&["detect"]).code, 0);
    let machine = idle().file("/var/lib/dpkg/arch", &"x".repeat(1_000_000));
    let ran = machine.run(&["run"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stdout.len() < 100_000 && ran.stdout.contains("bytes left out"),
        "{} bytes",
        ran.stdout.len()
    );
    assert!(machine.read("/run/gpu-bootstrap/status.json").len() < 100_000);
}

#[test]
fn what_a_file_says_does_not_steer_the_terminal() {
    let machine = idle().file("/var/lib/dpkg/arch", "\u{1b}]0;owned\u{7}\n");
    for args in [&["run"][..], &["plan"], &["status"]] {
        let ran = machine.run(args);
        let said = ran.stdout + &ran.stderr;
        assert!(said.contains("owned") && !said.contains(['\u{1b}', '\u{7}']), "{args:?}: {said:?}");
    }
}

#[test]
fn what_a_killed_write_left_behind_is_swept_up() {
    let ours = ["/var/lib/gpu-bootstrap", "/run/gpu-bootstrap", "/etc/apt/sources.list.d", "/etc/profile.d"]
        .map(|dir| format!("{dir}/.gpu-bootstrap-p4TXEv"));
    let theirs = "/etc/profile.d/.gpu-bootstrap.swp";
    let machine = ours.iter().fold(idle().file(theirs, ""), |m, path| m.file(path, "half"));
    assert_eq!(machine.run(&["plan"]).code, 0);
    assert!(machine.outside(&ours[0]).exists(), "a plan changes nothing");
    assert_eq!(machine.run(&["run"]).code, 0);
    for path in &ours {
        assert!(!machine.outside(path).exists(), "{path}");
    }
    assert!(machine.outside(theirs).exists());
}

/// Mounts something over a place of the machine, for this thread and the processes that it starts.
fn mounted(machine: &Machine, source: &str, path: &str, flags: nix::mount::MsFlags) {
    use nix::mount::{MsFlags, mount};
    let none: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let source = if source.is_empty() { machine.outside(path) } else { source.into() };
    mount(Some(&source), &machine.outside(path), none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &machine.outside(path), none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none).unwrap();
}

#[test]
fn a_read_only_disk_is_told_with_path_and_cause() {
    let machine = idle().dir("/var/lib/gpu-bootstrap");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            mounted(&machine, "", "/var/lib", nix::mount::MsFlags::MS_RDONLY);
            let ran = machine.run(&["run"]);
            assert_eq!(ran.code, 1, "{ran:?}");
            let said = ran.stdout + &ran.stderr;
            assert!(said.contains("[io]") && said.contains("/var/lib/gpu-bootstrap"), "{said}");
            assert!(said.contains("Read-only file system") && said.contains("what to do: "), "{said}");
        });
    });
    assert_eq!(machine.run(&["run"]).code, 0, "once it is writable again");
}

#[test]
fn a_file_that_cannot_be_read_is_never_taken_for_a_missing_one() {
    for (path, code, name) in [
        ("/etc/gpu-bootstrap/10-idle.toml", 2, "[config-read]"),
        ("/var/lib/gpu-bootstrap/receipt.json", 1, "[io]"),
    ] {
        let machine = idle();
        assert_eq!(machine.run(&["run"]).code, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Reading the first page of a process's memory is EIO.
                mounted(&machine, "/proc/self/mem", path, nix::mount::MsFlags::empty());
                let ran = machine.run(&["run"]);
                assert_eq!(ran.code, code, "{ran:?}");
                let said = ran.stdout + &ran.stderr;
                assert!(said.contains(name) && said.contains(path), "{said}");
                assert!(said.contains("Input/output error"), "{said}");
            });
        });
        assert_eq!(machine.run(&["run"]).code, 0, "once it can be read again");
    }
}

/// A run that waits for a metadata service which never answers; the earlier run had ended well.
fn waiting() -> (Machine, TcpListener, std::process::Child) {
    let machine = idle();
    assert_eq!(machine.run(&["run"]).code, 0);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = binary();
    command
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", silent.local_addr().unwrap()))
        .args(["run", "--quiet", "--imds-timeout", "60", "--root"])
        .arg(machine.root());
    // A caller's blocked signals are inherited.
    let mut mask = nix::sys::signal::SigSet::empty();
    mask.add(nix::sys::signal::SIGTERM);
    mask.thread_block().unwrap();
    let child = command.spawn().unwrap();
    mask.thread_unblock().unwrap();
    let (_connection, _) = silent.accept().unwrap();
    (machine, silent, child)
}

#[test]
fn a_blocked_signal_arrives_and_a_new_run_does_not_show_the_last_ones_end() {
    let (machine, _silent, mut child) = waiting();
    let shown = machine.run(&["status"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    for _ in 0..100 {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(143));
            assert!(shown.stdout.starts_with("running"), "{}", shown.stdout);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill().unwrap();
    panic!("SIGTERM did not arrive within 5 s");
}
