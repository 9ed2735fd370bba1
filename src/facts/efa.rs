//! EFA devices: Amazon's network adapters that bypass the kernel, by their PCI ids. An instance has as many as it was launched
//! with, whatever its type could have.

use super::Fact;
use super::gpu::{PciDevice, pci};
use crate::error::Result;
use crate::host::Host;

/// Where the kernel shows them.
pub const SYSFS: &str = "/sys/bus/pci/devices";
/// PCI vendor Amazon.
const AMAZON: u16 = 0x1d0f;
/// `1d0f:efa0` to `efa4` so far; EFA's installer looks for every `1d0f:efa…`.
const FIRST: u16 = 0xefa0;

/// Whether this id is an EFA device's.
pub fn is_efa(vendor: u16, device: u16) -> bool {
    vendor == AMAZON && device & 0xfff0 == FIRST
}

/// Those on the PCI bus, in its order.
pub fn gather(host: &Host) -> Result<Vec<Fact<PciDevice>>> {
    let mut found = Vec::new();
    for name in host.files.list(SYSFS)? {
        let attribute = |a: &str| host.files.read_text(format!("{SYSFS}/{name}/{a}"));
        let vendor = attribute("vendor")?.unwrap_or_default();
        if pci::sysfs_number(&vendor) != Some(AMAZON.into()) {
            continue;
        }
        let [device, class] = ["device", "class"].map(|a| attribute(a).map(Option::unwrap_or_default));
        if let Some(function) = pci::sysfs_function(&name, &vendor, &device?, &class?, None)
            && let (Some(vendor), Some(device), Some(class)) =
                (function.vendor, function.device, function.class)
            && is_efa(vendor, device)
        {
            let address = function.address.to_string();
            found.push(Fact::new(PciDevice { address, vendor, device, class, subsystem: None }, SYSFS));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_efa_devices_of_amazon_count() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        assert!(gather(&host).unwrap().is_empty(), "no bus at all");
        for (address, vendor, device, class) in [
            ("0000:00:1f.0", "0x1d0f\n", "0xefa2\n", "0x020000\n"),
            ("0000:00:1e.0", "0x1d0f\n", "0xefa0\n", "0x020000\n"),
            ("0000:00:05.0", "0x1d0f\n", "0xec20\n", "0x020000\n"),
            ("0000:00:06.0", "0x10de\n", "0xefa0\n", "0x030200\n"),
            ("0000:00:07.0", "0x1d0f\n", "nothing\n", "0x020000\n"),
        ] {
            for (file, text) in [("vendor", vendor), ("device", device), ("class", class)] {
                host.files.write(format!("{SYSFS}/{address}/{file}"), text.as_bytes(), 0o644).unwrap();
            }
        }
        let found = gather(&host).unwrap();
        let shown: Vec<_> = found.iter().map(|f| (f.value.address.as_str(), f.value.device)).collect();
        assert_eq!(shown, [("0000:00:1e.0", 0xefa0), ("0000:00:1f.0", 0xefa2)]);
    }
}
