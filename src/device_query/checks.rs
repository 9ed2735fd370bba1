//! The table of verdicts: one row per check, each with what was seen and one sentence that says what to do.
//! "Could not tell" is never "fine", and never "broken".

use serde::Serialize;

use super::explain::{self, Kind, Known};
use super::kernel_log::Gravity;
use super::launch::Ended;
use super::libraries::{Installed, agree};
use super::record::{Failure, NvmlGpu};
use super::{Compute, Examination, NotRun, Run, SmokeTest};
use crate::catalog::version::Version;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Works, and needs attention.
    Warn,
    /// Broken.
    Fail,
    /// It cannot be known from here.
    CouldNotTell,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::CouldNotTell => "could not tell",
        }
    }
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name; never renamed.
    pub check: String,
    /// What it came to.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub advice: String,
}

const NOTHING: &str = "Nothing to do.";
const MOVE: &str = "Stop and start the instance to move it to other hardware.";

impl Check {
    pub(super) fn new(
        check: &str,
        verdict: Verdict,
        evidence: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check: check.into(), verdict, evidence: evidence.into(), advice: advice.into() }
    }

    pub(super) fn pass(check: &str, evidence: impl Into<String>) -> Self {
        Self::new(check, Verdict::Pass, evidence, NOTHING)
    }

    pub(super) fn unknown(check: &str, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::CouldNotTell, evidence, advice)
    }

    pub(super) fn fail(check: &str, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::Fail, evidence, advice)
    }

    pub(super) fn warn(check: &str, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warn, evidence, advice)
    }
}

/// Every check, in the order in which a person would look.
pub(super) fn checks(e: &Examination) -> Vec<Check> {
    let mut all = vec![driver(e)];
    if e.facts.driver.is_some() {
        all.push(nvml(e));
        all.push(cuda(e));
        all.push(versions(e));
    }
    all.push(count(e));
    all.push(bus(e));
    all.push(xids(e));
    all.extend(sxids(e));
    if e.facts.driver.is_some() {
        all.extend(per_gpu(e));
        all.extend(nvlink(e));
        all.extend(e.devices.iter().filter_map(|d| {
            let failure = d.error.as_ref()?;
            Some(Check::fail(&format!("device-{}", d.index), call(failure), advice(explained_cuda(failure))))
        }));
        all.extend(peers(e));
        all.extend(e.smoke.iter().map(compute));
        all.extend(e.smoke.iter().filter_map(multiprocessors));
        all.extend(super::copy_checks::checks(e));
    }
    all.extend(e.libraries.iter().map(library));
    all
}

fn driver(e: &Examination) -> Check {
    match &e.facts.driver {
        Some(driver) => {
            let kind = if driver.value.open { "open" } else { "proprietary" };
            Check::pass(
                "driver",
                format!("kernel module {} ({kind}) by {}", driver.value.version, driver.source),
            )
        }
        None if e.facts.gpus.is_empty() => Check::fail(
            "driver",
            "no NVIDIA kernel module is loaded, and no NVIDIA GPU is on the PCI bus; no library was loaded",
            "Use an instance type with an NVIDIA GPU.",
        ),
        None => Check::fail(
            "driver",
            "no NVIDIA kernel module is loaded; no library was loaded",
            "Install the driver (gpu-bootstrap run), or load its module (modprobe nvidia) and see dmesg for why it does not load.",
        ),
    }
}

/// Why there was no run, in words.
pub(super) fn not_run_words(not_run: &NotRun) -> String {
    match not_run {
        NotRun::NoDriver => "no NVIDIA kernel module is loaded".into(),
        NotRun::Missing(sonames) => format!("{sonames} is not installed"),
        NotRun::Unsafe(why) => format!("the library was not loaded: {why}"),
        NotRun::NotStarted(why) => why.clone(),
        NotRun::NoNodes(nodes) => format!("there is no {nodes}, and only root can make it"),
        NotRun::NotAsked => "not asked for".into(),
    }
}

fn not_run(check: &str, not_run: &NotRun) -> Check {
    let words = not_run_words(not_run);
    match not_run {
        NotRun::Missing(_) => Check::fail(
            check,
            words,
            "Install the driver's user-space packages (libcuda1 or libnvidia-compute) of the module's version and run ldconfig.",
        ),
        NotRun::Unsafe(_) => Check::unknown(
            check,
            words,
            "Let root own the library and every directory above it, writable by nobody else.",
        ),
        NotRun::NotStarted(_) => {
            Check::unknown(check, words, "Allow root to execute files in /run or /var/lib.")
        }
        NotRun::NoNodes(_) => Check::unknown(
            check,
            words,
            "Ask as root (sudo); nvidia-persistenced or nvidia-modprobe make the device nodes at every boot.",
        ),
        NotRun::NoDriver | NotRun::NotAsked => Check::unknown(check, words, "Ask for it (--compute always)."),
    }
}

