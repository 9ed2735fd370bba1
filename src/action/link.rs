//! `link`: a symbolic link, which never replaces something that is not a link.

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// A symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Link {
    /// Where the link lies.
    pub path: String,
    /// What it points to.
    pub target: String,
}

impl Converge for Link {
    async fn check(&self, host: &Host) -> Result<Check> {
        let Some(meta) = host.files.lstat(&self.path)? else {
            return Ok(Check::needed(format!("{} does not exist", self.path)));
        };
        if !meta.is_symlink() {
            return Ok(Check::needed(format!("{} is not a link", self.path)));
        }
        let target = host.files.read_link(&self.path)?.unwrap_or_default();
        if !resolves_to(host, &self.path, &self.target)? {
            return Ok(Check::needed(format!("{} points to {}", self.path, target.display())));
        }
        Ok(Check::satisfied(format!("{} leads to {}", self.path, self.target)))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let there = host.files.lstat(&self.path)?;
        if there.is_some_and(|m| !m.is_symlink()) {
            return Err(Error::new(
                Code::Io,
                format!("{} is not a link, and it is not ours to remove", self.path),
            )
            .with_hint(format!("move {} away and run again", self.path)));
        }
        host.files.symlink(&self.path, &self.target)?;
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("link {} → {}", self.path, self.target)
    }
}

/// Whether the link leads to `target`, directly or by way of other links (NVIDIA's packages make
/// `/usr/local/cuda` an alternative: `/etc/alternatives/cuda`, which then points to the toolkit).
fn resolves_to(host: &Host, path: &str, target: &str) -> Result<bool> {
    let mut at = path.to_owned();
    for _ in 0..8 {
        let Some(next) = host.files.read_link(&at)? else { return Ok(false) };
        let next = if next.is_absolute() {
            next
        } else {
            std::path::Path::new(&at).parent().unwrap_or(std::path::Path::new("/")).join(next)
        };
        at = next.display().to_string();
        if at == target {
            return Ok(true);
        }
    }
    Ok(false)
}
