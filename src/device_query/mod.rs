//! Proves the GPUs by the CUDA driver API and NVML, from a static binary: the probe (`src/probe/`) runs once for
//! each risk, its records become an [`Examination`], and [`checks`] judges it. Called by the command `device-query`
//! and by the last step of a run; `/proc` and sysfs are read first, and without a loaded module no library is touched.

mod architecture;
pub mod checks;
pub mod copies;
mod copy_checks;
mod explain;
pub mod fabric_manager;
mod image;
mod json;
mod kernel_log;
pub mod launch;
pub mod libraries;
mod library;
pub mod numa;
pub mod record;
mod summary;
mod text;
pub mod verdicts;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use futures_util::future::join_all;

use self::checks::{Check, Verdict};
use self::copies::{HostCopies, PeerCopies};
use self::fabric_manager::FabricManager;
use self::kernel_log::Reports;
use self::launch::Launch;
use self::libraries::{Installed, Promised};
use self::library::Found;
use self::numa::Node;
use self::record::{CudaDevice, Init, Load, NvmlGpu, Peers, Smoke, of_stage};
use self::verdicts::Verdicts;
use crate::catalog::Catalog;
use crate::catalog::data::InstanceType;
use crate::error::{Code, Result};
use crate::facts::gpu::{self, GpuFacts, Witnesses};
use crate::host::Host;

/// When to run kernels on the GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// On GPUs that nobody else computes on.
    #[default]
    Auto,
    /// On every GPU.
    Always,
    /// On none.
    Never,
}

/// How many GPUs there must be.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedGpus {
    /// So many.
    pub number: u32,
    /// Or more.
    pub or_more: bool,
    /// Who says so, for people.
    pub by: &'static str,
}

/// What to examine.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many GPUs there must be; `None` asks the instance type and the PCI bus.
    pub expect_gpus: Option<ExpectedGpus>,
    /// What a plan installed.
    pub promised: Promised,
    /// When to run kernels.
    pub compute: Compute,
    /// Measure copies, too.
    pub bandwidth: bool,
    /// How long one run of the probe may take, in place of the limits below.
    pub deadline: Option<Duration>,
}

/// Initialising takes 1 to 3 s for each GPU where persistence mode is off, and the first time longer.
const QUERY_LIMIT: Duration = Duration::from_mins(2);
/// A context, a compilation, a kernel.
const SMOKE_LIMIT: Duration = Duration::from_mins(2);
/// Loading a library reads up to a few hundred megabytes.
const LIBRARY_LIMIT: Duration = Duration::from_mins(1);

const NVML: &[&str] = &["libnvidia-ml.so.1"];
const CUDA: &[&str] = &["libcuda.so.1"];
/// Any user that owns nothing.
const NOBODY: u32 = 65534;

/// Why a run of the probe gave nothing.
#[derive(Clone, Debug)]
pub enum NotRun {
    /// No kernel module is loaded, so no library was.
    NoDriver,
    /// The library is nowhere.
    Missing(String),
    /// The library lies where others than root may replace it.
    Unsafe(String),
    /// The probe cannot be started.
    NotStarted(String),
    /// Device nodes are missing, which only root can make; which ones.
    NoNodes(String),
    /// Not asked for.
    NotAsked,
}

/// One run of the probe, or why there was none.
pub type Run = std::result::Result<Launch, NotRun>;

