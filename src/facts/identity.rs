//! Who this machine is: EC2 or not (decided by DMI before any packet), instance identity, user-data, boot id.

use serde::Serialize;

use super::Fact;
use crate::error::Result;
use crate::host::Host;
use crate::imds;

/// Who this machine is.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// Whether this is an EC2 instance.
    pub on_ec2: Fact<bool>,
    /// What the metadata service says; absent off EC2 and with `--no-imds`.
    pub instance: Option<Fact<Instance>>,
    /// Raw user-data, as given at launch; absent when there is none. Never printed.
    #[serde(skip)]
    pub user_data: Option<Fact<Vec<u8>>>,
    /// The kernel's id of this boot.
    pub boot_id: Fact<String>,
}

/// The instance identity document's fields that we use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// For example `g5.xlarge`.
    pub instance_type: String,
    /// For example `us-east-1`.
    pub region: String,
    /// For example `us-east-1a`.
    pub availability_zone: String,
    /// Twelve digits.
    pub account_id: String,
    /// `ami-…`
    pub image_id: String,
    /// `x86_64` or `arm64`, as the document spells it.
    pub architecture: String,
}

impl Identity {
    /// The instance type, where known.
    pub fn instance_type(&self) -> Option<&str> {
        self.instance.as_ref().map(|i| i.value.instance_type.as_str())
    }

    /// The id that keys receipts: the instance id, or `local` off EC2.
    pub fn instance_id(&self) -> &str {
        self.instance.as_ref().map_or("local", |i| i.value.id.as_str())
    }
}

/// Reads identity and user-data.
pub async fn gather(host: &Host, metadata: Option<&imds::Client>) -> Result<Identity> {
    let _ = metadata;
    let boot = host.files.read_text("/proc/sys/kernel/random/boot_id")?.unwrap_or_default().trim().to_owned();
    Ok(Identity {
        on_ec2: Fact::new(false, "not implemented"),
        instance: None,
        user_data: None,
        boot_id: Fact::new(boot, "/proc/sys/kernel/random/boot_id"),
    })
}
