//! Why the NVIDIA module went away again although the kernel took it: the module's own words in the kernel's log, and what
//! to do about them.

/// What every attempt to load the driver begins with, in all branches that are still in use.
const BEGINS: &str = "Nvlink Core is being initialized";
/// Longer quotations are no sentence.
const MOST: usize = 240;

const OTHER_BRANCH: &str = "set driver.branch = \"auto\", or one of the branches that `gpu-bootstrap catalog` calls possible; then run again";
const OTHER_DRIVER: &str = "`lspci -nnk -d 10de:` names the driver that holds the GPU: keep it away (`blacklist NAME` in /etc/modprobe.d; for \
     vfio-pci, the kernel's command line), reboot, then run again";
const OTHER_HARDWARE: &str = "the GPU is on the PCI bus and does not answer as one: stop and start the instance to get other hardware; `dmesg` has \
     more lines of NVRM";
const NONE_THERE: &str = "`lspci -d 10de:` shows whether the GPU is still on the PCI bus: stop and start the instance to get other hardware; where \
     there is to be no GPU, set [policy] on-no-gpu = \"skip\"";

/// Words of the module → what to do. The special ones come first: the last ones follow from any of them.
const REFUSALS: &[(&str, &str)] = &[
    (
        "requires use of the NVIDIA open kernel modules",
        "set driver.flavour = \"open\" (or \"auto\"), then run again",
    ),
    ("is not supported by open", "set driver.flavour = \"proprietary\" (or \"auto\"), then run again"),
    ("is not supported by the NVIDIA", OTHER_BRANCH),
    ("Legacy drivers", OTHER_BRANCH),
    ("is already bound to", OTHER_DRIVER),
    ("probe routine was not called", OTHER_DRIVER),
    ("assigned to your NVIDIA device is invalid", OTHER_HARDWARE),
    ("Can't find an IRQ", OTHER_HARDWARE),
    ("fallen off the bus", OTHER_HARDWARE),
    ("probe routine failed", OTHER_HARDWARE),
    ("None of the NVIDIA", OTHER_HARDWARE),
    ("No NVIDIA", NONE_THERE),
];

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The module's sentence.
    pub words: String,
    pub hint: &'static str,
}

/// The refusal of the last attempt in the kernel's log, if it was refused.
pub(super) fn last(log: &str) -> Option<Refusal> {
    let attempt = log.rfind(BEGINS).map_or(log, |at| &log[at..]);
    // A sentence goes over several lines, and each has the mark.
    let said: Vec<_> = attempt.lines().filter_map(|l| Some(l.split_once("NVRM: ")?.1.trim())).collect();
    let said = said.join(" ");
    let (place, hint) = REFUSALS.iter().find_map(|(words, hint)| Some((said.find(words)?, *hint)))?;
    let begin = said[..place].rfind(". ").map_or(0, |at| at + 2);
    let rest = &said[begin..];
    let end = rest[place - begin..].find(". ").map_or(rest.len(), |at| place - begin + at);
    let words: String = rest[..end].chars().take(MOST).collect();
    Some(Refusal { words: words.trim_end_matches('.').to_owned(), hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str =
        "6,600,1,-;nvidia-nvlink: Nvlink Core is being initialized, major device number 240\n";

    fn told(lines: &[&str]) -> Refusal {
        let lines = lines.iter().map(|l| format!("3,601,2,-;NVRM: {l}\n")).collect::<Vec<_>>().concat();
        last(&format!("{BEGIN}{lines}")).unwrap()
    }

    #[test]
    fn each_refusal_is_quoted_and_has_its_remedy() {
        let none = told(&["No NVIDIA GPU found."]);
        assert_eq!((none.words.as_str(), none.hint), ("No NVIDIA GPU found", NONE_THERE));
        let old = told(&[
            "The NVIDIA GPU 0000:00:1e.0 (PCI ID: 10de:102d)",
            "installed in this system is not supported by the",
            "NVIDIA 535.309.01 driver release.",
            "Please see 'Appendix A - Supported NVIDIA GPU Products'",
            "The NVIDIA probe routine failed for 1 device(s).",
            "None of the NVIDIA devices were initialized.",
        ]);
        assert_eq!(
            (old.words.as_str(), old.hint),
            (
                "The NVIDIA GPU 0000:00:1e.0 (PCI ID: 10de:102d) installed in this system is not supported by the NVIDIA 535.309.01 driver release",
                OTHER_BRANCH
            )
        );
        let legacy = told(&[
            "The NVIDIA Tesla K80 GPU installed in this system is",
            "supported through the NVIDIA 470.xx Legacy drivers. Please",
            "this GPU.  Continuing probe...",
            "No NVIDIA GPU found.",
        ]);
        assert_eq!(legacy.hint, OTHER_BRANCH);
        assert!(legacy.words.ends_with("NVIDIA 470.xx Legacy drivers"), "{}", legacy.words);
        let no_gsp = told(&[
            "The NVIDIA GPU 0000:00:1e.0 (PCI ID: 10de:1db1)",
            "installed in this system is not supported by open",
            "nvidia.ko because it does not include the required GPU",
        ]);
        assert!(no_gsp.hint.contains("proprietary"));
        let held =
            told(&["The NVIDIA probe routine was not called for 1 device(s).", "No NVIDIA devices probed."]);
        assert_eq!(
            (held.words.as_str(), held.hint),
            ("The NVIDIA probe routine was not called for 1 device(s)", OTHER_DRIVER)
        );
        let bar = told(&[
            "This PCI I/O region assigned to your NVIDIA device is invalid:",
            "BAR1 is 0M @ 0x0 (PCI:0000:00:1e.0)",
            "The NVIDIA probe routine failed for 1 device(s).",
        ]);
        assert_eq!(bar.hint, OTHER_HARDWARE);
        assert!(bar.words.contains("BAR1 is 0M @ 0x0"), "{}", bar.words);
    }

    #[test]
    fn only_the_last_attempt_counts() {
        let refused = "3,601,2,-;NVRM: No NVIDIA GPU found.\n";
        let loaded = "5,700,3,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.309.01\n";
        assert_eq!(last(&format!("{BEGIN}{refused}{BEGIN}{loaded}")), None);
        assert!(last(&format!("{BEGIN}{loaded}{BEGIN}{refused}")).is_some());
        assert_eq!(last(""), None);
    }
}
