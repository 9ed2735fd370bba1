//! Checks that ask every GPU the same question, through NVML.

use super::{Check, Place, Verdict};
use crate::device_query::Examination;
use crate::device_query::record::NvmlGpu;

/// A finding on one GPU.
type Finding = Option<(Verdict, String)>;

/// Checks that ask every GPU one question: name, question, advice. `Err` where NVML does not answer it.
type PerGpu = (&'static str, fn(&NvmlGpu) -> Result<Finding, ()>, &'static str);

const PER_GPU: &[PerGpu] = &[
    (
        "ecc",
        ecc,
        "Reset the GPU or reboot; if errors come again, stop and start the instance to move it to other hardware.",
    ),
    (
        "row-remap",
        row_remap,
        "Reset the GPU or reboot so that the row is replaced; where replacing failed, stop and start the instance.",
    ),
    (
        "fabric",
        fabric,
        "Start nvidia-fabricmanager of exactly the driver's version, and wait until it has finished.",
    ),
    ("pcie-width", pcie_width, "Stop and start the instance where copies are slower than they should be."),
    (
        "throttle",
        throttle,
        "Look at temperature and power (nvidia-smi -q -d PERFORMANCE); if it stays, stop and start the instance.",
    ),
    ("persistence", persistence, "Enable nvidia-persistenced, so that the GPUs stay initialised."),
    ("recovery-action", recovery, "Do what the driver asks for: reset the GPU or reboot."),
    (
        "retired-pages",
        retired_pages,
        "Reboot, so that the pages are retired; where no more fit, stop and start the instance.",
    ),
    (
        "compute-mode",
        compute_mode,
        "Set the compute mode to default (nvidia-smi -c 0), unless somebody wants it so.",
    ),
    ("mig-mode", mig_mode, "Reset the GPU or reboot, so that the mode takes effect."),
];

pub(super) fn per_gpu(e: &Examination) -> Vec<Check> {
    let alive: Vec<_> = e.gpus.iter().filter(|g| g.error.is_none()).collect();
    if alive.is_empty() {
        return Vec::new();
    }
    PER_GPU.iter().map(|(name, question, advice)| ask_all(name, &alive, *question, advice)).collect()
}

fn ask_all(
    name: &str,
    gpus: &[&NvmlGpu],
    question: impl Fn(&NvmlGpu) -> Result<Finding, ()>,
    advice: &str,
) -> Check {
    let answers: Vec<_> = gpus.iter().map(|g| (g.index, question(g))).collect();
    for wanted in [Verdict::Fail, Verdict::Warn] {
        let found: Vec<_> = answers
            .iter()
            .filter_map(|(i, a)| a.as_ref().ok()?.as_ref().filter(|f| f.0 == wanted).map(|f| (i, &f.1)))
            .collect();
        if !found.is_empty() {
            let words: Vec<_> = found.iter().map(|(i, words)| format!("GPU {i}: {words}")).collect();
            let parts = found.iter().map(|(i, words)| (Place::Nvml(**i), (*words).clone())).collect();
            return Check::new(name, wanted, words.join("; "), advice).with_parts(parts);
        }
    }
    let silent = answers.iter().filter(|(_, a)| a.is_err()).count();
    if silent == answers.len() {
        return Check::unknown(
            name,
            "this driver or GPU does not say",
            "Nothing to do where the GPU has no such feature.",
        );
    }
    Check::pass(name, format!("{} GPUs without a finding", answers.len() - silent))
}

fn ecc(gpu: &NvmlGpu) -> Result<Finding, ()> {
    let volatile = gpu.number("ecc_uncorrected_volatile").ok_or(())?;
    if volatile > 0 {
        return Ok(Some((
            Verdict::Fail,
            format!("{volatile} uncorrected memory errors since the driver was loaded"),
        )));
    }
    let aggregate = gpu.number("ecc_uncorrected_aggregate").unwrap_or(0);
    if aggregate > 0 {
        return Ok(Some((Verdict::Warn, format!("{aggregate} uncorrected memory errors in its life"))));
    }
    if gpu.number("ecc_mode") != gpu.number("ecc_mode_pending") {
        return Ok(Some((Verdict::Warn, "its ECC mode changes with the next reboot".into())));
    }
    Ok(None)
}

fn row_remap(gpu: &NvmlGpu) -> Result<Finding, ()> {
    let rows = gpu.remapped_rows.ok_or(())?;
    Ok(if rows.failed > 0 {
        Some((Verdict::Fail, "a memory row could not be replaced".into()))
    } else if rows.pending > 0 {
        Some((Verdict::Warn, "a memory row waits for a reset to be replaced".into()))
    } else {
        None
    })
}

/// `NVLink`s of GPUs on boards that wire all of them: a part of the name, and how many. NVIDIA's data sheets.
const NVLINKS: &[(&str, u32)] =
    &[("V100-SXM", 6), ("A100-SXM", 12), ("H100 80GB HBM3", 18), ("H200", 18), ("B200", 18), ("B300", 18)];

/// How many links a GPU of this name must have; none where that is not known, as with a card for a slot.
fn expected_links(name: &str) -> Option<u32> {
    let on_card = name.contains("NVL") || name.contains("PCIe");
    NVLINKS.iter().find(|(part, _)| !on_card && name.contains(part)).map(|row| row.1)
}

