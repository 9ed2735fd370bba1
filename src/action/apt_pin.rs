//! `apt-pin`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// pin
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptPin {
    /// Preferences file.
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
}

impl Converge for AptPin {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "pin".into()
    }
}
