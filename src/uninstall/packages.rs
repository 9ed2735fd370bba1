//! The packages that go. apt's simulation decides: what something of others needs stays, and is named with who needs it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::plan::Left;
use crate::error::{Code, Error, Result};
use crate::host::added::{Added, AddedPackage};
use crate::host::dpkg::{Database, Package, State, Want};
use crate::host::exec::Call;
use crate::host::{Host, paths};
use crate::install::arriving::Arriving;

/// A kernel is never taken away: it may be the one that runs, and the next boot needs one.
const KERNELS: [&str; 2] = ["linux-image-", "linux-modules-"];

/// Packages, each as `name:arch`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Packages {
    /// To be removed.
    pub(super) remove: Vec<String>,
    /// Of those, and of what is removed already, whose configuration goes, too.
    pub(super) purge: Vec<String>,
    /// What stays.
    pub(super) left: Vec<Left>,
    /// Of what stays, or was there before, what we have put on hold.
    pub(super) unhold: Vec<String>,
}

impl Packages {
    pub(super) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.purge.is_empty() && self.unhold.is_empty()
    }

    pub(super) async fn of(host: &Host, added: &Added, notes: &mut Vec<String>) -> Result<Self> {
        let added_packages = with_arriving(host, added)?;
        if added_packages.is_empty() {
            unknown(host, notes)?;
            return Ok(Self { unhold: still_held(&*host.packages()?, added, &[]), ..Self::default() });
        }
        let mut found = Self::default();
        let manual = host.apt().manual().await?;
        let database = host.packages()?; // now that nobody holds apt's locks
        let mut remove = BTreeMap::new();
        for (id, how) in &added_packages {
            let Some(package) = database.all().find(|p| p.id() == *id) else { continue };
            if package.state == State::Absent {
                continue;
            }
            if let Some(why) = kept_because(package, how, &manual) {
                found.left.push(Left { what: id.clone(), why });
            } else {
                remove.insert(package.name.clone(), package);
            }
        }
        found.spare_what_others_need(host, &database, &mut remove).await?;
        found.remove = remove.values().map(|p| p.id()).collect();
        let changed = changed_conffiles(host, &added_packages, &database).await?;
        for (id, path) in &changed {
            found.left.push(Left {
                what: path.clone(),
                why: format!("this configuration file of {id} was changed"),
            });
        }
        let configured = |id: &&String| found.remove.contains(id) || is_configured(host, id);
        found.purge = added_packages
            .keys()
            .filter(configured)
            .filter(|id| changed.iter().all(|(other, _)| other != *id))
            .filter(|id| found.left.iter().all(|l| l.what != **id))
            .cloned()
            .collect();
        found.unhold = still_held(&database, added, &found.remove);
        Ok(found)
    }

    /// Takes out of `remove` what other packages depend on, until apt's simulation takes away nothing else.
    async fn spare_what_others_need(
        &mut self,
        host: &Host,
        database: &Database,
        remove: &mut BTreeMap<String, &Package>,
    ) -> Result<()> {
        while !remove.is_empty() {
            let asked: Vec<String> = remove.values().map(|p| for_apt(&p.id())).collect();
            let gone = host.apt().would_remove(&asked).await?;
            let foreign: Vec<&String> = gone.iter().filter(|name| !remove.contains_key(*name)).collect();
            let Some(first) = foreign.first() else { return Ok(()) };
            let mut spared = BTreeSet::new();
            let mut pending: Vec<&Package> = foreign.iter().flat_map(|name| database.named(name)).collect();
            let mut seen = BTreeSet::new();
            while let Some(package) = pending.pop() {
                if !seen.insert(package.id()) {
                    continue;
                }
                for needed in database.dependencies(package) {
                    if remove.contains_key(&needed.name) {
                        spared.insert(needed.name.clone());
                    }
                    pending.push(needed);
                }
            }
            if spared.is_empty() {
                return Err(Error::new(
                    Code::WouldRemove,
                    format!("taking our packages back would also remove {first}, which names none of them"),
                )
                .with_hint("remove the packages by hand (`gpu-bootstrap uninstall --dry-run` lists them)"));
            }
            for name in spared {
                if let Some(package) = remove.remove(&name) {
                    self.left.push(Left { what: package.id(), why: format!("{first} needs it") });
                }
            }
        }
        Ok(())
    }
}

/// What we have put on hold, is so still, and stays: packages that were there before, too.
fn still_held(database: &Database, added: &Added, remove: &[String]) -> Vec<String> {
    let is_held = |id: &&String| database.all().any(|p| p.id() == **id && p.want == Want::Hold);
    added.held.iter().filter(|id| !remove.contains(id)).filter(is_held).cloned().collect()
}

