//! Facts of a machine that does not exist, for tests of what follows from facts. Each test file uses a part of it.
#![allow(dead_code, reason = "every test file that includes this module uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use gpu_bootstrap::catalog::Catalog;
use gpu_bootstrap::facts::disk::Disk;
use gpu_bootstrap::facts::gpu::{Accelerator, AcceleratorKind, GpuFacts, PciDevice};
use gpu_bootstrap::facts::identity::{Identity, Instance};
use gpu_bootstrap::facts::os::{Arch, Os};
use gpu_bootstrap::facts::{Fact, Facts};

fn fact<T>(value: T) -> Fact<T> {
    Fact::new(value, "test")
}

/// A machine without GPU: `distro` as NVIDIA spells it (`ubuntu2204`).
pub(crate) fn machine(distro: &str) -> Facts {
    let digits = distro.find(|c: char| c.is_ascii_digit()).unwrap_or(distro.len());
    let (id, number) = distro.split_at(digits);
    let (version, kernel) = match id {
        "ubuntu" => (format!("{}.{}", &number[..2], &number[2..]), "6.8.0-1015-aws"),
        _ => (number.to_owned(), "6.1.0-28-cloud-amd64"),
    };
    Facts {
        identity: Identity {
            on_ec2: fact(true),
            instance: None,
            user_data: None,
            boot_id: fact("00000000-0000-4000-8000-000000000000".into()),
        },
        os: Os {
            id: fact(id.into()),
            version_id: fact(version),
            codename: fact(String::new()),
            arch: fact(Arch::Amd64),
            kernel: fact(kernel.into()),
            secure_boot: Fact::new(false, "test"),
            container: None,
        },
        gpu: GpuFacts::default(),
        disk: Disk { usr_free: fact(100 << 30), var_free: fact(100 << 30), instance_store: fact(Vec::new()) },
    }
}

/// An EC2 instance of a type in the catalog, with what its bus holds.
pub(crate) fn instance(distro: &str, instance_type: &str) -> Facts {
    let mut facts = machine(distro);
    named(&mut facts, instance_type);
    let found = Catalog::embedded().unwrap().instance_type(instance_type).unwrap();
    facts.os.arch = fact(found.arch);
    for number in 0..found.gpus {
        let device = device(number, found.vendor, found.device.unwrap_or(0), found.class, found.subsystem);
        if found.vendor == 0x10de {
            facts.gpu.gpus.push(fact(device));
        } else {
            let kind = match found.family.as_str() {
                "g4ad" => AcceleratorKind::AmdGpu,
                "dl1" => AcceleratorKind::Gaudi,
                family if family.starts_with("inf") => AcceleratorKind::Inferentia,
                _ => AcceleratorKind::Trainium,
            };
            facts.gpu.other_accelerators.push(fact(Accelerator { kind, device }));
        }
    }
    for number in 0..found.nvswitches {
        let id = found.nvswitch.unwrap();
        facts.gpu.nvswitches.push(fact(device(0x40 + number, 0x10de, id, 0x0680, None)));
    }
    facts
}

/// A machine with one GPU of this PCI device id, and no instance type.
pub(crate) fn with_gpu(distro: &str, id: u16) -> Facts {
    let mut facts = machine(distro);
    facts.gpu.gpus.push(fact(device(0, 0x10de, id, 0x0302, None)));
    facts
}

/// Makes the machine an EC2 instance of this type, whatever its bus holds.
pub(crate) fn named(facts: &mut Facts, instance_type: &str) {
    facts.identity.instance = Some(fact(Instance {
        id: "i-0123456789abcdef0".into(),
        instance_type: instance_type.into(),
        region: "us-east-1".into(),
        availability_zone: "us-east-1a".into(),
        account_id: "123456789012".into(),
        image_id: "ami-0123456789abcdef0".into(),
        architecture: "x86_64".into(),
    }));
}

fn device(number: u32, vendor: u16, device: u16, class: u16, subsystem: Option<u16>) -> PciDevice {
    PciDevice { address: format!("0000:{number:02x}:00.0"), vendor, device, class, subsystem }
}
