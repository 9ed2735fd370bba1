//! Packages being installed at this moment, on disk. When a run is killed, dpkg's word about these packages
//! cannot be believed: its status file is synced, the packages' files need not be. The list is honoured whatever
//! the receipt or the instance id says; an image can be captured in the middle of an installation.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::host::apt::lists;
use crate::host::apt::simulate::{Install, Plan};
use crate::host::dpkg::Control;
use crate::host::{Host, paths};

const VERSION: u32 = 1;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InFlight {
    version: u32,
    pub(super) packages: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) arch: String,
    pub(super) version: String,
    /// The package file, where it did not come from a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    /// Whether another version was there before.
    #[serde(default)]
    pub(super) upgrade: bool,
}

impl InFlight {
    /// Everything that the plan installs; `files` are the package files among the request.
    pub(super) fn of(plan: &Plan, files: &[(String, Control)]) -> Self {
        let entry = |i: &Install| Entry {
            name: i.name.clone(),
            arch: i.arch.clone(),
            version: i.new.clone(),
            file: files
                .iter()
                .find(|(_, c)| c.name == i.name && c.version == i.new)
                .map(|(path, _)| path.clone()),
            upgrade: i.old.is_some(),
        };
        Self { version: VERSION, packages: plan.installs.iter().map(entry).collect() }
    }

    /// The list that an earlier run left behind, if it was killed.
    pub(super) fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.files.read(paths::IN_FLIGHT)? else { return Ok(None) };
        let unreadable = || {
            Error::new(Code::DpkgBroken, format!("cannot understand {}", paths::IN_FLIGHT)).with_hint(format!(
                "an earlier run was killed while it installed packages: run `dpkg --verify`, reinstall what it \
                 names, and remove {}",
                paths::IN_FLIGHT
            ))
        };
        let list: Self = serde_json::from_slice(&bytes).map_err(|e| unreadable().because(e))?;
        if list.version != VERSION {
            return Err(unreadable().because(format!("its version is {}, known is {VERSION}", list.version)));
        }
        Ok(Some(list))
    }

    /// Puts the list on disk, durably, before the first package is touched.
    pub(super) fn write(&self, host: &Host) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Code::Io, format!("cannot write {}", paths::IN_FLIGHT)).because(e))?;
        host.files.write(paths::IN_FLIGHT, &json, 0o644)
    }

    /// Takes the list away once everything that the packages wrote is on disk.
    pub(super) async fn clear(host: &Host) -> Result<()> {
        host.sync(&WRITTEN).await?;
        lists::synced(host)?;
        host.files.remove(paths::IN_FLIGHT)
    }
}

/// Where packages write: each of these may be a file system of its own.
const WRITTEN: [&str; 8] = ["/", "/boot", "/etc", "/opt", "/usr", "/usr/local", "/var", "/var/lib"];

impl Host {
    /// Packages (`name:arch`) that a killed run was about to bring to this machine: whatever dpkg says of them
    /// by now, they came with that run.
    pub fn packages_arriving(&self) -> Result<HashSet<String>> {
        let list = InFlight::read(self)?.map(|list| list.packages).unwrap_or_default();
        Ok(list.iter().filter(|e| !e.upgrade).map(|e| format!("{}:{}", e.name, e.arch)).collect())
    }

    /// Whether an earlier run was killed while it installed packages.
    pub fn packages_in_flight(&self) -> Result<bool> {
        self.files.exists(paths::IN_FLIGHT)
    }
}
