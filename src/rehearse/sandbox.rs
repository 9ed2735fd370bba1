//! The sandbox: fresh namespaces, a copy of the machine's file tree in them, and the simulated services. Commands
//! are started inside one after the other; when this process ends, so does everything inside.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, getppid};

use super::filesystem::{self, Copy, make_dir};
use super::metadata::{self, Metadata};
use super::network::{self, METADATA, REPOSITORY};
use super::openpgp::Signer;
use super::packages::{self, Setting};
use super::plan::Wanted;
use super::programs::{ACTIVE, FABRIC_MANAGER, MACHINE_FILE, Machine, Unit};
use super::repository::{self, Site};
use super::spawner::{self, Spawner};
use super::supervisor::wait_for_signals;
use super::verdict::{self, Verdict};
use super::{Job, driver, failed, http, init, pci};
use crate::catalog::Catalog;
use crate::catalog::data::InstanceType;
use crate::error::{Code, Error, Result, exit};
use crate::facts::os::{self, Os};
use crate::host::Host;
use crate::host::files::Files;

/// Where the agent lies inside, as after an installation.
const AGENT: &str = "/usr/local/bin/gpu-bootstrap";
/// The catalog's overrides: the simulated repository's address and key.
pub(super) const CATALOG_DIR: &str = "/run/gpu-bootstrap-rehearsal/catalog";
const KEYRING: &str = "/usr/share/keyrings/gpu-bootstrap-rehearsal.asc";
/// A package that nobody asks for.
const FILLER: &str = "simulated-archive";
const DISTRIBUTION: &str = "/etc/apt/sources.list.d/simulated-distribution.sources";
const APT_CONFIG: &str = "/etc/apt/apt.conf.d/zz-gpu-bootstrap-rehearsal";
/// URL path of the tree of NVIDIA's repositories.
const REPOSITORIES: &str = "/compute/cuda/repos";
/// Programs that are covered by others, and the directory that comes first in the agent's and dpkg's PATH.
const SIMULATED_PROGRAMS_DIR: &str = "/usr/local/sbin";
const SIMULATED_PROGRAMS: &[&str] = &["modinfo", "modprobe", "rmmod", "systemctl"];
/// How long the run inside has to write its receipt after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

/// Plays the sandbox's part; the job comes on standard input.
pub(super) fn run() -> Result<u8> {
    let mut json = String::new();
    std::io::stdin().read_to_string(&mut json).map_err(|e| failed("read what to rehearse", e))?;
    let job: Job = serde_json::from_str(&json).map_err(|e| failed("read what to rehearse", e))?;
    set_pdeathsig(Signal::SIGTERM).map_err(|e| failed("tie the sandbox to its supervisor", e))?;
    if getppid().as_raw() != job.supervisor {
        return Ok(exit::TERMINATED); // the supervisor was gone before the tie was made
    }
    umask(Mode::from_bits_truncate(0o022));
    let result = Sandbox::start(&job).and_then(|mut sandbox| sandbox.rehearse(&job));
    // The sandbox's mounts are gone here.
    filesystem::remove(&job.dir)?;
    result
}

/// A running sandbox. Dropping it ends everything inside.
struct Sandbox {
    init: Child,
    spawner: Spawner,
    copy: Copy,
    site: Arc<Site>,
    signer: Signer,
    os: Os,
    signals: SigSet,
    /// Said before anything runs: what is simulated.
    simulated: Vec<String>,
}

impl Sandbox {
    fn start(job: &Job) -> Result<Self> {
        let os = runtime()?.block_on(os::gather(&Host::new("/".into())))?;
        let instance_type = find_instance_type(&job.instance_type, &os)?;
        let signals = wait_for_signals()?;
        make_namespaces()?;
        network::set_up()?;
        let copy = Copy::mount(&job.dir)?;
        let signer = Signer::generate("gpu-bootstrap rehearsal (simulated)", seconds(Timestamp::now()))?;
        write_machine(job, instance_type.as_ref(), &copy)?;
        let moved = fill_copy(&copy, &signer, &os, &driver_settings(job, instance_type.as_ref()))?;
        let site = Arc::new(Site::default());
        serve(job, &os, site.clone())?;
        let spawner = Spawner::start()?;
        let init = start_init(&spawner, &job.dir)?;
        let simulated = simulated(job, instance_type.as_ref(), &signer, &moved);
        Ok(Self { init, spawner, copy, site, signer, os, signals, simulated })
    }

