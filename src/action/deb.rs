//! `deb`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// files
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deb {
    /// URL and SHA-256 of each file.
    pub files: Vec<crate::catalog::choose::Deb>,
    /// Whether the packages are held.
    #[serde(default)]
    pub hold: bool,
}

impl Converge for Deb {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "files".into()
    }
}