pub(super) fn call(failure: &Failure) -> String {
    let code = failure.code.map_or_else(String::new, |c| format!(" returned {c}"));
    let name = if failure.name.is_empty() { String::new() } else { format!(" ({})", failure.name) };
    let text = if failure.text.is_empty() { String::new() } else { format!(": {}", failure.text) };
    format!("{}{code}{name}{text}", failure.call)
}

pub(super) fn explained_cuda(failure: &Failure) -> Option<&'static Known> {
    failure.code.and_then(explain::cuda)
}

fn explained_nvml(failure: &Failure) -> Option<&'static Known> {
    failure.code.and_then(explain::nvml)
}

pub(super) fn advice(known: Option<&Known>) -> &'static str {
    known.map_or("Look at dmesg for NVRM lines; if there is nothing, reinstall the driver.", |k| k.advice)
}

/// A failed call of a library, as a check.
pub(super) fn refused(check: &str, failure: &Failure, known: Option<&'static Known>) -> Check {
    let evidence = match known {
        Some(known) => format!("{}; {}", call(failure), known.meaning),
        None => call(failure),
    };
    let verdict = match known.map(|k| k.kind) {
        Some(Kind::Occupied) => Verdict::CouldNotTell,
        Some(Kind::Fault | Kind::Reboot) | None => Verdict::Fail,
    };
    Check::new(check, verdict, evidence, advice(known))
}

/// The process itself went wrong: a hang, a crash, an abort. `None` where it came to its end.
pub(super) fn broken_process(check: &str, run: &Run) -> Option<Check> {
    let launch = match run {
        Err(why) => return Some(not_run(check, why)),
        Ok(launch) if launch.complete() => return None,
        Ok(launch) => launch,
    };
    let stage = launch.last_stage.trim_end_matches(".begin");
    let mut evidence = format!("the probe {} in stage {stage}", launch.ended.words());
    if !launch.stderr.is_empty() {
        evidence.push_str("; it said: ");
        evidence.push_str(&launch.stderr.replace('\n', " / "));
    }
    let advice = match launch.ended {
        Ended::Deadline(_) => {
            "Look at dmesg for NVRM lines; the driver hangs on a GPU: reboot, and if it comes again, stop and start the instance."
        }
        Ended::Unkillable(_) => {
            "Reboot: the driver waits for a GPU that does not answer; if it comes again, stop and start the instance."
        }
        Ended::Signal(_) => {
            "Reinstall the driver's packages, all of one version: a library crashes while it loads or starts."
        }
        // glibc's dynamic linker leaves with 127 when it cannot start the program.
        Ended::Exited(_) => {
            "Run again with -v; if it stays, the dynamic linker or the driver's libraries are damaged."
        }
    };
    Some(Check::fail(check, evidence, advice))
}

fn nvml(e: &Examination) -> Check {
    if let Some(failure) = e.nvml_load.error.as_ref().or(e.nvml_init.error.as_ref()) {
        return refused("nvml", failure, explained_nvml(failure));
    }
    if let Some(broken) = broken_process("nvml", &e.nvml) {
        return broken;
    }
    let lost: Vec<_> = e.gpus.iter().filter_map(|g| Some((g.index, g.error.as_ref()?))).collect();
    match lost.first() {
        None => Check::pass("nvml", format!("{} answered for {} GPUs", e.nvml_load.library, e.gpus.len())),
        Some((_, failure)) => {
            let which: Vec<_> = lost.iter().map(|(i, _)| i.to_string()).collect();
            let mut check = refused("nvml", failure, explained_nvml(failure));
            check.evidence = format!("GPU {}: {}", which.join(", "), check.evidence);
            check
        }
    }
}

fn cuda(e: &Examination) -> Check {
    if let Some(failure) = e.cuda_load.error.as_ref().or(e.cuda_init.error.as_ref()) {
        return refused("cuda", failure, explained_cuda(failure));
    }
    if let Some(broken) = broken_process("cuda", &e.cuda) {
        return broken;
    }
    if e.devices.is_empty() {
        return Check::fail(
            "cuda",
            "CUDA starts and shows no device",
            "Look at dmesg for NVRM lines; reinstall the driver branch that supports this GPU.",
        );
    }
    Check::pass("cuda", format!("{} shows {} devices", e.cuda_load.library, e.devices.len()))
}

