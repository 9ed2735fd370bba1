//! Packages on their way into a record: what an installation brings for one set of packages, on disk from before apt
//! works until the record of their files is made. When a run is killed between the two, dpkg no longer tells which
//! packages came with it, and which of them apt must go on regarding as dependencies.

use std::collections::{BTreeSet, HashSet};

use crate::error::Result;
use crate::host::{Host, paths};

const SUFFIX: &str = ".arriving";
/// How lines begin: a package that was not there before, and one that is there as a dependency only.
const NEW: &str = "new ";
const AUTOMATIC: &str = "automatic ";

/// The packages (`name:arch`) that are on their way into one record.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arriving {
    /// They were not there before.
    pub new: BTreeSet<String>,
    /// The installation names them, and nobody has asked for them.
    pub automatic: BTreeSet<String>,
}

impl Arriving {
    fn path(key: &str) -> String {
        format!("{}/{key}{SUFFIX}", paths::PACKAGE_FILES_DIR)
    }

    /// What is on its way into the record `key`; `None` when nothing is.
    pub fn read(host: &Host, key: &str) -> Result<Option<Self>> {
        Ok(host.files.read_text(Self::path(key))?.map(|text| Self::parse(&text)))
    }

    /// Lines that are not understood are a later version's.
    fn parse(text: &str) -> Self {
        let with = |word: &str| text.lines().filter_map(|l| l.strip_prefix(word)).map(Into::into).collect();
        Self { new: with(NEW), automatic: with(AUTOMATIC) }
    }

    /// Puts it on disk, durably, with what an earlier run left there.
    pub(super) fn write(mut self, host: &Host, key: &str) -> Result<()> {
        let earlier = Self::read(host, key)?.unwrap_or_default();
        self.new.extend(earlier.new);
        self.automatic.extend(earlier.automatic);
        let lines = |word: &str, ids: &BTreeSet<String>| -> String {
            ids.iter().flat_map(|id| [word, id, "\n"]).collect()
        };
        let text = lines(NEW, &self.new) + &lines(AUTOMATIC, &self.automatic);
        host.files.write(Self::path(key), text.as_bytes(), 0o644)
    }

    /// The record is made.
    pub fn arrived(host: &Host, key: &str) -> Result<()> {
        if host.files.exists(Self::path(key))? { host.files.remove(Self::path(key)) } else { Ok(()) }
    }

    /// What is on its way into any other record: no part of this one, whichever run brings it there.
    pub fn into_others(host: &Host, key: &str) -> Result<HashSet<String>> {
        let mut all = HashSet::new();
        for name in host.files.list(paths::PACKAGE_FILES_DIR)? {
            if let Some(other) = name.strip_suffix(SUFFIX).filter(|other| *other != key) {
                all.extend(Self::read(host, other)?.unwrap_or_default().new);
            }
        }
        Ok(all)
    }
}
