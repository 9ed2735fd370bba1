//! The table of verdicts: one row per check, each with what was seen and one sentence that says what to do.
//! "Could not tell" is never "fine", and never "broken".

mod library;
mod per_gpu;

use nix::libc::SIGKILL;
use serde::{Deserialize, Serialize};

use super::explain::{self, Kind, Known};
use super::kernel_log::Gravity;
use super::launch::Ended;
use super::libraries::agree;
use super::record::{Failure, NvmlGpu};
use super::{Compute, Examination, NotRun, Run, SmokeTest};
use crate::catalog::version::Version;

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Works, and needs attention.
    Warn,
    /// Broken.
    Fail,
    /// It cannot be known from here. A word of a later version is read as this, too.
    #[default]
    #[serde(other)]
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
    /// What of the evidence is of one GPU; empty where all of it is of the machine.
    #[serde(skip)]
    pub parts: Vec<(Place, String)>,
}

/// Which GPU, as whoever was asked names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// CUDA's ordinal.
    Cuda(u32),
    /// NVML's index.
    Nvml(u32),
    /// An address on the PCI bus; the kernel's log leaves the function out.
    Pci(String),
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
        Self {
            check: check.into(),
            verdict,
            evidence: evidence.into(),
            advice: advice.into(),
            parts: Vec::new(),
        }
    }

    /// All of it is of one GPU.
    pub(super) fn of(mut self, place: Place) -> Self {
        self.parts = vec![(place, self.evidence.clone())];
        self
    }

    /// Parts of it are of one GPU each.
    fn with_parts(self, parts: Vec<(Place, String)>) -> Self {
        Self { parts, ..self }
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
        all.push(on_disk(e));
    }
    all.push(count(e));
    all.push(bus(e));
    all.push(xids(e));
    all.extend(sxids(e));
    if e.facts.driver.is_some() {
        all.extend(per_gpu::per_gpu(e));
        all.extend(per_gpu::nvlink(e));
        all.extend(fabric_manager(e));
        all.extend(e.devices.iter().filter_map(|d| {
            let failure = d.error.as_ref()?;
            let name = format!("device-{}", d.index);
            let check = Check::fail(&name, call(failure), advice(explained_cuda(failure)));
            Some(check.of(Place::Cuda(d.index)))
        }));
        all.extend(peers(e));
        all.extend(e.smoke.iter().map(|test| compute(test).of(Place::Cuda(test.index))));
        let counted = |test| multiprocessors(test).map(|check| check.of(Place::Cuda(test.index)));
        all.extend(e.smoke.iter().filter_map(counted));
        all.extend(super::copy_checks::checks(e));
    }
    all.extend(e.libraries.iter().map(library::library));
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
    // A compiler says more than one line.
    let lines: Vec<_> = failure.text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let text = if lines.is_empty() { String::new() } else { format!(": {}", lines.join(" / ")) };
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
        // Nobody here sent it.
        Ended::Signal(SIGKILL) => {
            "Look at dmesg for \"Out of memory\": the kernel, or somebody, killed the probe; free memory and ask again."
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
            check.with_parts(lost.iter().map(|(i, failure)| (Place::Nvml(*i), call(failure))).collect())
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

/// The loaded module against the file that the next boot loads.
fn on_disk(e: &Examination) -> Check {
    const NAME: &str = "module-on-disk";
    let module = e.facts.driver.as_ref().map_or("", |d| d.value.version.as_str());
    match e.on_disk.as_deref() {
        Some(disk) if disk == module => Check::pass(NAME, format!("{disk} is loaded and on disk")),
        Some(disk) => Check::warn(
            NAME,
            format!("{module} is loaded, and the next boot loads {disk}"),
            "Reboot when it suits, and ask again; where the driver must stay as it is, hold its packages.",
        ),
        None => Check::unknown(
            NAME,
            "modinfo knows of no NVIDIA module for this kernel",
            "Nothing to do in a container; elsewhere see `dkms status`: the next boot may have no driver.",
        ),
    }
}

/// Whether what the GPUs need behind `NVSwitch`es is there. No row without a switch.
fn fabric_manager(e: &Examination) -> Option<Check> {
    const NAME: &str = "fabric-manager";
    let manager = e.fabric_manager.as_ref()?;
    let module = e.facts.driver.as_ref()?.value.version.as_str();
    let package = match &manager.package {
        Some(package) => format!("its package is {} {}", package.name, package.version),
        None => "no package of it is installed".to_owned(),
    };
    let wanted = Version::parse(module);
    let own = manager.package.as_ref().and_then(|p| p.version_of("fabric"));
    if manager.runs == Some(false) {
        return Some(Check::fail(
            NAME,
            format!("nvidia-fabricmanager does not run; {package}"),
            format!(
                "Install it in the driver's version, {module}, and start it (systemctl start nvidia-fabricmanager); its journal says why it stops."
            ),
        ));
    }
    if let (Some(own), Some(wanted)) = (&own, &wanted)
        && !agree(own, wanted)
    {
        return Some(Check::fail(
            NAME,
            format!("kernel module {module} is loaded, and fabric manager is another version: {package}"),
            format!(
                "Install fabric manager in version {module} and restart it: it works with exactly its own version of the driver."
            ),
        ));
    }
    Some(match (manager.runs, manager.nodes) {
        (Some(_), 0) => Check::warn(
            NAME,
            "nvidia-fabricmanager runs, and there is no /dev/nvidia-nvswitch*",
            "Restart nvidia-fabricmanager, which makes them; in a container, nothing to do.",
        ),
        (Some(_), nodes) => {
            Check::pass(NAME, format!("nvidia-fabricmanager runs with {nodes} device nodes; {package}"))
        }
        (None, _) => Check::unknown(
            NAME,
            format!("neither a process nor systemd can be seen; {package}"),
            "Ask on the machine itself, not in a container.",
        ),
    })
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
    let of_type = e.instance_type.as_ref().and_then(|t| Some((t.name.as_str(), t.expected_gpus()?)));
    let wanted = wanted.or(of_type);
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
    } else if counts.iter().any(|(_, n)| *n < wanted) || pci == 0 {
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
        dead => {
            let part = |address: &String| (Place::Pci(address.clone()), "answers only with ones".to_owned());
            Check::fail("pci", format!("{} answers only with ones", dead.join(", ")), MOVE)
                .with_parts(dead.iter().map(part).collect())
        }
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
    let parts = |gravity: Gravity| {
        let some = xids.iter().filter(|x| x.gravity() == gravity);
        some.map(|x| (Place::Pci(x.pci.clone()), format!("Xid {}", x.xid))).collect()
    };
    let (fatal, warning, programs) = (of(Gravity::Fatal), of(Gravity::Warning), of(Gravity::Program));
    if !fatal.is_empty() {
        Check::fail(
            NAME,
            fatal,
            "Reboot or reset the GPU; if it comes again, stop and start the instance to move it to other hardware.",
        )
        .with_parts(parts(Gravity::Fatal))
    } else if !warning.is_empty() {
        Check::warn(NAME, warning, "Look the number up in NVIDIA's list of Xid errors, and watch the GPU.")
            .with_parts(parts(Gravity::Warning))
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
        // A full GPU that somebody works on says nothing about its health.
        if let (Some(explain::OUT_OF_MEMORY), Some(processes)) = (failure.code, test.busy) {
            return Check::unknown(
                &name,
                format!("{stage}: {}; {processes} processes hold its memory", call(failure)),
                "Ask again when they have ended.",
            );
        }
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

/// Whether computing was wanted at all; the JSON document says so.
pub(super) fn compute_word(compute: Compute) -> &'static str {
    match compute {
        Compute::Auto => "auto",
        Compute::Always => "always",
        Compute::Never => "never",
    }
}