/// The kernel module against the libraries.
fn versions(e: &Examination) -> Check {
    let Some(module) = e.facts.driver.as_ref().map(|d| d.value.version.as_str()) else {
        return Check::unknown("driver-version", "no module", NOTHING);
    };
    let skew = [&e.nvml_init.error, &e.cuda_init.error].into_iter().flatten();
    if let Some(failure) = skew
        .into_iter()
        .find(|f| matches!((f.call.starts_with("nvml"), f.code), (true, Some(18)) | (false, Some(803))))
    {
        return Check::fail(
            "driver-version",
            format!("kernel module {module} is loaded; {}", call(failure)),
            "Reboot, so that the module of the installed version is loaded.",
        );
    }
    match &e.nvml_init.driver_version {
        Some(library) if library == module => {
            Check::pass("driver-version", format!("module and libraries are {module}"))
        }
        Some(library) => Check::fail(
            "driver-version",
            format!("kernel module {module} is loaded, and NVML says {library}"),
            "Reboot, so that the module of the installed version is loaded.",
        ),
        None => Check::unknown(
            "driver-version",
            format!("module {module}; NVML did not say its version"),
            "See the check nvml.",
        ),
    }
}

fn is_mig(gpu: &NvmlGpu) -> bool {
    gpu.number("mig_mode") == Some(1)
}

fn count(e: &Examination) -> Check {
    const NAME: &str = "gpu-count";
    let pci = e.facts.gpus.len();
    let mut counts = vec![("PCI", pci)];
    if e.facts.driver.is_some() {
        counts.push(("driver", e.facts.driven.iter().filter(|d| !d.value.excluded).count()));
    }
    if e.nvml_init.devices.is_some() {
        counts.push(("NVML", e.gpus.iter().filter(|g| g.error.is_none()).count()));
    }
    let mig: u64 = e.gpus.iter().filter(|g| is_mig(g)).filter_map(|g| g.number("mig_devices")).sum();
    let with_mig = e.gpus.iter().any(is_mig);
    // With MIG, CUDA shows a program its share, not the GPUs.
    if e.cuda_init.devices.is_some() && !with_mig {
        counts.push(("CUDA", e.devices.iter().filter(|d| d.error.is_none()).count()));
    }
    let or_more = e.options.expect_gpus.is_some_and(|expected| expected.or_more);
    let wanted = e.options.expect_gpus.map(|expected| (expected.by, expected.number));
    let wanted = wanted.or_else(|| e.instance_type.as_ref().map(|t| (t.name.as_str(), t.gpus)));
    let mut evidence: Vec<String> = counts.iter().map(|(who, n)| format!("{who} {n}")).collect();
    if with_mig {
        evidence.push(format!("{mig} MIG devices"));
    }
    if let Some((who, n)) = wanted {
        evidence.push(format!("expected by {who} {n}"));
    }
    let evidence = evidence.join(", ");
    let wanted = wanted.map_or(pci, |(_, n)| n as usize);
    if counts.iter().all(|(_, n)| *n == wanted || or_more && *n > wanted) && wanted > 0 {
        Check::pass(NAME, evidence)
    } else if counts.iter().any(|(_, n)| *n < wanted) || wanted == 0 {
        Check::fail(
            NAME,
            evidence,
            "Look at dmesg for NVRM and Xid lines of the missing GPU; stop and start the instance to move it to other hardware.",
        )
    } else {
        Check::fail(
            NAME,
            evidence,
            "Correct the expected number, or find out why the machine has more GPUs than its type.",
        )
    }
}

fn bus(e: &Examination) -> Check {
    match e.dead.as_slice() {
        [] => Check::pass("pci", format!("{} GPUs answer on the PCI bus", e.facts.gpus.len())),
        dead => Check::fail("pci", format!("{} answers only with ones", dead.join(", ")), MOVE),
    }
}

