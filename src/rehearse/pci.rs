//! The simulated machine: the PCI bus, DMI and driver information that an instance type shows.
//!
//! Devices that must not be taken for GPUs are there on purpose: EC2's console VGA, NVSwitch, network and disk.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::catalog::data::InstanceType;
use crate::error::{Error, Result};

const NVIDIA: u16 = 0x10de;
const AMAZON: u16 = 0x1d0f;
const INTEL: u16 = 0x8086;
const NVSWITCH_CLASS: u16 = 0x0680;

/// One function on the simulated bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    address: Address,
    vendor: u16,
    id: u16,
    class: u16,
    revision: u8,
    subsystem: (u16, u16),
    /// The driver that the running kernel would have bound without NVIDIA's.
    driver: &'static str,
    /// Sizes of its memory windows, as powers of two.
    windows: &'static [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    bus: u8,
    slot: u8,
    function: u8,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{}", self.bus, self.slot, self.function)
    }
}

/// A simulated GPU as far as the simulated driver has to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gpu {
    /// `0000:00:1e.0`
    pub(super) address: String,
    /// PCI device id.
    pub(super) device: u16,
    /// Marketing name.
    pub(super) name: String,
}

/// Every device of this instance type, by address; without `instance_type`, a machine that has no accelerator.
pub(super) fn devices(instance_type: Option<&InstanceType>) -> Vec<Device> {
    let mut all = vec![
        fixed(0, INTEL, 0x1237, 0x0600, "", &[]),
        fixed(1, INTEL, 0x7000, 0x0601, "", &[]),
        fixed(3, AMAZON, 0x1111, 0x0300, "", &[22]), // EC2's console: VGA, and not a GPU
        fixed(4, AMAZON, 0x8061, 0x0108, "nvme", &[14]),
        fixed(5, AMAZON, 0xec20, 0x0200, "ena", &[13, 14, 20]),
    ];
    if let Some(t) = instance_type {
        let windows: &[u8] = if t.vendor == NVIDIA { &[24, 34, 25] } else { &[24] };
        for address in accelerator_addresses(t.gpus) {
            all.push(Device {
                address,
                vendor: t.vendor,
                id: t.device.unwrap_or_default(),
                class: t.class,
                revision: 0xa1,
                subsystem: (t.vendor, t.subsystem.unwrap_or_default()),
                driver: "",
                windows,
            });
        }
        for n in 0..t.nvswitches {
            all.push(Device {
                address: Address { bus: 0xc1 + narrow(n), slot: 0, function: 0 },
                vendor: NVIDIA,
                id: t.nvswitch.unwrap_or_default(),
                class: NVSWITCH_CLASS,
                revision: 0xa1,
                subsystem: (NVIDIA, 0),
                driver: "",
                windows: &[25],
            });
        }
    }
    all.sort_by_key(|d| d.address);
    all
}

/// The NVIDIA GPUs of this instance type, for the simulated driver.
pub(super) fn gpus(instance_type: Option<&InstanceType>) -> Vec<Gpu> {
    let Some(t) = instance_type.filter(|t| t.vendor == NVIDIA) else { return Vec::new() };
    let gpu = |address: Address| Gpu {
        address: address.to_string(),
        device: t.device.unwrap_or_default(),
        name: format!("{} (simulated)", t.gpu_name),
    };
    accelerator_addresses(t.gpus).into_iter().map(gpu).collect()
}

/// Small machines have them at the end of bus 0; the eight of a p5 sit behind switches, one bus each.
fn accelerator_addresses(count: u32) -> Vec<Address> {
    const BEHIND_SWITCHES: [u8; 8] = [0x53, 0x64, 0x75, 0x86, 0x97, 0xa8, 0xb9, 0xca];
    if count as usize == BEHIND_SWITCHES.len() {
        return BEHIND_SWITCHES.map(|bus| Address { bus, slot: 0, function: 0 }).to_vec();
    }
    (0..count).map(|n| Address { bus: 0, slot: 0x1f - narrow(count - n), function: 0 }).collect()
}

/// Counts on one bus are below 32.
fn narrow(n: u32) -> u8 {
    u8::try_from(n.min(25)).unwrap_or_default()
}

