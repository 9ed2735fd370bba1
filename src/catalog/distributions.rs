//! The distributions that the catalog knows, for people and for whoever asks for all of them.

use serde::Serialize;

use super::Catalog;
use super::machine;
use crate::facts::os::Arch;

/// A distribution.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    /// `ubuntu2204`
    pub name: String,
    /// `Ubuntu 22.04`
    pub title: String,
    /// NVIDIA's repository for it.
    pub nvidia: Option<Offer>,
    /// Its own packages.
    pub own: Offer,
}

/// What a source of packages has.
#[derive(Clone, Debug, Serialize)]
pub struct Offer {
    /// Processor architectures, as dpkg calls them.
    pub architectures: Vec<String>,
    /// `11.7 to 13.3`, or one version.
    pub toolkits: String,
    /// `470 to 610`, or a list.
    pub branches: String,
    /// Whether the key is known that signs it.
    pub key_known: bool,
    /// Which of this no source confirms.
    pub unverified: Vec<String>,
}

impl Distribution {
    /// As people write it: `ubuntu22.04`.
    pub fn written(&self) -> String {
        let (id, version) = machine::split(&self.name);
        format!("{id}{version}")
    }
}

/// Every distribution, in the order of the catalog.
pub fn all(catalog: &Catalog) -> Vec<Distribution> {
    let nvidia = |name: &str| {
        let row = catalog.repositories.rows.iter().find(|r| r.distro == name)?;
        let (toolkits, branches) = (row.toolkits.as_ref()?, row.branches.as_ref()?);
        Some(Offer {
            architectures: row.directories.iter().flat_map(|d| d.keys().cloned()).collect(),
            toolkits: format!("{} to {}", toolkits.first, toolkits.last),
            branches: format!("{} to {}", branches.first, branches.last),
            key_known: catalog.repositories.key_of(row).is_some(),
            unverified: row.unverified.clone(),
        })
    };
    let rows = catalog.distros.distro.iter().map(|row| {
        let mut branches: Vec<_> = row.driver.iter().flat_map(|d| d.branches.keys()).collect();
        branches.sort();
        let branches: Vec<_> = branches.into_iter().map(ToString::to_string).collect();
        Distribution {
            name: row.name.clone(),
            title: row.title.clone(),
            nvidia: nvidia(&row.name),
            own: Offer {
                architectures: row.architectures.iter().map(|a: &Arch| a.debian_name().to_owned()).collect(),
                toolkits: row.toolkit.to_string(),
                branches: branches.join(", "),
                key_known: true,
                unverified: row.unverified.clone(),
            },
        }
    });
    rows.collect()
}
