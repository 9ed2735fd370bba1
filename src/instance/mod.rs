//! The early part of a boot without cloud-init: whether this is a new instance, who may log in, host keys, name, size of
//! the root. [`early`] is all of it as one readable function; `docs/instance.md` is the same for people.
//!
//! What lets people in comes first, and sshd waits for no more than that. One duty's failure is a sentence and stops no other. Nothing is done that the
//! metadata service did not ask for: where it fails, the machine stays as it was.

pub(crate) mod account;
pub(crate) mod authorized_keys;
pub(crate) mod cloud_init;
pub(crate) mod grow;
pub(crate) mod home;
mod host_keys;
pub(crate) mod hostname;
pub mod prewarm;
pub mod public_key;
mod report;
pub mod seal;
mod state;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use crate::boot::{self, Inputs};
use crate::cloud_config::Growth;
use crate::config::layers;
use crate::config::schema::{InstanceConfig, UserDataPolicy};
use crate::error::{Error, Result, exit};
use crate::facts::identity::{self, Identity};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::fault::{self, Kind};
use crate::host::files::Files;
use crate::host::{notify, paths};
use crate::imds;
use crate::report::streams;
use crate::user_data_run;
use hostname::Given;
use report::{Report, Told};
use state::State;

/// How long the metadata service may take: sshd waits for it. An instance that it does not answer in this time is
/// reached by what it had, and set up at the next boot.
pub const METADATA_DEADLINE: Duration = Duration::from_mins(2);

/// Where temporary files of ours may lie after a power cut.
const WRITTEN_DIRS: [&str; 4] = [paths::STATE_DIR, "/run/gpu-bootstrap", "/etc", "/etc/ssh"];
const CONSOLE: &str = "/dev/console";

/// How the early part behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to look.
    pub inputs: Inputs,
    /// Make the RSA host key, and nothing else.
    pub rsa: bool,
}

/// What a new instance needs, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    SshKeys,
    HostKeys,
    Hostname,
    GrowRoot,
}

impl Duty {
    const BEFORE_SSHD: [Self; 3] = [Self::SshKeys, Self::HostKeys, Self::Hostname];
    /// Nobody needs it to log in, and `growpart` takes more time than all the rest.
    const BEHIND_SSHD: [Self; 1] = [Self::GrowRoot];

    fn all() -> impl Iterator<Item = Self> {
        Self::BEFORE_SSHD.into_iter().chain(Self::BEHIND_SSHD)
    }

    fn name(self) -> &'static str {
        match self {
            Self::SshKeys => "ssh-keys",
            Self::HostKeys => "host-keys",
            Self::Hostname => "hostname",
            Self::GrowRoot => "grow-root",
        }
    }

    fn is_wanted(self, config: &InstanceConfig) -> bool {
        match self {
            Self::SshKeys | Self::HostKeys => config.ssh_keys,
            Self::Hostname => config.hostname,
            Self::GrowRoot => config.grow_root,
        }
    }
}

/// The early part, or with `rsa` what follows it. Returns the process's exit code: 0, unless nothing could be done.
pub async fn early(options: &Options) -> Result<u8> {
    let began = Instant::now();
    umask(Mode::from_bits_truncate(0o022));
    boot::require_root()?;
    let host = Host::new(options.inputs.root.clone());
    let _turn = if options.rsa { turn_behind(&host.files)? } else { vec![turn(&host.files)?] };
    if let Some(path) = cloud_init::enabled_by(&host.files)? {
        let mut report = Report::default();
        report.is("not-ours", format!("cloud-init is at work here ({path}), so that nothing is done"));
        let_sshd_start();
        return report.finish(&host.files);
    }
    if options.rsa {
        return add_rsa(&host).await;
    }
    for dir in WRITTEN_DIRS {
        if let Err(error) = host.files.sweep(dir) {
            tracing::warn!("{}", boot::explain(&error)); // tidiness is no reason not to go on
        }
    }
    let mut report = Report::default();
    set_up(&host, &options.inputs, &mut report).await?;
    let_sshd_start();
    report.seconds = began.elapsed().as_secs_f64();
    report.finish(&host.files)
}

