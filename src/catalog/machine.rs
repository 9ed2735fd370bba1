//! Facts of a machine that is not here, from the catalog's tables: for `catalog`, for an image that is baked for other
//! instance types, and for tests.

use super::data::InstanceType;
use crate::facts::disk::Disk;
use crate::facts::gpu::compare::{Role, role};
use crate::facts::gpu::pci::{Address, Function};
use crate::facts::gpu::{Accelerator, GpuFacts, PciDevice};
use crate::facts::identity::{Identity, Instance};
use crate::facts::os::{Arch, Os};
use crate::facts::{Fact, Facts};

/// What these facts name as their source.
const SOURCE: &str = "the catalog";
/// PCI class of an NVIDIA bridge.
const CLASS_BRIDGE: u16 = 0x0680;
/// PCI class of an Ethernet controller.
const CLASS_ETHERNET: u16 = 0x0200;
/// NVIDIA's `NVSwitch`es follow the GPUs on the bus.
const FIRST_SWITCH: u8 = 0x40;

fn fact<T>(value: T) -> Fact<T> {
    Fact::new(value, SOURCE)
}

/// `ID` and `VERSION_ID` of os-release for a name as the catalog spells it: `ubuntu2204` is `ubuntu` and `22.04`.
pub fn split(distro: &str) -> (String, String) {
    let digits = distro.find(|c: char| c.is_ascii_digit()).unwrap_or(distro.len());
    let (id, number) = distro.split_at(digits);
    let version = match number.split_at_checked(2) {
        Some((year, month)) if number.len() == 4 => format!("{year}.{month}"),
        _ => number.to_owned(),
    };
    (id.to_owned(), version)
}

/// An EC2 machine without GPU, with the kernel that EC2's images of the distribution have: `distro` as the catalog spells it.
pub fn facts(distro: &str, arch: Arch) -> Facts {
    let (id, version) = split(distro);
    let kernel = match id.as_str() {
        "ubuntu" => "6.8.0-1015-aws".to_owned(),
        _ => format!("6.1.0-28-cloud-{}", arch.debian_name()),
    };
    Facts {
        identity: Identity {
            on_ec2: fact(true),
            instance: None,
            user_data: None,
            boot_id: fact("00000000-0000-4000-8000-000000000000".into()),
        },
        os: Os {
            id: fact(id),
            version_id: fact(version),
            codename: fact(String::new()),
            arch: fact(arch),
            kernel: fact(kernel),
            secure_boot: fact(false),
            container: None,
        },
        gpu: GpuFacts::default(),
        efa: Vec::new(),
        disk: Disk { usr_free: fact(100 << 30), var_free: fact(100 << 30), instance_store: fact(Vec::new()) },
    }
}

/// The same as an instance of this type, with what its bus holds.
pub fn instance(distro: &str, instance_type: &InstanceType) -> Facts {
    let mut facts = facts(distro, instance_type.arch);
    name(&mut facts, &instance_type.name);
    facts.gpu = bus(instance_type);
    facts.efa = efa(instance_type);
    facts
}

/// As many EFA devices as the type can have.
fn efa(t: &InstanceType) -> Vec<Fact<PciDevice>> {
    let device = |n: u32| {
        let address = Address { domain: 1, bus: u8::try_from(n).unwrap_or(u8::MAX), slot: 0, function: 0 };
        PciDevice { address: address.to_string(), ..function(0x1d0f, 0xefa0, CLASS_ETHERNET) }
    };
    (0..t.efa).map(|n| fact(device(n))).collect()
}

/// Makes the machine an EC2 instance of this type, whatever its bus holds.
pub fn name(facts: &mut Facts, instance_type: &str) {
    facts.identity.instance = Some(fact(Instance {
        id: "i-0123456789abcdef0".into(),
        instance_type: instance_type.to_owned(),
        region: "us-east-1".into(),
        availability_zone: "us-east-1a".into(),
        account_id: "123456789012".into(),
        image_id: "ami-0123456789abcdef0".into(),
        architecture: "x86_64".into(),
    }));
}

/// What is on the bus of an instance type.
pub fn bus(t: &InstanceType) -> GpuFacts {
    let mut found = GpuFacts::default();
    let Some(device) = t.device else { return found };
    for _ in 0..t.gpus {
        plug(&mut found, PciDevice { subsystem: t.subsystem, ..function(t.vendor, device, t.class) });
    }
    for _ in 0..t.nvswitches {
        let device = t.nvswitch.unwrap_or_default();
        plug(&mut found, function(t.vendor, device, CLASS_BRIDGE));
    }
    found
}

/// A PCI function whose place on the bus is still open.
pub fn function(vendor: u16, device: u16, class: u16) -> PciDevice {
    PciDevice { address: String::new(), vendor, device, class, subsystem: None }
}

/// Puts a function on the bus, as what the gatherer of facts would take it for; says whether it is an accelerator.
pub fn plug(bus: &mut GpuFacts, mut device: PciDevice) -> bool {
    let mut address = Address { domain: 0, bus: 0, slot: 0, function: 0 };
    let id = Function {
        vendor: Some(device.vendor),
        device: Some(device.device),
        class: Some(device.class),
        subsystem: device.subsystem,
        ..Function::at(address)
    };
    let place = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    let role = role(&id);
    address.bus = match role {
        Some(Role::NvSwitch) => FIRST_SWITCH.saturating_add(place(bus.nvswitches.len())),
        _ => place(bus.gpus.len().max(bus.other_accelerators.len())),
    };
    device.address = address.to_string();
    match role {
        Some(Role::Gpu) => bus.gpus.push(fact(device)),
        Some(Role::NvSwitch) => bus.nvswitches.push(fact(device)),
        Some(Role::Other(kind)) => bus.other_accelerators.push(fact(Accelerator { kind, device })),
        None => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn a_name_is_split_as_os_release_spells_it() {
        for (distro, id, version) in [
            ("ubuntu2204", "ubuntu", "22.04"),
            ("debian12", "debian", "12"),
            ("x", "x", ""),
            ("é1", "é", "1"),
        ] {
            assert_eq!(split(distro), (id.to_owned(), version.to_owned()));
        }
        assert_eq!(facts("ubuntu2204", Arch::Arm64).os.distro(), "ubuntu2204");
    }

    #[test]
    fn a_bus_holds_what_the_type_has() {
        let catalog = Catalog::embedded().unwrap();
        let bus_of = |name: &str| bus(&catalog.instance_type(name).unwrap());
        let efa_of = |name: &str| instance("ubuntu2204", &catalog.instance_type(name).unwrap()).efa.len();
        assert_eq!((efa_of("p5.48xlarge"), efa_of("g5.8xlarge"), efa_of("g5.xlarge")), (32, 1, 0));
        let p5 = bus_of("p5.48xlarge");
        assert_eq!((p5.gpus.len(), p5.nvswitches.len()), (8, 4));
        let mut places: Vec<_> = p5.gpus.iter().chain(&p5.nvswitches).map(|d| &d.value.address).collect();
        places.dedup();
        assert_eq!(places.len(), 12);
        assert_eq!(bus_of("g6f.large").gpus[0].value.subsystem, Some(0x1733));
        assert_eq!(bus_of("g4ad.xlarge").other_accelerators.len(), 1);
        assert!(bus_of("f2.6xlarge").other_accelerators.is_empty());
    }
}
