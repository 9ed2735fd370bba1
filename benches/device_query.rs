//! What `device-query` costs: time, memory and size of the release binary, on a root with a simulated driver that
//! answers at once, so that what is left is the agent's and the probe's own. Needs root and `cc`.
//!
//! ```sh
//! cargo bench --bench device_query            # 40 rounds; every case once in each, beside a program that does nothing
//! cargo bench --bench device_query -- 100
//! ```
//!
//! The last line is for programs. Figures gate nothing; a query that gives the wrong answer does.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking, like a test")]
#![allow(clippy::cast_precision_loss, reason = "figures of a few digits")]

#[path = "../tests/support/simulated_driver.rs"]
mod simulated_driver;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::libc;
use serde_json::Value;
use simulated_driver::Simulated;

const AGENT: &str = env!("CARGO_BIN_EXE_gpu-bootstrap");
/// The smallest number of rounds whose median is worth printing.
const FEWEST_ROUNDS: usize = 30;
const ROUNDS: usize = 40;
/// Each of them waits for the whole deadline.
const HANGING_ROUNDS: usize = 10;
const DEADLINE_MS: f64 = 500.0;

/// What one run of a program cost, with all the processes that it waited for.
struct Cost {
    /// From the start of the program until it was gone, in milliseconds.
    wall: f64,
    /// User and system time, in milliseconds.
    cpu: f64,
    /// The largest resident set of any of its processes, in megabytes of 10⁶ bytes.
    peak: f64,
}

/// One thing to measure.
struct Case {
    name: &'static str,
    command: Command,
    costs: Vec<Cost>,
}

impl Case {
    fn new(name: &'static str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { name, command, costs: Vec::new() }
    }

    fn run(&mut self, exit_code: i32) {
        let (code, cost) = cost_of(&mut self.command);
        assert_eq!(code, exit_code, "{:?}", self.command);
        self.costs.push(cost);
    }

    fn wall(&self) -> Spread {
        Spread::of(self.costs.iter().map(|c| c.wall))
    }

    fn print(&self, baseline: &Spread) {
        let wall = self.wall();
        let (cpu, peak) =
            (Spread::of(self.costs.iter().map(|c| c.cpu)), Spread::of(self.costs.iter().map(|c| c.peak)));
        println!(
            "{:<44} {:>7.2} ms ({:.2}–{:.2})  {:>7.2} ms  {:>5.1} MB  {:>6.1}",
            self.name,
            wall.median,
            wall.min,
            wall.max,
            cpu.median,
            peak.max,
            wall.median / baseline.median
        );
    }
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        Self { median: f64::midpoint(low, high), min: all[0], max: all[all.len() - 1] }
    }
}

/// Runs a program to its end; its exit code, and what it cost.
#[expect(clippy::zombie_processes, reason = "it is wait4 that waits here")]
#[expect(unsafe_code, reason = "wait4 alone tells what one child cost, and nix has no name for it")]
fn cost_of(command: &mut Command) -> (i32, Cost) {
    let began = Instant::now();
    let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    let mut status = 0;
    // SAFETY: rusage is a structure of integers, for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables of this function; the child is ours and nobody else waits for it.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let wall = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(waited, pid, "wait4: {}", std::io::Error::last_os_error());
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) };
    let ms = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
    let cpu = ms(usage.ru_utime) + ms(usage.ru_stime);
    // In units of 1024 bytes.
    (code, Cost { wall, cpu, peak: usage.ru_maxrss as f64 * 1024.0 / 1e6 })
}

/// A static program that does nothing: what starting any process costs here.
fn nothing() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (target.join("nothing.c"), target.join("nothing"));
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let status = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).status();
    assert!(status.unwrap().success(), "cc cannot build a static program");
    program
}

/// Before anything is measured: the answer is the right one.
fn require_answer(machine: &Simulated, args: &[&str], gpus: usize, computed: usize) {
    let output = machine.query(args).arg("--json").output().unwrap();
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!((&document["result"], output.status.code()), (&"PASS".into(), Some(0)), "{document:#}");
    assert_eq!(document["devices"].as_array().unwrap().len(), gpus);
    let compute = document["compute"].as_array().unwrap();
    let right = compute.iter().filter(|c| c["mismatches"]["value"] == 0);
    assert_eq!(right.count(), computed, "{document:#}");
}

/// By how many milliseconds each run with a hanging driver outlived its deadline.
fn overruns() -> Spread {
    let machine = Simulated::with(8, "H100", "hang=cuInit");
    let deadline = (DEADLINE_MS / 1e3).to_string();
    let mut hanging = Case::new("", machine.query(&["--deadline", &deadline]));
    for _ in 0..HANGING_ROUNDS {
        hanging.run(5);
    }
    Spread::of(hanging.costs.iter().map(|c| c.wall - DEADLINE_MS))
}

fn rounds() -> usize {
    // cargo adds --bench.
    let number = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let rounds = number.map_or(ROUNDS, |n| n.parse().unwrap_or_else(|e| panic!("{n}: {e}")));
    rounds.max(FEWEST_ROUNDS)
}

fn main() {
    let (eight, one) = (Simulated::with(8, "H100", ""), Simulated::with(1, "H100", ""));
    require_answer(&eight, &["--compute", "never"], 8, 0);
    require_answer(&eight, &[], 8, 8);
    require_answer(&one, &["--compute", "never"], 1, 0);
    let mut version = Command::new(AGENT);
    version.arg("--version");
    let mut cases = [
        Case::new("a static program that does nothing", Command::new(nothing())),
        Case::new("gpu-bootstrap --version", version),
        Case::new("device-query --compute never, 1 GPU", one.query(&["--compute", "never"])),
        Case::new("device-query --compute never, 8 GPUs", eight.query(&["--compute", "never"])),
        Case::new("device-query, 8 GPUs, all computing", eight.query(&[])),
    ];
    let rounds = rounds();
    // The first round fills the page cache and is not counted.
    for round in 0..=rounds {
        for case in &mut cases {
            case.run(0);
            if round == 0 {
                case.costs.clear();
            }
        }
    }
    let overruns = overruns();
    let size = fs::metadata(AGENT).unwrap().len() as f64 / 1e6;

    println!("{:<44} {:>10} (min–max)   {:>10}  {:>8}  {:>6}", "", "wall", "processor", "memory", "ratio");
    let baseline = cases[0].wall();
    for case in &cases {
        case.print(&baseline);
    }
    println!(
        "a driver that hangs, deadline {DEADLINE_MS} ms: over by {:.1} ms ({:.1}–{:.1}), {HANGING_ROUNDS} runs",
        overruns.median, overruns.min, overruns.max
    );
    println!(
        "binary: {size:.2} MB; goals: query < 10 ms, start < 2 ms, memory < 10 MB, size ≤ 6 MB, over by ≤ 100 ms"
    );
    let memory = Spread::of(cases[1..].iter().flat_map(|case| case.costs.iter().map(|c| c.peak))).max;
    println!(
        "device-query-ms={:.2} start-ms={:.2} memory-mb={memory:.1} size-mb={size:.2} hang-overrun-ms={:.1} n={rounds}",
        cases[3].wall().median,
        cases[1].wall().median,
        overruns.max
    );
}
