//! `device-query`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// device query
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceQuery {
    /// How many GPUs there must be; 0 when unknown.
    pub gpus: u32,
    /// Sonames that the dynamic linker must know.
    pub libraries: Vec<String>,
    /// Whether a driver was asked for.
    #[serde(default)]
    pub driver: bool,
}

impl Converge for DeviceQuery {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "device query".into()
    }
}
