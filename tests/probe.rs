//! The embedded probe as a program: what it asks of the C library, and what the real driver libraries and other
//! glibc releases make of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/c_library.rs"]
mod c_library;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;
#[path = "support/stuck_file.rs"]
mod stuck_file;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use archive::{run, unpacked};
use flate2::read::ZlibDecoder;
use serde_json::Value;
use simulated_driver::Simulated;

/// The probe as the agent carries it: found in the binary under test, so that what is checked is what is shipped.
fn embedded() -> Vec<u8> {
    let agent = fs::read(env!("CARGO_BIN_EXE_gpu-bootstrap")).unwrap();
    // How a stream of zlib's best compression begins.
    for (start, _) in agent.windows(2).enumerate().filter(|(_, w)| *w == b"\x78\xda") {
        let mut elf = Vec::new();
        // Most places only look like a beginning.
        if ZlibDecoder::new(&agent[start..]).read_to_end(&mut elf).is_ok()
            && elf.starts_with(b"\x7fELF")
            // A stage that only the probe tells of: the simulated driver lies in the binary in the same way.
            && elf.windows(21).any(|w| w == b"smoke.multiprocessors")
        {
            return elf;
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

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn evidence<'a>(document: &'a Value, check: &str) -> &'a str {
    let all = document["checks"].as_array().unwrap();
    all.iter().find(|c| c["check"] == check).unwrap()["evidence"].as_str().unwrap()
}

/// NVIDIA's device nodes of the machine whose root is `root`.
fn device_nodes(root: &Path) -> BTreeSet<PathBuf> {
    let names = fs::read_dir(root.join("dev")).unwrap().map(|e| e.unwrap());
    names.filter(|e| e.file_name().to_string_lossy().starts_with("nvidia")).map(|e| e.path()).collect()
}

/// Debian's packages of the real driver libraries, unpacked.
struct DriverPackages {
    _work: tempfile::TempDir,
    /// The directory of the libraries.
    libraries: PathBuf,
    /// The newest C library that one of them asks for.
    needs: String,
}

impl DriverPackages {
    /// Of a release: 470 in bullseye, 535 in bookworm.
    fn of(release: &str) -> Self {
        let packages = ["libcuda1", "libnvidia-ml1"];
        let (work, debs) = unpacked(release, "non-free", &packages);
        let files = fs::read_dir(work.path()).unwrap().map(|e| e.unwrap().path());
        let files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "deb")).collect();
        assert_eq!(files.len(), packages.len(), "{files:?}");
        let needs = files.iter().map(|deb| needed_c_library(deb));
        let needs = needs.max_by_key(|version| numbers(version)).unwrap();
        Self { _work: work, libraries: debs.join("usr/lib/x86_64-linux-gnu"), needs }
    }

    /// A machine that has them, and whose module is not loaded.
    fn machine(&self) -> Simulated {
        let machine = Simulated::bare();
        let libraries = machine.at("/usr/lib/x86_64-linux-gnu");
        run(Command::new("cp").arg("-a").arg(self.libraries.join(".")).arg(&libraries));
        // Debian's alternatives make these links at installation.
        for soname in ["libcuda.so.1", "libnvidia-ml.so.1"] {
            let target = Path::new("nvidia/current").join(soname);
            assert!(libraries.join(&target).exists(), "{soname} is not in the package");
            std::os::unix::fs::symlink(target, libraries.join(soname)).unwrap();
        }
        machine
    }
}

/// The version in a package's `Depends: libc6 (>= 2.14)`.
fn needed_c_library(deb: &Path) -> String {
    let depends = run(Command::new("dpkg-deb").arg("-f").arg(deb).arg("Depends"));
    let (_, rest) = depends.split_once("libc6 (>= ").expect("a library depends on a C library");
    rest.split([')', '-']).next().unwrap().to_owned()
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|n| n.parse().unwrap_or_else(|e| panic!("{version}: {e}"))).collect()
}

