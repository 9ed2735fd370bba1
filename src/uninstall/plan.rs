//! What would be taken back, and what would stay and why: [`Added`] against the machine.

use std::collections::BTreeSet;

use serde::Serialize;

use super::packages::Packages;
use crate::action::python_environment;
use crate::action::repository::list_name;
use crate::error::Result;
use crate::host::added::{Added, Before, state};
use crate::host::{Host, paths};

const LISTS: &str = "/var/lib/apt/lists";
const SOURCES: &str = "/etc/apt/sources.list.d/";

/// All of it, in the order in which it is done.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    pub(super) units: Vec<String>,
    pub(super) packages: Packages,
    pub(super) files: Vec<File>,
    /// Python environments.
    pub(super) environments: Vec<String>,
    /// apt's indexes of the sources that go.
    pub(super) lists: Vec<String>,
    /// Directories that go if they are empty then.
    pub(super) directories: Vec<String>,
    /// Files that stay.
    pub(super) left: Vec<Left>,
    /// Things to know besides.
    pub(super) notes: Vec<String>,
}

/// A path that is taken back.
#[derive(Debug, Serialize)]
pub(super) struct File {
    pub(super) path: String,
    #[serde(skip)]
    pub(super) lies: Lies,
    /// What was there before comes back.
    restored: bool,
}

impl File {
    /// Whether what was there before comes back.
    pub(super) fn is_restored(&self) -> bool {
        self.restored
    }
}

/// What lies at a path.
#[derive(Debug)]
pub(super) enum Lies {
    /// Ours; nothing was there before.
    Ours,
    /// Ours, and something was there before.
    InPlaceOf(Before),
}

/// What stays, and why.
#[derive(Debug, Serialize)]
pub(super) struct Left {
    pub(super) what: String,
    pub(super) why: String,
}

impl Plan {
    pub(super) async fn of(host: &Host) -> Result<Self> {
        let added = Added::read(&host.files)?;
        let (mut files, mut left) = (Vec::new(), Vec::new());
        for (path, file) in &added.files {
            let now = state(&host.files, path)?;
            let before = file.before.as_ref().map(|b| &b.state);
            if now.as_ref() == before {
                continue; // as it was, or gone already
            }
            let mut stays = |why: &str| left.push(Left { what: path.clone(), why: why.to_owned() });
            match (&now, &file.before) {
                (Some(now), before) if *now == file.written => files.push(File {
                    path: path.clone(),
                    restored: before.is_some(),
                    lies: before.clone().map_or(Lies::Ours, Lies::InPlaceOf),
                }),
                (None, Some(before)) => {
                    stays(&format!("somebody removed it; what was there before is {}", before.kept));
                }
                (Some(_), _) if file.written.is_empty() => {
                    stays("a run was killed while it wrote it; look at it");
                }
                _ => stays("it was changed since it was written"),
            }
        }
        let mut environments = Vec::new();
        for path in &added.environments {
            let stays = |why: String| Left { what: path.clone(), why };
            match python_environment::others(&host.files, path)? {
                None if host.files.lstat(path)?.is_none() => {} // gone already
                None => left.push(stays("it is no environment of ours any more".into())),
                Some(others) if others.is_empty() => environments.push(path.clone()),
                Some(others) => left.push(stays(format!("it has {}, too", others.join(", ")))),
            }
        }
        let mut lists = Vec::new();
        for file in files.iter().filter(|f| f.path.starts_with(SOURCES) && f.path.contains("gpu-bootstrap")) {
            lists.extend(lists_of(host, &file.path)?);
        }
        let units = units(host, &added)?;
        let mut notes = notes(host, &added)?;
        let packages = Packages::of(host, &added, &mut notes).await?;
        let directories =
            added.directories.iter().filter(|d| host.files.exists(d).unwrap_or(false)).cloned().collect();
        Ok(Self { units, packages, files, environments, lists, directories, left, notes })
    }

    /// Whether nothing of ours is there.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
            && self.packages.is_empty()
            && self.files.is_empty()
            && self.environments.is_empty()
            && self.lists.is_empty()
    }

    /// What of `added` stays true once this is carried out.
    pub(super) fn what_stays(&self, added: &Added) -> Added {
        let stays: BTreeSet<&str> = self.left.iter().map(|l| l.what.as_str()).collect();
        let files = added.files.iter().filter(|(path, _)| stays.contains(path.as_str()));
        let packages =
            added.packages.iter().filter(|(id, _)| self.packages.left.iter().any(|l| l.what == **id));
        Added {
            schema: added.schema,
            files: files.map(|(path, file)| (path.clone(), file.clone())).collect(),
            packages: packages.map(|(id, package)| (id.clone(), package.clone())).collect(),
            environments: added.environments.iter().filter(|e| stays.contains(e.as_str())).cloned().collect(),
            ..Added::default()
        }
    }
}

/// apt's files of the repositories that a sources file of ours names.
fn lists_of(host: &Host, sources: &str) -> Result<Vec<String>> {
    let text = host.files.read_text(sources)?.unwrap_or_default();
    let uris = text.lines().filter_map(|l| l.strip_prefix("URIs:")).map(str::trim);
    let prefixes: Vec<_> = uris.map(|uri| list_name(&format!("{}/", uri.trim_end_matches('/')))).collect();
    let names = host.files.list(LISTS)?.into_iter();
    let ours = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix.as_str())));
    Ok(ours.map(|name| format!("{LISTS}/{name}")).collect())
}

/// Those that some file still describes: what a package's removal takes with it needs no word of ours afterwards.
fn units(host: &Host, added: &Added) -> Result<Vec<String>> {
    let mut units = Vec::new();
    for unit in &added.units {
        let mut known = false;
        for dir in ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"] {
            known |= host.files.exists(format!("{dir}/{unit}"))?;
        }
        if known {
            units.push(unit.clone());
        }
    }
    Ok(units)
}

fn notes(host: &Host, added: &Added) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let aside = host.files.list(paths::SET_ASIDE_DIR)?;
    if !aside.is_empty() {
        notes.push(format!(
            "{} has files of others that stood in the way: {}",
            paths::SET_ASIDE_DIR,
            aside.join(", ")
        ));
    }
    let wants = "/etc/systemd/system/multi-user.target.wants/gpu-bootstrap.service";
    if host.files.exists(wants)? {
        notes.push("gpu-bootstrap.service is enabled: the next boot installs again, unless `systemctl disable gpu-bootstrap.service`".into());
    }
    if host.files.exists("/sys/module/nvidia")? && !added.packages.is_empty() {
        notes.push("the NVIDIA kernel module stays loaded until the next boot".into());
    }
    Ok(notes)
}

/// Puts back what was there before.
pub(super) fn restore(host: &Host, path: &str, before: &Before) -> Result<()> {
    if let Some(target) = before.state.strip_prefix("link ") {
        return host.files.symlink(path, target);
    }
    let bytes = host.files.read(&before.kept)?.unwrap_or_default();
    host.files.write(path, &bytes, before.mode)
}