/// A GPU that is alone has nobody to link to, whatever its model: the links of a shared board are not its own.
pub(super) fn nvlink(e: &Examination) -> Option<Check> {
    let alive: Vec<_> = e.gpus.iter().filter(|g| g.error.is_none()).collect();
    if alive.is_empty() {
        return None;
    }
    let alone = e.facts.gpus.len() < 2;
    let question = |gpu: &NvmlGpu| {
        let links = gpu.nvlink.filter(|l| l.present > 0 && !(alone && l.active == 0)).ok_or(())?;
        let wanted = gpu.name.as_deref().and_then(expected_links).filter(|_| !alone);
        let wanted = wanted.map_or(links.present, |w| w.max(links.present));
        Ok((links.active < wanted)
            .then(|| (Verdict::Fail, format!("{} of {wanted} NVLinks are up", links.active))))
    };
    Some(ask_all(
        "nvlink",
        &alive,
        question,
        "Restart nvidia-fabricmanager where there is one, and reset the GPUs; if a link stays down, stop and start the instance.",
    ))
}

fn fabric(gpu: &NvmlGpu) -> Result<Finding, ()> {
    const NOT_SUPPORTED: u32 = 0;
    const COMPLETED: u32 = 3;
    let fabric = gpu.fabric.filter(|f| f.state != NOT_SUPPORTED).ok_or(())?;
    Ok(match (fabric.state, fabric.status) {
        (COMPLETED, 0) => None,
        (COMPLETED, status) => Some((Verdict::Fail, format!("the fabric refused it with status {status}"))),
        (1, _) => Some((Verdict::Fail, "its registration with the fabric has not started".into())),
        (state, _) => Some((Verdict::Fail, format!("its registration with the fabric is in state {state}"))),
    })
}

fn pcie_width(gpu: &NvmlGpu) -> Result<Finding, ()> {
    let (now, most) = (gpu.number("pcie_width").ok_or(())?, gpu.number("pcie_width_max").ok_or(())?);
    Ok((now < most).then(|| (Verdict::Warn, format!("PCIe x{now}, and the link could do x{most}"))))
}

fn throttle(gpu: &NvmlGpu) -> Result<Finding, ()> {
    const NAMES: [(u64, Verdict, &str); 4] = [
        (0x40, Verdict::Fail, "it is too hot: the hardware slows it down"),
        (0x80, Verdict::Fail, "its power supply slows it down"),
        (0x20, Verdict::Warn, "it is hot: the driver slows it down"),
        (0x08, Verdict::Warn, "the hardware slows it down"),
    ];
    let mask = gpu.number("clock_event_reasons").ok_or(())?;
    Ok(NAMES
        .iter()
        .find(|(bit, ..)| mask & bit != 0)
        .map(|(_, verdict, words)| (*verdict, (*words).to_owned())))
}

fn persistence(gpu: &NvmlGpu) -> Result<Finding, ()> {
    let mode = gpu.number("persistence_mode").ok_or(())?;
    Ok((mode == 0)
        .then(|| (Verdict::Warn, "persistence mode is off: each first use waits for the GPU".into())))
}

fn recovery(gpu: &NvmlGpu) -> Result<Finding, ()> {
    const ACTIONS: [&str; 5] =
        ["none", "a reset of the GPU", "a reboot", "draining its peers", "draining, then a reset"];
    let action = gpu.number("recovery_action").ok_or(())?;
    let words = usize::try_from(action).ok().and_then(|a| ACTIONS.get(a)).unwrap_or(&"an unknown action");
    Ok((action != 0).then(|| (Verdict::Fail, format!("the driver asks for {words}"))))
}

/// The board has room for the addresses of 64 pages.
fn retired_pages(gpu: &NvmlGpu) -> Result<Finding, ()> {
    const ROOM: u64 = 64;
    let retired = |kind: &str| gpu.number(&format!("retired_pages_{kind}_bit"));
    let (pending, single, double) =
        (gpu.number("retired_pages_pending"), retired("single"), retired("double"));
    if pending.is_none() && single.is_none() && double.is_none() {
        return Err(());
    }
    let (single, double) = (single.unwrap_or(0), double.unwrap_or(0));
    Ok(if single + double >= ROOM {
        Some((Verdict::Fail, format!("{} memory pages are retired, no more fit", single + double)))
    } else if pending.is_some_and(|p| p != 0) {
        Some((Verdict::Warn, "memory pages wait for a reboot to be retired".into()))
    } else if double > 0 {
        Some((Verdict::Warn, format!("{double} memory pages were retired for double-bit errors")))
    } else {
        None
    })
}

fn compute_mode(gpu: &NvmlGpu) -> Result<Finding, ()> {
    const PROHIBITED: u64 = 2;
    let mode = gpu.number("compute_mode").ok_or(())?;
    Ok((mode == PROHIBITED).then(|| (Verdict::Warn, "its compute mode forbids every program".into())))
}

fn mig_mode(gpu: &NvmlGpu) -> Result<Finding, ()> {
    let (now, pending) = (gpu.number("mig_mode").ok_or(())?, gpu.number("mig_mode_pending").ok_or(())?);
    Ok((now != pending).then(|| (Verdict::Warn, "its MIG mode changes with the next reset".into())))
}
