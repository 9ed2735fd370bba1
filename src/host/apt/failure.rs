//! What apt's output says went wrong: a stable code, and a line about what to do. Pure.

use crate::error::{Code, Error};
use crate::host::exec::Output;

/// Lines of apt's output that are kept as the cause.
const CAUSE_LINES: usize = 8;

struct Known {
    /// Any of these, anywhere in the output.
    words: &'static [&'static str],
    code: Code,
    hint: &'static str,
}

/// What to do where the network is to blame.
pub(super) const ROUTE_HINT: &str = "check the network route to the repository named in the message (security group, NAT, proxy), then run again";

/// Known causes; the first that matches counts, so that a cause stands before its consequences.
const KNOWN: &[Known] = &[
    Known {
        words: &["Redirection from https to"],
        code: Code::InsecureRedirect,
        hint: "name the address that the repository has now in its source",
    },
    Known {
        words: &["No space left on device", "You don't have enough free space"],
        code: Code::DiskFull,
        hint: "free space on /var and /usr or enlarge the volume, then run again",
    },
    Known {
        words: &["Hash Sum mismatch", "File has unexpected size", "Hashes of expected file"],
        code: Code::ChecksumMismatch,
        hint: "the repository is being updated or a proxy keeps an old file: run again in a few minutes",
    },
    Known {
        words: &["Conflicting values set for option Signed-By"],
        code: Code::AptFailed,
        hint: "two source files name the same repository with different keys: remove one of them",
    },
    Known {
        words: &["is not valid yet", "is expired (invalid since"],
        code: Code::RepositoryUntrusted,
        hint: "compare the machine's clock (date -u) with the times in the message",
    },
    Known {
        words: &[
            "NO_PUBKEY",
            "BADSIG",
            "EXPKEYSIG",
            "REVKEYSIG",
            "is not signed",
            "is no longer signed",
            "is not bound",
            "Missing key",
            "couldn't be verified",
            "could not be authenticated",
            "were unauthenticated packages",
            "does not have a Release file",
            "no longer has a Release file",
            "Clearsigned file isn't valid",
        ],
        code: Code::RepositoryUntrusted,
        hint: "the message names the repository and key: mend or remove that source in /etc/apt/sources.list.d, then run again",
    },
    Known {
        words: &["remove is disabled"],
        code: Code::WouldRemove,
        hint: "another program changed the package lists meanwhile: run again",
    },
    Known {
        words: &["Packages were downgraded"],
        code: Code::WouldDowngrade,
        hint: "remove the wished version, or downgrade by hand with apt-get --allow-downgrades",
    },
    Known {
        words: &[
            "dpkg was interrupted",
            "Unmet dependencies. Try 'apt --fix-broken",
            "Unmet dependencies. Try 'apt-get -f",
        ],
        code: Code::DpkgBroken,
        hint: "run `dpkg --configure -a` and `apt-get -f install`, then run again",
    },
    Known {
        words: &[
            "Unable to locate package",
            "Couldn't find any package by",
            "has no installation candidate",
            "was not found",
            "unmet dependencies",
            "held broken packages",
            "Held packages were changed",
            "Unable to correct problems",
            // What depends on a package that is to go, and is on hold.
            "generated breaks",
            "is not possible, it cannot be downloaded",
        ],
        code: Code::AptUnsolvable,
        hint: "`apt-mark showhold` and `apt-cache policy PACKAGE` show what stands in the way",
    },
    Known {
        words: &[
            "Temporary failure resolving",
            "Could not resolve",
            "Could not connect",
            "Connection failed",
            "Connection timed out",
            "Failed to fetch",
        ],
        code: Code::AptFailed,
        hint: ROUTE_HINT,
    },
    Known {
        words: &["Sub-process /usr/bin/dpkg returned an error"],
        code: Code::AptFailed,
        hint: "a package's own script failed: its last words stand above; `dpkg --configure -a` shows all of them",
    },
];

/// Signs that another program took a lock between our look and apt's.
const LOCK_WORDS: [&str; 6] = [
    "Could not get lock",
    "Unable to acquire the dpkg frontend lock",
    "Unable to lock",
    "is locked by another process",
    "was locked by another process",
    "Unable to lock the administration directory",
];

/// Whether a lock was the reason.
pub(super) fn is_lock(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    LOCK_WORDS.iter().any(|w| text.contains(w))
}

/// The line that names the lock.
pub(super) fn lock_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|l| LOCK_WORDS.iter().any(|w| l.contains(w))).unwrap_or_default();
    line.trim_start_matches("E: ").to_owned()
}

/// The error for an `apt-get` or `dpkg` call that failed; `what` is what was tried ("install cuda-toolkit-12-8").
pub(super) fn explain(what: &str, output: &Output) -> Error {
    let cause = cause(output);
    let known = KNOWN.iter().find(|k| k.words.iter().any(|w| cause.full.contains(w)));
    let refused = http_status(&cause.full).map(meaning);
    let error = match refused.or(known.map(|k| (k.code, k.hint))) {
        Some((code, hint)) => Error::new(code, format!("cannot {what}")).with_hint(hint),
        None => Error::new(Code::AptFailed, format!("cannot {what}: status {}", output.status)),
    };
    error.because(cause.short)
}

