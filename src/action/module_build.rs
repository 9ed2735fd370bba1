//! Why DKMS built no module: the compiler's own line out of DKMS's log, and what to do about it. For the actions that
//! install the driver or build its modules.

use crate::error::{Code, Error, Result};
use crate::host::Host;

/// Words of a log's line → what to do.
const REMEDIES: &[(&[&str], &str)] = &[
    (
        &["No space left on device"],
        "free space below /var/lib/dkms and /tmp, or enlarge the volume, then run again",
    ),
    (
        &["Killed signal", "fatal error: Killed", "Cannot allocate memory", "out of memory"],
        "the machine has too little memory to compile it: use a larger type, or add swap, then run again",
    ),
    (
        &[
            "unrecognized command-line option",
            "unrecognized command line option",
            "not found",
            "No such file or directory",
        ],
        "the compiler that built this kernel is missing or too old: install the gcc that `cat /proc/version` names, then run again",
    ),
    (
        &["error:"],
        "this driver does not compile for this kernel: wish for a newer branch (driver.branch), or boot an older kernel and set \
         policy.hold-kernel = \"always\"",
    ),
];
const ELSE: &str = "read the log from its first error on; then run again";

/// The newest failed build of the driver for a kernel, as an error; `None` if DKMS left no log of one.
pub(super) fn failure(host: &Host, kernel: &str) -> Result<Option<Error>> {
    let Some(log) = failed_build(host, kernel)? else { return Ok(None) };
    let text = host.files.read(&log)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = telling_line(&text);
    let hint = REMEDIES.iter().find(|(words, _)| words.iter().any(|w| line.contains(w)));
    let hint = hint.map_or(ELSE, |(_, hint)| hint);
    Ok(Some(
        Error::new(
            Code::ModuleBuildFailed,
            format!("DKMS could not build the NVIDIA module for kernel {kernel}: {line} ({log})"),
        )
        .with_hint(hint),
    ))
}

/// The error of an installation, told by the compiler's line where a failed build of the driver is behind it.
pub(super) fn explain(host: &Host, error: Error) -> Error {
    let words = error.causes().join("\n");
    if error.code() != Code::AptFailed || !["dkms", "make.log"].iter().any(|w| words.contains(w)) {
        return error;
    }
    for kernel in host.files.list("/lib/modules").unwrap_or_default() {
        if let Ok(Some(told)) = failure(host, &kernel) {
            return told.because(error);
        }
    }
    error
}

/// The log of a DKMS build that left no module for the kernel.
pub(super) fn failed_build(host: &Host, kernel: &str) -> Result<Option<String>> {
    for package in host.files.list("/var/lib/dkms")?.iter().filter(|p| p.starts_with("nvidia")) {
        for version in host.files.list(format!("/var/lib/dkms/{package}"))? {
            let log = format!("/var/lib/dkms/{package}/{version}/build/make.log");
            // The log's head names the kernel that it was built for.
            if host.files.read_text(&log)?.is_some_and(|text| text.contains(kernel)) {
                return Ok(Some(log));
            }
        }
    }
    Ok(None)
}

/// The line that says why: the compiler's first error, else make's, else the last one.
fn telling_line(log: &str) -> String {
    let lines = || log.lines().map(str::trim).filter(|l| !l.is_empty());
    let is_error = |l: &&str| {
        l.contains(" error: ") || l.starts_with("error: ") || l.contains("No space left on device")
    };
    let is_missing = |l: &&str| l.contains(": not found") || l.contains("command not found");
    let is_make = |l: &&str| l.contains("*** ");
    let line = lines().find(is_error).or_else(|| lines().find(is_missing)).or_else(|| lines().find(is_make));
    line.or_else(|| lines().next_back()).unwrap_or("the log is empty").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "6.8.0-1021-aws";

    fn told(log: &str) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let head = format!("DKMS make.log for nvidia-580.82.07 for kernel {KERNEL} (x86_64)\nFri Nov 27\n");
        let path = "/var/lib/dkms/nvidia/580.82.07/build/make.log";
        host.files.write(path, [head.as_str(), log].concat().as_bytes(), 0o644).unwrap();
        assert!(failure(&host, "6.8.0-1040-aws").unwrap().is_none());
        failure(&host, KERNEL).unwrap().unwrap()
    }

    #[test]
    fn the_compiler_s_first_error_is_told_with_what_to_do() {
        let error = told(
            "make[1]: Entering directory '/usr/src/linux-headers-6.8.0-1021-aws'\n  CC [M]  nvidia/nv.o\n\
             /var/lib/dkms/nvidia/580.82.07/build/nvidia/nv.c:812:9: error: implicit declaration of function 'foo'\n\
             nv.c:900:1: error: another\nmake[2]: *** [scripts/Makefile.build:243: nvidia/nv.o] Error 1\n",
        );
        assert_eq!(error.code(), Code::ModuleBuildFailed);
        assert!(
            error.message().contains("nv.c:812:9: error: implicit declaration of function 'foo' (/var/lib"),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("driver.branch"), "{:?}", error.hint());
    }

    #[test]
    fn a_missing_compiler_memory_and_disk_have_their_own_remedy() {
        for (log, line, hint) in [
            (
                "/bin/sh: 1: gcc-12: not found\nmake: *** [Makefile] Error 127\n",
                "gcc-12: not found",
                "install the gcc",
            ),
            ("gcc: fatal error: Killed signal terminated program cc1\n", "Killed signal", "memory"),
            ("nv.c:1:1: fatal error: write: No space left on device\n", "No space", "free space"),
            (
                "make: *** No rule to make target 'modules'.  Stop.\n",
                "No rule to make target",
                "read the log",
            ),
        ] {
            let error = told(log);
            assert!(error.message().contains(line), "{line}: {error}");
            assert!(error.hint().unwrap().contains(hint), "{line}: {:?}", error.hint());
        }
    }
}
