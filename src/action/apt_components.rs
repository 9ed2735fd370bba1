//! `apt-components`: components of the distribution's own archive (`contrib`, `non-free`, …), enabled by a sources
//! file of our own that repeats the archive's address, suite and key with the missing components only.
//!
//! The distribution's own archive is known by what its verified Release file says (Origin), never by its address:
//! many third parties have a suite of the same name.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::apt_source::{has_packages, release_in_lists};
use super::repository::release::Release;
use super::repository::sources::{self, Entry};
use super::repository::{list_name, location};
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::facts::os::os_release;
use crate::host::Host;

/// Components of the distribution that must be enabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptComponents {
    /// Sources file (deb822) to write.
    pub path: String,
    /// Components that must be enabled.
    pub components: Vec<String>,
}

/// `Origin` of the archives that are the distribution's own.
const ORIGINS: [&str; 2] = ["Debian", "Ubuntu"];

/// One address and suite of the archive, and what is enabled from it.
struct Archive<'a> {
    uri: &'a str,
    suite: String,
    entry: &'a Entry,
    enabled: BTreeSet<&'a str>,
    /// What its Release file offers; `None` while apt has no index of it.
    release: Option<Release>,
}

impl Archive<'_> {
    fn list_prefix(&self) -> String {
        format!(
            "{}_dists_{}_",
            list_name(self.uri.trim_end_matches('/')),
            list_name(&format!(":{}", self.suite))
        )
    }

    fn is_distributions_own(&self) -> bool {
        self.release.as_ref().is_some_and(|r| ORIGINS.contains(&r.origin.as_str()))
    }
}

