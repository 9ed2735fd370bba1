//! `library-path`: directories of the dynamic linker, in a file of their own, with the linker's cache to match.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::ld_cache::directory_id;

/// Directories of the dynamic linker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LibraryPath {
    /// File below /etc/ld.so.conf.d.
    pub path: String,
    /// Directories, in order.
    pub directories: Vec<String>,
}

impl LibraryPath {
    fn content(&self) -> String {
        self.directories.iter().flat_map(|d| [d.as_str(), "\n"]).collect()
    }
}

impl Converge for LibraryPath {
    async fn check(&self, host: &Host) -> Result<Check> {
        match host.files.read(&self.path)? {
            None => return Ok(Check::needed(format!("{} does not exist", self.path))),
            Some(bytes) if bytes != self.content().as_bytes() => {
                return Ok(Check::needed(format!("{} has other content", self.path)));
            }
            Some(_) => {}
        }
        let mut cached = std::collections::HashSet::new();
        for library in host.linker_cache()? {
            if let Some(dir) = library.path.parent() {
                cached.insert(dir.to_path_buf());
            }
        }
        let mut ids = std::collections::HashSet::new();
        for dir in &cached {
            ids.extend(directory_id(host, dir)?);
        }
        for dir in &self.directories {
            let listed = directory_id(host, Path::new(dir))?.is_some_and(|id| ids.contains(&id));
            if !listed && holds_libraries(host, dir)? {
                return Ok(Check::needed(format!("the dynamic linker's cache lists nothing from {dir}")));
            }
        }
        Ok(Check::satisfied(format!("the dynamic linker searches {}", self.directories.join(", "))))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        host.files.write(&self.path, self.content().as_bytes(), 0o644)?;
        // It reads the head of every library; a full toolkit on a cold disk takes seconds.
        host.exec.run(&Call::new("ldconfig").limit(Duration::from_mins(5))).await?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("linker directories {}", self.directories.join(", "))
    }
}

/// Whether there is anything for ldconfig to list. (A directory that does not exist has nothing.)
fn holds_libraries(host: &Host, dir: &str) -> Result<bool> {
    Ok(host.files.list(dir)?.iter().any(|name| name.starts_with("lib") && name.contains(".so")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ld_cache::tests::cache;

    #[tokio::test]
    async fn content_and_cache_must_both_match() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let action = LibraryPath {
            path: "/etc/ld.so.conf.d/gpu.conf".into(),
            directories: vec!["/usr/local/cuda-12.8/lib64".into(), "/not/there".into()],
        };
        let why = |c: Check| (c.state(), c.why().to_owned());
        assert_eq!(why(action.check(&host).await.unwrap()).0, "needed");
        host.files.write(&action.path, action.content().as_bytes(), 0o644).unwrap();
        host.files.write("/usr/local/cuda-12.8/targets/x/lib/libcudart.so.12", b"", 0o644).unwrap();
        host.files.symlink("/usr/local/cuda-12.8/lib64", "targets/x/lib").unwrap();
        let (state, text) = why(action.check(&host).await.unwrap());
        assert_eq!((state, text.contains("/usr/local/cuda-12.8/lib64")), ("needed", true));
        // ldconfig found the same directory under another name first.
        let listed = cache(&[("libcudart.so.12", "/usr/local/cuda-12.8/targets/x/lib/libcudart.so.12")]);
        host.files.write("/etc/ld.so.cache", &listed, 0o644).unwrap();
        assert_eq!(why(action.check(&host).await.unwrap()).0, "satisfied");
        host.files.write(&action.path, b"/elsewhere\n", 0o644).unwrap();
        assert_eq!(why(action.check(&host).await.unwrap()).0, "needed");
    }
}
