//! What keeps unattended-upgrades from the driver: a file of apt's configuration with patterns of package names.
//!
//! The driver's packages are on hold, which unattended-upgrades respects. The file says it a second time, for packages that
//! come along later, and for people who lift holds to upgrade something else: libraries under a loaded module of another
//! version end every use of the GPU until the next boot.

use std::fmt::Write as _;

use crate::host::apt::nvidia;

/// The file's content. The patterns are regular expressions of Python's that are matched at a name's beginning.
pub(super) fn blacklist() -> String {
    let mut text = String::from(
        "// Written by gpu-bootstrap; changes are undone by its next run.\n\
         // An upgrade of these packages alone would leave libraries and kernel module out of step.\n\
         Unattended-Upgrade::Package-Blacklist {\n",
    );
    // Modules that are built for a kernel must come along with it.
    for pattern in nvidia::DRIVER_PACKAGES.iter().filter(|p| !p.starts_with("linux-")) {
        let _ = writeln!(text, "    \"{}$\";", pattern.replace('*', ".*"));
    }
    text.push_str("};\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_whole_names() {
        let text = blacklist();
        assert!(text.contains("    \"libnvidia-.*$\";\n    \"libnvoptix1.*$\";\n"), "{text}");
        assert!(!text.contains("linux-"), "{text}");
    }
}
