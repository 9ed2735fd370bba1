//! Putting together what several sources say of the PCI bus: what each function is to us, which sources agree,
//! and a sentence for each point where they do not.

use std::collections::BTreeMap;

use super::pci::{Address, Function, ProcLine};
use super::{Accelerator, AcceleratorKind, PciDevice};
use crate::facts::Fact;

const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;
const HABANA: u16 = 0x1da3;
const AMAZON: u16 = 0x1d0f;

/// Amazon's device ids are not grouped by class, and its console VGA (1d0f:1111) has a GPU's class: so by id.
const NEURON: &[(u16, AcceleratorKind)] = &[
    (0x7064, AcceleratorKind::Inferentia),
    (0x7264, AcceleratorKind::Inferentia),
    (0x7164, AcceleratorKind::Trainium),
    (0x7364, AcceleratorKind::Trainium),
    (0x7564, AcceleratorKind::Trainium),
    (0x7565, AcceleratorKind::Trainium),
];

/// What a PCI function is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An NVIDIA GPU: class 0300 (display: K520, M60) or 0302 (3D: everything newer on EC2).
    Gpu,
    /// An NVIDIA `NVSwitch`: class 0680. By class, because the ids of new ones are unknown ahead of time.
    NvSwitch,
    /// An accelerator that CUDA does not run on.
    Other(AcceleratorKind),
}

/// The role that vendor, device and class give a function; `None` for everything that is no accelerator, such
/// as the console VGA of Nitro (1d0f:1111) and of Xen (1013:00b8) and a graphics card's audio function.
pub fn role(function: &Function) -> Option<Role> {
    match (function.vendor?, function.class) {
        (NVIDIA, Some(0x0300 | 0x0302)) => Some(Role::Gpu),
        (NVIDIA, Some(0x0680)) => Some(Role::NvSwitch),
        (AMD, Some(0x0300..=0x03ff)) => Some(Role::Other(AcceleratorKind::AmdGpu)),
        (HABANA, _) => Some(Role::Other(AcceleratorKind::Gaudi)),
        (AMAZON, _) => neuron(function.device?).map(Role::Other),
        _ => None,
    }
}

fn neuron(device: u16) -> Option<AcceleratorKind> {
    NEURON.iter().find(|(id, _)| *id == device).map(|(_, kind)| *kind)
}

/// Whether a function can have a role at all, told without its class: only these are compared between sources.
/// A network interface that is attached while we read is no reason for a warning.
pub(super) fn of_interest(vendor: Option<u16>, device: Option<u16>) -> bool {
    match vendor {
        Some(NVIDIA | AMD | HABANA) => true,
        Some(AMAZON) => device.and_then(neuron).is_some(),
        _ => false,
    }
}

/// All functions that one source lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The file or program.
    pub source: &'static str,
    /// What it lists.
    pub functions: Vec<Function>,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// NVIDIA GPUs, by address.
    pub gpus: Vec<Fact<PciDevice>>,
    /// `NVSwitch`es, by address.
    pub nvswitches: Vec<Fact<PciDevice>>,
    /// Others' accelerators, by address.
    pub others: Vec<Fact<Accelerator>>,
    /// One sentence per disagreement.
    pub disagreements: Vec<String>,
}

/// Compares inventories, given in the order of their authority. A function counts when any source lists it:
/// leaving one out would hide a GPU that is about to fail, and counting it makes the final device query ask for
/// it. Where two sources differ on an id, the first one's is taken, and a sentence says so.
pub fn compare(inventories: &[Inventory]) -> Comparison {
    let mut by_address: BTreeMap<Address, Vec<(&str, &Function)>> = BTreeMap::new();
    for inventory in inventories {
        for function in &inventory.functions {
            by_address.entry(function.address).or_default().push((inventory.source, function));
        }
    }
    let all: Vec<_> = inventories.iter().map(|i| i.source).collect();
    let mut comparison = Comparison::default();
    for reports in by_address.values() {
        if reports.iter().any(|(_, f)| of_interest(f.vendor, f.device)) {
            comparison.add(&all, reports);
        }
    }
    comparison
}

impl Comparison {
    fn add(&mut self, all: &[&str], reports: &[(&str, &Function)]) {
        let Some(merged) = self.merge(reports) else { return };
        let listed: Vec<_> = reports.iter().map(|(source, _)| *source).collect();
        let missing: Vec<_> = all.iter().copied().filter(|s| !listed.contains(s)).collect();
        if !missing.is_empty() {
            self.disagreements.push(format!(
                "{} ({}) is listed by {}, but not by {}",
                merged.address,
                ids(&merged),
                listed.join(" and "),
                missing.join(" and ")
            ));
        }
        let Some(device) = complete(&merged) else {
            self.disagreements.push(format!(
                "no source tells the class of {} ({}), so it is not counted",
                merged.address,
                ids(&merged)
            ));
            return;
        };
        let source = listed.join(", ");
        match role(&merged) {
            Some(Role::Gpu) => self.gpus.push(Fact::new(device, source)),
            Some(Role::NvSwitch) => self.nvswitches.push(Fact::new(device, source)),
            Some(Role::Other(kind)) => self.others.push(Fact::new(Accelerator { kind, device }, source)),
            None => {}
        }
    }

    /// One function out of several reports of it; each field from the first source that knows it.
    fn merge(&mut self, reports: &[(&str, &Function)]) -> Option<Function> {
        let address = reports.first()?.1.address;
        let mut sentences = Vec::new();
        let mut agreed = |what: &str, field: fn(&Function) -> Option<u16>| {
            let mut known = reports.iter().filter_map(|(source, f)| field(f).map(|value| (*source, value)));
            let (first, value) = known.next()?;
            for (source, other) in known.filter(|(_, other)| *other != value) {
                sentences.push(format!(
                    "the {what} of {address} is {value:04x} according to {first}, but {other:04x} according to {source}",
                ));
            }
            Some(value)
        };
        let merged = Function {
            address,
            vendor: agreed("vendor id", |f| f.vendor),
            device: agreed("device id", |f| f.device),
            class: agreed("class", |f| f.class),
            subsystem: agreed("subsystem id", |f| f.subsystem),
        };
        self.disagreements.append(&mut sentences);
        Some(merged)
    }
}

