//! Facts of a machine that does not exist, for tests of what follows from facts. Each test file uses a part of it.
#![allow(dead_code, reason = "every test file that includes this module uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use gpu_bootstrap::catalog::{Catalog, machine as absent};
use gpu_bootstrap::facts::Facts;
use gpu_bootstrap::facts::os::Arch;

/// A machine without GPU: `distro` as NVIDIA spells it (`ubuntu2204`).
pub(crate) fn machine(distro: &str) -> Facts {
    absent::facts(distro, Arch::Amd64)
}

/// An EC2 instance of a type in the catalog, with what its bus holds.
pub(crate) fn instance(distro: &str, instance_type: &str) -> Facts {
    absent::instance(distro, &Catalog::embedded().unwrap().instance_type(instance_type).unwrap())
}

/// A machine with one GPU of this PCI device id, and no instance type.
pub(crate) fn with_gpu(distro: &str, id: u16) -> Facts {
    let mut facts = machine(distro);
    assert!(absent::plug(&mut facts.gpu, absent::function(0x10de, id, 0x0302)));
    facts
}

/// Makes the machine an EC2 instance of this type, whatever its bus holds.
pub(crate) fn named(facts: &mut Facts, instance_type: &str) {
    absent::name(facts, instance_type);
}
