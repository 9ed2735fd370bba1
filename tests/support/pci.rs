//! A scratch root that shows the PCI bus of an instance type the way Linux does: sysfs directories behind
//! links, `/proc/bus/pci/devices` with configuration space beside it, `/proc/driver/nvidia`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpu_bootstrap::facts::gpu::pci::Address;
use gpu_bootstrap::facts::gpu::{self, GpuFacts, Witnesses};
use gpu_bootstrap::host::Host;

/// The ids of a PCI function; the class has three bytes, as in sysfs.
#[derive(Clone, Copy)]
pub(crate) struct Card {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) class: u32,
    pub(crate) subsystem: u16,
}

const fn card(vendor: u16, device: u16, class: u32, subsystem: u16) -> Card {
    Card { vendor, device, class, subsystem }
}

pub(crate) const K520: Card = card(0x10de, 0x118a, 0x03_0000, 0x1014);
pub(crate) const T4: Card = card(0x10de, 0x1eb8, 0x03_0200, 0x12a2);
pub(crate) const H100: Card = card(0x10de, 0x2330, 0x03_0200, 0x16c1);
pub(crate) const H100_NVSWITCH: Card = card(0x10de, 0x22a3, 0x06_8000, 0x1796);
pub(crate) const FRACTIONAL_L4: Card = card(0x10de, 0x27b8, 0x03_0200, 0x1733);
pub(crate) const V520: Card = card(0x1002, 0x7362, 0x03_8000, 0x0a34);
pub(crate) const INFERENTIA2: Card = card(0x1d0f, 0x7264, 0x08_8000, 0);
pub(crate) const TRAINIUM: Card = card(0x1d0f, 0x7164, 0x08_8000, 0);
pub(crate) const GAUDI: Card = card(0x1da3, 0x1000, 0x12_0000, 0);
const NITRO_VGA: Card = card(0x1d0f, 0x1111, 0x03_0000, 0);
const EBS: Card = card(0x1d0f, 0x8061, 0x01_0802, 0);
const ENA: Card = card(0x1d0f, 0xec20, 0x02_0000, 0xec20);
const HOST_BRIDGE: Card = card(0x8086, 0x1237, 0x06_0000, 0);
const CIRRUS_VGA: Card = card(0x1013, 0x00b8, 0x03_0000, 0);
const XEN: Card = card(0x5853, 0x0001, 0xff_8000, 0x0001);

/// A machine to be: describe it, then [`Machine::build`] it.
pub(crate) struct Machine {
    cards: Vec<(Address, Card)>,
    driver: Option<String>,
    undriven: BTreeSet<Address>,
    not_in_sysfs: BTreeSet<Address>,
    not_in_proc: BTreeSet<Address>,
    sysfs: bool,
    proc_bus: bool,
    config_space: bool,
}

/// A scratch root; it goes away with the value.
pub(crate) struct Built {
    dir: tempfile::TempDir,
}

impl Machine {
    /// A Nitro instance without an accelerator: host bridge, console VGA, EBS, ENA.
    pub(crate) fn nitro() -> Self {
        Self::empty()
            .card("0000:00:00.0", HOST_BRIDGE)
            .card("0000:00:03.0", NITRO_VGA)
            .card("0000:00:04.0", EBS)
            .card("0000:00:05.0", ENA)
    }

    /// A Xen instance without an accelerator: host bridge, Cirrus VGA, Xen's own device.
    pub(crate) fn xen() -> Self {
        Self::empty()
            .card("0000:00:00.0", HOST_BRIDGE)
            .card("0000:00:02.0", CIRRUS_VGA)
            .card("0000:00:1f.0", XEN)
    }

