//! A bundle's place on the machine that installs from it, all of it below one directory of ours:
//!
//! - `files`: the bundle's files, or a link to the directory in which they lie, where only root can change that;
//! - `sources.list.d` and `lists`: what apt uses in place of `/etc/apt` and `/var/lib/apt/lists` meanwhile;
//! - `manifest.json`: kept, so that an image in which everything is installed needs no bundle any more.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::collect::DEBS;
use super::manifest::{File, Manifest};
use super::{Location, Opened, manifest, verify};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::paths::CACHE_DIR;
use crate::install::fetch::Item;
use crate::install::fetch_files;

/// Everything about bundles.
pub const DIR: &str = "/var/lib/gpu-bootstrap/bundle";
/// The bundle's files.
pub const FILES: &str = "/var/lib/gpu-bootstrap/bundle/files";
/// The bundle's wheels, for pip.
pub const WHEELS: &str = "/var/lib/gpu-bootstrap/bundle/files/wheels";
/// apt's sources.
pub const SOURCES: &str = "/var/lib/gpu-bootstrap/bundle/sources.list.d";
/// apt's lists.
pub const LISTS: &str = "/var/lib/gpu-bootstrap/bundle/lists";
const KEPT: &str = "/var/lib/gpu-bootstrap/bundle/manifest.json";
const DISTRIBUTION: &str = "/var/lib/gpu-bootstrap/bundle/sources.list.d/distribution.sources";

/// The manifest that an earlier run kept, if it is the wanted one.
pub(super) fn kept(host: &Host, sha256: &str) -> Result<Option<Vec<u8>>> {
    let bytes = host.files.read_limited(KEPT, manifest::LIMIT)?;
    Ok(bytes.filter(|bytes| manifest::sum(bytes).eq_ignore_ascii_case(sha256)))
}

/// Gives the space of a bundle's files back when nothing of it is needed any more.
pub fn tidy(host: &Host) -> Result<()> {
    match host.files.lstat(FILES)? {
        Some(meta) if meta.is_dir() => host.files.remove_tree(FILES)?,
        Some(_) => host.files.remove(FILES)?,
        None => {}
    }
    host.files.remove_tree(LISTS)
}

impl Opened {
    /// Brings the files here as far as they are not, looks at every one, and lets apt see them.
    pub(crate) async fn bring(&self, host: &Host) -> Result<()> {
        host.files.make_dir(DIR, 0o755)?;
        match &self.location {
            Location::Directory(dir) if self.is_roots_alone(host, dir)? => {
                if host.files.lstat(FILES)?.is_some_and(|m| m.is_dir()) {
                    host.files.remove_tree(FILES)?;
                }
                host.files
                    .symlink(FILES, manifest::join(dir, &self.manifest.directory).trim_end_matches('/'))?;
                verify::directory(&host.files, dir, &self.manifest)?.refuse(dir)?;
            }
            _ => {
                self.copy(host).await?;
                let here = Manifest { directory: String::new(), ..self.manifest.clone() };
                verify::directory(&host.files, FILES, &here)?.refuse(&self.location.to_string())?;
            }
        }
        self.is_verified.store(true, Ordering::Release);
        self.fill_cache(host)?;
        host.files.write(KEPT, &self.bytes, 0o644)?;
        // What is left of another bundle could be taken for this one's.
        host.files.remove_tree(LISTS)?;
        host.files.make_dir(format!("{LISTS}/partial"), 0o755)?;
        host.files.make_dir(SOURCES, 0o755)?;
        host.files.write(DISTRIBUTION, self.sources().as_bytes(), 0o644)?;
        host.apt().update().await
    }

    /// apt verifies these signatures, too. They are as old as the bundle, so that `Valid-Until` says nothing here: what is
    /// installed is pinned by the manifest.
    fn sources(&self) -> String {
        let mut text = String::from("# Written by gpu-bootstrap for a bundle.\n");
        for r in &self.manifest.repositories {
            let _ = write!(
                text,
                "\nTypes: deb\nURIs: file://{FILES}/{}/\nSuites: {}\n",
                r.path,
                r.suites.join(" ")
            );
            if !r.components.is_empty() {
                let _ = writeln!(text, "Components: {}", r.components.join(" "));
            }
            let _ = write!(
                text,
                "Architectures: {}\nSigned-By: {FILES}/{}\nTargets: Packages\nBy-Hash: no\nCheck-Valid-Until: no\n",
                self.manifest.made_for.arch.debian_name(),
                r.keyring
            );
        }
        text
    }

    /// Whether nobody but root could change a file between our look and its use.
    fn is_roots_alone(&self, host: &Host, dir: &str) -> Result<bool> {
        host.files.is_roots_alone(dir, self.manifest.files.iter().map(|f| self.manifest.place(&f.path)))
    }

    /// Copies or downloads what is not here yet. A file that is here, whole and right, is left by an earlier run.
    async fn copy(&self, host: &Host) -> Result<()> {
        if host.files.lstat(FILES)?.is_some_and(|m| !m.is_dir()) {
            host.files.remove(FILES)?;
        }
        host.files.make_dir(FILES, 0o755)?;
        let is_missing = |f: &&File| verify::one(&host.files, FILES, &f.path, f).is_err();
        let missing: Vec<_> = self.manifest.files.iter().filter(is_missing).collect();
        let needed: u64 = missing.iter().map(|f| f.size).sum();
        let free = host.files.free_bytes(FILES)?;
        if needed > free {
            let text =
                format!("the bundle takes {needed} bytes, but only {free} are free where {FILES} lies");
            return Err(Error::new(Code::DiskFull, text));
        }
        let mut items = Vec::new();
        for file in &missing {
            let inside = format!("{FILES}/{}", file.path);
            if let Some((parent, _)) = inside.rsplit_once('/') {
                host.files.make_dir(parent, 0o755)?;
            }
            host.files.remove(&inside)?;
            let path = host.files.outside(&inside)?;
            items.push(Item { uri: String::new(), size: file.size, sha256: file.sha256.clone(), path });
        }
        match &self.location {
            Location::Directory(from) => {
                // Named by what is wrong with them, before anything is copied.
                verify::directory(&host.files, from, &self.manifest)?.refuse(from)?;
                missing.iter().try_for_each(|file| {
                    let source = format!("{from}/{}", self.manifest.place(&file.path));
                    host.files.copy(source, format!("{FILES}/{}", file.path))
                })
            }
            Location::S3 { .. } => {
                let paths: Vec<_> = missing.iter().map(|f| self.manifest.place(&f.path)).collect();
                let urls = self.remote.urls(&self.location, &paths).await?;
                items.iter_mut().zip(urls).for_each(|(item, url)| item.uri = url);
                let failed = fetch_files(host, items).await?;
                let Some((number, error)) = failed.into_iter().next() else { return Ok(()) };
                let code = match error.code() {
                    Code::ChecksumMismatch => Code::BundleTampered,
                    other => other,
                };
                let text = format!("{}: {} cannot be used", self.location, paths[number]);
                Err(Error::new(code, text).because(error))
            }
        }
    }

    /// Package files by URL are looked for in the cache before anything is fetched.
    fn fill_cache(&self, host: &Host) -> Result<()> {
        host.files.make_dir(CACHE_DIR, 0o755)?;
        for file in self.manifest.files.iter().filter(|f| f.path.starts_with(DEBS)) {
            let cached = format!("{CACHE_DIR}/{}", file.sha256);
            host.files.remove(&cached)?;
            // What lies in the cache is hashed again before it is used.
            host.files.link_or_copy(format!("{FILES}/{}", file.path), cached)?;
        }
        Ok(())
    }
}
