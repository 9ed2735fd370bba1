//! `apt-package`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// packages
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptPackage {
    /// Names, possibly `name=version`.
    pub packages: Vec<String>,
    /// Whether recommended packages come along.
    #[serde(default)]
    pub recommends: bool,
    /// Whether the packages and what came with them are held.
    #[serde(default)]
    pub hold: bool,
}

impl Converge for AptPackage {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "packages".into()
    }
}