fn fixed(slot: u8, vendor: u16, id: u16, class: u16, driver: &'static str, windows: &'static [u8]) -> Device {
    let address = Address { bus: 0, slot, function: 0 };
    Device { address, vendor, id, class, revision: 0, subsystem: (0, 0), driver, windows }
}

/// Writes `sys-bus-pci` (for `/sys/bus/pci`) and `proc-bus-pci` (for `/proc/bus/pci`) below `dir`.
pub(super) fn write(devices: &[Device], dir: &Path) -> Result<()> {
    let sys = dir.join("sys-bus-pci");
    let proc = dir.join("proc-bus-pci");
    for name in ["devices", "drivers", "slots"] {
        make_dir(&sys.join(name))?;
    }
    let mut lines = String::new();
    let mut next_window = 0x200_0000_0000_u64;
    for d in devices {
        let windows = place(d.windows, &mut next_window);
        write_sysfs(d, &windows, &sys)?;
        let bus = proc.join(format!("{:02x}", d.address.bus));
        make_dir(&bus)?;
        let function = format!("{:02x}.{}", d.address.slot, d.address.function);
        put(&bus.join(function), &config_space(d, &windows))?;
        lines.push_str(&proc_line(d, &windows));
    }
    make_dir(&proc)?;
    put(&proc.join("devices"), lines.as_bytes())
}

/// Start and size of each memory window, aligned to its size.
fn place(sizes: &[u8], next: &mut u64) -> Vec<(u64, u64)> {
    let mut placed = Vec::new();
    for bits in sizes {
        let size = 1u64 << bits;
        let start = next.next_multiple_of(size);
        *next = start + size;
        placed.push((start, size));
    }
    placed
}

fn write_sysfs(d: &Device, windows: &[(u64, u64)], sys: &Path) -> Result<()> {
    let dir = sys.join("devices").join(d.address.to_string());
    make_dir(&dir)?;
    let (sub_vendor, sub_device) = d.subsystem;
    let mut resource = String::new();
    for row in 0..13 {
        // A 64-bit window takes two rows; the second is zero.
        let window = if row % 2 == 0 { windows.get(row / 2) } else { None };
        let _ = match window {
            Some((start, size)) => {
                writeln!(resource, "{start:#018x} {:#018x} {:#018x}", start + size - 1, 0x0014_220c)
            }
            None => writeln!(resource, "{0:#018x} {0:#018x} {0:#018x}", 0),
        };
    }
    let driver = if d.driver.is_empty() { String::new() } else { format!("DRIVER={}\n", d.driver) };
    let uevent = format!(
        "{driver}PCI_CLASS={:X}00\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={sub_vendor:04X}:{sub_device:04X}\nPCI_SLOT_NAME={}\n",
        d.class, d.vendor, d.id, d.address
    );
    let files = [
        ("vendor", format!("{:#06x}\n", d.vendor)),
        ("device", format!("{:#06x}\n", d.id)),
        ("class", format!("0x{:04x}00\n", d.class)),
        ("revision", format!("{:#04x}\n", d.revision)),
        ("subsystem_vendor", format!("{sub_vendor:#06x}\n")),
        ("subsystem_device", format!("{sub_device:#06x}\n")),
        ("irq", "0\n".to_owned()),
        ("enable", "1\n".to_owned()),
        ("numa_node", "0\n".to_owned()),
        ("local_cpulist", "0-1\n".to_owned()),
        ("resource", resource),
        ("uevent", uevent),
    ];
    for (name, text) in files {
        put(&dir.join(name), text.as_bytes())?;
    }
    put(&dir.join("config"), &config_space(d, windows))?;
    if d.driver.is_empty() {
        return Ok(());
    }
    make_dir(&sys.join("drivers").join(d.driver))?;
    let link = dir.join("driver");
    std::os::unix::fs::symlink(format!("../../drivers/{}", d.driver), &link)
        .map_err(|e| Error::io("link", &link, e))
}

/// The standard header of PCI configuration space, little endian, in the 256 bytes that sysfs shows.
fn config_space(d: &Device, windows: &[(u64, u64)]) -> Vec<u8> {
    let mut c = vec![0; 256];
    let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &d.vendor.to_le_bytes());
    put(0x02, &d.id.to_le_bytes());
    put(0x04, &0x0506u16.to_le_bytes()); // memory and bus mastering are on
    put(0x08, &[d.revision]);
    put(0x0a, &d.class.to_le_bytes());
    for (n, (start, _)) in windows.iter().enumerate() {
        put(0x10 + 8 * n, &(start | WINDOW_KIND).to_le_bytes());
    }
    put(0x2c, &d.subsystem.0.to_le_bytes());
    put(0x2e, &d.subsystem.1.to_le_bytes());
    c
}