/// Without a GPU the real driver libraries say so with their own codes. `cuda` is the version that libcuda is of.
fn the_real_driver_answers_100_and_9(machine: &Simulated, cuda_version: u32) {
    let out = machine.query(&["--json"]).output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let document = document(&out);
    let (cuda, nvml) = (evidence(&document, "cuda"), evidence(&document, "nvml"));
    assert!(cuda.starts_with("cuInit returned 100 (CUDA_ERROR_NO_DEVICE)"), "{cuda}");
    assert!(nvml.starts_with("nvmlInit_v2 returned 9: Driver Not Loaded"), "{nvml}");
    assert_eq!(document["driver"]["cuda_version"]["value"], cuda_version);
}

#[test]
fn no_driver_library_is_loaded_and_no_device_node_made_without_need() {
    assert!(!Path::new("/sys/module/nvidia").exists(), "this test is for a machine without an NVIDIA driver");
    let machine = DriverPackages::of("bookworm").machine();
    let nodes = || (device_nodes(Path::new("/")), device_nodes(&machine.at("/")));
    let before = nodes();
    let out = machine.query(&["--json"]).output().unwrap();
    assert_eq!(document(&out)["processes"], Value::Array(Vec::new()));
    assert_eq!(nodes(), before, "device-query, no module loaded");

    // Plain `detect`, as root, on a machine with these libraries and a loaded module.
    let machine = machine
        .loaded("535.261.03")
        .file("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n")
        .file("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
        .file("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n")
        .file("/var/lib/dpkg/arch", "amd64\n");
    fs::copy(env!("CARGO_BIN_EXE_gpu-bootstrap"), machine.at("/gpu-bootstrap")).unwrap();
    let nodes = || (device_nodes(Path::new("/")), device_nodes(&machine.at("/")));
    let before = nodes();
    let out =
        Command::new("chroot").arg(machine.at("/")).args(["/gpu-bootstrap", "detect", "--no-imds"]).output();
    let out = out.unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("535.261.03"), "{out:?}");
    assert_eq!(nodes(), before, "detect, module loaded");

    // The measure works: who does load libcuda as root makes a node.
    machine.query(&["--json"]).output().unwrap();
    let made: Vec<_> = nodes().1.difference(&before.1).cloned().collect();
    assert_eq!(made, [machine.at("/dev/nvidiactl")]);
}

/// A release whose C library the probe must run on, and the driver packages of a release that may be installed there.
struct Release {
    name: &'static str,
    glibc: &'static str,
    driver_of: &'static str,
    /// As libcuda counts.
    cuda_version: u32,
}

/// glibc 2.31 still keeps dlopen in a library of its own; 2.36 has it in libc; 2.41 refuses executable stacks.
/// Debian's driver 535 asks for 2.34, so Debian 11 gets its own 470.
const RELEASES: [Release; 3] = [
    Release { name: "bullseye", glibc: "2.31", driver_of: "bullseye", cuda_version: 11040 },
    Release { name: "bookworm", glibc: "2.36", driver_of: "bookworm", cuda_version: 12020 },
    Release { name: "trixie", glibc: "2.41", driver_of: "bookworm", cuda_version: 12020 },
];

/// Those of Ubuntu 16.04 and 18.04. The archives that serve them are not every machine's, so nothing here asks them.
const NOT_TRIED: &str = "2.23, 2.27";