    fn rehearse(&mut self, job: &Job) -> Result<u8> {
        let say = verdict::printer(job.json);
        say(&format!(
            "rehearsal: a copy of this machine on {}; this machine stays as it is",
            self.copy.carrier
        ));
        for line in &self.simulated {
            say(&format!("simulated: {line}"));
        }
        if !job.command.is_empty() {
            self.fill_site(&self.wanted()?.unwrap_or_default())?;
            let child = self.spawner.spawn(self.command(&job.command), "the command")?;
            return self.wait(child);
        }
        let wanted = match self.wanted()? {
            Ok(wanted) => wanted,
            Err(code) => return Ok(code),
        };
        let made = self.fill_site(&wanted)?;
        say(&format!("simulated: {made} packages"));
        let (_, plan) = self.capture(&[AGENT, "plan", "--catalog", CATALOG_DIR, "--json"])?;
        if !job.json {
            say("plan of the simulated instance:");
            self.relay(&[AGENT, "plan", "--catalog", CATALOG_DIR], job.json)?;
            say("run on the simulated instance:");
        }
        let code = self.relay(&[AGENT, "run", "--catalog", CATALOG_DIR], job.json)?;
        let verdict = Verdict::read(&self.copy, code, &plan)?;
        let kept = job.keep.as_deref().map(|dir| verdict::keep(&self.copy, dir)).transpose()?;
        verdict.show(job, &self.simulated, &kept.unwrap_or_default())?;
        Ok(code)
    }

    /// What the plan inside wants; the exit code where there can be no plan (why stands on standard error).
    fn wanted(&self) -> Result<Result<Wanted, u8>> {
        let (code, json) = self.capture(&[AGENT, "rehearse-inside", "packages"])?;
        if code != exit::CONVERGED {
            return Ok(Err(code));
        }
        let wanted = serde_json::from_slice(&json);
        wanted.map_err(|e| failed("read which packages the plan wants", e)).map(Ok)
    }

    /// Makes and publishes the packages that the plan wants, and returns how many these are.
    fn fill_site(&self, wanted: &Wanted) -> Result<usize> {
        let now = Timestamp::now();
        let setting = Setting {
            arch: self.os.arch.value,
            debian: self.os.id.value == "debian",
            driver_branch: wanted.driver_branch.as_deref().unwrap_or_default(),
            toolkit: wanted.toolkit.as_deref().unwrap_or("11.8"),
        };
        let nvidia = wanted.nvidia.as_ref();
        let names = nvidia.map(|(_, _, names)| names.as_slice()).unwrap_or_default();
        // apt keeps no index of an empty component, and no real component is empty.
        let distribution = [wanted.distribution.as_slice(), &[FILLER.to_owned()]].concat();
        let made = packages::make(&[names, &distribution].concat(), setting)?;
        let is_distribution = |p: &super::deb::Package| {
            nvidia.is_none() || distribution.iter().any(|w| w.split('=').next() == Some(&p.name))
        };
        let (distribution, from_nvidia): (Vec<_>, Vec<_>) = made.into_iter().partition(is_distribution);
        let components: Vec<String> = std::iter::once("main")
            .chain(wanted.components.iter().map(String::as_str))
            .map(Into::into)
            .collect();
        let arch = self.os.arch.value.debian_name();
        let suite = &self.os.codename.value;
        let origin = if setting.debian { "Debian" } else { "Ubuntu" };
        self.site.add(repository::archive(
            origin,
            suite,
            arch,
            &components,
            &distribution,
            &self.signer,
            now,
        )?);
        if let Some((path, label, _)) = nvidia {
            self.site.add(repository::flat(path, label, &from_nvidia, &self.signer, now)?);
        }
        Ok(distribution.len() + from_nvidia.len())
    }

