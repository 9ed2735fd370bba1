//! What `--bandwidth` is judged by. How fast copies are never fails a machine: no limit here has been calibrated on
//! a GPU yet. That a copy fails, hangs, or arrives wrong does.

use super::checks::{Check, Place, Verdict, broken_process, explained_cuda, refused};
use super::copies::HostCopies;
use super::record::{Pair, PeerCopy};
use super::{Examination, NotRun};

/// Of what the link could carry; DMA engines reach 85 to 95 % where nothing is wrong.
const SLOW: f64 = 0.7;

/// GB/s (10⁹ bytes) of one `PCIe` lane by generation, after line encoding.
const LANE: [f64; 6] = [0.25, 0.5, 0.985, 1.969, 3.938, 7.563];

/// One row for each device and one for all pairs, then the links.
pub(super) fn checks(e: &Examination) -> Vec<Check> {
    if !e.options.bandwidth {
        return Vec::new();
    }
    let mut all: Vec<Check> =
        e.copies.iter().map(|copies| host_copies(copies).of(Place::Cuda(copies.index))).collect();
    all.extend(peer_copies(e));
    if !e.copies.is_empty() {
        all.push(links(e));
        all.push(replays(e));
    }
    all
}

fn host_copies(copies: &HostCopies) -> Check {
    let name = format!("copies-{}", copies.index);
    if let Err(NotRun::NotAsked) = copies.run {
        let why = format!(
            "nothing was copied: compute-{} did not pass, or copies on a GPU before it hung",
            copies.index
        );
        return Check::unknown(&name, why, "Ask again when every GPU is free and computes.");
    }
    let failed = copies.stages.iter().find_map(|(stage, s)| Some((stage, s.error.as_ref()?)));
    if let Some((stage, failure)) = failed {
        let mut check = refused(&name, failure, explained_cuda(failure));
        check.evidence = format!("{stage}: {}", check.evidence);
        return check;
    }
    if let Some(broken) = broken_process(&name, &copies.run) {
        return broken;
    }
    match &copies.rates {
        Some(rates) => {
            let [to, from, on] = [rates.host_to_device, rates.device_to_host, rates.device_to_device];
            let evidence =
                format!("{:.1} GB/s to it, {:.1} from it, {:.1} on it", to.best, from.best, on.best);
            Check::pass(&name, evidence)
        }
        None => Check::unknown(&name, "no result came back", "See the process's end in the JSON document."),
    }
}

fn peer_copies(e: &Examination) -> Option<Check> {
    const NAME: &str = "peer-copies";
    let copies = &e.peer_copies;
    if copies.wanted.is_empty() {
        return None;
    }
    let way = |from: u32, to: u32| format!("{from}→{to}");
    let bad: Vec<_> = copies.measured.iter().filter(|c| is_bad(c)).collect();
    if let Some(first) = bad.first() {
        let evidence: Vec<_> = bad
            .iter()
            .map(|c| match (&c.error, c.wrong) {
                (Some(error), _) => format!("{}: {}", way(c.from, c.to), super::checks::call(error)),
                (None, wrong) => {
                    format!("{}: {} words arrived wrong", way(c.from, c.to), wrong.unwrap_or_default())
                }
            })
            .collect();
        let advice = match first.error.as_ref() {
            Some(error) => super::checks::advice(explained_cuda(error)),
            None => {
                "Turn the IOMMU or PCIe access control off for peer copies, or stop and start the instance; set NCCL_P2P_DISABLE=1 until then."
            }
        };
        return Some(Check::fail(NAME, evidence.join("; "), advice));
    }
    if let Some((_, failure)) = copies.start.iter().find_map(|(stage, s)| Some((stage, s.error.as_ref()?))) {
        return Some(refused(NAME, failure, explained_cuda(failure)));
    }
    if let Some(mut broken) = copies.runs.iter().find_map(|run| broken_process(NAME, run)) {
        if let Some(Pair { from, to }) = copies.broken {
            broken.evidence = format!("{}: {}", way(from, to), broken.evidence);
        }
        return Some(broken);
    }
    let (measured, wanted) = (copies.measured.len(), copies.wanted.len());
    Some(if measured == wanted {
        Check::pass(NAME, format!("{wanted} pairs copied, and what arrived is right"))
    } else {
        Check::unknown(
            NAME,
            format!("{measured} of {wanted} pairs were measured in time"),
            "Enable nvidia-persistenced and ask again.",
        )
    })
}

fn is_bad(copy: &PeerCopy) -> bool {
    copy.error.is_some() || copy.wrong != Some(0)
}

/// A finding on one device's link; `Err` where it cannot be known.
type Finding = Result<Option<String>, String>;

fn links(e: &Examination) -> Check {
    let advice = "Look for other load on the link, and at the check pcie-width; where it stays slow, stop and start the instance.";
    over_all("pcie-bandwidth", e, advice, |copies| {
        let rates = copies.rates.as_ref().ok_or("no copies")?;
        let link = copies.link.as_ref().and_then(|l| Some((l.generation?, l.width?)));
        let (generation, width) = link.ok_or("NVML does not say how fast the link is")?;
        let lane = LANE.get((generation as usize).wrapping_sub(1)).ok_or("a PCIe generation unknown here")?;
        let most = lane * f64::from(width);
        let slow: Vec<_> = [("to", rates.host_to_device), ("from", rates.device_to_host)]
            .iter()
            .filter(|(_, rate)| rate.best < SLOW * most)
            .map(|(way, rate)| format!("{:.1} GB/s {way} it", rate.best))
            .collect();
        let found = format!("{}, of {most:.1} that PCIe {generation} x{width} carries", slow.join(", "));
        Ok((!slow.is_empty()).then_some(found))
    })
}

/// Packets that had to be sent again during this query.
fn replays(e: &Examination) -> Check {
    let advice = "Watch the GPU; where the number grows with every test, stop and start the instance.";
    over_all("pcie-replays", e, advice, |copies| {
        let unknown = "NVML does not count them";
        let after = copies.link.as_ref().and_then(|l| l.replays).ok_or(unknown)?;
        let device = e.devices.iter().find(|d| d.index == copies.index && d.uuid.is_some());
        let gpu = device.and_then(|d| e.gpus.iter().find(|g| g.uuid == d.uuid));
        let before = gpu.and_then(|g| g.number("pcie_replays")).ok_or(unknown)?;
        Ok((after > before).then(|| format!("{} packets were sent again", after - before)))
    })
}

/// One row over all devices: warns where one has a finding, and cannot tell where no link could be looked at.
fn over_all(name: &str, e: &Examination, advice: &str, ask: impl Fn(&HostCopies) -> Finding) -> Check {
    let answers: Vec<_> = e.copies.iter().map(|c| (c.index, ask(c))).collect();
    let found: Vec<_> = answers
        .iter()
        .filter_map(|(i, a)| Some(format!("GPU {i}: {}", a.as_ref().ok()?.as_ref()?)))
        .collect();
    if !found.is_empty() {
        return Check::new(name, Verdict::Warn, found.join("; "), advice);
    }
    let unknown: Vec<_> =
        answers.iter().filter_map(|(i, a)| Some(format!("GPU {i}: {}", a.as_ref().err()?))).collect();
    if unknown.is_empty() {
        Check::pass(name, format!("{} GPUs without a finding", answers.len()))
    } else {
        Check::unknown(name, unknown.join("; "), "See the checks copies and nvml.")
    }
}