/// Finds out which instance this is, and does what it still needs.
async fn set_up(host: &Host, inputs: &Inputs, report: &mut Report) -> Result<()> {
    let kept = State::load(&host.files);
    // Nitro's firmware says it without any packet. Only what agrees with the state is taken from there.
    let by_firmware = identity::firmware_instance_id(&host.files).unwrap_or_default();
    if by_firmware.is_some_and(|id| id == kept.instance_id) && is_set_up(&kept) {
        return same(host, &kept, report).await;
    }
    let metadata = boot::metadata_client(inputs)?;
    let identity = identity::gather(host, metadata.as_ref()).await;
    report.metadata_requests = metadata.as_ref().map_or(0, imds::Client::requests);
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => {
            report.is(
                "unknown",
                "the metadata service does not say which instance this is: all stays as it was",
            );
            report.ended("instance", Err(error));
            return reachable(host, report).await;
        }
    };
    let (Some(instance), Some(client)) = (&identity.instance, &metadata) else {
        let why = if identity.on_ec2.value {
            "the metadata service is not to be asked".into()
        } else {
            format!("this is no EC2 instance ({})", identity.on_ec2.source)
        };
        report.is("not-ours", format!("{why}, so that nothing is done"));
        return Ok(());
    };
    let state = kept.clone().of(&instance.value.id);
    if is_set_up(&state) {
        return same(host, &state, report).await;
    }
    report.is("new", format!("{} is new here", state.instance_id));
    // Before anything is changed: what was done for another instance does not count from here on. A state that cannot be
    // kept (a full disk, which may be about to grow) makes the next boot do it all again, and is no reason to do nothing.
    let saved = if state == kept { Ok(()) } else { state.save(&host.files) };
    let config = config(host, inputs, &identity, report);
    let had_keys = state.done.contains(Duty::HostKeys.name());
    let growth = growth(&config, &identity);
    let mut work = Work { host, client, config, growth, state, saved, name: None };
    work.go_on(&Duty::BEFORE_SSHD, report).await;
    reachable(host, report).await?;
    if work.state.done.contains(Duty::HostKeys.name()) && !had_keys {
        show_host_keys(&host.files);
    }
    let_sshd_start();
    work.go_on(&Duty::BEHIND_SSHD, report).await;
    report.metadata_requests = client.requests();
    if let Err(error) = work.saved {
        report.ended("state", Err(error));
    }
    Ok(())
}

/// A new instance while it is set up.
struct Work<'a> {
    host: &'a Host,
    client: &'a imds::Client,
    config: InstanceConfig,
    /// What `#cloud-config` says of the root's size.
    growth: Growth,
    state: State,
    /// How writing the state went, the last time.
    saved: Result<()>,
    /// Asked for once, by whichever duty needs it first.
    name: Option<Given>,
}

impl Work<'_> {
    /// Does what is left of these duties.
    async fn go_on(&mut self, duties: &[Duty], report: &mut Report) {
        for duty in duties {
            if self.state.is_over(duty.name()) {
                continue;
            }
            if duty.is_wanted(&self.config) {
                let result = self.fulfil(*duty).await;
                if !report.ended(duty.name(), result) {
                    continue;
                }
                self.state.done.insert(duty.name().into());
            } else {
                report.off(duty.name());
                self.state.off.insert(duty.name().into());
            }
            // Each: a later one that hangs must not give sshd new keys again.
            self.saved = self.state.save(&self.host.files);
        }
    }

    async fn fulfil(&mut self, duty: Duty) -> Result<Told> {
        let Self { host, client, config, growth, name, .. } = self;
        match duty {
            Duty::SshKeys => {
                let offered = authorized_keys::offered(client).await?;
                authorized_keys::apply(&host.files, &config.user, &offered)
            }
            Duty::HostKeys => {
                // Until the next duty the machine has the name of whatever instance its image was made on.
                let comment = if config.hostname {
                    // What goes wrong here is asked again, and said, by the next duty.
                    *name = hostname::given(client).await.ok();
                    let given = name.as_ref().and_then(|given| given.0.as_ref());
                    given.map_or("root".into(), |name| format!("root@{}", name.short))
                } else {
                    comment(&host.files)
                };
                host_keys::renew(host, &comment).await
            }
            Duty::Hostname => {
                let given = match name.take() {
                    Some(given) => given,
                    None => hostname::given(client).await?,
                };
                match given.0 {
                    Some(name) => hostname::apply(&host.files, &name),
                    None => Ok(Told { changed: false, text: "EC2 gives this instance no name".into() }),
                }
            }
            Duty::GrowRoot => grow::apply(host, growth).await,
        }
    }
}

fn is_set_up(state: &State) -> bool {
    Duty::all().all(|duty| state.is_over(duty.name()))
}

/// The unit counts as started, so that sshd starts.
fn let_sshd_start() {
    if let Err(error) = notify::ready() {
        tracing::warn!("sshd waits for the end of this: {}", boot::explain(&error));
    }
}

/// All is done for this instance already.
async fn same(host: &Host, state: &State, report: &mut Report) -> Result<()> {
    report.is("same", format!("{} is set up already", state.instance_id));
    reachable(host, report).await
}

/// sshd must start, whatever else there is.
async fn reachable(host: &Host, report: &mut Report) -> Result<()> {
    if let Some(result) = host_keys::make_missing(host).await.transpose()
        && report.ended("missing-host-keys", result)
    {
        show_host_keys(&host.files);
    }
    Ok(())
}

