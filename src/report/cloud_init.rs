//! `--cloud-init-compat`: the files by which Packer, Ansible, nodeadm and others wait for cloud-init, on machines without it.
//!
//! `/run/cloud-init/status.json` and `result.json` as cloud-init writes them, and `/var/lib/cloud/instance/boot-finished`, which
//! is made only when the run is over and no reboot is to come. Where cloud-init is installed they are its own, and nothing is
//! written.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Listener;
use super::event::{Event, EventKind};
use crate::error::Result;
use crate::host::files::Files;

const STATUS: &str = "/run/cloud-init/status.json";
const RESULT: &str = "/run/cloud-init/result.json";
const INSTANCE: &str = "/var/lib/cloud/instance";
const BOOT_FINISHED: &str = "/var/lib/cloud/instance/boot-finished";
/// Any of these means that cloud-init is here, or was and left its configuration.
const CLOUD_INIT: [&str; 2] = ["/usr/bin/cloud-init", "/etc/cloud/cloud.cfg"];
/// cloud-init's stages; ours is the last one.
const STAGES: [&str; 4] = ["init-local", "init", "modules-config", "modules-final"];

/// Keeps the files.
pub struct CloudInit {
    files: Files,
    /// cloud-init's name of where the metadata came from.
    datasource: &'static str,
    instance: String,
    began: f64,
    errors: Vec<String>,
}

impl CloudInit {
    /// A listener that writes below the root of `files`; `None` where cloud-init writes them itself.
    pub fn new(files: Files) -> Option<Self> {
        let is_there = CLOUD_INIT.iter().find(|path| files.exists(path).unwrap_or(true));
        if let Some(path) = is_there {
            tracing::warn!("--cloud-init-compat: {path} is there, so cloud-init's own files are left alone");
            return None;
        }
        let began = uptime(&files);
        let new = Self {
            files,
            datasource: "DataSourceNone",
            instance: "iid-datasource-none".into(),
            began,
            errors: Vec::new(),
        };
        // What an earlier boot or an image left would end the wait at once.
        say(new
            .files
            .remove(BOOT_FINISHED)
            .and_then(|()| new.files.remove(RESULT))
            .and_then(|()| new.status(None)));
        Some(new)
    }

    fn status(&self, finished: Option<f64>) -> Result<()> {
        let mut v1 =
            json!({ "datasource": self.datasource, "stage": finished.is_none().then_some("modules-final") });
        for stage in STAGES {
            let is_ours = stage == "modules-final";
            v1[stage] = json!({
                "start": self.began,
                "finished": if is_ours { finished } else { Some(self.began) },
                "errors": if is_ours { &self.errors[..] } else { &[] },
                "recoverable_errors": {},
            });
        }
        self.write(STATUS, &json!({ "v1": v1 }))
    }

    fn finish(&self, at: Timestamp, is_over: bool) -> Result<()> {
        let now = uptime(&self.files);
        self.status(Some(now))?;
        self.write(RESULT, &json!({ "v1": { "datasource": self.datasource, "errors": self.errors } }))?;
        if !is_over {
            return Ok(());
        }
        let home = format!("/var/lib/cloud/instances/{}", self.instance);
        self.files.make_dir(&home, 0o755)?;
        // The link of an image points to the instance that it was made on.
        if self.files.read_link(INSTANCE)?.is_none_or(|target| target != Path::new(&home)) {
            self.files.symlink(INSTANCE, &home)?;
        }
        let version = env!("CARGO_PKG_VERSION");
        let line = format!(
            "{now:.2} - {} - v. gpu-bootstrap {version}\n",
            at.strftime("%a, %d %b %Y %H:%M:%S +0000")
        );
        self.files.write(BOOT_FINISHED, line.as_bytes(), 0o644)
    }

    fn write(&self, path: &str, value: &Value) -> Result<()> {
        self.files.write(path, format!("{value:#}\n").as_bytes(), 0o644)
    }
}

/// Its failure is none of the run's.
fn say(result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!("--cloud-init-compat: {error}: {}", error.causes().join(": "));
    }
}

impl Listener for CloudInit {
    fn hear(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { instance_id, .. } if instance_id != "local" => {
                self.datasource = "DataSourceEc2Local";
                self.instance.clone_from(instance_id);
                say(self.status(None));
            }
            EventKind::Failed { message, code, .. } => self.errors.push(format!("{message} [{code}]")),
            EventKind::RebootNeeded { why } => self.errors.push(format!("a reboot is needed: {why}")),
            EventKind::RunFinished { outcome, .. } => {
                say(self.finish(event.at, outcome != "reboot-needed"));
            }
            _ => {}
        }
    }
}

/// Seconds since the boot; 0 where no `/proc` tells.
fn uptime(files: &Files) -> f64 {
    let text = files.read_text("/proc/uptime").ok().flatten().unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_finished_when_no_reboot_is_to_come() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        // As an image has it, of the instance that it was made on.
        files.make_dir("/var/lib/cloud/instances/i-1", 0o755).unwrap();
        files.symlink(INSTANCE, "/var/lib/cloud/instances/i-1").unwrap();
        files.write(BOOT_FINISHED, b"earlier", 0o644).unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let started = EventKind::RunStarted {
            steps: Vec::new(),
            plan_digest: String::new(),
            instance_id: "i-2".into(),
            instance_type: None,
            boot_id: String::new(),
            choices: Vec::new(),
        };
        let run = |outcome: &str, reboot: Option<&str>| {
            let mut listener = CloudInit::new(files.clone()).unwrap();
            assert!(!files.exists(BOOT_FINISHED).unwrap() && !files.exists(RESULT).unwrap());
            let reboot = reboot.map(|why| EventKind::RebootNeeded { why: why.into() });
            let finished = EventKind::RunFinished { outcome: outcome.into(), exit_code: 0, seconds: 1.0 };
            for kind in [started.clone()].into_iter().chain(reboot).chain([finished]) {
                listener.hear(&Event { at, kind });
            }
            let result = files.read_text(RESULT).unwrap().unwrap();
            assert!(result.contains("DataSourceEc2Local"), "{result}");
            result
        };
        assert!(run("reboot-needed", Some("another kernel")).contains("a reboot is needed: another kernel"));
        assert!(!files.exists(BOOT_FINISHED).unwrap());
        assert!(run("converged", None).contains("\"errors\": []"));
        let line = files.read_text(BOOT_FINISHED).unwrap().unwrap();
        assert!(line.starts_with("0.00 - Thu, 01 Jan 1970 00:00:00 +0000 - v. "), "{line}");
        assert_eq!(files.read_link(INSTANCE).unwrap().unwrap(), Path::new("/var/lib/cloud/instances/i-2"));
    }
}
