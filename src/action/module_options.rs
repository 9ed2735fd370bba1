//! `module-options`: what modprobe tells a kernel module when it loads it, in a file of our own. Without options there is
//! no such file: one that an earlier choice of driver left would keep the next one from working.

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// Options of one kernel module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModuleOptions {
    /// File below /etc/modprobe.d.
    pub path: String,
    /// The module.
    pub module: String,
    /// What stands before each parameter's name in modprobe's files (`NVreg_`).
    #[serde(default)]
    pub prefix: String,
    /// `name=value`, possibly none.
    pub parameters: Vec<String>,
}

impl ModuleOptions {
    /// `None` where there is nothing to say.
    fn content(&self) -> Option<String> {
        if self.parameters.is_empty() {
            return None;
        }
        let words: Vec<String> = self.parameters.iter().map(|p| format!("{}{p}", self.prefix)).collect();
        Some(format!(
            "# Written by gpu-bootstrap; changes are undone by its next run. `gpu-bootstrap plan` says why.\n\
             options {} {}\n",
            self.module,
            words.join(" ")
        ))
    }
}

impl Converge for ModuleOptions {
    async fn check(&self, host: &Host) -> Result<Check> {
        let there = host.files.read(&self.path)?;
        Ok(match (self.content(), there) {
            (None, None) => Check::satisfied(format!("{} needs no options", self.module)),
            (None, Some(_)) => Check::needed(format!("{} is left from an earlier driver", self.path)),
            (Some(_), None) => Check::needed(format!("{} does not exist", self.path)),
            (Some(wanted), Some(bytes)) if bytes != wanted.as_bytes() => {
                Check::needed(format!("{} has other content", self.path))
            }
            (Some(_), Some(_)) => {
                Check::satisfied(format!("{} says {}", self.path, self.parameters.join(", ")))
            }
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        match self.content() {
            Some(content) => host.files.write(&self.path, content.as_bytes(), 0o644)?,
            None => host.files.remove(&self.path)?,
        }
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        match &self.parameters[..] {
            [] => format!("no options of {}", self.module),
            some => format!("options of {}: {}", self.module, some.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn options_come_and_go_with_the_choice() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let with = |parameters: &[&str]| ModuleOptions {
            path: "/etc/modprobe.d/gpu.conf".into(),
            module: "nvidia".into(),
            prefix: "NVreg_".into(),
            parameters: parameters.iter().map(|p| (*p).to_owned()).collect(),
        };
        let state = async |action: &ModuleOptions| action.check(&host).await.unwrap().state();
        let (none, gsp) = (with(&[]), with(&["EnableGpuFirmware=0", "X=1"]));
        assert_eq!((state(&none).await, state(&gsp).await), ("satisfied", "needed"));
        gsp.apply(&host).await.unwrap();
        let text = host.files.read_text(&gsp.path).unwrap().unwrap();
        assert_eq!(text.lines().last(), Some("options nvidia NVreg_EnableGpuFirmware=0 NVreg_X=1"));
        assert_eq!((state(&none).await, state(&gsp).await), ("needed", "satisfied"));
        host.files.write(&gsp.path, b"options nvidia NVreg_EnableGpuFirmware=1\n", 0o644).unwrap();
        assert_eq!(state(&gsp).await, "needed");
        none.apply(&host).await.unwrap();
        assert_eq!((state(&none).await, host.files.exists(&gsp.path).unwrap()), ("satisfied", false));
    }
}
