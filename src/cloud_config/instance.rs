//! What a task may have to know of the instance.

use std::time::Duration;

use crate::error::Result;
use crate::host::files::Files;
use crate::imds;
use crate::instance::hostname::{self, Name};

/// What a task may have to know of the instance.
#[derive(Clone, Copy)]
pub(crate) struct Instance<'a> {
    /// `i-…`, or `local`.
    pub(crate) id: &'a str,
    /// `[instance] user`.
    pub(crate) login_user: &'a str,
    /// The metadata service, where it may be asked.
    pub(crate) metadata: Option<&'a imds::Client>,
}

/// What the metadata service gets when it is asked for the name.
const METADATA: Duration = Duration::from_secs(10);

impl Instance<'_> {
    /// The name that EC2 gives; what the machine has, where EC2 says nothing.
    pub(super) async fn name(&self, files: &Files) -> Result<Name> {
        if let Some(client) = self.metadata
            && let Some(name) = hostname::given(&client.renewed(METADATA)).await?.0
        {
            return Ok(name);
        }
        let full = files.read_text("/etc/hostname")?.unwrap_or_default().trim().to_owned();
        let short = full.split('.').next().unwrap_or_default().to_owned();
        Ok(Name { short, full })
    }
}