/// 64 bits wide, prefetchable memory.
const WINDOW_KIND: u64 = 0xc;

/// One line of `/proc/bus/pci/devices`.
fn proc_line(d: &Device, windows: &[(u64, u64)]) -> String {
    let function = d.address.slot << 3 | d.address.function;
    let mut line = format!("{:02x}{function:02x}\t{:04x}{:04x}\t0", d.address.bus, d.vendor, d.id);
    let column = |n: usize, value: fn(&(u64, u64)) -> u64| {
        if n.is_multiple_of(2) { windows.get(n / 2).map_or(0, value) } else { 0 }
    };
    for n in 0..7 {
        let _ = write!(line, "\t{:16x}", column(n, |w| w.0 | WINDOW_KIND));
    }
    for n in 0..7 {
        let _ = write!(line, "\t{:16x}", column(n, |w| w.1));
    }
    let _ = writeln!(line, "\t{}", d.driver);
    line
}

/// Writes what `/sys/class/dmi/id` shows on an instance of the Nitro system.
pub(super) fn write_dmi(instance_type: &str, instance_id: &str, dir: &Path) -> Result<()> {
    // Instances are recognised by a UUID that starts with ec2.
    const UUID: &str = "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8";
    make_dir(dir)?;
    let files = [
        ("sys_vendor", "Amazon EC2"),
        ("product_name", instance_type),
        ("product_uuid", UUID),
        ("product_serial", UUID),
        ("board_vendor", "Amazon EC2"),
        ("board_asset_tag", instance_id),
        ("bios_vendor", "Amazon EC2"),
        ("bios_version", "1.0"),
        ("chassis_vendor", "Amazon EC2"),
        ("chassis_asset_tag", "Amazon EC2"),
    ];
    for (name, text) in files {
        put(&dir.join(name), format!("{text}\n").as_bytes())?;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("make the directory", dir, e))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::os::Arch;

    fn p5() -> InstanceType {
        InstanceType {
            name: "p5.48xlarge".into(),
            family: "p5".into(),
            arch: Arch::Amd64,
            vendor: NVIDIA,
            device: Some(0x2330),
            class: 0x0302,
            subsystem: None,
            gpus: 8,
            gpus_unverified: false,
            nvswitch: Some(0x22a3),
            nvswitches: 4,
            gpu_name: "NVIDIA H100 80GB HBM3".into(),
            memory: None,
            efa: 0,
        }
    }

    #[test]
    fn addresses_are_distinct_for_every_count() {
        for gpus in [0, 1, 2, 4, 8, 16] {
            let all = devices(Some(&InstanceType { gpus, ..p5() }));
            let mut addresses: Vec<_> = all.iter().map(|d| d.address).collect();
            addresses.dedup();
            assert_eq!(addresses.len(), 5 + gpus as usize + 4, "{gpus} GPUs");
        }
    }

    #[test]
    fn both_views_of_the_bus_agree() {
        let dir = tempfile::tempdir().unwrap();
        write(&devices(Some(&p5())), dir.path()).unwrap();
        let lines = fs::read_to_string(dir.path().join("proc-bus-pci/devices")).unwrap();
        assert_eq!(lines.matches("\t10de2330\t").count(), 8);
        assert_eq!(lines.matches("\t10de22a3\t").count(), 4);
        assert!(lines.lines().all(|l| l.split('\t').count() == 18), "{lines}");
        let classes: Vec<_> = fs::read_dir(dir.path().join("sys-bus-pci/devices"))
            .unwrap()
            .map(|e| fs::read_to_string(e.unwrap().path().join("class")).unwrap())
            .collect();
        assert_eq!(classes.iter().filter(|c| *c == "0x030200\n").count(), 8);
        assert_eq!(classes.iter().filter(|c| *c == "0x068000\n").count(), 4);
        assert_eq!(gpus(Some(&p5())).len(), 8);
        assert_eq!(gpus(None), []);
    }
}
