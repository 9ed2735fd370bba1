//! `service`: a systemd unit that runs now and after the next boot.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Fabric manager needs about a minute to train the links of eight GPUs.
const START_LIMIT: Duration = Duration::from_mins(3);

/// A running systemd service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Unit name.
    pub unit: String,
    /// Whether it is enough that the unit runs where it is installed, on machines with systemd.
    #[serde(default)]
    pub optional: bool,
    /// A file without which the service has nothing to do: it is started once the file has a line that is no comment.
    #[serde(default)]
    pub configured_by: String,
}

impl Service {
    fn is_configured(&self, host: &Host) -> Result<bool> {
        if self.configured_by.is_empty() {
            return Ok(true);
        }
        let text = host.files.read_text(&self.configured_by)?.unwrap_or_default();
        Ok(text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#')))
    }
}

impl Converge for Service {
    async fn check(&self, host: &Host) -> Result<Check> {
        if !self.is_configured(host)? {
            return Ok(Check::satisfied(format!(
                "{} waits for {}, which lists nothing yet",
                self.unit, self.configured_by
            )));
        }
        // systemd's own test for "systemd is running" (sd_booted).
        if !host.files.exists("/run/systemd/system")? {
            if self.optional {
                return Ok(Check::satisfied(format!(
                    "systemd does not run here, so nobody starts {}",
                    self.unit
                )));
            }
            return Ok(Check::unknown(format!(
                "systemd does not run here, so {} cannot be looked at",
                self.unit
            )));
        }
        let properties = "--property=LoadState,ActiveState,UnitFileState";
        let output =
            host.exec.run(&Call::new("systemctl").args(["show", properties, self.unit.as_str()])).await?;
        Ok(match judge(&self.unit, &output.text()) {
            Check::Needed { why } if self.optional && why.ends_with(NOT_FOUND) => {
                Check::satisfied(format!("{} is not installed here", self.unit))
            }
            check => check,
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let call = Call::new("systemctl").args(["enable", "--now", self.unit.as_str()]).limit(START_LIMIT);
        host.exec.run(&call).await.map_err(|e| {
            Error::new(Code::ServiceFailed, format!("{} does not start", self.unit))
                .with_hint(format!("journalctl --boot --unit {} says why", self.unit))
                .because(e)
        })?;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("service {}", self.unit)
    }
}

/// systemd's word for a unit that there is not.
const NOT_FOUND: &str = "is not-found";

/// From `Name=value` lines.
fn judge(unit: &str, shown: &str) -> Check {
    let value = |name: &str| {
        shown.lines().find_map(|l| l.strip_prefix(name).and_then(|l| l.strip_prefix('='))).unwrap_or_default()
    };
    let (load, active, enabled) = (value("LoadState"), value("ActiveState"), value("UnitFileState"));
    if load != "loaded" {
        return Check::needed(format!("{unit} is {load}"));
    }
    if active != "active" {
        return Check::needed(format!("{unit} is {active}"));
    }
    // Units without an [Install] section are started by others and need no enabling.
    if !["enabled", "enabled-runtime", "static", "indirect", "generated", "alias"].contains(&enabled) {
        return Check::needed(format!("{unit} runs, but is {enabled} for the next boot"));
    }
    Check::satisfied(format!("{unit} is active and {enabled}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_must_be_there_active_and_enabled() {
        let state = |load: &str, active: &str, file: &str| {
            judge("x.service", &format!("LoadState={load}\nActiveState={active}\nUnitFileState={file}\n"))
        };
        assert_eq!(state("loaded", "active", "enabled").state(), "satisfied");
        assert_eq!(state("not-found", "inactive", ""), Check::needed("x.service is not-found"));
        assert_eq!(state("loaded", "failed", "enabled"), Check::needed("x.service is failed"));
        assert_eq!(state("loaded", "active", "disabled").state(), "needed");
    }

    #[tokio::test]
    async fn without_systemd_nothing_can_be_told() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let action = Service {
            unit: "nvidia-fabricmanager.service".into(),
            optional: false,
            configured_by: String::new(),
        };
        assert_eq!(action.check(&host).await.unwrap().state(), "unknown");
        let optional = Service { optional: true, ..action.clone() };
        assert_eq!(optional.check(&host).await.unwrap().state(), "satisfied");
        // Nobody has said yet which hosts work together; the template that comes with the package is comments only.
        let nodes = Service { configured_by: "/etc/nvidia-imex/nodes_config.cfg".into(), ..action };
        assert_eq!(nodes.check(&host).await.unwrap().state(), "satisfied");
        host.files.write(&nodes.configured_by, b"# 10.0.0.1\n\n", 0o644).unwrap();
        assert_eq!(nodes.check(&host).await.unwrap().state(), "satisfied");
        host.files.write(&nodes.configured_by, b"10.0.0.1\n", 0o644).unwrap();
        assert_eq!(nodes.check(&host).await.unwrap().state(), "unknown");
    }
}
