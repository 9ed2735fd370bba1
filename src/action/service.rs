//! `service`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// service
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Unit name.
    pub unit: String,
}

impl Converge for Service {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "service".into()
    }
}
