//! `--fault SETTING`: what can be wrong with the simulated driver. The settings are those that `driver/*.c` read; a
//! test compares.

use super::driver;
use crate::catalog::data::InstanceType;
use crate::error::{Code, Error, Result};

/// What stands behind the `=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// A function of the driver.
    Function,
    /// A function and the code that it returns: `cuInit=802`.
    FunctionAndCode,
    /// Number of a GPU.
    Gpu,
    /// Two numbers of GPUs: `0-5`.
    TwoGpus,
    /// A number.
    Count,
    /// Numbers with dots.
    Version,
}

impl Value {
    /// As the help and messages show it.
    fn example(self) -> &'static str {
        match self {
            Self::Function => "FUNCTION",
            Self::FunctionAndCode => "FUNCTION=CODE",
            Self::Gpu => "GPU",
            Self::TwoGpus => "GPU-GPU",
            Self::Count => "N",
            Self::Version => "VERSION",
        }
    }

    fn fits(self, text: &str) -> bool {
        let number =
            |text: &str| !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit());
        match self {
            Self::Function => driver::has_function(text),
            Self::FunctionAndCode => {
                text.split_once('=').is_some_and(|(name, code)| driver::has_function(name) && number(code))
            }
            Self::Gpu | Self::Count => number(text),
            Self::TwoGpus => text.split_once('-').is_some_and(|(from, to)| number(from) && number(to)),
            Self::Version => text.len() < 28 && text.split('.').all(number),
        }
    }
}

const SETTINGS: &[(&str, Value)] = &[
    ("hang", Value::Function),
    ("crash", Value::Function),
    ("abort", Value::Function),
    ("grandchild", Value::Function),
    ("fail", Value::FunctionAndCode),
    ("bitflip", Value::Gpu),
    ("idle_multiprocessor", Value::Gpu),
    ("lost", Value::Gpu),
    ("ecc_uncorrected", Value::Gpu),
    ("remap_pending", Value::Gpu),
    ("remap_failed", Value::Gpu),
    ("nvlink_down", Value::Gpu),
    ("pcie_x8", Value::Gpu),
    ("too_hot", Value::Gpu),
    ("busy", Value::Gpu),
    ("persistence_off", Value::Gpu),
    ("fabric_waits", Value::Gpu),
    ("recovery", Value::Gpu),
    ("mig", Value::Gpu),
    ("nvlink_few", Value::Gpu),
    ("nvlink_off", Value::Gpu),
    ("mig_pending", Value::Gpu),
    ("replays", Value::Gpu),
    ("prohibited", Value::Gpu),
    ("retired_double", Value::Gpu),
    ("retired_full", Value::Gpu),
    ("slow_link", Value::Gpu),
    ("no_peer", Value::TwoGpus),
    ("hang_pair", Value::TwoGpus),
    ("fail_pair", Value::TwoGpus),
    ("wrong_pair", Value::TwoGpus),
    ("cuda_gpus", Value::Count),
    ("nvml_gpus", Value::Count),
    ("version", Value::Version),
    ("cudart", Value::Version),
    ("cudnn", Value::Version),
    ("cublas", Value::Version),
];

/// Every setting with what it takes, for help and messages.
pub(super) fn all() -> String {
    let shown: Vec<_> = SETTINGS.iter().map(|(key, value)| format!("{key}={}", value.example())).collect();
    shown.join(", ")
}

/// A setting that the simulated driver understands, or why it is none.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let known = || format!("a fault is one of {}", all());
    let (key, value) = text.split_once('=').ok_or_else(known)?;
    let (_, kind) = SETTINGS.iter().find(|(name, _)| *name == key).ok_or_else(known)?;
    if kind.fits(value) {
        return Ok(text.to_owned());
    }
    Err(match kind {
        Value::Function | Value::FunctionAndCode => format!(
            "write {key}={}, with a function that the simulated driver has, such as cuInit",
            kind.example()
        ),
        _ => format!("write {key}={}", kind.example()),
    })
}

/// Refuses a fault on a GPU that the instance type does not have.
pub(super) fn check(faults: &[String], name: &str, instance_type: Option<&InstanceType>) -> Result<()> {
    let gpus = instance_type.map_or(0, |t| t.gpus);
    for fault in faults {
        let (key, value) = fault.split_once('=').unwrap_or((fault, ""));
        let about_gpus =
            SETTINGS.iter().any(|(known, kind)| *known == key && matches!(kind, Value::Gpu | Value::TwoGpus));
        let missing = value.split('-').any(|n| n.parse::<u32>().is_ok_and(|n| n >= gpus));
        if gpus == 0 || (about_gpus && missing) {
            return Err(Error::new(Code::Usage, format!("--fault {fault}: {name} has no such GPU"))
                .with_hint(match gpus {
                    0 => "rehearse an instance type with a GPU".to_owned(),
                    1 => "its only GPU is 0".to_owned(),
                    _ => format!("its GPUs are 0 to {}", gpus - 1),
                }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_driver_understands_is_a_fault() {
        for good in [
            "bitflip=0",
            "fail=cuInit=802",
            "hang=nvmlInit_v2",
            "no_peer=0-5",
            "cudnn=9.5.0",
            "abort=cudnnGetVersion",
            "nvml_gpus=7",
        ] {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "bitflip",
            "bitflip=",
            "bitflip=x",
            "bitflop=1",
            "fail=cuInit",
            "fail=cuInit=x",
            "hang=cuInt",
            "hang=",
            "no_peer=3",
            "cudnn=nine",
            "bitflip=0\ngpus=9xT4",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_setting_is_read_by_the_driver() {
        let source = [
            include_str!("driver/cuda.c"),
            include_str!("driver/nvml.c"),
            include_str!("driver/libraries.c"),
            include_str!("driver/settings.c"),
        ]
        .concat();
        for (key, _) in SETTINGS {
            assert!(source.contains(&format!("(\"{key}\"")), "{key}");
        }
    }
}