fn xids(e: &Examination) -> Check {
    const NAME: &str = "xid";
    let xids = match &e.log {
        Ok(log) => &log.xids,
        Err(why) => return Check::unknown(NAME, why, "Ask as root."),
    };
    let of = |gravity: Gravity| {
        let some: Vec<_> = xids
            .iter()
            .filter(|x| x.gravity() == gravity)
            .map(|x| format!("Xid {} on {}", x.xid, x.pci))
            .collect();
        some.join(", ")
    };
    let (fatal, warning, programs) = (of(Gravity::Fatal), of(Gravity::Warning), of(Gravity::Program));
    if !fatal.is_empty() {
        Check::fail(
            NAME,
            fatal,
            "Reboot or reset the GPU; if it comes again, stop and start the instance to move it to other hardware.",
        )
    } else if !warning.is_empty() {
        Check::warn(NAME, warning, "Look the number up in NVIDIA's list of Xid errors, and watch the GPU.")
    } else if !programs.is_empty() {
        Check::pass(NAME, format!("{programs}: mistakes of programs"))
    } else {
        Check::pass(NAME, "none since boot")
    }
}

/// What `NVSwitch`es reported. No row where there is no switch and no report.
fn sxids(e: &Examination) -> Option<Check> {
    const NAME: &str = "sxid";
    // That the log cannot be read is said by the row before.
    let sxids = &e.log.as_ref().ok()?.sxids;
    if sxids.is_empty() && e.facts.nvswitches.is_empty() {
        return None;
    }
    let of = |fatal: bool| {
        let some: Vec<_> = sxids.iter().filter(|s| s.fatal == fatal).collect();
        some.iter().map(|s| format!("SXid {} on {}", s.number, s.pci)).collect::<Vec<_>>().join(", ")
    };
    let (fatal, other) = (of(true), of(false));
    Some(if !fatal.is_empty() {
        Check::fail(
            NAME,
            fatal,
            "Reboot, so that fabric manager sets the switches up again; if it comes again, stop and start the instance.",
        )
    } else if !other.is_empty() {
        Check::warn(NAME, other, "Look the number up in NVIDIA's list of SXid errors, and watch the switch.")
    } else {
        Check::pass(NAME, "none since boot")
    })
}

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