/// What an installation that was killed has brought belongs to it.
fn with_arriving(host: &Host, added: &Added) -> Result<BTreeMap<String, AddedPackage>> {
    let mut all = added.packages.clone();
    for id in Arriving::into_others(host, "")? {
        all.entry(id).or_default();
    }
    Ok(all)
}

/// Packages on record of which nobody noted that they were not there before.
fn unknown(host: &Host, notes: &mut Vec<String>) -> Result<()> {
    if host.files.list(paths::PACKAGE_FILES_DIR)?.is_empty() {
        return Ok(());
    }
    let database = host.packages()?;
    let held: Vec<_> = database.all().filter(|p| p.want == Want::Hold).map(|p| p.name.clone()).collect();
    notes.push(format!(
        "an earlier version installed packages and did not note which were new, so they stay; on hold are: {}",
        if held.is_empty() { "none".to_owned() } else { held.join(", ") }
    ));
    Ok(())
}

fn kept_because(package: &Package, how: &AddedPackage, manual: &[String]) -> Option<String> {
    if KERNELS.iter().any(|k| package.name.starts_with(k)) {
        return Some("a kernel is not taken away".into());
    }
    let is_manual = manual.iter().any(|m| *m == package.name || *m == package.id());
    (!how.asked && is_manual).then(|| "somebody has asked for it since (apt-mark showmanual)".into())
}

/// Whether only its configuration is there: what purging is for.
fn is_configured(host: &Host, id: &str) -> bool {
    let name = for_apt(id);
    let bare = name.split(':').next().unwrap_or(&name);
    ["list", "postrm", "conffiles"].iter().any(|suffix| {
        [&name, bare]
            .iter()
            .any(|n| host.files.exists(format!("/var/lib/dpkg/info/{n}.{suffix}")).unwrap_or(false))
    })
}

/// `all` is no architecture to ask for on older apts.
fn for_apt(id: &str) -> String {
    id.strip_suffix(":all").unwrap_or(id).to_owned()
}

/// The configuration files that differ from what their package brought, with its id.
async fn changed_conffiles(
    host: &Host,
    added: &BTreeMap<String, AddedPackage>,
    database: &Database,
) -> Result<Vec<(String, String)>> {
    let with: Vec<&Package> =
        database.all().filter(|p| added.contains_key(&p.id()) && !p.conffiles.is_empty()).collect();
    if with.is_empty() {
        return Ok(Vec::new());
    }
    let format = "${Package}:${Architecture}\\n${Conffiles}\\n";
    let query = Call::new("dpkg-query")
        .args(["--show", "--showformat", format])
        .args(with.iter().map(|p| for_apt(&p.id())));
    let shown = host.exec.run(&query).await?.text();
    let (mut id, mut changed) = ("", Vec::new());
    for line in shown.lines().filter(|l| !l.trim().is_empty()) {
        if !line.starts_with(' ') {
            id = line;
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(path), Some(sum)) = (words.next(), words.next()) else { continue };
        // A name without a sum is one of a package that was not unpacked; a file that is gone is nobody's loss.
        if sum.len() != 32 || !host.files.lstat(path)?.is_some_and(|m| m.is_file()) {
            continue;
        }
        let output = host.exec.run(&Call::new("md5sum").args([path])).await?.text();
        if output.split_ascii_whitespace().next() != Some(sum) {
            changed.push((id.to_owned(), path.to_owned()));
        }
    }
    Ok(changed)
}

/// Notes that these go: an apt that is killed has forgotten by then which of them were dependencies only.
fn note_begun(host: &Host, remove: &[String]) -> Result<()> {
    let mut added = Added::read(&host.files)?;
    for id in remove {
        added.packages.entry(id.clone()).or_default().asked = true;
    }
    added.write(&host.files)
}

/// Takes them away.
pub(super) async fn take(host: &Host, packages: &Packages) -> Result<()> {
    let ids = |all: &[String]| all.iter().map(|id| for_apt(id)).collect::<Vec<_>>();
    if !packages.remove.is_empty() {
        note_begun(host, &packages.remove)?;
        host.apt().remove(&ids(&packages.remove)).await?;
    }
    if !packages.purge.is_empty() {
        host.apt().purge(&ids(&packages.purge)).await?;
    }
    if packages.unhold.is_empty() { Ok(()) } else { host.apt().unhold(&ids(&packages.unhold)).await }
}
