//! `container-runtime`: Docker or containerd, configured for GPUs: CDI is on, and NVIDIA's runtime, where its program is
//! installed, is one of theirs. Their configuration is other people's file: it is written whole, with everything in it as
//! it was, and one that cannot be understood is an error that leaves it alone.
//!
//! A runtime that is not installed is configured all the same, so that it starts right whenever it comes.

mod containerd;
mod docker;
mod toml_text;

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Docker waits ten seconds for each container to stop.
const RESTART_LIMIT: Duration = Duration::from_mins(3);
/// What NVIDIA's toolkit brings.
const NVIDIA_RUNTIME: &str = "/usr/bin/nvidia-container-runtime";
/// A daemon that was started this much before its configuration was written is an older one: clocks of files and of
/// processes tick in steps of up to 10 ms.
const TICKS: Duration = Duration::from_millis(50);

/// A container runtime that knows the GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContainerRuntime {
    /// Which.
    pub runtime: Runtime,
}

/// The runtimes that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd, for Kubernetes and `ctr`.
    Containerd,
}

/// What a configuration says.
enum Found {
    /// All that is wanted; the evidence.
    Right(String),
    /// Not all; what is missing.
    Wrong(String),
}

impl Runtime {
    const fn path(self) -> &'static str {
        match self {
            Self::Docker => "/etc/docker/daemon.json",
            Self::Containerd => "/etc/containerd/config.toml",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Docker => "docker.service",
            Self::Containerd => "containerd.service",
        }
    }

    /// Whether what is in force is what is wanted.
    async fn look(self, host: &Host) -> Result<Found> {
        let text = self.text(host)?;
        let with_nvidia = host.files.exists(NVIDIA_RUNTIME)?;
        match self {
            Self::Docker => docker::look(&text, with_nvidia),
            Self::Containerd => containerd::look(host, &text, with_nvidia).await,
        }
    }

    async fn extended(self, host: &Host, text: &str) -> Result<String> {
        let with_nvidia = host.files.exists(NVIDIA_RUNTIME)?;
        match self {
            Self::Docker => docker::extended(text, with_nvidia),
            Self::Containerd => containerd::extended(host, text, with_nvidia).await,
        }
    }

    fn text(self, host: &Host) -> Result<String> {
        let path = self.path();
        if host.files.lstat(path)?.is_some_and(|m| !m.is_file()) {
            return Err(refused(path, "it is no regular file")
                .with_hint(format!("make {path} a file of its own, and run again")));
        }
        let bytes = host.files.read(path)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|e| refused(path, "it is no UTF-8").because(e))
    }
}

/// The error of a configuration that stays as it is.
fn refused(path: &str, why: &str) -> Error {
    Error::new(Code::ContainerConfig, format!("{path} cannot be extended: {why}; it was left as it is"))
}