fn per_gpu(e: &Examination) -> Vec<Check> {
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
            .filter_map(|(i, a)| {
                a.as_ref().ok()?.as_ref().filter(|f| f.0 == wanted).map(|f| format!("GPU {i}: {}", f.1))
            })
            .collect();
        if !found.is_empty() {
            return Check::new(name, wanted, found.join("; "), advice);
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
fn nvlink(e: &Examination) -> Option<Check> {
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

/// Without NVLink, no peer access is normal; with it, a missing pair is a fault.
fn peers(e: &Examination) -> Option<Check> {
    if e.devices.len() < 2 {
        return None;
    }
    let mut missing = Vec::new();
    for (from, row) in e.peers.can_access.iter().enumerate() {
        missing.extend(
            row.iter().enumerate().filter(|(_, a)| **a == Some(false)).map(|(to, _)| format!("{from}→{to}")),
        );
    }
    let linked = e.gpus.iter().any(|g| g.nvlink.is_some_and(|l| l.present > 0));
    Some(if e.peers.can_access.is_empty() {
        Check::unknown("peer-access", "CUDA did not say", "See the check cuda.")
    } else if missing.is_empty() {
        Check::pass("peer-access", "every device reaches every other's memory")
    } else if linked {
        Check::fail(
            "peer-access",
            format!("no access {}", missing.join(", ")),
            "Restart nvidia-fabricmanager where there is one, and reset the GPUs; if it stays, stop and start the instance.",
        )
    } else {
        Check::pass("peer-access", format!("no access {}, as usual without NVLink", missing.join(", ")))
    })
}

fn compute(test: &SmokeTest) -> Check {
    let name = format!("compute-{}", test.index);
    if let (Err(NotRun::NotAsked), Some(processes)) = (&test.run, test.busy) {
        return Check::unknown(
            &name,
            format!("{processes} processes compute on it; nothing was run beside them"),
            "Ask again when it is free, or with --compute always.",
        );
    }
    if let Some((stage, failure)) = test.stages.iter().find_map(|(stage, s)| Some((stage, s.error.as_ref()?)))
    {
        let mut check = refused(&name, failure, explained_cuda(failure));
        check.evidence = format!("{stage}: {}", check.evidence);
        return check;
    }
    if let Some(broken) = broken_process(&name, &test.run) {
        return broken;
    }
    let computed = test.stages.iter().find(|(stage, _)| *stage == "smoke.compute").map(|(_, s)| s);
    match computed.and_then(|s| Some((s.elements?, s.mismatches?, s.first_mismatch))) {
        Some((elements, 0, _)) => {
            Check::pass(&name, format!("{elements} results are bit for bit the host's"))
        }
        Some((elements, wrong, at)) => Check::fail(
            &name,
            format!("{wrong} of {elements} results are wrong, the first at {}", at.unwrap_or_default()),
            MOVE,
        ),
        None => Check::unknown(&name, "no result came back", "See the process's end in the JSON document."),
    }
}

fn multiprocessors(test: &SmokeTest) -> Option<Check> {
    let counted = test.stages.iter().find(|(stage, _)| *stage == "smoke.multiprocessors").map(|(_, s)| s)?;
    let (ran, total) = (counted.ran?, counted.multiprocessors?);
    let name = format!("multiprocessors-{}", test.index);
    let evidence = format!("{ran} of {total} ran the test");
    Some(if ran == total {
        Check::pass(&name, evidence)
    } else {
        // MPS and MIG give a program a part; the scheduler promises nothing.
        Check::warn(
            &name,
            evidence,
            "Nothing to do under MPS or MIG; otherwise run again, and watch the GPU.",
        )
    })
}

fn library(installed: &Installed) -> Check {
    let name = &installed.check;
    match &installed.run {
        Err(NotRun::NoDriver) => {
            return Check::unknown(
                name,
                "no NVIDIA kernel module is loaded; no library was loaded",
                "Load the driver first.",
            );
        }
        Err(NotRun::Missing(soname)) => {
            let version = installed.wanted_words().map(|w| format!(" in version {w}")).unwrap_or_default();
            return Check::fail(
                name,
                format!("{soname} is not found, and the plan installed it{version}"),
                "Run gpu-bootstrap again, which installs its package anew; if it stays, run ldconfig and see where the package's files are.",
            );
        }
        _ => {}
    }
    if let Some(failure) = installed.version.as_ref().and_then(|v| v.error.as_ref()) {
        return Check::fail(
            name,
            call(failure),
            "Reinstall the package that ships the library: a part of it, or a library that it needs, is missing.",
        );
    }
    if let Some(mut broken) = broken_process(name, &installed.run) {
        if matches!(&installed.run, Ok(l) if matches!(l.ended, Ended::Signal(_))) {
            broken.advice = "Reinstall the package that ships the library: it is there in part.".into();
        }
        return broken;
    }
    match (&installed.version, installed.says()) {
        (Some(said), Some(version)) => library_version(installed, &said.library, &version),
        _ => Check::unknown(
            name,
            "it did not say its version",
            "Reinstall the package that ships the library.",
        ),
    }
}

/// What the library says against its package and the plan.
fn library_version(installed: &Installed, path: &str, says: &str) -> Check {
    let name = &installed.check;
    let said = Version::parse(says);
    let differs = |other: &Version| said.as_ref().is_some_and(|said| !agree(said, other));
    let owned = match &installed.owner {
        Some(owner) => format!("its package is {} {}", owner.name, owner.version),
        None => "it belongs to no package".to_owned(),
    };
    if let Some(owner) = &installed.owner
        && owner.version_of(installed.name).is_some_and(|version| differs(&version))
    {
        return Check::fail(
            name,
            format!("{path} says {says}, and {owned}"),
            format!(
                "Reinstall it (apt-get install --reinstall {}): an upgrade was interrupted, or somebody replaced the file.",
                owner.name
            ),
        );
    }
    if let Some((other, owner)) = &installed.shadowed
        && owner.version_of(installed.name).is_some_and(|version| differs(&version))
    {
        return Check::fail(
            name,
            format!(
                "{path} says {says} and belongs to no package; it hides {} of {} {}",
                other.display(),
                owner.name,
                owner.version
            ),
            HIDES,
        );
    }
    if let Some(wanted) = installed.wanted_words()
        && installed.wanted.iter().all(differs)
    {
        let advice = match installed.owner {
            Some(_) => {
                "Run gpu-bootstrap again, so that the planned version is installed; if it stays, see who holds the package."
            }
            None => HIDES,
        };
        return Check::fail(
            name,
            format!("{path} says {says}, and the plan installed {wanted}; {owned}"),
            advice,
        );
    }
    Check::pass(name, format!("{path} says {says}; {owned}"))
}

const HIDES: &str = "Remove this copy, or its directory from /etc/ld.so.conf.d, and run ldconfig.";

/// Whether computing was wanted at all; the JSON document says so.
pub(super) fn compute_word(compute: Compute) -> &'static str {
    match compute {
        Compute::Auto => "auto",
        Compute::Always => "always",
        Compute::Never => "never",
    }
}