/// The smoke test of one device.
#[derive(Clone, Debug)]
pub struct SmokeTest {
    /// CUDA's ordinal.
    pub index: u32,
    /// The process.
    pub run: Run,
    /// Why nothing was computed though it could have been: the GPU is in use.
    pub busy: Option<u64>,
    /// The records, by stage.
    pub stages: Vec<(&'static str, Smoke)>,
}

/// The CUDA runtime's version and where it was learnt.
#[derive(Clone, Debug)]
pub struct Runtime {
    number: u32,
    /// The library or file.
    pub source: String,
}

impl Runtime {
    /// Major × 1000 + minor × 10.
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// Everything that was learnt.
pub struct Examination {
    /// What was asked.
    pub options: Options,
    /// The PCI bus and the loaded module.
    pub facts: GpuFacts,
    /// The instance type, where the firmware names one that the catalog knows.
    pub instance_type: Option<InstanceType>,
    /// GPUs whose PCI configuration cannot be read any more.
    pub dead: Vec<String>,
    /// Version of the module on disk, which the next boot loads, where modinfo knows one.
    pub on_disk: Option<String>,
    /// Fabric manager, where there are NVSwitches and a loaded module.
    pub fabric_manager: Option<FabricManager>,
    /// What the kernel's log holds since boot, or why it cannot be read.
    pub log: std::result::Result<Reports, String>,
    /// The process that asked NVML.
    pub nvml: Run,
    /// `nvml.load`
    pub nvml_load: Load,
    /// `nvml.init`
    pub nvml_init: Init,
    /// GPUs as NVML sees them.
    pub gpus: Vec<NvmlGpu>,
    /// The process that asked CUDA.
    pub cuda: Run,
    /// `cuda.load`
    pub cuda_load: Load,
    /// `cuda.init`
    pub cuda_init: Init,
    /// Devices as CUDA sees them.
    pub devices: Vec<CudaDevice>,
    /// Who reaches whose memory.
    pub peers: Peers,
    /// The CPUs near each device, by CUDA's ordinal, where they are known.
    pub nodes: Vec<(u32, Node)>,
    /// One smoke test for each device.
    pub smoke: Vec<SmokeTest>,
    /// Copies between the host and each device, where they were asked for.
    pub copies: Vec<HostCopies>,
    /// Copies between devices, where they were asked for.
    pub peer_copies: PeerCopies,
    /// Installed CUDA libraries.
    pub libraries: Vec<Installed>,
    /// The CUDA runtime.
    pub runtime: Option<Runtime>,
    /// The judgement.
    pub checks: Vec<Check>,
}

/// Examines the machine. An error only where the machine cannot be read at all; a broken driver is a result.
pub async fn examine(host: &Host, options: Options) -> Result<Examination> {
    let facts = gpu::gather(host, Witnesses::WhenInDoubt).await?;
    let probe = Probe {
        host,
        user: unprivileged(host)?,
        loaded: facts.driver.is_some(),
        missing_nodes: missing_nodes(host)?,
        deadline: options.deadline,
    };
    let promised = options.promised.clone();
    let switched = !facts.nvswitches.is_empty();
    // These need nothing of the driver's answers: hangs in several places cost one deadline.
    let (examination, libraries, around) = tokio::join!(
        ask_driver(&probe, facts, options),
        libraries::ask(&probe, &promised),
        look_around(&probe, switched)
    );
    let mut examination = examination?;
    examination.libraries = libraries?;
    (examination.on_disk, examination.fabric_manager) = around?;
    // Alone, because whatever else runs makes them slower.
    if examination.options.bandwidth {
        examination.copies = copies::with_host(&probe, &examination).await?;
        examination.peer_copies = copies::between_devices(&probe, &examination).await?;
    }
    examination.runtime = runtime(host, &examination.libraries)?;
    // Last, so that what the probes met is among it.
    examination.dead = dead_functions(host, &examination.facts)?;
    examination.log = kernel_log::reports(&host.files);
    examination.checks = checks::checks(&examination);
    Ok(examination)
}

/// MiB of each GPU's memory, as NVML counts it; none where it does not answer. Nothing else is asked.
pub async fn memory(host: &Host) -> Result<Vec<u64>> {
    let probe = Probe {
        host,
        user: unprivileged(host)?,
        loaded: gpu::gather(host, Witnesses::WhenInDoubt).await?.driver.is_some(),
        missing_nodes: missing_nodes(host)?,
        deadline: None,
    };
    let gpus: Vec<NvmlGpu> = all(&probe.driver_library("nvml", NVML).await?, "nvml.device");
    Ok(gpus.iter().filter_map(|g| g.number("memory_total")).map(|bytes| bytes >> 20).collect())
}

/// What belongs to a loaded module: its successor on disk, and fabric manager where there are switches.
async fn look_around(probe: &Probe<'_>, switched: bool) -> Result<(Option<String>, Option<FabricManager>)> {
    if !probe.loaded {
        return Ok((None, None));
    }
    let limit = probe.deadline.unwrap_or(fabric_manager::LIMIT);
    let on_disk = match gpu::module_on_disk(probe.host, limit).await {
        // A modinfo that hangs says nothing of the GPUs.
        Err(e) if e.code() == Code::ExecTimeout => None,
        answer => answer?,
    };
    let fabric_manager = if switched { Some(fabric_manager::look(probe.host, limit).await?) } else { None };
    Ok((on_disk, fabric_manager))
}

/// What the driver says, and what its GPUs compute; nothing of the rest yet.
async fn ask_driver(probe: &Probe<'_>, facts: GpuFacts, options: Options) -> Result<Examination> {
    let (nvml, cuda) = tokio::join!(probe.driver_library("nvml", NVML), probe.driver_library("cuda", CUDA));
    let (nvml, cuda) = (nvml?, cuda?);
    let mut examination = Examination {
        instance_type: instance_type(probe.host)?,
        dead: Vec::new(),
        on_disk: None,
        fabric_manager: None,
        log: Ok(Reports::default()),
        nvml_load: first(&nvml, "nvml.load"),
        nvml_init: first(&nvml, "nvml.init"),
        gpus: all(&nvml, "nvml.device"),
        cuda_load: first(&cuda, "cuda.load"),
        cuda_init: first(&cuda, "cuda.init"),
        devices: all(&cuda, "cuda.device"),
        peers: first(&cuda, "cuda.peers"),
        nodes: Vec::new(),
        smoke: Vec::new(),
        copies: Vec::new(),
        peer_copies: PeerCopies::default(),
        libraries: Vec::new(),
        runtime: None,
        checks: Vec::new(),
        options,
        facts,
        nvml,
        cuda,
    };
    examination.nodes = copies::nodes(probe, &examination)?;
    examination.smoke = smoke_tests(probe, &examination).await?;
    Ok(examination)
}

impl Examination {
    /// Whether CUDA shows a device and nothing is broken. What could not be told is no failure.
    pub fn passes(&self) -> bool {
        !self.devices.is_empty() && self.checks.iter().all(|c| c.verdict != Verdict::Fail)
    }