    /// A command that will run inside; its standard streams are this process's unless they are set.
    fn command(&self, argv: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["rehearse-inside", "enter"]).arg(self.init.id().to_string()).args(argv);
        command
    }

    /// Runs the agent and returns its exit code and standard output.
    fn capture(&self, argv: &[&str]) -> Result<(u8, Vec<u8>)> {
        let mut command = self.command(argv);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = self.spawner.spawn(command, "the agent in the sandbox")?;
        let mut stdout = Vec::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_end(&mut stdout).map_err(|e| failed("read what the agent says", e))?;
        }
        Ok((self.wait(child)?, stdout))
    }

    /// Runs the agent, with its lines labelled.
    fn relay(&self, argv: &[&str], json: bool) -> Result<u8> {
        let mut command = self.command(argv);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawner.spawn(command, "the agent in the sandbox")?;
        let relays = [
            child.stdout.take().map(|pipe| label(pipe, verdict::printer(json))),
            child.stderr.take().map(|pipe| label(pipe, verdict::printer(true))),
        ];
        let code = self.wait(child)?;
        for relay in relays.into_iter().flatten() {
            let _ = relay.join(); // it only prints
        }
        Ok(code)
    }

    /// Waits for a command inside. An interruption leaves it [`GRACE`] to end by itself; any other signal ends the
    /// sandbox at once.
    fn wait(&self, mut child: Child) -> Result<u8> {
        let mut stopped_by = None;
        let init = pid(&self.init);
        loop {
            if let Some(status) = child.try_wait().map_err(|e| failed("wait for the command", e))? {
                return Ok(stopped_by.map_or(exit_code(status), |by: u8| by));
            }
            match self.signals.wait().map_err(|e| failed("wait for signals", e))? {
                Signal::SIGCHLD => {}
                Signal::SIGINT if stopped_by.is_none() => {
                    stopped_by = Some(exit::INTERRUPTED);
                    let _ = kill(pid(&child), Signal::SIGINT); // it may have had the terminal's already
                    std::thread::spawn(move || {
                        std::thread::sleep(GRACE);
                        let _ = kill(init, Signal::SIGKILL); // gone already: nothing to end
                    });
                }
                Signal::SIGINT => _ = kill(init, Signal::SIGKILL),
                _ => {
                    stopped_by = Some(exit::TERMINATED);
                    let _ = kill(init, Signal::SIGKILL);
                }
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // With init, the kernel ends everything inside; both calls fail only if it is gone.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// Plays the part of a command's first moment: joins the sandbox's mounts, then becomes the command.
pub(super) fn enter(init: &str, command: &[String]) -> Result<u8> {
    set_pdeathsig(Signal::SIGKILL).map_err(|e| failed("tie the command to the sandbox", e))?;
    let path = format!("/proc/{init}/ns/mnt");
    let namespace = fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    // Joining is refused while the current directory is shared with another thread.
    unshare(CloneFlags::CLONE_FS).map_err(|e| failed("enter the sandbox", e))?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|e| failed("enter the sandbox", e))?;
    chdir("/").map_err(|e| failed("enter the sandbox", e))?;
    let (program, args) = command.split_first().map_or(("", &[][..]), |(p, args)| (p.as_str(), args));
    let mut inner = Command::new(program);
    inner.args(args).env_clear().envs([
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("NO_COLOR", "1"),
    ]);
    if let Some(terminal) = std::env::var_os("TERM") {
        inner.env("TERM", terminal);
    }
    // exec only returns when it failed.
    Err(Error::new(Code::Exec, format!("cannot run {program} in the sandbox")).because(inner.exec()))
}

/// New mount, network, host name and IPC namespaces for this process and its children, and no mount of
/// theirs ever shows outside.
fn make_namespaces() -> Result<()> {
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(kinds).map_err(spawner::no_namespaces)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| failed("make the mounts private", e))
}

/// `None` for a type without accelerator: the catalog has accelerated types only.
fn find_instance_type(name: &str, os: &Os) -> Result<Option<InstanceType>> {
    let catalog = Catalog::embedded()?;
    if let Some(found) = catalog.instance_type(name) {
        if found.arch != os.arch.value {
            let text = format!(
                "{name} is an {} machine, and this one is {}",
                found.arch.debian_name(),
                os.arch.value.debian_name()
            );
            return Err(Error::new(Code::RehearsalUnavailable, text)
                .with_hint("rehearse an instance type of this machine's architecture"));
        }
        return Ok(Some(found));
    }
    if catalog.is_plain_type(name) {
        return Ok(None);
    }
    Err(Error::new(Code::UnknownInstanceType, format!("the catalog has no instance type {name}"))
        .with_hint("write it as in the EC2 console, for example g5.xlarge or p5.48xlarge"))
}

/// What stands in for the machine's buses, firmware and drivers.
fn write_machine(job: &Job, instance_type: Option<&InstanceType>, copy: &Copy) -> Result<()> {
    pci::write(&pci::devices(instance_type), &job.dir.join(init::BUS_DIR))?;
    pci::write_dmi(&job.instance_type, metadata::INSTANCE_ID, &job.dir.join(init::DMI_DIR))?;
    let switches = instance_type.map_or(0, |t| t.nvswitches);
    let machine = Machine { gpus: pci::gpus(instance_type), switches };
    let json = serde_json::to_vec(&machine).map_err(|e| failed("describe the simulated machine", e))?;
    put_in_run(copy, MACHINE_FILE, &json)?;
    for dir in ["lock", "systemd/system"] {
        make_dir(&copy.run().join(dir))?; // software asks the second whether systemd runs
    }
    Ok(())
}

/// What the simulated driver is to be. Behind NVSwitches it waits for fabric manager, as the real one does.
fn driver_settings(job: &Job, instance_type: Option<&InstanceType>) -> String {
    let switched = instance_type.is_some_and(|t| t.nvswitches > 0);
    let needs = switched.then(|| Unit::named(FABRIC_MANAGER).state_file(ACTIVE));
    driver::settings(&pci::gpus(instance_type), needs.as_deref(), &job.faults)
}

/// Puts the agent, the simulated programs, the catalog and the package sources into the copy. Returns the names of
/// the package sources that were taken out of it: there is no network to reach them by.
fn fill_copy(copy: &Copy, signer: &Signer, os: &Os, driver: &str) -> Result<Vec<String>> {
    let files = Files::new(copy.root()); // links are followed as if chrooted: none leads out of the copy
    let agent = fs::read("/proc/self/exe").map_err(|e| Error::io("read", "/proc/self/exe", e))?;
    files.write(AGENT, &agent, 0o755)?;
    for name in SIMULATED_PROGRAMS {
        let text = format!(
            "#!/bin/sh\n# Simulated by gpu-bootstrap rehearse.\nexec {AGENT} rehearse-inside {name} \"$@\"\n"
        );
        files.write(format!("{SIMULATED_PROGRAMS_DIR}/{name}"), text.as_bytes(), 0o755)?;
    }
    // An instance is no container, even if this machine is one.
    files.remove("/.dockerenv")?;
    let moved = take_out_sources(&files)?;
    let source = format!(
        "Types: deb\nURIs: http://{REPOSITORY}/distribution/\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
        os.codename.value
    );
    // A proxy of this machine's apt leads out, and there is no way out.
    let direct = format!("Acquire::http::Proxy::{REPOSITORY} \"DIRECT\";\n");
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {}\n", metadata::HOST_NAME);
    let texts = [
        (KEYRING, signer.public_key()),
        (DISTRIBUTION, source),
        (APT_CONFIG, direct),
        (driver::SETTINGS, driver.to_owned()),
        ("/etc/hosts", hosts),
        ("/etc/resolv.conf", "# simulated: there is no name service in a rehearsal\n".to_owned()),
    ];
    for (path, text) in texts {
        files.remove(path)?;
        files.write(path, text.as_bytes(), 0o644)?;
    }
    put_in_run(copy, &format!("{CATALOG_DIR}/repositories.toml"), catalog(signer)?.as_bytes())?;
    put_in_run(copy, &format!("{CATALOG_DIR}/keys/rehearsal.asc"), signer.public_key().as_bytes())?;
    Ok(moved)
}

/// The one difference between the catalog inside and the built-in one: where the repositories are and who signs.
fn catalog(signer: &Signer) -> Result<String> {
    let mut text = format!("schema = 1\nbase = \"http://{REPOSITORY}{REPOSITORIES}\"\n");
    for key in Catalog::embedded()?.repositories.keys.iter().filter(|k| !k.retired) {
        let _ = write!(
            text,
            "\n[[key]]\nid = \"{}\"\nfingerprint = \"{}\"\nfile = \"rehearsal.asc\"\n",
            key.id,
            signer.fingerprint()
        );
    }
    Ok(text)
}

fn take_out_sources(files: &Files) -> Result<Vec<String>> {
    let dir = "/etc/apt/sources.list.d";
    let read_by_apt = |name: &&String| matches!(name.rsplit_once('.'), Some((_, "list" | "sources")));
    let names = files.list(dir)?;
    let mut sources: Vec<String> =
        names.iter().filter(read_by_apt).map(|name| format!("{dir}/{name}")).collect();
    if files.exists("/etc/apt/sources.list")? {
        sources.push("/etc/apt/sources.list".into());
    }
    for source in &sources {
        files.remove(source)?;
    }
    Ok(sources)
}

fn serve(job: &Job, os: &Os, site: Arc<Site>) -> Result<()> {
    let marked = job.config.starts_with("#gpu-bootstrap");
    let mark = if marked { "" } else { "#gpu-bootstrap\n" };
    let user_data = format!("{mark}{}", job.config);
    let metadata = Metadata::new(&job.instance_type, os.arch.value, user_data.into_bytes());
    http::serve(vec![
        (SocketAddr::from((METADATA, 80)), Arc::new(move |q: &http::Question| metadata.answer(q))),
        (SocketAddr::from((REPOSITORY, 80)), Arc::new(move |q: &http::Question| site.answer(q))),
    ])
}

/// Starts the first process of the inner process namespace and waits until the copy is its root.
fn start_init(spawner: &Spawner, dir: &Path) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["rehearse-inside", "init"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut init = spawner.spawn(command, "the sandbox's first process")?;
    let mut line = String::new();
    if let Some(pipe) = init.stdout.take() {
        BufReader::new(pipe).read_line(&mut line).map_err(|e| failed("wait for the sandbox", e))?;
    }
    if line.trim() == "ready" {
        return Ok(init);
    }
    let _ = init.wait(); // it has said why on standard error
    Err(Error::new(Code::RehearsalFailed, "the sandbox's first process ended before it was ready"))
}

/// One line for each thing that is not real.
fn simulated(
    job: &Job,
    instance_type: Option<&InstanceType>,
    signer: &Signer,
    moved: &[String],
) -> Vec<String> {
    let accelerators = match instance_type {
        None => "no accelerator".to_owned(),
        Some(t) if t.nvswitches > 0 => format!("{} × {}, {} NVSwitches", t.gpus, t.gpu_name, t.nvswitches),
        Some(t) => format!("{} × {}", t.gpus, t.gpu_name),
    };
    let mut lines = vec![
        format!("EC2 instance {} of type {} ({accelerators})", metadata::INSTANCE_ID, job.instance_type),
        format!("metadata service at {METADATA}; your configuration is its user-data"),
        format!(
            "package repositories at {REPOSITORY}, signed by throw-away key {}; their packages are small stand-ins",
            signer.fingerprint()
        ),
        "modprobe, rmmod, modinfo, systemctl, and the driver that they load; no network leads out".to_owned(),
        "libcuda, NVML, CUDA runtime, cuBLAS and cuDNN, which compute on the processor".to_owned(),
    ];
    if !job.faults.is_empty() {
        lines.push(format!("faults of the driver: {}", job.faults.join(", ")));
    }
    if !moved.is_empty() {
        lines.push(format!("apt without this machine's sources: {}", moved.join(", ")));
    }
    lines
}

/// Copies a stream line by line, each line labelled.
fn label(
    stream: impl Read + Send + 'static,
    say: impl Fn(&str) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(std::result::Result::ok) {
            say(&format!("simulated | {}", String::from_utf8_lossy(&line)));
        }
    })
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(exit::FAILED)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
}

fn seconds(time: Timestamp) -> u32 {
    u32::try_from(time.as_second()).unwrap_or_default()
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| failed("start the event loop", e))
}

/// Writes below the copy's `/run`, which is empty but for this.
fn put_in_run(copy: &Copy, path: &str, bytes: &[u8]) -> Result<()> {
    let path = copy.run().join(path.strip_prefix("/run/").unwrap_or(path));
    make_dir(path.parent().unwrap_or(&path))?;
    fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_without_accelerator_are_told_from_misspelt_ones() {
        let catalog = Catalog::embedded().unwrap();
        for plain in ["t3.micro", "m7g.large", "c7i.2xlarge", "r6id.metal", "x2iedn.xlarge"] {
            assert!(catalog.is_plain_type(plain), "{plain}");
        }
        for wrong in [
            "p5.48xlrge",
            "p6-b200.48xlrge",
            "g99.xlarge",
            "inf2.huge",
            "trn1.x",
            "nonsense",
            "t.micro",
            "t3.",
        ] {
            assert!(!catalog.is_plain_type(wrong), "{wrong}");
        }
    }
}
