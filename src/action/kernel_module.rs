//! `kernel-module`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// kernel modules
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelModule {
    /// Modules, in order.
    pub modules: Vec<String>,
}

impl Converge for KernelModule {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "kernel modules".into()
    }
}
