//! `apt-index`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// index
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptIndex {
    /// Base URL of the flat repository.
    pub url: String,
    /// Keyring that must have signed it.
    pub keyring: String,
    /// The wanted Label of its Release file.
    pub label: String,
    /// Older indexes are refused.
    pub date_floor: String,
    /// Patterns of package names that the repository may supply.
    pub may_supply: Vec<String>,
    /// The packages that will be asked for.
    pub packages: Vec<String>,
}

impl Converge for AptIndex {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "index".into()
    }
}
