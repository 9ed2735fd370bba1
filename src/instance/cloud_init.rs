//! Whether cloud-init does all this on this machine.

use crate::error::Result;
use crate::host::files::Files;

/// What cloud-init's generator has decided for this boot, before any unit runs.
const DECIDED: [(&str, bool); 2] = [("/run/cloud-init/enabled", true), ("/run/cloud-init/disabled", false)];
/// It is installed.
const PROGRAM: &str = "/usr/bin/cloud-init";
/// The administrator's switch.
const SWITCH: &str = "/etc/cloud/cloud-init.disabled";

/// By what it is seen that cloud-init is at work here; `None` where it is not. Where its generator has not said, it counts
/// as enabled if it is there: two that write the same files are worse than one.
pub(crate) fn enabled_by(files: &Files) -> Result<Option<&'static str>> {
    for (path, is_enabled) in DECIDED {
        if files.exists(path)? {
            return Ok(is_enabled.then_some(path));
        }
    }
    let is_enabled = files.exists(PROGRAM)? && !files.exists(SWITCH)?;
    Ok(is_enabled.then_some(PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generators_word_counts_more_than_what_is_installed() {
        for (there, enabled) in [
            (&[][..], None),
            (&[PROGRAM], Some(PROGRAM)),
            (&[PROGRAM, SWITCH], None),
            (&[PROGRAM, DECIDED[1].0], None),
            (&[PROGRAM, SWITCH, DECIDED[0].0], Some(DECIDED[0].0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::new(dir.path().into());
            for path in there {
                files.write(path, b"", 0o644).unwrap();
            }
            assert_eq!(enabled_by(&files).unwrap(), enabled, "{there:?}");
        }
    }
}