/// `[instance]`. A mistake in the configuration must not keep anybody out, so that what has one is left out here; the
/// run itself ends with it.
fn config(host: &Host, inputs: &Inputs, identity: &Identity, report: &mut Report) -> InstanceConfig {
    let user_data = identity.user_data.as_ref().map(|fact| fact.value.as_slice());
    let extra = inputs.config.as_deref().map(layers::Layer::from_file).transpose();
    let all = extra.and_then(|extra| layers::load(host, user_data, extra.as_slice()));
    let error = match all {
        Ok(loaded) => {
            loaded.notices.iter().for_each(|notice| streams::say(notice));
            return loaded.config.instance;
        }
        Err(error) => error,
    };
    report.ended("configuration", Err(error));
    layers::load(host, None, &[]).map(|loaded| loaded.config.instance).unwrap_or_default()
}

/// `growpart` and `resize_rootfs` of `#cloud-config`, in time: the rest of the user-data is acted on when the root has grown.
/// Where that will be refused or ignored, they do not count either.
fn growth(config: &InstanceConfig, identity: &Identity) -> Growth {
    match &identity.user_data {
        Some(bytes) if config.user_data != UserDataPolicy::Ignore => user_data_run::growth(&bytes.value),
        _ => Growth::default(),
    }
}

/// The second call: the RSA key, for an instance whose other keys are its own.
async fn add_rsa(host: &Host) -> Result<u8> {
    let state = State::load(&host.files);
    let mut report = Report::default();
    if !state.done.contains(Duty::HostKeys.name()) {
        report.is("unknown", "this instance has no host keys of its own yet, so that no RSA key is made");
        return Ok(exit::CONVERGED);
    }
    let result = host_keys::add_rsa(host, &comment(&host.files)).await;
    let is_new = matches!(&result, Ok(told) if told.changed);
    let is_done = report.ended("rsa-host-key", result);
    if is_new {
        show_host_keys(&host.files);
        reload_sshd(host).await;
    }
    Ok(if is_done { exit::CONVERGED } else { exit::FAILED })
}

/// sshd reads its keys when it starts. One that is not running is left so.
async fn reload_sshd(host: &Host) {
    if !host.files.is_machine() {
        return; // below another root there is none of ours
    }
    let call = Call::new("systemctl").args(["--no-block", "try-reload-or-restart", "ssh.service"]);
    if let Err(error) = host.exec.run(&call).await {
        tracing::warn!("sshd offers the RSA key from its next start: {}", boot::explain(&error));
    }
}

/// As `ssh-keygen` would write it: who made the key, and where.
fn comment(files: &Files) -> String {
    let name = files.read_text("/etc/hostname").ok().flatten().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let name: String = name.trim().chars().filter(|c| is_plain(*c)).collect();
    if name.is_empty() { "root".into() } else { format!("root@{name}") }
}

/// EC2 shows the console to whoever may ask for it, which is how a first login can be checked.
fn show_host_keys(files: &Files) {
    let shown = host_keys::all(files).and_then(|keys| {
        let path = files.outside(CONSOLE)?;
        // Without O_NONBLOCK a stopped serial console would stop the boot; a console that is not there is not made.
        let mut console = fault::point(Kind::Create, CONSOLE)
            .and_then(|()| {
                File::options()
                    .append(true)
                    .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                    .open(path)
            })
            .map_err(|e| Error::io("open", CONSOLE, e))?;
        fault::point(Kind::Write, CONSOLE)
            .and_then(|()| console.write_all(host_keys::console_text(&keys).as_bytes()))
            .map_err(|e| Error::io("write to", CONSOLE, e))
    });
    if let Err(error) = shown {
        tracing::warn!("{}", boot::explain(&error));
    }
}

/// Everything of others that the early part reads: keys, users, mounts, names, its own state.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    authorized_keys::fuzz(bytes);
    account::fuzz(&text);
    crate::host::mounts::parse(&text);
    hostname::fuzz(bytes);
    let _ = serde_json::from_slice::<State>(bytes);
}

/// Waits for an early part that is still at work behind sshd's start: a run needs the room that it makes. The RSA key is not
/// waited for.
pub fn wait(files: &Files) -> Result<()> {
    held(files, paths::EARLY_LOCK, FlockArg::LockShared).map(drop)
}

/// One call at a time: the second one waits for the first.
fn turn(files: &Files) -> Result<Flock<File>> {
    held(files, paths::EARLY_LOCK, FlockArg::LockExclusive)
}

/// The same for the RSA key, beside which a run may begin.
fn turn_behind(files: &Files) -> Result<Vec<Flock<File>>> {
    let rsa = held(files, paths::RSA_LOCK, FlockArg::LockExclusive)?;
    Ok(vec![rsa, held(files, paths::EARLY_LOCK, FlockArg::LockShared)?])
}

fn held(files: &Files, path: &str, how: FlockArg) -> Result<Flock<File>> {
    let file = files.open_rw(path)?;
    fault::point(Kind::Lock, path).map_err(|e| Error::io("lock", path, e))?;
    Flock::lock(file, how).map_err(|(_, errno)| Error::io("lock", path, errno.into()))
}