    /// An instance type that the tests know.
    pub(crate) fn of_type(name: &str) -> Self {
        match name {
            "c7i.large" => Self::nitro(),
            "g2.2xlarge" => Self::xen().card("0000:00:03.0", K520),
            "g4dn.xlarge" => Self::nitro().card("0000:00:1e.0", T4),
            "g6f.large" => Self::nitro().card("0000:31:00.0", FRACTIONAL_L4),
            "g4ad.xlarge" => Self::nitro().card("0000:00:1e.0", V520),
            "inf2.xlarge" => Self::nitro().card("0000:00:1f.0", INFERENTIA2),
            "trn1.2xlarge" => Self::nitro().card("0000:00:1e.0", TRAINIUM),
            "dl1.24xlarge" => Self::nitro().card("0000:10:1d.0", GAUDI),
            "p5.48xlarge" => {
                let gpus = ["53", "64", "75", "86", "97", "a8", "b9", "ca"];
                let switches = ["cf", "d0", "d1", "d2"];
                let at = |bus: &str| format!("0000:{bus}:00.0");
                let with_gpus = gpus.iter().fold(Self::nitro(), |m, bus| m.card(&at(bus), H100));
                switches.iter().fold(with_gpus, |m, bus| m.card(&at(bus), H100_NVSWITCH))
            }
            other => panic!("no such instance type in the tests: {other}"),
        }
    }

    fn empty() -> Self {
        Self {
            cards: Vec::new(),
            driver: None,
            undriven: BTreeSet::new(),
            not_in_sysfs: BTreeSet::new(),
            not_in_proc: BTreeSet::new(),
            sysfs: true,
            proc_bus: true,
            config_space: true,
        }
    }

    /// Puts a function on the bus.
    pub(crate) fn card(mut self, address: &str, card: Card) -> Self {
        self.cards.push((at(address), card));
        self
    }

    /// Loads a driver, given the text of `/proc/driver/nvidia/version`; it drives every GPU.
    pub(crate) fn driver(mut self, version: &str) -> Self {
        self.driver = Some(version.to_owned());
        self
    }

    /// The driver does not drive this GPU.
    pub(crate) fn undriven(mut self, address: &str) -> Self {
        self.undriven.insert(at(address));
        self
    }

    /// Sysfs does not show this function.
    pub(crate) fn hidden_from_sysfs(mut self, address: &str) -> Self {
        self.not_in_sysfs.insert(at(address));
        self
    }

    /// `/proc/bus/pci/devices` does not show this function.
    pub(crate) fn hidden_from_proc(mut self, address: &str) -> Self {
        self.not_in_proc.insert(at(address));
        self
    }

    /// There is no `/sys/bus/pci`.
    pub(crate) fn without_sysfs(mut self) -> Self {
        self.sysfs = false;
        self
    }

    /// There is no `/proc/bus/pci`.
    pub(crate) fn without_proc_bus(mut self) -> Self {
        self.proc_bus = false;
        self
    }

    /// `/proc/bus/pci` has its list, but no configuration space.
    pub(crate) fn without_config_space(mut self) -> Self {
        self.config_space = false;
        self
    }

    /// Writes it all.
    pub(crate) fn build(mut self) -> Built {
        self.cards.sort_by_key(|(address, _)| *address);
        let built = Built { dir: tempfile::tempdir().unwrap() };
        if self.sysfs {
            fs::create_dir_all(built.path("/sys/bus/pci/devices")).unwrap();
            self.cards.iter().filter(|(a, _)| !self.not_in_sysfs.contains(a)).for_each(|c| built.sysfs(*c));
        }
        if self.proc_bus {
            self.write_proc_bus(&built);
        }
        if let Some(version) = &self.driver {
            built.write("/proc/driver/nvidia/version", version);
            built
                .write("/proc/devices", "Character devices:\n195 nvidia\n511 nvidia-uvm\n\nBlock devices:\n");
            for (n, (address, _)) in self.driven().enumerate() {
                built.write(
                    &format!("/proc/driver/nvidia/gpus/{address}/information"),
                    format!("Model: \t\t NVIDIA Test\nBus Location: \t {address}\nDevice Minor: \t {n}\n"),
                );
            }
        }
        built
    }