fn complete(function: &Function) -> Option<PciDevice> {
    Some(PciDevice {
        address: function.address.to_string(),
        vendor: function.vendor?,
        device: function.device?,
        class: function.class?,
        subsystem: function.subsystem,
    })
}

fn ids(function: &Function) -> String {
    let four = |id: Option<u16>| id.map_or_else(|| "????".to_owned(), |id| format!("{id:04x}"));
    format!("{}:{}", four(function.vendor), four(function.device))
}

/// Gives the lines of `/proc/bus/pci/devices` their domain: that of the function in `known` with the same bus,
/// slot, function and ids, else of one at the same place whose ids differ (the comparison will say so). Each
/// function of `known` is used once. Returns the placed lines, and those for which `known` has no place.
pub(super) fn place(lines: &[ProcLine], known: &[Function]) -> (Vec<Function>, Vec<ProcLine>) {
    let mut free: Vec<&Function> = known.iter().collect();
    let mut placed = Vec::new();
    let mut left = lines.to_vec();
    for same_ids in [true, false] {
        left.retain(|&line| {
            let found = free.iter().position(|f| {
                at_same_place(f, line)
                    && (!same_ids || (f.vendor, f.device) == (Some(line.vendor), Some(line.device)))
            });
            let Some(found) = found else { return true };
            placed.push(on(free.remove(found).address, line));
            false
        });
    }
    (placed, left)
}

fn at_same_place(function: &Function, line: ProcLine) -> bool {
    let at = function.address;
    (at.bus, at.slot, at.function) == (line.bus, line.slot, line.function)
}

fn on(address: Address, line: ProcLine) -> Function {
    Function { vendor: Some(line.vendor), device: Some(line.device), ..Function::at(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(address: &str, vendor: u16, device: u16, class: Option<u16>) -> Function {
        let at = Address::parse(address).unwrap();
        Function { vendor: Some(vendor), device: Some(device), class, ..Function::at(at) }
    }

    #[test]
    fn roles_follow_vendor_and_class() {
        let role_of = |v, d, c| role(&function("00:1e.0", v, d, Some(c)));
        assert_eq!(role_of(0x10de, 0x118a, 0x0300), Some(Role::Gpu));
        assert_eq!(role_of(0x10de, 0xffff, 0x0302), Some(Role::Gpu));
        assert_eq!(role_of(0x10de, 0x22a3, 0x0680), Some(Role::NvSwitch));
        assert_eq!(role_of(0x10de, 0x10f0, 0x0403), None);
        assert_eq!(role_of(0x1d0f, 0x1111, 0x0300), None);
        assert_eq!(role_of(0x1013, 0x00b8, 0x0300), None);
        assert_eq!(role_of(0x1002, 0x7362, 0x0380), Some(Role::Other(AcceleratorKind::AmdGpu)));
        assert_eq!(role_of(0x1002, 0xab38, 0x0403), None);
        assert_eq!(role_of(0x1d0f, 0x7264, 0x0880), Some(Role::Other(AcceleratorKind::Inferentia)));
        assert_eq!(role_of(0x1d0f, 0x7164, 0x0880), Some(Role::Other(AcceleratorKind::Trainium)));
        assert_eq!(role_of(0x1da3, 0x1000, 0x1200), Some(Role::Other(AcceleratorKind::Gaudi)));
    }

    #[test]
    fn lines_without_a_domain_find_it_even_when_all_look_alike() {
        let known = [
            function("0001:00:00.0", 0x10de, 0x20b2, Some(0x0302)),
            function("0005:00:00.0", 0x10de, 0x1af1, Some(0x0680)),
        ];
        let line = |device| ProcLine { bus: 0, slot: 0, function: 0, vendor: 0x10de, device };
        let (placed, left) = place(&[line(0x1af1), line(0x20b2), line(0x20b2)], &known);
        let placed: Vec<_> = placed.iter().map(|f| (f.address.domain, f.device.unwrap())).collect();
        assert_eq!(placed, [(5, 0x1af1), (1, 0x20b2)]);
        assert_eq!(left, [line(0x20b2)]);
    }

    #[test]
    fn the_first_source_wins_and_the_difference_is_said() {
        let one =
            Inventory { source: "A", functions: vec![function("00:1e.0", 0x10de, 0x1eb8, Some(0x0302))] };
        let two = Inventory { source: "B", functions: vec![function("00:1e.0", 0x10de, 0x2237, None)] };
        let seen = compare(&[one, two]);
        assert_eq!(seen.gpus.len(), 1);
        assert_eq!((seen.gpus[0].value.device, seen.gpus[0].source.as_str()), (0x1eb8, "A, B"));
        assert_eq!(
            seen.disagreements,
            ["the device id of 0000:00:1e.0 is 1eb8 according to A, but 2237 according to B"]
        );
    }

    #[test]
    fn a_function_of_unknown_class_is_named_and_not_counted() {
        let only = Inventory { source: "B", functions: vec![function("00:1e.0", 0x10de, 0x1eb8, None)] };
        let seen = compare(&[only]);
        assert!(seen.gpus.is_empty());
        assert_eq!(
            seen.disagreements,
            ["no source tells the class of 0000:00:1e.0 (10de:1eb8), so it is not counted"]
        );
    }
}