impl Converge for ContainerRuntime {
    async fn check(&self, host: &Host) -> Result<Check> {
        let evidence = match self.runtime.look(host).await? {
            Found::Wrong(why) => return Ok(Check::needed(why)),
            Found::Right(evidence) => evidence,
        };
        Ok(match daemon(host, self.runtime.unit()).await? {
            Daemon::NotRunning => {
                Check::satisfied(format!("{evidence}; {} does not run", self.runtime.unit()))
            }
            Daemon::Running(age) if is_older(host, self.runtime.path(), age)? => Check::needed(format!(
                "{} runs since before {} was written",
                self.runtime.unit(),
                self.runtime.path()
            )),
            Daemon::Running(_) => {
                Check::satisfied(format!("{evidence}; {} runs with it", self.runtime.unit()))
            }
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let (path, unit) = (self.runtime.path(), self.runtime.unit());
        let before = host.files.read(path)?;
        let mode = host.files.lstat(path)?.map_or(0o644, |m| m.mode() & 0o7777);
        let text = self.runtime.text(host)?;
        let extended = self.runtime.extended(host, &text).await?;
        // Also where nothing of it changes: its time must not lie in the future, or no restart would ever be enough.
        host.files.write(path, extended.as_bytes(), mode)?;
        if matches!(daemon(host, unit).await?, Daemon::NotRunning) {
            return Ok(Applied::Done);
        }
        let Err(error) = restart(host, unit).await else { return Ok(Applied::Done) };
        // What the daemon does not start with must not stay: containers that ran have to run again.
        match &before {
            Some(bytes) => host.files.write(path, bytes, mode)?,
            None => host.files.remove(path)?,
        }
        let again = restart(host, unit).await;
        let now = if again.is_ok() {
            "it runs again with the old one"
        } else {
            "it does not start with the old one, either"
        };
        Err(Error::new(
            Code::ContainerConfig,
            format!("{unit} does not start with the extended {path}; {now}"),
        )
        .with_hint(format!(
            "`journalctl --unit {unit}` says why; often a flag of the unit and the file say the same thing"
        ))
        .because(error))
    }

    fn target(&self) -> Option<&str> {
        Some(self.runtime.path())
    }

    fn describe(&self) -> String {
        match self.runtime {
            Runtime::Docker => "Docker for GPUs".into(),
            Runtime::Containerd => "containerd for GPUs".into(),
        }
    }
}

async fn restart(host: &Host, unit: &str) -> Result<()> {
    let call = Call::new("systemctl").args(["restart", unit]).limit(RESTART_LIMIT);
    host.exec.run(&call).await.map(drop)
}

enum Daemon {
    /// Or nobody can tell, because systemd does not run here.
    NotRunning,
    /// For so long.
    Running(Duration),
}

async fn daemon(host: &Host, unit: &str) -> Result<Daemon> {
    if !host.files.exists("/run/systemd/system")? {
        return Ok(Daemon::NotRunning);
    }
    let call = Call::new("systemctl").args(["show", "--property=ActiveState,MainPID", unit]);
    let shown = host.exec.run(&call).await?.text();
    let value = |name: &str| shown.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    let pid = value("MainPID").filter(|pid| *pid != "0");
    let (Some("active"), Some(pid)) = (value("ActiveState"), pid) else { return Ok(Daemon::NotRunning) };
    let stat = host.files.read_text(format!("/proc/{pid}/stat"))?.unwrap_or_default();
    let uptime = host.files.read_text("/proc/uptime")?.unwrap_or_default();
    Ok(age(&stat, &uptime).map_or(Daemon::NotRunning, Daemon::Running))
}

/// For how long a process runs: its start in ticks of 10 ms since the boot (field 22), against the uptime.
fn age(stat: &str, uptime: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses, which may hold anything.
    let began: f64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64((uptime - began / 100.0).max(0.0)).ok()
}

/// Whether what runs for so long began before the file was written.
fn is_older(host: &Host, path: &str, running_for: Duration) -> Result<bool> {
    let Some(meta) = host.files.lstat(path)? else { return Ok(false) };
    let written_for = meta.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok());
    Ok(running_for > written_for.unwrap_or_default() + TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_age_is_read_whatever_it_is_called() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 8 0 12345 1 1 1";
        assert_eq!(age(stat, "200.00 300.00\n"), Some(Duration::from_millis(76_550)));
        assert_eq!(age("", "200.0 1"), None);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        for (runtime, text) in
            [(Runtime::Docker, "{\"debug\": true,}"), (Runtime::Containerd, "version = \n")]
        {
            host.files.write(runtime.path(), text.as_bytes(), 0o600).unwrap();
            let action = ContainerRuntime { runtime };
            for error in [action.check(&host).await.unwrap_err(), action.apply(&host).await.unwrap_err()] {
                assert_eq!(error.code(), Code::ContainerConfig, "{error}");
                assert!(error.message().contains(runtime.path()) && error.message().contains('1'), "{error}");
            }
            assert_eq!(host.files.read(runtime.path()).unwrap().unwrap(), text.as_bytes());
        }
    }

    #[tokio::test]
    async fn mode_and_content_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        host.files.write(Runtime::Docker.path(), br#"{"data-root": "/srv/docker"}"#, 0o600).unwrap();
        let action = ContainerRuntime { runtime: Runtime::Docker };
        assert_eq!(action.check(&host).await.unwrap().state(), "needed");
        action.apply(&host).await.unwrap();
        let text = host.files.read_text(Runtime::Docker.path()).unwrap().unwrap();
        assert!(text.contains("\"data-root\": \"/srv/docker\"") && text.contains("\"cdi\": true"), "{text}");
        assert_eq!(host.files.lstat(Runtime::Docker.path()).unwrap().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        // NVIDIA's toolkit is installed later.
        host.files.write(NVIDIA_RUNTIME, b"", 0o755).unwrap();
        assert_eq!(action.check(&host).await.unwrap().state(), "needed");
    }
}