#[test]
fn the_probe_runs_with_the_c_libraries_of_other_releases() {
    let mut ran = Vec::new();
    for Release { name, glibc, driver_of, cuda_version } in RELEASES {
        let machine = Simulated::with(8, "H100", "");
        assert_eq!(c_library::install(name, &machine), glibc, "{name}");
        let out = machine.query(&["--json", "--expect-gpus", "8"]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{name}: {out:?}");

        let driver = DriverPackages::of(driver_of);
        assert!(numbers(&driver.needs) <= numbers(glibc), "{name}: the driver needs glibc {}", driver.needs);
        let machine = driver.machine().loaded("535.261.03");
        c_library::install(name, &machine);
        the_real_driver_answers_100_and_9(&machine, cuda_version);
        ran.push(glibc);
    }
    println!("the probe ran on glibc {}; not to be had here: {NOT_TRIED}", ran.join(", "));
}

/// Runs `device-query` over a machine in a pid and a mount namespace of its own, where no file in memory may be
/// executed and nothing in the `noexec` directories; afterwards, still inside, every directory that the probe may
/// have lain in must be empty.
fn query_where_execution_is_denied(noexec: &[&str]) -> Output {
    const DIRECTORIES: [&str; 5] = ["/run", "/var/lib", "/tmp", "/dev/shm", "/root"];
    let machine = Simulated::with(1, "T4", "");
    for dir in DIRECTORIES {
        fs::create_dir_all(machine.at(dir)).unwrap();
    }
    let mounts =
        noexec.iter().map(|dir| format!("mount -t tmpfs -o noexec none {} &&\n", machine.at(dir).display()));
    let left = DIRECTORIES.map(|dir| machine.at(dir).display().to_string()).join(" ");
    let script = format!(
        "echo 2 >/proc/sys/vm/memfd_noexec &&\n{}\"$@\"\nstatus=$?\n\
         left=$(find {left} -mindepth 1)\n[ -z \"$left\" ] || {{ echo \"left behind: $left\" >&2; exit 99; }}\n\
         exit $status",
        mounts.collect::<String>()
    );
    let query = machine.query(&["--json"]);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", &script, "sh"]);
    command.arg(query.get_program()).args(query.get_args());
    command.output().unwrap()
}

#[test]
fn where_files_in_memory_may_not_be_executed_a_directory_serves() {
    for (noexec, serves) in [
        (&[][..], "/run"),
        (&["/run"], "/var/lib"),
        (&["/tmp", "/run", "/dev/shm"], "/var/lib"),
        (&["/tmp", "/run", "/dev/shm", "/var/lib"], "/root"),
    ] {
        let out = query_where_execution_is_denied(noexec);
        assert_eq!(out.status.code(), Some(0), "{noexec:?}: {out:?}");
        let from = document(&out)["processes"][0]["launched_from"].as_str().unwrap().to_owned();
        assert!(from.starts_with(&format!("{serves}/.gpu-bootstrap-probe-")), "{noexec:?}: {from}");
    }
}

#[test]
fn where_nothing_may_be_executed_the_reason_is_told() {
    let out = query_where_execution_is_denied(&["/run", "/var/lib", "/tmp", "/dev/shm", "/root"]);
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let document = document(&out);
    let cuda = evidence(&document, "cuda");
    assert!(cuda.contains("cannot be started from memory nor from any directory"), "{cuda}");
    assert!(cuda.contains("Permission denied"), "{cuda}");
}

/// The driver's libraries wait inside the kernel for something that never comes, as they do for a dead device.
#[test]
fn a_process_that_cannot_be_killed_is_left_behind() {
    let machine = Simulated::with(1, "T4", "");
    let stuck = stuck_file::StuckFile::over(machine.at("/etc/simulated-driver"));
    let began = Instant::now();
    let out = machine.query(&["--json", "--deadline", "0.5"]).output().unwrap();
    let took = began.elapsed();
    // It was no ordinary hang: SIGKILL was sent, and they still wait in the kernel.
    assert_eq!(stuck_file::processes_in(&machine.at("/")).iter().find(|&&state| state != 'D'), None);
    assert!(stuck_file::processes_in(&machine.at("/")).len() >= 2, "NVML's and CUDA's");
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let document = document(&out);
    for check in ["cuda", "nvml"] {
        let said = evidence(&document, check);
        assert!(said.contains("did not answer within 500 ms and cannot be killed"), "{said}");
    }
    // NVML and CUDA at once, then cuDNN: the deadline and the 2 s that a killed process gets, each twice.
    assert!(took < Duration::from_secs_f64(2.0 * (0.5 + 2.0) + 1.0), "{took:?}");
    drop(stuck);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !stuck_file::processes_in(&machine.at("/")).is_empty() {
        assert!(Instant::now() < deadline, "they are gone once the kernel lets go of them");
        std::thread::sleep(Duration::from_millis(20));
    }
}