impl Converge for AptComponents {
    async fn check(&self, host: &Host) -> Result<Check> {
        if self.components.is_empty() {
            return Ok(Check::satisfied("no component besides those of the installation is needed"));
        }
        let codename = codename(host)?;
        let entries = sources::read(host)?;
        let archives = archives(host, &entries, &codename, None)?;
        let Some(main) = archives.iter().filter(|a| a.suite == codename).find(|a| a.is_distributions_own())
        else {
            let why = format!("apt has no index of the distribution's archive for {codename}");
            let is_enabled = |component: &String| {
                let may_be_its = archives.iter().filter(|a| a.suite == codename && a.release.is_none());
                may_be_its.clone().any(|a| a.enabled.contains(component.as_str()))
            };
            let all = self.components.iter().all(is_enabled);
            return Ok(if all { Check::deferred(why) } else { Check::needed(why) });
        };
        for component in &self.components {
            let enabled = archives
                .iter()
                .filter(|a| a.suite == codename && a.is_distributions_own())
                .find(|a| a.enabled.contains(component.as_str()));
            let Some(archive) = enabled else {
                return Ok(Check::needed(format!("{component} of {} {codename} is not enabled", main.uri)));
            };
            if !has_index(host, archive, component)? {
                return Ok(Check::deferred(format!(
                    "apt has no index of {component} of {} {codename}",
                    archive.uri
                )));
            }
        }
        Ok(Check::satisfied(format!("{} of {codename} enabled, with indexes", self.components.join(", "))))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let codename = codename(host)?;
        let entries = sources::read(host)?;
        // Our own file is written anew from what the others say.
        let mut known = archives(host, &entries, &codename, Some(&self.path))?;
        let mut refused = None;
        if known.iter().any(|a| a.release.is_none()) {
            refused = host.apt().update_for(&[]).await?;
            known = archives(host, &entries, &codename, Some(&self.path))?;
        }
        let own: Vec<&Archive<'_>> = known.iter().filter(|a| a.is_distributions_own()).collect();
        if let (true, Some(error)) = (own.is_empty(), refused) {
            // What apt says of the archive (that it is not to be reached, or the clock is wrong) is the reason.
            return Err(error);
        }
        self.judge(&own, &codename)?;
        match self.content(&own) {
            Some(content) => host.files.write(&self.path, content.as_bytes(), 0o644)?,
            // All are enabled, and only apt's indexes are missing, as on an image's first boot.
            None => host.files.remove(&self.path)?,
        }
        let addresses: Vec<String> = own.iter().map(|a| location(a.uri)).collect();
        let outcome = host.apt().update_for(&addresses).await;
        if outcome.is_err() {
            host.files.remove(&self.path)?;
        }
        outcome.map(|_| Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("components {} of the distribution", self.components.join(", "))
    }
}

impl AptComponents {
    /// There must be a source to repeat, it must be one that checks signatures, and it must have the components.
    fn judge(&self, own: &[&Archive<'_>], codename: &str) -> Result<()> {
        let release: Vec<_> = own.iter().filter(|a| a.suite == codename).collect();
        let signed: Vec<_> = release.iter().filter(|a| !a.entry.is_unsigned()).collect();
        if let (Some(unsigned), true) = (release.first(), signed.is_empty()) {
            return Err(Error::new(
                Code::UntrustedSource,
                format!("{} names {} without checking its signature", unsigned.entry.place(), unsigned.uri),
            )
            .with_hint("remove trusted=yes (or allow-insecure, allow-weak) from that entry and run again"));
        }
        if signed.is_empty() {
            return Err(Error::new(
                Code::ComponentMissing,
                format!("no source of this machine is the distribution's archive for {codename}"),
            )
            .with_hint("add the distribution's archive to /etc/apt/sources.list.d and run again"));
        }
        let offered = |component: &String| {
            signed.iter().any(|a| a.release.as_ref().is_some_and(|r| r.components.contains(component)))
        };
        match self.components.iter().find(|c| !offered(c)) {
            None => Ok(()),
            Some(component) => Err(Error::new(
                Code::ComponentMissing,
                format!("{} {codename} has no component {component}", signed[0].uri),
            )
            .with_hint("use a complete mirror of the distribution")),
        }
    }

    /// One stanza per address and suite that lacks components which it offers; `None` when none does.
    fn content(&self, own: &[&Archive<'_>]) -> Option<String> {
        const HEAD: &str = "# Written by gpu-bootstrap; changes are undone by its next run.\n";
        let mut text = String::from(HEAD);
        for archive in own.iter().filter(|a| !a.entry.is_unsigned()) {
            let offered = archive.release.iter().flat_map(|r| &r.components);
            let missing: Vec<&str> = offered
                .map(String::as_str)
                .filter(|c| self.components.iter().any(|w| w == c) && !archive.enabled.contains(c))
                .collect();
            if missing.is_empty() {
                continue;
            }
            let _ = write!(
                text,
                "\nTypes: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
                archive.uri,
                archive.suite,
                missing.join(" ")
            );
            // The same options as in the entry it completes: apt refuses two entries that differ in them.
            for (name, value) in &archive.entry.options {
                let _ = writeln!(text, "{name}: {}", value.replace('\n', "\n "));
            }
        }
        (text != HEAD).then_some(text)
    }
}

/// Every address and suite of this release (itself, `-updates`, `-security`) that some entry with `main` names,
/// entries of `skip` left out.
fn archives<'a>(
    host: &Host,
    entries: &'a [Entry],
    codename: &str,
    skip: Option<&str>,
) -> Result<Vec<Archive<'a>>> {
    let suites = ["", "-updates", "-security"].map(|s| format!("{codename}{s}"));
    let mut found: Vec<Archive<'a>> = Vec::new();
    let relevant =
        entries.iter().filter(|e| e.types.iter().any(|t| t == "deb") && Some(e.file.as_str()) != skip);
    for entry in relevant {
        for (uri, suite) in entry.uris.iter().flat_map(|u| entry.suites.iter().map(move |s| (u, s))) {
            // Debian's old form for security, and the harmless trailing slash.
            let suite = suite.trim_end_matches('/');
            if !suites.iter().any(|s| s == suite) {
                continue;
            }
            let components = entry.components.iter().map(String::as_str);
            if let Some(known) = found.iter_mut().find(|a| a.uri == uri && a.suite == suite) {
                known.enabled.extend(components);
                continue;
            }
            let mut archive =
                Archive { uri, suite: suite.to_owned(), entry, enabled: components.collect(), release: None };
            archive.release = release_in_lists(host, &archive.list_prefix())?;
            found.push(archive);
        }
    }
    Ok(found)
}

/// Whether apt has the Packages file of a component, for whatever architecture the machine has.
fn has_index(host: &Host, archive: &Archive<'_>, component: &str) -> Result<bool> {
    let prefix = format!("{}{}_binary-", archive.list_prefix(), list_name(&format!(":{component}")));
    for arch in ["amd64", "arm64"] {
        if has_packages(host, &format!("{prefix}{arch}_"))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `VERSION_CODENAME` of os-release.
fn codename(host: &Host) -> Result<String> {
    const PATH: &str = "/etc/os-release";
    let text = host.files.read_text(PATH)?.unwrap_or_default();
    match os_release(&text).remove("VERSION_CODENAME") {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(Error::new(Code::UnsupportedOs, format!("{PATH} has no VERSION_CODENAME"))
            .with_hint("a release of Ubuntu or Debian is needed (not testing or unstable)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.example.org/debian bookworm main contrib\n\
                        deb http://deb.example.org/debian bookworm-updates main\n\
                        deb [trusted=yes] http://local.example.org/debian bookworm main\n\
                        deb https://apt.example.com bookworm main\n";

    fn scratch(sources: &str) -> (tempfile::TempDir, Host, AptComponents) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        put("/etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n");
        put("/etc/apt/sources.list", sources);
        let release = |origin: &str| {
            format!(
                "Origin: {origin}\nDate: Sat, 14 Feb 2026 09:30:00 UTC\nComponents: main updates/contrib non-free\n"
            )
        };
        let lists = "/var/lib/apt/lists";
        put(&format!("{lists}/deb.example.org_debian_dists_bookworm_InRelease"), &release("Debian"));
        put(&format!("{lists}/deb.example.org_debian_dists_bookworm-updates_InRelease"), &release("Debian"));
        put(&format!("{lists}/local.example.org_debian_dists_bookworm_InRelease"), &release("Debian"));
        put(&format!("{lists}/apt.example.com_dists_bookworm_InRelease"), &release("Third Party"));
        let components = vec!["contrib".to_owned(), "non-free".to_owned()];
        (dir, host, AptComponents { path: "/etc/apt/sources.list.d/ours.sources".into(), components })
    }

    #[test]
    fn only_missing_components_of_the_distributions_own_signed_archive_are_added() {
        let (_dir, host, action) = scratch(LIST);
        let entries = sources::read(&host).unwrap();
        let all = archives(&host, &entries, "bookworm", None).unwrap();
        let own: Vec<_> = all.iter().filter(|a| a.is_distributions_own()).collect();
        action.judge(&own, "bookworm").unwrap();
        assert_eq!(
            action.content(&own).unwrap(),
            "# Written by gpu-bootstrap; changes are undone by its next run.\n\
             \nTypes: deb\nURIs: http://deb.example.org/debian\nSuites: bookworm\nComponents: non-free\n\
             Architectures: amd64\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\
             \nTypes: deb\nURIs: http://deb.example.org/debian\nSuites: bookworm-updates\nComponents: contrib non-free\n"
        );
    }

    #[test]
    fn where_all_are_enabled_no_file_is_needed() {
        let (_dir, host, action) =
            scratch("deb http://deb.example.org/debian bookworm main contrib non-free\n");
        let entries = sources::read(&host).unwrap();
        let all = archives(&host, &entries, "bookworm", None).unwrap();
        let own: Vec<_> = all.iter().filter(|a| a.is_distributions_own()).collect();
        assert_eq!(own.len(), 1);
        assert_eq!(action.content(&own), None);
    }

    #[test]
    fn an_archive_without_signatures_is_not_repeated() {
        let (_dir, host, action) =
            scratch("deb [trusted=yes] http://local.example.org/debian bookworm main\n");
        let entries = sources::read(&host).unwrap();
        let all = archives(&host, &entries, "bookworm", None).unwrap();
        let own: Vec<_> = all.iter().collect();
        assert_eq!(action.judge(&own, "bookworm").unwrap_err().code(), Code::UntrustedSource);
        assert_eq!(action.judge(&[], "bookworm").unwrap_err().code(), Code::ComponentMissing);
    }

    #[tokio::test]
    async fn enabled_without_an_index_is_not_enough() {
        let (_dir, host, action) =
            scratch("deb http://deb.example.org/debian bookworm main contrib non-free\n");
        let lists = "/var/lib/apt/lists/deb.example.org_debian_dists_bookworm";
        for (component, state) in [("contrib", "deferred"), ("non-free", "satisfied")] {
            let path = format!("{lists}_{component}_binary-amd64_Packages.lz4");
            host.files.write(path, b"x", 0o644).unwrap();
            let check = action.check(&host).await.unwrap();
            assert_eq!(check.state(), state, "{}", check.why());
        }
    }
}
