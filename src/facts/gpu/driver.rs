//! What the NVIDIA kernel module says of itself under `/proc`. Pure functions of the files' text.

use serde::Serialize;

use super::Driver;
use super::pci::Address;

/// A GPU that the kernel module drives, from `/proc/driver/nvidia/gpus/*/information`. Any line may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DrivenGpu {
    /// Its PCI address, `domain:bus:device.function`.
    pub address: String,
    /// Marketing name, for example `NVIDIA A10G`.
    pub model: Option<String>,
    /// `GPU-…`; absent while the GPU has not been initialised.
    pub uuid: Option<String>,
    /// The number in `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// Whether the administrator excluded it from use.
    pub excluded: bool,
}

/// The driver's version and flavour, from `/proc/driver/nvidia/version`. The first line has three shapes:
///
/// ```text
/// NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.103.01  Thu Jan  6 …
/// NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.195.03  Release Build  (dvs-builder@…)  …
/// NVRM version: NVIDIA UNIX Kernel Module for aarch64  34.1.1  Release Build  …
/// ```
pub fn version(text: &str) -> Option<Driver> {
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix("NVRM version:"))?;
    let (before, after) = line.split_once("Kernel Module")?;
    let version = after.split_ascii_whitespace().find(|word| is_version(word))?;
    Some(Driver { version: version.to_owned(), open: before.split_ascii_whitespace().any(|w| w == "Open") })
}

/// Two or three dotted numbers.
fn is_version(word: &str) -> bool {
    let parts: Vec<_> = word.split('.').collect();
    (2..=3).contains(&parts.len())
        && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// One GPU, from the name of its directory and the text of its `information` file. The directory's name stands
/// in where the file has no `Bus Location`.
pub fn information(directory: &str, text: &str) -> DrivenGpu {
    let line = |key: &str| {
        text.lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == key)
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    };
    let place = line("Bus Location").unwrap_or(directory);
    DrivenGpu {
        address: Address::parse(place).map_or_else(|| place.to_owned(), |a| a.to_string()),
        model: line("Model").map(str::to_owned),
        uuid: line("GPU UUID").filter(|u| !u.contains('?')).map(str::to_owned),
        minor: line("Device Minor").and_then(|m| m.parse().ok()),
        excluded: line("GPU Excluded") == Some("Yes"),
    }
}

/// The major number of a character device's driver, from `/proc/devices`.
pub fn character_major(text: &str, driver: &str) -> Option<u32> {
    text.lines()
        .skip_while(|l| l.trim() != "Character devices:")
        .take_while(|l| l.trim() != "Block devices:")
        .filter_map(|l| l.trim().split_once(char::is_whitespace))
        .find(|(_, name)| name.trim() == driver)
        .and_then(|(major, _)| major.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_version_has_no_driver() {
        for text in
            ["", "NVRM version:", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  \n", "Kernel Module 1.2.3"]
        {
            assert_eq!(version(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_version_in_the_compiler_line_is_not_the_drivers() {
        assert_eq!(
            version("NVRM version: NVIDIA UNIX x86_64 Kernel Module\nGCC version:  gcc version 9.4.0\n"),
            None
        );
    }

    #[test]
    fn every_line_of_information_may_be_absent() {
        let gpu = information("0000:00:1E.0", "");
        assert_eq!(gpu, DrivenGpu { address: "0000:00:1e.0".into(), ..DrivenGpu::default() });
        let gpu = information(
            "0000:00:1e.0",
            "GPU UUID: \t GPU-????????-????-????-????-????????????\nGPU Excluded:\t Yes\n",
        );
        assert_eq!((gpu.uuid, gpu.excluded), (None, true));
    }

    #[test]
    fn block_devices_are_not_character_devices() {
        let text = "Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n";
        assert_eq!(character_major(text, "mem"), Some(1));
        assert_eq!(character_major(text, "loop"), None);
    }
}