/// The HTTP status for which a file could not be fetched. Its reason phrase is the server's own. An index that is not
/// signed is a consequence, where its signature could not be fetched.
pub(crate) fn http_status(text: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once("Failed to fetch ")?;
        let (_, answer) = rest.split_once("  ")?;
        let (status, _) = answer.split_once("  ")?;
        status.parse().ok().filter(|s| (400..600).contains(s))
    })
}

/// Whether a later attempt may do better, which apt itself does not make.
pub(super) fn is_busy(output: &Output) -> bool {
    let status = http_status(&String::from_utf8_lossy(&output.stderr));
    status.is_some_and(|s| matches!(s, 408 | 425 | 429 | 500..=599))
}

fn meaning(status: u16) -> (Code, &'static str) {
    match status {
        401 | 403 | 407 => (
            Code::FetchDenied,
            "the repository, or a proxy on the way, wants a login or refuses this machine: correct that source, or use a mirror",
        ),
        404 | 410 => (
            Code::IndexOutdated,
            "the repository's index names a file that is not there (it is being updated, or the source is outdated): run again later",
        ),
        _ => (Code::AptFailed, "the repository's server is busy or out of order: run again later"),
    }
}

struct Cause {
    full: String,
    short: String,
}

/// The lines in which apt and dpkg say why; all of the last lines where there are none such.
fn cause(output: &Output) -> Cause {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut telling: Vec<&str> = Vec::new();
    let mut follows = false;
    // The solver explains itself on standard output, indented, after this line.
    if let Some((_, why)) = stdout.split_once("have unmet dependencies:") {
        telling.push("The following packages have unmet dependencies:");
        telling.extend(why.lines().skip(1).take_while(|l| l.starts_with(' ')).take(CAUSE_LINES));
    }
    // Why a file of an index could not be fetched is said on standard output, indented, after an Err line.
    let mut lines = stdout.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("Err:") {
            telling.extend(lines.next_if(|l| l.starts_with(' ')).map(str::trim));
        }
    }
    for line in stderr.lines() {
        let is_error = ["E: ", "W: ", "dpkg: error", "dpkg-deb: error", "debconf: ", "modprobe: "]
            .iter()
            .any(|start| line.starts_with(start));
        // dpkg and apt continue a message on indented lines.
        if is_error || (follows && line.starts_with(' ')) {
            telling.push(line);
        }
        follows = is_error || (follows && line.starts_with(' '));
    }
    let full = format!("{stdout}\n{stderr}");
    if telling.is_empty() {
        return Cause { full, short: output.tail() };
    }
    let short = telling[telling.len().saturating_sub(CAUSE_LINES)..].join("\n");
    Cause { full: if stderr.is_empty() { full } else { format!("{stderr}\n{short}") }, short }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stdout: &str, stderr: &str) -> Error {
        explain("install x", &Output { status: 100, stdout: stdout.into(), stderr: stderr.into() })
    }

    #[test]
    fn known_causes_have_their_codes() {
        let cases = [
            ("E: You don't have enough free space in /var/cache/apt/archives/.", Code::DiskFull),
            (
                "E: Failed to fetch http://r/x.deb  Hash Sum mismatch\n   Hashes of expected file:",
                Code::ChecksumMismatch,
            ),
            (
                "W: GPG error: http://r InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY A4B469963BF863CC\nE: The repository 'http://r InRelease' is not signed.",
                Code::RepositoryUntrusted,
            ),
            (
                "E: Sub-process /usr/bin/sqv returned an error code (1), error message is: Signing key on EB693B3035CD5710E231E123A4B469963BF863CC is not bound:",
                Code::RepositoryUntrusted,
            ),
            ("E: Failed to fetch http://r/x.deb  404  Not Found [IP: 1.2.3.4 80]", Code::IndexOutdated),
            ("E: Unable to locate package cuda-toolkit-99", Code::AptUnsolvable),
            ("E: Version '9' for 'hello' was not found", Code::AptUnsolvable),
            (
                "E: Error, pkgProblemResolver::Resolve generated breaks, this may be caused by held packages.",
                Code::AptUnsolvable,
            ),
            ("E: Packages need to be removed but remove is disabled.", Code::WouldRemove),
            (
                "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem. ",
                Code::DpkgBroken,
            ),
            ("E: something nobody has seen", Code::AptFailed),
        ];
        for (text, code) in cases {
            let error = failed("", text);
            assert_eq!(error.code(), code, "{text}");
            assert!(error.causes()[0].contains(text.lines().next().unwrap().trim()), "{text}");
        }
    }

    #[test]
    fn the_solver_s_words_are_kept() {
        let error = failed(
            "Reading package lists...\nThe following packages have unmet dependencies:\n a : Depends: b but it is not installable\n",
            "E: Unable to correct problems, you have held broken packages.\n",
        );
        assert_eq!(error.code(), Code::AptUnsolvable);
        assert!(error.causes()[0].contains("a : Depends: b"));
    }

    #[test]
    fn lock_failures_of_old_and_new_apt_are_told_apart_from_others() {
        for text in [
            "E: Could not get lock /var/lib/dpkg/lock - open (11: Resource temporarily unavailable)",
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 12 (apt)",
            "E: Unable to lock directory /var/lib/apt/lists/",
            "dpkg: error: dpkg frontend lock was locked by another process with pid 12",
        ] {
            assert!(is_lock(&Output { status: 100, stdout: vec![], stderr: text.into() }), "{text}");
        }
        assert!(!is_lock(&Output { status: 100, stdout: vec![], stderr: b"E: broken".to_vec() }));
    }
}
