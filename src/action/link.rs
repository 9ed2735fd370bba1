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
        host.files.symlink(&self.path, &self.by_way_of(host)?)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("link {} → {}", self.path, self.target)
    }
}

impl Link {
    /// What to write into the link. Where packages have registered the path as an alternative that leads to our
    /// target, it is that alternative: a link around it would stop `update-alternatives` from ever managing it again.
    fn by_way_of(&self, host: &Host) -> Result<String> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let alternative = format!("/etc/alternatives/{name}");
        let registered = host.files.exists(format!("/var/lib/dpkg/alternatives/{name}"))?;
        let fits = registered && resolves_to(host, &alternative, &self.target)?;
        Ok(if fits { alternative } else { self.target.clone() })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link { path: "/usr/local/cuda".into(), target: "/usr/local/cuda-12.8".into() }
    }

    async fn apply_in(root: &std::path::Path) -> String {
        let host = Host::new(root.to_path_buf());
        link().apply(&host).await.unwrap();
        assert!(matches!(link().check(&host).await.unwrap(), Check::Satisfied { .. }));
        std::fs::read_link(root.join("usr/local/cuda")).unwrap().display().to_string()
    }

    #[tokio::test]
    async fn a_link_that_is_missing_is_made() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/local")).unwrap();
        assert_eq!(apply_in(root.path()).await, "/usr/local/cuda-12.8");
    }

    #[tokio::test]
    async fn an_alternative_that_leads_to_the_target_is_restored() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["usr/local", "etc/alternatives", "var/lib/dpkg/alternatives"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("var/lib/dpkg/alternatives/cuda"), "auto\n/usr/local/cuda\n\n")
            .unwrap();
        let alternative = root.path().join("etc/alternatives/cuda");
        std::os::unix::fs::symlink("/usr/local/cuda-12.8", &alternative).unwrap();
        assert_eq!(apply_in(root.path()).await, "/etc/alternatives/cuda");

        // One that leads to another toolkit is not: the wish counts.
        std::fs::remove_file(&alternative).unwrap();
        std::fs::remove_file(root.path().join("usr/local/cuda")).unwrap();
        std::os::unix::fs::symlink("/usr/local/cuda-11.8", &alternative).unwrap();
        assert_eq!(apply_in(root.path()).await, "/usr/local/cuda-12.8");
    }
}
