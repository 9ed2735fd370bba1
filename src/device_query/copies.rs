//! `--bandwidth`: copies between the host and each GPU, one GPU after the other so that none shares a link with
//! another's test, then copies between GPUs. Both after the smoke tests, and only on GPUs that passed theirs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::launch::{Ended, Launch};
use super::numa::{self, Node};
use super::record::{Bandwidth, Init, Link, Load, Pair, PeerCopy, Rate, Smoke};
use super::{CUDA, Examination, NVML, NotRun, Probe, Run, SmokeTest, all, first};
use crate::error::Result;

/// A context, 256 MiB of pinned memory, 7 GB of copies: some 2 s where persistence mode is on.
const COPIES_LIMIT: Duration = Duration::from_mins(1);
/// Eight contexts and 23 GB of copies: below 20 s where persistence mode is on. No further process is started
/// after this.
const PEERS_LIMIT: Duration = Duration::from_mins(1);

/// Copies between the host and one device.
#[derive(Clone, Debug)]
pub struct HostCopies {
    /// CUDA's ordinal.
    pub index: u32,
    /// The process.
    pub run: Run,
    /// The failures of its stages.
    pub stages: Vec<(&'static str, Smoke)>,
    /// How fast.
    pub rates: Option<Bandwidth>,
    /// The `PCIe` link while copies were under way.
    pub link: Option<Link>,
}

/// Copies between devices.
#[derive(Clone, Debug, Default)]
pub struct PeerCopies {
    /// The processes: one, and another after each pair that failed.
    pub runs: Vec<Run>,
    /// The pairs to measure, in order.
    pub wanted: Vec<Pair>,
    /// What each pair that was tried gave.
    pub measured: Vec<PeerCopy>,
    /// Where a process hung or crashed.
    pub broken: Option<Pair>,
    /// CUDA did not start in the process.
    pub start: Vec<(&'static str, Smoke)>,
}

impl PeerCopies {
    /// The pair's rate, where it was measured.
    pub fn rate(&self, from: usize, to: usize) -> Option<Rate> {
        let found = self.measured.iter().find(|c| (c.from as usize, c.to as usize) == (from, to));
        found.and_then(|c| c.rate)
    }
}

/// The CPUs near each device, by its index; only for devices whose node is known.
pub(super) fn nodes(probe: &Probe<'_>, examination: &Examination) -> Result<Vec<(u32, Node)>> {
    let mut nodes = Vec::new();
    for device in &examination.devices {
        let Some(pci) = &device.pci else { continue };
        if let Some(node) = numa::local(probe.host, pci)? {
            nodes.push((device.index, node));
        }
    }
    Ok(nodes)
}

/// Whether the device may be loaded with copies: its smoke test went through.
fn computes(test: &SmokeTest) -> bool {
    test.stages.iter().any(|(stage, s)| *stage == "smoke.multiprocessors" && s.error.is_none())
}

/// One process for each device, one after the other; none after one that hung, because every further one could wait
/// as long.
pub(super) async fn with_host(probe: &Probe<'_>, e: &Examination) -> Result<Vec<HostCopies>> {
    let (Ok(cuda), Ok(nvml)) = (probe.find(CUDA)?, probe.find(NVML)?) else { return Ok(Vec::new()) };
    let mut copies: Vec<HostCopies> = Vec::new();
    for test in &e.smoke {
        let run = if computes(test) && !copies.iter().any(|c| hung(&c.run)) {
            let arguments = vec!["bandwidth".into(), cuda.clone(), test.index.to_string(), nvml.clone()];
            probe.run_near(e.node(test.index), arguments, COPIES_LIMIT).await
        } else {
            Err(NotRun::NotAsked)
        };
        let stages = ["cuda.load", "cuda.init", "bandwidth.context", "bandwidth.copies"];
        copies.push(HostCopies {
            index: test.index,
            stages: stages.into_iter().flat_map(|s| all(&run, s).into_iter().map(move |r| (s, r))).collect(),
            rates: all(&run, "bandwidth.copies").into_iter().next(),
            link: all(&run, "bandwidth.link").into_iter().next(),
            run,
        });
    }
    Ok(copies)
}

fn hung(run: &Run) -> bool {
    run.as_ref().is_ok_and(|launch| matches!(launch.ended, Ended::Deadline(_) | Ended::Unkillable(_)))
}

/// One process for all pairs. A pair that fails ends it, because an error in one context spoils what follows;
/// another process then goes on behind that pair. None goes on after one that hung or crashed.
pub(super) async fn between_devices(probe: &Probe<'_>, e: &Examination) -> Result<PeerCopies> {
    let mut copies = PeerCopies { wanted: pairs(e), ..PeerCopies::default() };
    let Ok(cuda) = probe.find(CUDA)? else { return Ok(copies) };
    let began = Instant::now();
    let mut left = copies.wanted.as_slice();
    while !left.is_empty() && began.elapsed() < PEERS_LIMIT {
        let run = probe.run(vec!["peers".into(), cuda.clone(), list(left)], PEERS_LIMIT).await;
        let tried: Vec<PeerCopy> = all(&run, "peers.copy");
        let complete = run.as_ref().is_ok_and(Launch::complete);
        if !complete {
            copies.broken = all(&run, "peers.copy.begin").into_iter().nth(tried.len());
        }
        let (load, init): (Load, Init) = (first(&run, "cuda.load"), first(&run, "cuda.init"));
        for (stage, error) in [("cuda.load", load.error), ("cuda.init", init.error)] {
            copies.start.extend(error.map(|e| (stage, Smoke { error: Some(e), ..Smoke::default() })));
        }
        left = &left[tried.len().min(left.len())..];
        copies.runs.push(run);
        let progress = !tried.is_empty();
        copies.measured.extend(tried);
        if !complete || !progress {
            break;
        }
    }
    Ok(copies)
}

/// Every ordered pair between whose devices CUDA says that access is possible, and which both compute.
fn pairs(e: &Examination) -> Vec<Pair> {
    let free = |index: usize| e.smoke.iter().any(|t| t.index as usize == index && computes(t));
    let mut pairs = Vec::new();
    for (from, row) in e.peers.can_access.iter().enumerate() {
        for (to, _) in row.iter().enumerate().filter(|(_, can)| **can == Some(true)) {
            if free(from) && free(to) {
                pairs.extend(u32::try_from(from).ok().zip(u32::try_from(to).ok()));
            }
        }
    }
    pairs.into_iter().map(|(from, to)| Pair { from, to }).collect()
}

/// `0-1,0-2`
fn list(pairs: &[Pair]) -> String {
    let all: Vec<_> = pairs.iter().map(|p| format!("{}-{}", p.from, p.to)).collect();
    all.join(",")
}

/// The numbers, for a person: one line for each device, and a table of the pairs.
pub(super) fn text(e: &Examination) -> String {
    let mut out = String::new();
    for copies in &e.copies {
        let Some(rates) = &copies.rates else { continue };
        let node = e.node(copies.index).map_or_else(String::new, |n| format!(", from NUMA node {}", n.node));
        let link = copies.link.as_ref().and_then(|l| Some((l.generation?, l.width?)));
        let link = link.map_or_else(String::new, |(g, w)| format!(", PCIe {g} x{w}"));
        let _ = writeln!(
            out,
            "bandwidth of GPU {}: to it {}, from it {}, on it {}{link}{node}",
            copies.index,
            shown(rates.host_to_device),
            shown(rates.device_to_host),
            shown(rates.device_to_device),
        );
    }
    out += &table(&e.peer_copies, e.devices.len());
    out
}

/// Every pair's best rate, a row for each GPU that copies come from; empty where no pair was measured.
fn table(copies: &PeerCopies, devices: usize) -> String {
    if copies.measured.is_empty() {
        return String::new();
    }
    let mut out =
        String::from("bandwidth between GPUs in GB/s, the best from the row's GPU to the column's\n     ");
    for to in 0..devices {
        let _ = write!(out, " {to:>6}");
    }
    for from in 0..devices {
        let _ = write!(out, "\n{from:>5}");
        for to in 0..devices {
            let rate = copies.rate(from, to).map_or_else(|| "-".to_owned(), |r| format!("{:.1}", r.best));
            let _ = write!(out, " {rate:>6}");
        }
    }
    out.push('\n');
    out
}

fn shown(rate: Rate) -> String {
    format!("{:.1} GB/s (median {:.1})", rate.best, rate.median)
}
