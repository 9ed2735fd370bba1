//! `apt-index`: a repository's index, fetched apart from the machine's own lists, verified, and judged before the
//! machine's apt ever sees the repository.
//!
//! apt itself verifies the signature, against our one key. What apt does not ask is asked here: is it the right
//! repository (Label), is the index not older than the floor (these repositories carry no Valid-Until, so an old
//! index stays validly signed for ever), does it offer what is wanted, and nothing that is the distribution's.

use std::collections::BTreeSet;
use std::io::BufReader;

use serde::{Deserialize, Serialize};

use super::repository::apart::{Apart, Verified};
use super::repository::matches_any;
use super::repository::packages::{self, Index};
use super::repository::private::{Private, malformed};
use super::repository::release::Release;
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::dpkg::compare_versions;

/// A verified private index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptIndex {
    /// Base URL of the flat repository.
    pub url: String,
    /// dpkg's name of the architecture.
    pub architecture: String,
    /// Keyring that must have signed it.
    pub keyring: String,
    /// The wanted Label of its Release file.
    pub label: String,
    /// Older indexes are refused.
    pub date_floor: String,
    /// Patterns of package names that the repository may supply. A wanted package that matches none of them is
    /// the distribution's to supply, and is not looked for here.
    pub may_supply: Vec<String>,
    /// The packages that will be asked for.
    pub packages: Vec<String>,
    /// An index whose newest version of one of them is older is an old one played back, where the date cannot tell: some
    /// repositories never change it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version_floor: String,
}

impl Converge for AptIndex {
    /// Asks neither the network nor the signature again: see [`super::repository::private`].
    async fn check(&self, host: &Host) -> Result<Check> {
        let private = Private::of(&self.url);
        let Some(release) = private.release(host)? else {
            return Ok(Check::needed(format!("the index of {} has not been fetched yet", self.url)));
        };
        if let Err(refused) = self.judge_release(&release) {
            return Ok(Check::needed(format!("the index that is here does not do: {}", refused.message())));
        }
        let size = host.files.lstat(private.packages_path())?.map(|m| m.len());
        let vouched = release.file("Packages").map(|f| f.size);
        if size.is_none() || vouched.is_some_and(|v| Some(v) != size) {
            return Ok(Check::needed(format!(
                "{} has {} bytes, its Release file says {}",
                private.packages_path(),
                size.map_or("no".to_owned(), |s| s.to_string()),
                vouched.unwrap_or_default()
            )));
        }
        let index = match private.index(host) {
            Err(e) if e.code() == Code::IndexMalformed => return Ok(Check::needed(e.message())),
            other => other?,
        };
        if let Err(refused) = self.judge_wanted(&index) {
            return Ok(Check::needed(refused.message()));
        }
        Ok(Check::satisfied(format!(
            "the index of {} ({} packages, dated {}) is verified",
            self.url,
            index.count(),
            release.date
        )))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let apart = Apart { url: &self.url, architecture: &self.architecture, keyring: &self.keyring };
        let private = Private::of(&self.url);
        let Verified { release, release_bytes, packages } = apart.fetch(host, &private).await?;
        self.judge_release(&release)?;
        let index = Index::read(packages.as_slice()).map_err(|why| malformed(&self.url, "Packages", &why))?;
        self.judge_foreign(&index, &essential(host)?)?;
        self.judge_wanted(&index)?;
        private.keep(host, &release_bytes, &packages).map(|()| Applied::Done)
    }

    fn describe(&self) -> String {
        format!("verified index of {}", self.url)
    }
}

impl AptIndex {
    fn judge_release(&self, release: &Release) -> Result<()> {
        if release.label != self.label {
            return Err(Error::new(
                Code::WrongRepository,
                format!("{} is labelled {:?}, wanted is {:?}", self.url, release.label, self.label),
            )
            .with_hint("the key is the right one, the repository is not: check the address"));
        }
        release.refuse_older(&self.url, &self.date_floor)
    }

    /// A repository for GPUs that offers libc6 wants more than it was added for.
    fn judge_foreign(&self, index: &Index, essential: &BTreeSet<String>) -> Result<()> {
        let needed = index.closure(&self.packages);
        let core = index.names().filter(|n| essential.contains(*n));
        let foreign = needed.into_iter().chain(core).find(|name| !matches_any(&self.may_supply, name));
        let Some(name) = foreign else { return Ok(()) };
        Err(Error::new(
            Code::ForeignPackage,
            format!(
                "{} offers {name} {}, a package of the distribution",
                self.url,
                index.newest(name).unwrap_or_default()
            ),
        )
        .with_hint("nothing was installed from it; if the package is the repository's own, add its name to may-supply in the catalog"))
    }

    fn judge_versions(&self, index: &Index) -> Result<()> {
        for name in self.packages.iter().map(|p| packages::request_name(p)) {
            let newest = index.newest(name).unwrap_or_default();
            if !self.version_floor.is_empty() && compare_versions(newest, &self.version_floor).is_lt() {
                return Err(Error::new(
                    Code::IndexTooOld,
                    format!(
                        "the index of {} is validly signed, but its newest {name} is {newest}, older than {}: a replayed index?",
                        self.url, self.version_floor
                    ),
                )
                .with_hint("a mirror that is not synchronised any more looks the same: use another address"));
            }
        }
        Ok(())
    }

    fn judge_wanted(&self, index: &Index) -> Result<()> {
        let ours = |p: &&String| matches_any(&self.may_supply, packages::request_name(p));
        let Some(missing) = self.packages.iter().filter(ours).find(|p| !index.can_meet(p)) else {
            return self.judge_versions(index);
        };
        let error = Error::new(Code::PackageNotOffered, format!("{} does not offer {missing}", self.url));
        let nearest = index.nearest(missing);
        Err(if nearest.is_empty() {
            error
        } else {
            error.with_hint(format!("it offers {}", nearest.join(", ")))
        })
    }
}

/// The packages that this machine cannot be without.
fn essential(host: &Host) -> Result<BTreeSet<String>> {
    const STATUS: &str = "/var/lib/dpkg/status";
    let file = std::fs::File::open(host.files.outside(STATUS)?).map_err(|e| Error::io("open", STATUS, e))?;
    packages::essential_closure(BufReader::new(file))
        .map_err(|why| Error::new(Code::DpkgBroken, format!("{STATUS}: {why}")))
}
