//! `apt-pin`: what a repository may supply. As a whole it is pinned negative; positive are, by name, the packages
//! that are asked for and what they need from it.
//!
//! The names follow from the verified private index (see [`super::apt_index`]), which is why a check can tell a
//! pin file that was right once from one that is right.

use serde::{Deserialize, Serialize};

use super::repository::packages::{Index, request_name};
use super::repository::preferences::{self, MAIN_FILE, PARTS_DIR, Pins};
use super::repository::private::Private;
use super::repository::{host_of, location, matches_any, sources};
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// A preferences file for one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptPin {
    /// Preferences file. apt takes the first of several pins for a whole repository, in the order of file names.
    pub path: String,
    /// Base URL of the repository (its verified index gives the closure).
    pub url: String,
    /// Label of the repository.
    pub label: String,
    /// Packages that are asked for.
    pub packages: Vec<String>,
    /// Patterns of package names that the repository may supply.
    pub may_supply: Vec<String>,
    /// Patterns allowed besides the closure.
    pub always_allow: Vec<String>,
    /// Patterns of the packages that must have `pinned-version` (the driver's, where the repository has several
    /// branches under the same names); none when there is no such version.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// Pattern of that version, such as `580.*`.
    #[serde(default)]
    pub pinned_version: String,
    /// Base URLs of other repositories that this plan adds, possibly on the same host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<String>,
}

/// How the names of our preferences files begin: each is about another repository.
const OURS: &str = "00-gpu-bootstrap-";

impl Converge for AptPin {
    async fn check(&self, host: &Host) -> Result<Check> {
        if let Some(rival) = self.rivals(host)?.first() {
            return Ok(Check::needed(format!("{rival} pins the same repository")));
        }
        let private = Private::of(&self.url);
        if !host.files.exists(private.packages_path())? {
            return Ok(Check::needed(format!("the index of {} has not been fetched yet", self.url)));
        }
        let index = self.index(host)?;
        let wanted = self.content(host, &index)?;
        match host.files.read(&self.path)? {
            None => Ok(Check::needed(format!("{} does not exist", self.path))),
            Some(bytes) if bytes != wanted.as_bytes() => {
                Ok(Check::needed(format!("{} does not say what the repository may supply", self.path)))
            }
            Some(_) => Ok(Check::satisfied(format!(
                "{} lets {} supply {} packages by name, and nothing else",
                self.path,
                self.url,
                self.allowed(&index)?.len()
            ))),
        }
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let index = self.index(host)?;
        host.files.write(&self.path, self.content(host, &index)?.as_bytes(), 0o644)?;
        for rival in self.rivals(host)? {
            let kept = host.files.set_aside(&rival)?;
            host.notice(format!(
                "{rival} pinned the repository {}: set aside as {}",
                self.url,
                kept.display()
            ));
        }
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("pins for {}", self.url)
    }
}

impl AptPin {
    /// The verified index, reduced to the pinned branch.
    fn index(&self, host: &Host) -> Result<Index> {
        let mut index = Private::of(&self.url).index(host)?;
        if !self.pinned.is_empty() {
            index.keep_versions(&self.pinned, &self.pinned_version);
        }
        // A package that the repository may not supply comes from the distribution.
        let ours = |p: &&String| matches_any(&self.may_supply, request_name(p));
        if let Some(missing) = self.packages.iter().filter(ours).find(|p| !index.can_meet(p)) {
            let version = match self.pinned_version.as_str() {
                "" => String::new(),
                pattern => format!(" in a version {pattern}"),
            };
            return Err(Error::new(
                Code::PackageNotOffered,
                format!("{} does not offer {missing}{version}", self.url),
            )
            .with_hint("choose another driver branch, or leave it at \"auto\""));
        }
        Ok(index)
    }

    /// Names and patterns that may come from the repository, sorted.
    fn allowed<'a>(&'a self, index: &'a Index) -> Result<Vec<&'a str>> {
        let mut allowed = index.closure(&self.packages);
        if let Some(foreign) = allowed.iter().find(|name| !matches_any(&self.may_supply, name)) {
            return Err(Error::new(
                Code::ForeignPackage,
                format!("{} offers {foreign}, a package of the distribution", self.url),
            )
            .with_hint("nothing was installed from it"));
        }
        allowed.extend(self.always_allow.iter().map(String::as_str));
        Ok(allowed.into_iter().collect())
    }

    fn content(&self, host: &Host, index: &Index) -> Result<String> {
        let origin = host_of(&self.url);
        let exclusive = self.has_host_for_itself(host)?;
        let allowed = self.allowed(index)?;
        let host = exclusive.then_some(origin.as_str());
        let (pinned, allowed): (Vec<_>, Vec<_>) =
            allowed.into_iter().partition(|name| matches_any(&self.pinned, name));
        let version = (!pinned.is_empty()).then_some((self.pinned_version.as_str(), pinned.as_slice()));
        Ok(preferences::write(&Pins { label: &self.label, host, allowed: &allowed, version }))
    }

    /// Whether no other source of this machine comes from the same host. A mirror often holds the distribution's
    /// archive as well, which must not be pinned away.
    fn has_host_for_itself(&self, host: &Host) -> Result<bool> {
        let ours = host_of(&self.url);
        let entries = sources::read(host)?;
        let mut uris = entries.iter().flat_map(|e| &e.uris).chain(&self.neighbours);
        Ok(!uris.any(|u| host_of(u) == ours && location(u) != location(&self.url)))
    }

    /// Other preferences files about this repository. A file that is also about something else cannot be set aside
    /// as a whole, and no shared file is edited: that is an error which says what to do.
    fn rivals(&self, host: &Host) -> Result<Vec<String>> {
        let mut files = vec![MAIN_FILE.to_owned()];
        let parts = host.files.list(PARTS_DIR)?;
        files.extend(
            parts
                .iter()
                .filter(|n| preferences::is_read_by_apt(n) && !n.starts_with(OURS))
                .map(|n| format!("{PARTS_DIR}/{n}")),
        );
        let mut rivals = Vec::new();
        for file in files.into_iter().filter(|f| *f != self.path) {
            let Some(text) = host.files.read_text(&file)? else { continue };
            let records = preferences::parse(&text);
            let origin = host_of(&self.url);
            let Some(concerned) = records.iter().find(|r| r.concerns(&self.label, &origin)) else { continue };
            // NVIDIA's own pin file also keeps two of its packages from being taken from Ubuntu's archive.
            let companion = |packages: &[String]| packages.iter().all(|p| matches_any(&self.may_supply, p));
            let apart = records.iter().find(|r| !r.concerns(&self.label, &origin) && !companion(&r.packages));
            if let Some(apart) = apart {
                return Err(Error::new(
                    Code::PinConflict,
                    format!(
                        "{file}:{} pins the repository {}, and the same file pins other packages (line {})",
                        concerned.line, self.url, apart.line
                    ),
                )
                .with_hint(format!("remove the record at line {} of {file} and run again", concerned.line)));
            }
            rivals.push(file);
        }
        Ok(rivals)
    }
}