    /// What works, in one sentence: `driver 580.95.05 loaded; 8 × NVIDIA H100 80GB HBM3; CUDA 13.0; computed on 8 of 8`.
    pub fn summary(&self) -> String {
        summary::summary(self)
    }

    /// What it came to, GPU by GPU.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts::of(self)
    }

    /// The GPUs for which the driver asks for a reboot.
    pub fn asks_for_reboot(&self) -> Vec<u32> {
        const REBOOT: u64 = 2;
        let asks = self.gpus.iter().filter(|g| g.number("recovery_action") == Some(REBOOT));
        asks.map(|g| g.index).collect()
    }

    /// Whether GPUs wait for the NVSwitch fabric: the fabric manager has not finished, or does not run.
    pub fn waits_for_fabric(&self) -> bool {
        const NOT_READY: [i32; 2] = [802, 919];
        const UNFINISHED: [u32; 2] = [1, 2];
        let code = self.cuda_init.error.as_ref().and_then(|e| e.code);
        code.is_some_and(|code| NOT_READY.contains(&code))
            || self.gpus.iter().any(|g| g.fabric.is_some_and(|f| UNFINISHED.contains(&f.state)))
    }

    /// deviceQuery's text.
    pub fn text(&self) -> String {
        text::text(self)
    }

    /// What `--bandwidth` measured, for a person: a line for each device and a table of the pairs; empty where nothing
    /// was.
    pub fn measurements(&self) -> String {
        copies::text(self)
    }

    /// The node near a device, by CUDA's ordinal.
    fn node(&self, index: u32) -> Option<&Node> {
        self.nodes.iter().find(|(i, _)| *i == index).map(|(_, node)| node)
    }

    /// The JSON document.
    pub fn json(&self) -> serde_json::Value {
        json::document(self)
    }

    /// The code and the words with which CUDA refused to start, where it did. Without a code of CUDA's own, -1.
    fn cuda_failure(&self) -> Option<(i32, String)> {
        let words = |failure: &record::Failure| {
            let text = if failure.text.is_empty() { &failure.name } else { &failure.text };
            (failure.code.unwrap_or(-1), text.clone())
        };
        match &self.cuda {
            Err(not_run) => Some((-1, checks::not_run_words(not_run))),
            Ok(launch) => {
                let failed = self.cuda_load.error.as_ref().or(self.cuda_init.error.as_ref()).map(words);
                let lost = || {
                    (self.cuda_init.devices.is_none())
                        .then(|| (-1, format!("the probe {}", launch.ended.words())))
                };
                failed.or_else(lost)
            }
        }
    }
}

/// Starts the probe on this machine.
struct Probe<'a> {
    host: &'a Host,
    user: Option<u32>,
    loaded: bool,
    missing_nodes: Option<String>,
    deadline: Option<Duration>,
}

