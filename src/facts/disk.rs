//! Free space where packages and toolkits go, and the instance store.

use serde::Serialize;

use super::Fact;
use super::instance_store;
use crate::error::Result;
use crate::host::Host;

/// Free bytes, per place that the install fills.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    /// Free bytes for root on the file system of `/usr`.
    pub usr_free: Fact<u64>,
    /// Free bytes for root on the file system of `/var`.
    pub var_free: Fact<u64>,
    /// The instance store's devices.
    pub instance_store: Fact<Vec<instance_store::Device>>,
}

/// Asks the file systems.
pub fn gather(host: &Host) -> Result<Disk> {
    Ok(Disk {
        usr_free: Fact::new(host.files.free_bytes("/usr")?, "statvfs /usr"),
        var_free: Fact::new(host.files.free_bytes("/var")?, "statvfs /var"),
        instance_store: instance_store::gather(&host.files)?,
    })
}
