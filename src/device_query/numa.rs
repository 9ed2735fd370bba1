//! The CPUs that are near a GPU: memory of the other socket makes copies slower by up to a half.

use nix::sched::CpuSet;
use serde::Serialize;

use crate::error::Result;
use crate::host::Host;

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The kernel's number.
    pub node: u32,
    /// Its CPUs, as the kernel lists them: `0-23,48-71`.
    pub cpus: String,
}

/// The node of the GPU at `pci` (any case, domain of four or eight digits). None where the firmware tells of no
/// node (the kernel says -1), or tells nothing.
pub(super) fn local(host: &Host, pci: &str) -> Result<Option<Node>> {
    let address = sysfs_name(pci);
    let Some(text) = host.files.read_text(format!("/sys/bus/pci/devices/{address}/numa_node"))? else {
        return Ok(None);
    };
    let Ok(node) = text.trim().parse::<u32>() else { return Ok(None) };
    let cpus = host.files.read_text(format!("/sys/devices/system/node/node{node}/cpulist"))?;
    Ok(cpus.map(|cpus| Node { node, cpus: cpus.trim().to_owned() }))
}

/// `0000:10:00.0`, as the kernel names a PCI device.
fn sysfs_name(pci: &str) -> String {
    let pci = pci.to_ascii_lowercase();
    match pci.strip_prefix("0000") {
        Some(short) if short.find(':') == Some(4) => short.to_owned(),
        _ => pci,
    }
}

impl Node {
    /// Its CPUs for the scheduler; none for a list that is empty or cannot be read.
    pub(super) fn set(&self) -> Option<CpuSet> {
        let mut set = CpuSet::new();
        let mut any = false;
        for range in self.cpus.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            // A set holds 1024; what a larger machine has beyond is not used.
            for cpu in first..=last.min(CpuSet::count() - 1) {
                any |= set.set(cpu).is_ok();
            }
        }
        any.then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(list: &str) -> Option<Vec<usize>> {
        let set = Node { node: 0, cpus: list.into() }.set()?;
        Some((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect())
    }

    #[test]
    fn a_list_of_cpus_is_read() {
        assert_eq!(cpus("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(cpus("5"), Some(vec![5]));
        assert_eq!(cpus("1022-4000"), Some(vec![1022, 1023]));
        // A node of memory alone has no CPUs.
        assert_eq!((cpus(""), cpus("a-b"), cpus("4000")), (None, None, None));
    }

    #[test]
    fn a_pci_address_is_the_kernels_name() {
        assert_eq!(sysfs_name("00000000:1A:00.0"), "0000:1a:00.0");
        assert_eq!(sysfs_name("0000:1a:00.0"), "0000:1a:00.0");
        assert_eq!(sysfs_name("00010000:1A:00.0"), "00010000:1a:00.0");
    }
}
