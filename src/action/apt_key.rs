//! `apt-key`

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// keyring
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptKey {
    /// Keyring file.
    pub path: String,
    /// The one key: 40 hexadecimal digits.
    pub fingerprint: String,
    /// The key, ASCII-armoured.
    pub key: String,
}

impl Converge for AptKey {
    async fn check(&self, _host: &Host) -> Result<Check> {
        Ok(Check::unknown("not implemented"))
    }

    async fn apply(&self, _host: &Host) -> Result<Applied> {
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        "keyring".into()
    }
}
