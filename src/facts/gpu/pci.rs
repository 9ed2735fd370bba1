//! PCI functions as the kernel shows them: sysfs attributes, `/proc/bus/pci/devices`, configuration space.
//! Everything here is a pure function of text or bytes and returns `None` (or leaves a line out) where the
//! input is not what the kernel writes.

use std::fmt;

/// Where a PCI function sits. Ordered as the bus is: domain, bus, slot, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Domain. Four hexadecimal digits nearly everywhere; bridges that make up domains (VMD, Hyper-V) need more.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Slot, often called device: 0 to 31.
    pub slot: u8,
    /// Function: 0 to 7.
    pub function: u8,
}

impl Address {
    /// Reads `[domain:]bus:slot.function`, hexadecimal, in either case. Without a domain it is domain 0, as
    /// `lspci` means it.
    pub fn parse(text: &str) -> Option<Self> {
        let (front, function) = text.rsplit_once('.')?;
        let (front, slot) = front.rsplit_once(':')?;
        let (domain, bus) = match front.rsplit_once(':') {
            Some((domain, bus)) if domain.len() >= 4 => (hex(domain)?, bus),
            Some(_) => return None,
            None => (0, front),
        };
        let address = Self {
            domain,
            bus: u8::try_from(hex(bus)?).ok()?,
            slot: u8::try_from(hex(slot)?).ok()?,
            function: u8::try_from(hex(function)?).ok()?,
        };
        (address.slot < 32 && address.function < 8).then_some(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

/// What one source says of one PCI function. Sources differ in what they know: `/proc/bus/pci/devices` has no
/// class, plain `lspci` has names instead of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it sits.
    pub address: Address,
    /// Vendor id.
    pub vendor: Option<u16>,
    /// Device id.
    pub device: Option<u16>,
    /// Class and subclass.
    pub class: Option<u16>,
    /// Subsystem device id; absent where the device does not set one.
    pub subsystem: Option<u16>,
}

impl Function {
    /// A function of which nothing is known but its place.
    pub fn at(address: Address) -> Self {
        Self { address, vendor: None, device: None, class: None, subsystem: None }
    }
}

/// A line of `/proc/bus/pci/devices`. The file has no domain: functions of different domains can look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcLine {
    /// Bus.
    pub bus: u8,
    /// Slot.
    pub slot: u8,
    /// Function.
    pub function: u8,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
}

/// Reads an id or class attribute of sysfs (`0x10de`, `0x030200`) as a number.
pub fn sysfs_number(text: &str) -> Option<u32> {
    hex(text.trim().strip_prefix("0x")?)
}

/// A function from its directory's name in `/sys/bus/pci/devices` and the text of four attributes. `None` when
/// the name is no address, or `vendor`, `device` or `class` does not hold a number; `subsystem_device` may be
/// missing.
pub fn sysfs_function(
    name: &str,
    vendor: &str,
    device: &str,
    class: &str,
    subsystem: Option<&str>,
) -> Option<Function> {
    Some(Function {
        address: Address::parse(name)?,
        vendor: Some(u16::try_from(sysfs_number(vendor)?).ok()?),
        device: Some(u16::try_from(sysfs_number(device)?).ok()?),
        // The third byte is the programming interface, which says nothing about GPUs.
        class: Some(u16::try_from(sysfs_number(class)? >> 8).ok()?),
        subsystem: subsystem
            .and_then(sysfs_number)
            .and_then(|s| u16::try_from(s).ok())
            .and_then(known_subsystem),
    })
}

/// The lines of `/proc/bus/pci/devices` (kernel: `drivers/pci/proc.c`, `show_device`): bus and devfn in four
/// digits, vendor and device in eight, then numbers that we do not need. Fields are split at any white space:
/// the kernel writes tabs, people paste spaces.
pub fn proc_bus_devices(text: &str) -> Vec<ProcLine> {
    text.lines().filter_map(proc_bus_line).collect()
}

fn proc_bus_line(line: &str) -> Option<ProcLine> {
    let mut fields = line.split_ascii_whitespace();
    let (place, ids) = (fields.next()?, fields.next()?);
    if place.len() != 4 || ids.len() != 8 {
        return None;
    }
    let [bus, devfn] = u16::try_from(hex(place)?).ok()?.to_be_bytes();
    let ids = hex(ids)?;
    Some(ProcLine {
        bus,
        slot: devfn >> 3,
        function: devfn & 7,
        vendor: u16::try_from(ids >> 16).ok()?,
        device: u16::try_from(ids & 0xffff).ok()?,
    })
}

/// A function from the first 64 bytes of its configuration space (`/proc/bus/pci/BUS/SLOT.FUNCTION`), which
/// everyone may read. `None` when there are fewer bytes or nothing answers at that address.
pub fn config_space(address: Address, bytes: &[u8]) -> Option<Function> {
    let word = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let header = bytes.get(..64)?;
    let vendor = word(0x00)?;
    // Only an ordinary function (header type 0; the top bit means "has siblings") has a subsystem at 0x2e.
    let ordinary = matches!(header[0x0e], 0x00 | 0x80);
    (vendor != 0xffff).then_some(Function {
        address,
        vendor: Some(vendor),
        device: word(0x02),
        class: word(0x0a),
        subsystem: word(0x2e).filter(|_| ordinary).and_then(known_subsystem),
    })
}

/// A subsystem id, unless it is one of the two values that mean "not set". `lspci` prints nothing for these, and
/// the sources must be comparable.
pub(super) fn known_subsystem(id: u16) -> Option<u16> {
    (id != 0 && id != 0xffff).then_some(id)
}

/// One to eight hexadecimal digits and nothing else (`from_str_radix` alone would take a sign).
pub(super) fn hex(text: &str) -> Option<u32> {
    let digits = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits { u32::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print_the_same() {
        for text in ["0000:00:1e.0", "0001:ff:1f.7", "10000:e1:00.0"] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Address::parse("00:1E.0").unwrap().to_string(), "0000:00:1e.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "1e.0", "00:20.0", "00:1e.8", "00:1e", "000:00:1e.0", "+000:00:1e.0", "a:b:c:d.0", "00:1e.é"]
        {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_five_digit_domain_sorts_after_four_digits() {
        assert!(Address::parse("10000:00:00.0").unwrap() > Address::parse("9144:00:00.0").unwrap());
    }

    #[test]
    fn sysfs_attributes_make_a_function() {
        let f =
            sysfs_function("0000:00:1e.0", "0x10de\n", "0x1eb8\n", "0x030200\n", Some("0x12a2\n")).unwrap();
        assert_eq!(
            (f.vendor, f.device, f.class, f.subsystem),
            (Some(0x10de), Some(0x1eb8), Some(0x0302), Some(0x12a2))
        );
        let f = sysfs_function("0000:00:1e.0", "0x10de", "0x1eb8", "0x030200", Some("0x0000")).unwrap();
        assert_eq!(f.subsystem, None);
        assert_eq!(sysfs_function("0000:00:1e.0", "10de", "0x1eb8", "0x030200", None), None);
    }

    #[test]
    fn configuration_space_has_class_and_subsystem() {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&[0xde, 0x10, 0xb8, 0x27]);
        bytes[0x0a..0x0c].copy_from_slice(&[0x02, 0x03]);
        bytes[0x2e..0x30].copy_from_slice(&[0x33, 0x17]);
        let at = Address::parse("00:1e.0").unwrap();
        let f = config_space(at, &bytes).unwrap();
        assert_eq!(
            (f.vendor, f.device, f.class, f.subsystem),
            (Some(0x10de), Some(0x27b8), Some(0x0302), Some(0x1733))
        );
        bytes[0x0e] = 0x81;
        assert_eq!(config_space(at, &bytes).unwrap().subsystem, None);
        assert_eq!(config_space(at, &bytes[..63]), None);
        assert_eq!(config_space(at, &[0xff; 64]), None);
    }
}
