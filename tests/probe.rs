//! The embedded probe as a program: what it asks of the C library, and what the real driver libraries and other
//! glibc releases make of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use archive::{run, unpacked};
use serde_json::Value;
use simulated_driver::Simulated;

/// The probe as the agent carries it: cut out of the binary under test, so that what is checked is what is shipped.
fn embedded() -> Vec<u8> {
    let agent = fs::read(env!("CARGO_BIN_EXE_gpu-bootstrap")).unwrap();
    let starts = agent.windows(4).enumerate().skip(1).filter(|(_, w)| *w == b"\x7fELF").map(|(i, _)| i);
    let number = |at: usize, n: usize| {
        let bytes = agent.get(at..at + n)?;
        usize::try_from(bytes.iter().rev().fold(0u64, |all, b| all << 8 | u64::from(*b))).ok()
    };
    for start in starts {
        // The section headers stand at the end of a linked file: offset 40, size of one 58, how many 60.
        let end = (|| Some(number(start + 40, 8)? + number(start + 58, 2)? * number(start + 60, 2)?))();
        if let Some(elf) = end.and_then(|size| agent.get(start..start.checked_add(size)?))
            && elf.windows(10).any(|w| w == b"libdl.so.2")
            && elf.windows(9).any(|w| w == b"where_ran")
        {
            return elf.to_vec();
        }
    }
    panic!("the agent carries no probe");
}

#[test]
fn the_probe_is_small_and_asks_for_no_symbol_newer_than_glibc_2_17() {
    let probe = embedded();
    assert!(probe.len() < 100_000, "{} bytes", probe.len());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &probe).unwrap();
    let needs = run(Command::new("readelf").args(["-W", "--version-info"]).arg(file.path()));
    let versions: BTreeSet<&str> =
        needs.split_ascii_whitespace().filter(|word| word.starts_with("GLIBC_")).collect();
    assert_eq!(versions, BTreeSet::from(["GLIBC_2.17", "GLIBC_2.2.5"]));
    let dynamic = run(Command::new("readelf").args(["-W", "--dynamic"]).arg(file.path()));
    let libraries: BTreeSet<&str> = dynamic
        .lines()
        .filter(|l| l.contains("(NEEDED)"))
        .filter_map(|l| l.split(['[', ']']).nth(1))
        .collect();
    assert_eq!(libraries, BTreeSet::from(["libc.so.6", "libdl.so.2", "libpthread.so.0"]));
}

fn device_nodes() -> BTreeSet<PathBuf> {
    let names = fs::read_dir("/dev").unwrap().map(|e| e.unwrap().path());
    names.filter(|p| p.to_string_lossy().starts_with("/dev/nvidia")).collect()
}

/// A machine without a GPU: its real driver libraries say so with their own codes, through the probe.
#[test]
fn the_real_driver_libraries_answer_100_and_9_without_a_gpu() {
    let before = device_nodes();
    assert!(!Path::new("/sys/module/nvidia").exists(), "this test is for a machine without an NVIDIA driver");
    let (_work, debs) = unpacked("bookworm", "non-free", &["libcuda1", "libnvidia-ml1"]);
    let machine = Simulated::bare();
    let libraries = machine.at("/usr/lib/x86_64-linux-gnu");
    run(Command::new("cp").arg("-a").arg(debs.join("usr/lib/x86_64-linux-gnu/.")).arg(&libraries));
    // Debian's alternatives make these links at installation.
    for soname in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        let target = Path::new("nvidia/current").join(soname);
        assert!(libraries.join(&target).exists(), "{soname} is not in the package");
        std::os::unix::fs::symlink(target, libraries.join(soname)).unwrap();
    }
    // Nothing is loaded as long as no module is.
    let out = machine.query(&["--json"]).output().unwrap();
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document["processes"], Value::Array(Vec::new()));

    let machine = machine.loaded("535.261.03");
    let out = machine.query(&["--json"]).output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    let evidence = |name: &str| {
        let all = document["checks"].as_array().unwrap();
        all.iter().find(|c| c["check"] == name).unwrap()["evidence"].as_str().unwrap().to_owned()
    };
    assert!(
        evidence("cuda").starts_with("cuInit returned 100 (CUDA_ERROR_NO_DEVICE)"),
        "{}",
        evidence("cuda")
    );
    assert!(
        evidence("nvml").starts_with("nvmlInit_v2 returned 9: Driver Not Loaded"),
        "{}",
        evidence("nvml")
    );
    assert_eq!(document["driver"]["cuda_version"]["value"], 12020);

    // `detect` looks and loads nothing; and what the libraries did stayed in their own root.
    run(Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap")).args(["detect", "--no-imds"]));
    assert_eq!(device_nodes(), before);
}

#[test]
fn where_files_in_memory_may_not_be_executed_a_directory_serves() {
    let machine = Simulated::with(1, "T4", "");
    // A pid namespace has its own memfd_noexec; 2 forbids to execute any file in memory.
    let query = machine.query(&["--json"]);
    let script = "echo 2 > /proc/sys/vm/memfd_noexec && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"]);
    command.arg(query.get_program()).args(query.get_args());
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    let from = document["processes"][0]["launched_from"].as_str().unwrap();
    assert!(from.starts_with("/run/.gpu-bootstrap-probe-"), "{from}");
    assert_eq!(fs::read_dir(machine.at("/run")).unwrap().count(), 0, "the file is removed again");
}

/// Debian 11 has glibc 2.31, which still keeps dlopen in a library of its own.
#[test]
fn the_probe_runs_with_the_c_library_of_an_older_release() {
    let (_work, debs) = unpacked("bullseye", "main", &["libc6", "libgcc-s1"]);
    let machine = Simulated::with(8, "H100", "");
    let old = debs.join("lib/x86_64-linux-gnu");
    assert!(old.join("libc-2.31.so").exists(), "bullseye has another glibc than 2.31");
    for entry in fs::read_dir(&old).unwrap() {
        let from = entry.unwrap().path();
        let to = machine.at("/usr/lib/x86_64-linux-gnu").join(from.file_name().unwrap());
        let _ = fs::remove_file(&to); // there or not
        run(Command::new("cp").arg("-a").arg(&from).arg(&to));
    }
    fs::copy(old.join("ld-2.31.so"), machine.at("/lib64/ld-linux-x86-64.so.2")).unwrap();
    let out = machine.query(&["--json", "--expect-gpus", "8"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    println!("the probe ran with glibc 2.31; this machine's own serves in the other tests");
}
