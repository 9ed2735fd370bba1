//! `bundle`: everything that the plan installs is here, verified, and apt sees it and nothing else.
//!
//! Its check never asks whether an earlier run has looked: where a package is to be installed, this run looks at every
//! file itself. Where none is, the bundle need not even be there.

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::bundle::Opened;
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// A bundle of packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bundle {
    /// A directory, or `s3://bucket/prefix`.
    pub location: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
}

impl Bundle {
    /// The bundle that this run opened when it read its configuration.
    fn opened<'a>(&self, host: &'a Host) -> Result<&'a Opened> {
        let opened = host.bundle().filter(|b| b.location.to_string() == self.location);
        opened.ok_or_else(|| {
            Error::new(Code::StepInvalid, format!("the bundle {} is not source.packages", self.location))
        })
    }
}

impl Converge for Bundle {
    async fn check(&self, host: &Host) -> Result<Check> {
        let place = &self.location;
        match host.bundle() {
            Some(bundle) if bundle.is_verified() => {
                let (files, bytes) = (bundle.manifest.files.len(), bundle.manifest.bytes());
                Ok(Check::satisfied(format!("the {files} files ({bytes} bytes) of {place} are verified")))
            }
            _ => Ok(Check::deferred(format!("{place} is looked at when a package is missing"))),
        }
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        self.opened(host)?.bring(host).await.map(|()| Applied::Done)
    }

    fn describe(&self) -> String {
        format!("bundle {}", self.location)
    }
}