impl Probe<'_> {
    async fn driver_library(&self, stage: &str, sonames: &[&str]) -> Result<Run> {
        if !self.loaded {
            return Ok(Err(NotRun::NoDriver));
        }
        if let Some(nodes) = &self.missing_nodes {
            return Ok(Err(NotRun::NoNodes(nodes.clone())));
        }
        match self.find(sonames)? {
            Ok(path) => Ok(self.run(vec![stage.into(), path], QUERY_LIMIT).await),
            Err(not_run) => Ok(Err(not_run)),
        }
    }

    fn find(&self, sonames: &[&str]) -> Result<std::result::Result<String, NotRun>> {
        Ok(match library::find(self.host, sonames, &[])? {
            Found::At(path) => Ok(path.display().to_string()),
            Found::Unsafe(why) => Err(NotRun::Unsafe(why)),
            Found::Nowhere => Err(NotRun::Missing(sonames.join(", "))),
        })
    }

    async fn run(&self, arguments: Vec<String>, limit: Duration) -> Run {
        self.run_near(None, arguments, limit).await
    }

    /// Runs it on the CPUs of `node`.
    async fn run_near(&self, node: Option<&Node>, arguments: Vec<String>, limit: Duration) -> Run {
        let limit = self.deadline.unwrap_or(limit);
        launch::launch(self.host, &arguments, self.user, node.and_then(Node::set), limit)
            .await
            .map_err(|e| NotRun::NotStarted(format!("{e}: {}", e.causes().join("; "))))
    }
}

/// The user to ask as. Root must make the device nodes that are missing; where they are there and open to all, as
/// they are by default, nobody is enough.
fn unprivileged(host: &Host) -> Result<Option<u32>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let mut nodes = vec!["nvidiactl".to_owned(), "nvidia-uvm".to_owned()];
    let numbered = |name: &&String| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
    let names = host.files.list("/dev")?;
    let gpus: Vec<_> = names.iter().filter(numbered).cloned().collect();
    if gpus.is_empty() {
        return Ok(None);
    }
    nodes.extend(gpus);
    for node in nodes {
        let open = host.files.lstat(format!("/dev/{node}"))?;
        let open =
            open.is_some_and(|m| m.file_type().is_char_device() && m.permissions().mode() & 0o006 == 0o006);
        if !open {
            return Ok(None);
        }
    }
    Ok(Some(NOBODY))
}

/// The driver's libraries make the device nodes that are missing, which takes root. Without them and without root they
/// answer as if there were no GPU.
fn missing_nodes(host: &Host) -> Result<Option<String>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let mut missing = Vec::new();
    for node in ["/dev/nvidiactl", "/dev/nvidia-uvm"] {
        if !host.files.exists(node)? {
            missing.push(node);
        }
    }
    Ok((!missing.is_empty()).then(|| missing.join(", ")))
}

fn all<T: serde::de::DeserializeOwned>(run: &Run, stage: &str) -> Vec<T> {
    run.as_ref().map_or_else(|_| Vec::new(), |launch| of_stage(&launch.records, stage))
}

fn first<T: serde::de::DeserializeOwned + Default>(run: &Run, stage: &str) -> T {
    all(run, stage).into_iter().next().unwrap_or_default()
}

async fn smoke_tests(probe: &Probe<'_>, examination: &Examination) -> Result<Vec<SmokeTest>> {
    let Ok(path) = probe.find(CUDA)? else { return Ok(Vec::new()) };
    let tests = examination.devices.iter().map(|device| smoke_test(probe, &path, examination, device));
    Ok(join_all(tests).await)
}

