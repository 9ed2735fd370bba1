//! Faults at chosen points (`src/host/fault.rs`), in a build of its own: `cargo test --features fault-points --test crash`.
//! A sample of the crash matrix, which `tests/e2e/crash-matrix` runs as a whole, and what the points themselves promise.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use machine::Machine;

const AGENT: &str = env!("CARGO_BIN_EXE_gpu-bootstrap");
const MATRIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/crash-matrix");
/// As many trials as can be begun in this time; each takes some three seconds.
const SECONDS: &str = "40";
/// What chooses them.
const SEED: &str = "CRASH_SEED";

/// A run that has nothing to do on a machine without GPU but to say so, told what to list and what shall happen.
fn run(machine: &Machine, list: &Path, wish: &str) -> Output {
    let mut command = machine.command(&["run"]);
    command.env("GPU_BOOTSTRAP_FAULT_LIST", list);
    if !wish.is_empty() {
        command.env("GPU_BOOTSTRAP_FAULT", wish);
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn runs_that_die_or_fail_anywhere_are_resumed_to_the_same_machine() {
    let seed = std::env::var(SEED).unwrap_or_else(|_| "1".into());
    let output = Command::new(MATRIX)
        .args(["--binary", AGENT, "--seconds", SECONDS, "--seed", &seed])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{SEED}={seed}:\n{said}");
    let last = said.lines().rfind(|l| l.starts_with("points=")).unwrap_or_else(|| panic!("{said}"));
    let converged = last.rsplit_once("converged=").unwrap().1;
    let (right, all) = converged.split_once('/').unwrap();
    // A busy machine manages few of them.
    assert!(right == all && all.parse::<u32>().unwrap() >= 1, "{said}");
}

/// What the command of the matrix's custom step creates, killed at each point of its way: whole, or not there.
#[test]
fn a_custom_step_that_dies_anywhere_is_whole_after_the_next_run() {
    let output = Command::new(MATRIX)
        .args(["--binary", AGENT, "--only", "src/host/beside.rs", "--kinds", "kill"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let last = said.lines().rfind(|l| l.starts_with("points=")).unwrap_or_else(|| panic!("{said}"));
    let (right, all) = last.rsplit_once("converged=").unwrap().1.split_once('/').unwrap();
    assert!(right == all && all.parse::<u32>().unwrap() >= 4, "{said}");
}

#[test]
fn every_point_is_listed_and_one_of_them_can_fail_or_be_the_last() {
    let machine = Machine::debian12();
    let list = machine.outside("/list");
    let left_alone = run(&machine, &list, "");
    assert_eq!(left_alone.status.code(), Some(3), "{}", said(&left_alone));
    let points = fs::read_to_string(&list).unwrap();
    let rename = points
        .lines()
        .find(|l| {
            l.starts_with("Rename\tsrc/host/files.rs:") && l.ends_with("\t/run/gpu-bootstrap/result.json")
        })
        .unwrap_or_else(|| panic!("{points}"));

    // The status could not be written: a warning, and no other end.
    fs::remove_file(machine.outside("/run/gpu-bootstrap/result.json")).unwrap();
    let failed = run(&machine, &list, &format!("ENOSPC\t{rename}"));
    assert_eq!(failed.status.code(), Some(3), "{}", said(&failed));
    assert!(said(&failed).contains("No space left on device"), "{}", said(&failed));
    assert!(!machine.outside("/run/gpu-bootstrap/result.json").exists());
    assert_eq!(fs::read_to_string(machine.outside("/list.fired")).unwrap(), rename);

    // What has met its fault once goes on.
    let again = run(&machine, &list, &format!("ENOSPC\t{rename}"));
    assert!(!said(&again).contains("No space left on device"), "{}", said(&again));

    fs::remove_file(machine.outside("/list.fired")).unwrap();
    let killed = run(&machine, &list, &format!("kill\t{rename}"));
    assert_eq!(killed.status.signal(), Some(9), "{}", said(&killed));
    let left = fs::read_dir(machine.outside("/run/gpu-bootstrap")).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().any(|name| name.starts_with(".gpu-bootstrap-")), "{left:?}");
}

#[test]
fn a_wish_that_cannot_be_understood_is_no_run() {
    let machine = Machine::debian12();
    let output = run(&machine, &machine.outside("/list"), "explode\tRename\tx:1\t1\t/x");
    assert!(!output.status.success() && said(&output).contains("cannot be understood"), "{}", said(&output));
}