    fn driven(&self) -> impl Iterator<Item = &(Address, Card)> {
        self.cards.iter().filter(|(address, card)| {
            card.vendor == 0x10de && card.class >> 16 == 3 && !self.undriven.contains(address)
        })
    }

    fn write_proc_bus(&self, built: &Built) {
        let seen: Vec<_> = self.cards.iter().filter(|(a, _)| !self.not_in_proc.contains(a)).collect();
        built.write("/proc/bus/pci/devices", seen.iter().map(|c| proc_line(c)).collect::<String>());
        if self.config_space {
            for (address, card) in seen {
                built.config_space(*address, *card);
            }
        }
    }
}

impl Built {
    /// Where a path of the machine lies outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }

    /// Writes a file, whatever was there before.
    pub(crate) fn write(&self, inside: &str, content: impl AsRef<[u8]>) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The door to this machine.
    pub(crate) fn host(&self) -> Host {
        Host::new(self.dir.path().to_path_buf())
    }

    /// What the agent finds out about GPUs.
    pub(crate) fn detect(&self, witnesses: Witnesses) -> GpuFacts {
        run(gpu::gather(&self.host(), witnesses)).unwrap()
    }

    /// As the kernel has it: the directory lies below `/sys/devices`, with a link to it.
    fn sysfs(&self, (address, card): (Address, Card)) {
        let real = format!("devices/pci{:04x}:{:02x}/{address}", address.domain, address.bus);
        let attribute = |name: &str, value: String| self.write(&format!("/sys/{real}/{name}"), value + "\n");
        attribute("vendor", format!("0x{:04x}", card.vendor));
        attribute("device", format!("0x{:04x}", card.device));
        attribute("class", format!("0x{:06x}", card.class));
        attribute("subsystem_vendor", format!("0x{:04x}", card.vendor));
        attribute("subsystem_device", format!("0x{:04x}", card.subsystem));
        // lspci wants these as well.
        attribute("irq", "0".into());
        attribute("resource", "0x0000000000000000 0x0000000000000000 0x0000000000000000\n".repeat(13));
        self.write(&format!("/sys/{real}/config"), config(card));
        symlink(Path::new("../../..").join(real), self.path(&format!("/sys/bus/pci/devices/{address}")))
            .unwrap();
    }

    /// `/proc/bus/pci/BUS/SLOT.FUNCTION`, below `DOMAIN:BUS` outside domain 0.
    fn config_space(&self, address: Address, card: Card) {
        let bus = match address.domain {
            0 => format!("{:02x}", address.bus),
            domain => format!("{domain:04x}:{:02x}", address.bus),
        };
        self.write(&format!("/proc/bus/pci/{bus}/{:02x}.{:x}", address.slot, address.function), config(card));
    }
}

/// Runs a future to its end.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn at(address: &str) -> Address {
    Address::parse(address).unwrap()
}

/// A line of `/proc/bus/pci/devices`, in the kernel's own layout.
fn proc_line((address, card): &(Address, Card)) -> String {
    let devfn = address.slot << 3 | address.function;
    let zeros = "\t               0".repeat(14);
    format!("{:02x}{devfn:02x}\t{:04x}{:04x}\t0{zeros}\t\n", address.bus, card.vendor, card.device)
}

fn config(card: Card) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0x00..0x02].copy_from_slice(&card.vendor.to_le_bytes());
    bytes[0x02..0x04].copy_from_slice(&card.device.to_le_bytes());
    bytes[0x09..0x0c].copy_from_slice(&card.class.to_le_bytes()[..3]);
    bytes[0x2c..0x2e].copy_from_slice(&card.vendor.to_le_bytes());
    bytes[0x2e..0x30].copy_from_slice(&card.subsystem.to_le_bytes());
    bytes
}
