//! The error codes of the CUDA driver API and of NVML that a broken machine gives: what each means there, whether
//! it is a fault at all, and what to do.

/// How a code is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The GPU or its driver does not work.
    Fault,
    /// Somebody else uses the GPU alone: nothing is known about its health.
    Occupied,
    /// A reboot (or reloading the module) mends it.
    Reboot,
}

/// One known code.
#[derive(Debug)]
pub(super) struct Known {
    code: i32,
    pub(super) kind: Kind,
    /// What it means, a clause.
    pub(super) meaning: &'static str,
    /// What to do, a sentence.
    pub(super) advice: &'static str,
}

const fn known(code: i32, kind: Kind, meaning: &'static str, advice: &'static str) -> Known {
    Known { code, kind, meaning, advice }
}

use Kind::{Fault, Occupied, Reboot};

/// Memory ran out: the GPU's, or the host's.
pub(super) const OUT_OF_MEMORY: i32 = 2;

const CUDA: &[Known] = &[
    known(
        OUT_OF_MEMORY,
        Fault,
        "no memory is left for it on the GPU, or on the host",
        "See who holds the GPU's memory (nvidia-smi) and how much the host has free; where nobody holds it, reboot.",
    ),
    known(
        34,
        Fault,
        "libcuda.so.1 is the toolkit's stub, not the driver",
        "Remove the toolkit's stubs directory from the linker's paths and run ldconfig.",
    ),
    known(
        46,
        Occupied,
        "the GPU is in exclusive mode and in use",
        "Stop the program that uses the GPU, or set the compute mode to default (nvidia-smi -c 0), and ask again.",
    ),
    known(
        100,
        Fault,
        "the driver shows CUDA no device",
        "Look at dmesg for NVRM lines; if the GPU is on the PCI bus, reinstall the driver branch that supports it.",
    ),
    known(
        101,
        Fault,
        "the device's number is not valid",
        "Ask again; if it stays, a GPU was lost meanwhile: look at dmesg for NVRM lines.",
    ),
    known(
        214,
        Fault,
        "the GPU met an uncorrectable memory error",
        "Reset the GPU or reboot; if it comes again, stop and start the instance to move it to other hardware.",
    ),
    known(
        218,
        Fault,
        "the driver's compiler refuses the test kernel",
        "Reinstall the driver: its compiler and its kernel module may be of different versions.",
    ),
    known(
        220,
        Fault,
        "an NVLink failed with an uncorrectable error",
        "Reset the GPUs or reboot; if it comes again, stop and start the instance to move it to other hardware.",
    ),
    known(
        221,
        Fault,
        "the driver's PTX compiler is not installed",
        "Install libnvidia-ptxjitcompiler (Debian) or the whole libnvidia-compute package of the driver's version.",
    ),
    known(
        222,
        Fault,
        "the driver is too old for the PTX that it was given",
        "Install a newer driver branch.",
    ),
    known(
        802,
        Fault,
        "the system is not ready: on NVSwitch machines the fabric manager does not run, or has not finished",
        "Start nvidia-fabricmanager of exactly the driver's version (systemctl status nvidia-fabricmanager).",
    ),
    known(
        803,
        Reboot,
        "the kernel module and libcuda have different versions",
        "Reboot, so that the module of the installed version is loaded.",
    ),
    known(
        804,
        Fault,
        "the forward-compatibility libcuda does not support this GPU or driver",
        "Remove the cuda-compat package from the linker's paths.",
    ),
    known(
        919,
        Fault,
        "the NVSwitch fabric is not ready",
        "Wait for nvidia-fabricmanager to finish, or restart it, and ask again.",
    ),
    known(
        999,
        Fault,
        "the driver failed in a way that it has no name for, often because its module is half loaded",
        "Look at dmesg for NVRM lines and reboot; if it stays, reinstall the driver.",
    ),
];

const NVML: &[Known] = &[
    known(
        9,
        Fault,
        "no driver is loaded",
        "Load the nvidia module (modprobe nvidia) and see dmesg for why it does not load.",
    ),
    known(
        15,
        Fault,
        "the GPU is lost: it fell off the bus or cannot be reached",
        "Reboot; if it comes again, stop and start the instance to move it to other hardware.",
    ),
    known(
        16,
        Fault,
        "the GPU must be reset before it can be used",
        "Reset it (nvidia-smi --gpu-reset) with no program using it, or reboot.",
    ),
    known(
        17,
        Fault,
        "the operating system blocks the GPU",
        "Look at dmesg for the reason; a container needs the devices and their cgroup rules.",
    ),
    known(
        18,
        Reboot,
        "the kernel module and libnvidia-ml have different versions",
        "Reboot, so that the module of the installed version is loaded.",
    ),
    known(
        999,
        Fault,
        "the driver failed in a way that it has no name for",
        "Look at dmesg for NVRM lines and reboot; if it stays, reinstall the driver.",
    ),
];

/// What is known of a CUDA driver API code.
pub(super) fn cuda(code: i32) -> Option<&'static Known> {
    CUDA.iter().find(|k| k.code == code)
}

/// What is known of an NVML code.
pub(super) fn nvml(code: i32) -> Option<&'static Known> {
    NVML.iter().find(|k| k.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_words_of_its_own() {
        for code in [34, 46, 100, 214, 220, 221, 222, 802, 803, 804, 919, 999] {
            assert!(cuda(code).is_some(), "{code}");
        }
        for code in [9, 15, 16, 17, 18] {
            assert!(nvml(code).is_some(), "{code}");
        }
        for table in [CUDA, NVML] {
            let mut meanings: Vec<_> = table.iter().map(|k| k.meaning).collect();
            meanings.sort_unstable();
            meanings.dedup();
            assert_eq!(meanings.len(), table.len());
            assert!(table.iter().all(|k| k.advice.ends_with('.')));
        }
    }
}
