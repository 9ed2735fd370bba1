//! Instance store: `NVMe` devices that belong to the host computer and are empty after each stop and start. They are known
//! by their model; an EBS volume, which is `NVMe`, too, has another one.

use serde::Serialize;

use super::Fact;
use crate::error::Result;
use crate::host::files::Files;

/// Where the kernel lists block devices.
pub const BLOCK: &str = "/sys/class/block";
/// The model that they give themselves (EBS volumes are "Amazon Elastic Block Store").
const MODEL: &str = "Amazon EC2 NVMe Instance Storage";
/// sysfs counts in these, whatever the device's own sectors are.
const SECTOR: u64 = 512;

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// The kernel's name (`nvme1n1`), which may be another one after each boot.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// The devices, in the order of their numbers.
pub fn gather(files: &Files) -> Result<Fact<Vec<Device>>> {
    let mut found = Vec::new();
    for name in files.list(BLOCK)? {
        let Some(numbers) = numbers(&name) else { continue };
        let model = files.read_text(format!("{BLOCK}/{name}/device/model"))?.unwrap_or_default();
        if model.trim() != MODEL {
            continue;
        }
        let size = files.read_text(format!("{BLOCK}/{name}/size"))?.unwrap_or_default();
        let bytes = size.trim().parse::<u64>().unwrap_or_default().saturating_mul(SECTOR);
        found.push((numbers, Device { name, bytes }));
    }
    found.sort_by_key(|(numbers, _)| *numbers);
    let devices = found.into_iter().map(|(_, device)| device).collect();
    Ok(Fact::new(devices, format!("{BLOCK}/nvme*/device/model")))
}

/// Controller and namespace of a whole device's name: `nvme1n1`, and not `nvme1n1p1`.
fn numbers(name: &str) -> Option<(u32, u32)> {
    let (controller, namespace) = name.strip_prefix("nvme")?.split_once('n')?;
    Some((controller.parse().ok()?, namespace.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_devices_of_that_model_count() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        for (name, model) in [
            ("nvme0n1", "Amazon Elastic Block Store              \n"),
            ("nvme10n1", "Amazon EC2 NVMe Instance Storage        \n"),
            ("nvme2n1", "Amazon EC2 NVMe Instance Storage        \n"),
            ("nvme2n1p1", "Amazon EC2 NVMe Instance Storage        \n"),
            ("nvme3n1", "Amazon EC2 NVMe Instance Storage 2      \n"),
            ("vda", "Amazon EC2 NVMe Instance Storage        \n"),
        ] {
            files.write(format!("{BLOCK}/{name}/device/model"), model.as_bytes(), 0o644).unwrap();
            files.write(format!("{BLOCK}/{name}/size"), b"244140625\n", 0o644).unwrap();
        }
        let found = gather(&files).unwrap().value;
        let device = |name: &str| Device { name: name.into(), bytes: 125_000_000_000 };
        assert_eq!(found, [device("nvme2n1"), device("nvme10n1")]);
    }
}
