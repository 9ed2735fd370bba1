//! apt 3 verifies repositories with sqv, which has refused keys with a SHA-1 self-signature since 2026-02-01.
//! NVIDIA's key for Ubuntu up to 24.04 and Debian up to 12 is one. This module is the way round, as narrow as it
//! can be: it is taken only after apt has refused exactly that, and it loosens exactly that.
//!
//! For one source apart, an environment variable scopes it to the call. For the machine's own `apt update`
//! there is no per-source setting, so a policy file is written where apt looks for one, unless the
//! administrator already has one there; without it NVIDIA's source would stay broken for everybody else.

use crate::error::Result;
use crate::host::exec::{Call, Output};
use crate::host::{Host, paths};

/// The policy: apt's default, with the one exception that its own comment explains.
const POLICY: &str = include_str!("../../../steps/files/apt-sequoia.config");

/// Keys for which the machine-wide exception may be made.
const LEGACY_KEYS: [&str; 1] = ["EB693B3035CD5710E231E123A4B469963BF863CC"];

/// Where apt looks for the administrator's policy; it replaces apt's default as a whole.
const MACHINE_POLICY: &str = "/etc/crypto-policies/back-ends/apt-sequoia.config";

/// Whether apt refused a key because its self-signature uses SHA-1.
pub(super) fn refused_sha1(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    text.contains("SHA1 is not considered secure") && text.contains("is not bound")
}

/// Whether the refused key is one that we know and pin.
pub(super) fn refused_a_legacy_key(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    refused_sha1(output) && LEGACY_KEYS.iter().any(|key| text.contains(key))
}

/// The call with the policy for itself alone.
pub(super) fn scoped(host: &Host, call: Call) -> Result<Call> {
    let path = format!("{}/apt-sequoia.config", paths::STATE_DIR);
    // Readable for all: apt verifies as the user _apt.
    host.files.write(&path, POLICY.as_bytes(), 0o644)?;
    Ok(call.env("APT_SEQUOIA_CRYPTO_POLICY", host.seen(&path)))
}

/// Writes the policy for the machine's apt. False when the administrator has a policy of their own.
pub(super) fn install(host: &Host) -> Result<bool> {
    if host.files.exists(MACHINE_POLICY)? {
        return Ok(false);
    }
    host.note_before(MACHINE_POLICY)?;
    host.files.write(MACHINE_POLICY, POLICY.as_bytes(), 0o644)?;
    host.note_written(MACHINE_POLICY)?;
    host.notice(format!(
        "wrote {MACHINE_POLICY}: NVIDIA's repository key has a SHA-1 self-signature, which this apt refuses by default; \
         until 2029-02-01 apt accepts such self-signatures of any key that a source names"
    ));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(stderr: &str) -> Output {
        Output { status: 100, stdout: vec![], stderr: stderr.into() }
    }

    #[test]
    fn only_the_sha1_refusal_of_a_pinned_key_counts() {
        let refusal = |key: &str| {
            output(&format!(
                "Sub-process /usr/bin/sqv returned an error code (1), error message is: Signing key on {key} is not bound: … because: SHA1 is not considered secure since 2026-02-01T00:00:00Z"
            ))
        };
        assert!(refused_a_legacy_key(&refusal(LEGACY_KEYS[0])));
        let other = refusal("0000000000000000000000000000000000000000");
        assert!(refused_sha1(&other) && !refused_a_legacy_key(&other));
        assert!(!refused_sha1(&output("E: The repository 'x' is not signed.")));
    }

    #[test]
    fn the_exception_is_one_line() {
        let relaxed: Vec<_> = POLICY.lines().filter(|l| l.contains("sha1")).collect();
        assert_eq!(relaxed, ["sha1.second_preimage_resistance = 2029-02-01"]);
        assert!(!POLICY.contains("always"));
    }

    #[test]
    fn an_administrator_s_policy_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        host.files.write(MACHINE_POLICY, b"[hash_algorithms]\n", 0o644).unwrap();
        assert!(!install(&host).unwrap());
        assert_eq!(host.files.read(MACHINE_POLICY).unwrap().unwrap(), b"[hash_algorithms]\n");
    }
}