async fn smoke_test(
    probe: &Probe<'_>,
    path: &str,
    examination: &Examination,
    device: &CudaDevice,
) -> SmokeTest {
    let options = &examination.options;
    let mut test =
        SmokeTest { index: device.index, run: Err(NotRun::NotAsked), busy: None, stages: Vec::new() };
    if options.compute == Compute::Never || device.error.is_some() {
        return test;
    }
    test.busy = processes(examination, device).filter(|&n| n > 0);
    if options.compute == Compute::Auto && test.busy.is_some() {
        return test;
    }
    let arguments = vec!["smoke".to_owned(), path.to_owned(), device.index.to_string()];
    test.run = probe.run_near(examination.node(device.index), arguments, SMOKE_LIMIT).await;
    for stage in
        ["cuda.load", "cuda.init", "smoke.context", "smoke.compile", "smoke.compute", "smoke.multiprocessors"]
    {
        test.stages.extend(all(&test.run, stage).into_iter().map(|record| (stage, record)));
    }
    test
}

/// How many processes compute on the device, by NVML; matched by UUID, because the two count differently, else by
/// address: a share of a GPU (MIG) has a UUID of its own.
fn processes(examination: &Examination, device: &CudaDevice) -> Option<u64> {
    let gpus = &examination.gpus;
    let by_uuid = gpus.iter().find(|g| g.uuid.is_some() && g.uuid == device.uuid);
    let place = |pci: &Option<String>| pci.as_deref().map(numa::sysfs_name);
    let by_place = || gpus.iter().find(|g| g.pci.is_some() && place(&g.pci) == place(&device.pci));
    by_uuid.or_else(by_place)?.number("compute_processes")
}

/// By the library itself, else by the toolkit's own note.
fn runtime(host: &Host, libraries: &[Installed]) -> Result<Option<Runtime>> {
    const NOTE: &str = "/usr/local/cuda/version.json";
    let cudart = libraries.iter().find(|l| l.name == "cudart").and_then(|l| l.version.as_ref());
    if let Some((number, cudart)) = cudart.and_then(|l| Some((u32::try_from(l.version?).ok()?, l))) {
        return Ok(Some(Runtime { number, source: format!("cudaRuntimeGetVersion of {}", cudart.library) }));
    }
    let note = host.files.read(NOTE)?.and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok());
    Ok(note
        .and_then(|n| number_of(n["cuda"]["version"].as_str()?))
        .map(|number| Runtime { number, source: NOTE.into() }))
}

/// 12080 from `12.8.1`.
fn number_of(version: &str) -> Option<u32> {
    let mut parts = version.split('.').map(str::parse::<u32>);
    Some(parts.next()?.ok()? * 1000 + parts.next()?.ok()? * 10)
}

/// On EC2's Nitro machines the firmware calls the product by the instance type; anything else is in no catalog.
fn instance_type(host: &Host) -> Result<Option<InstanceType>> {
    let Some(name) = host.files.read_text("/sys/class/dmi/id/product_name")? else { return Ok(None) };
    Ok(Catalog::embedded()?.instance_type(name.trim()))
}

/// A device that fell off the bus answers every read with ones.
fn dead_functions(host: &Host, facts: &GpuFacts) -> Result<Vec<String>> {
    let mut dead = Vec::new();
    for gpu in &facts.gpus {
        let config = PathBuf::from("/sys/bus/pci/devices").join(&gpu.value.address).join("config");
        if host.files.read_limited(config, 4)?.is_some_and(|b| b == [0xff; 4]) {
            dead.push(gpu.value.address.clone());
        }
    }
    Ok(dead)
}

/// The probe's output as every type of record, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_records(bytes: &[u8]) {
    record::fuzz(bytes);
}

/// The kernel's log, for `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_kernel_log(text: &str) {
    kernel_log::parse(text);
}

#[cfg(test)]
#[path = "../probe/mix.rs"]
#[allow(dead_code, reason = "the probe's module; its reference values are proved here")]
mod mix;

/// The attributes' units and numbers, from the probe's own table.
#[path = "../probe/attributes.rs"]
pub mod attributes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolkits_version_is_a_number() {
        assert_eq!(number_of("12.8.1"), Some(12080));
        assert_eq!(number_of("13.0"), Some(13000));
        assert_eq!(number_of("thirteen"), None);
    }

    #[test]
    fn the_smoke_tests_reference_differs_between_elements() {
        let all: std::collections::HashSet<u32> = (0..mix::ELEMENTS).map(mix::expected).collect();
        assert!(all.len() > 65_000, "{}", all.len());
    }
}
