//! sshd's own keys: new ones for a new instance, made by `ssh-keygen`. ED25519 and ECDSA come first, since sshd needs no
//! more to start; RSA takes up to seconds and follows by a call of its own.

use std::time::Duration;

use super::public_key::PublicKey;
use super::report::Told;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;

pub(super) const DIRECTORY: &str = "/etc/ssh";
/// Where keys are made: in memory, so that an unfinished private key is never on a disk.
const WORKSHOP: &str = "/run/gpu-bootstrap/host-keys";
/// Kinds that sshd starts with.
pub(super) const FIRST: [&str; 2] = ["ed25519", "ecdsa"];
/// The kind that follows.
pub(super) const LATER: &str = "rsa";
/// sshd waits for the first ones.
const FIRST_LIMIT: Duration = Duration::from_mins(1);
/// Primes are found by trying. It took more than a minute where a processor was emulated; nobody waits for it.
const LATER_LIMIT: Duration = Duration::from_mins(4);

/// Makes the first keys anew and removes those of another instance. Each file is replaced whole, the private one before
/// the public one; keys of other kinds go only when the new ones are there.
pub(super) async fn renew(host: &Host, comment: &str) -> Result<Told> {
    for kind in FIRST {
        make(host, kind, comment).await?;
    }
    for name in host.files.list(DIRECTORY)? {
        if is_host_key(&name) && !FIRST.iter().any(|kind| name == private(kind) || name == public(kind)) {
            host.files.remove(format!("{DIRECTORY}/{name}"))?;
        }
    }
    let shown: Vec<_> = all(&host.files)?.iter().map(PublicKey::listing).collect();
    Ok(Told { changed: true, text: format!("this instance has host keys of its own: {}", shown.join(", ")) })
}

/// Makes the first keys where there is no key at all, without which sshd does not start. `None` where there is one.
pub(super) async fn make_missing(host: &Host) -> Result<Option<Told>> {
    let names = host.files.list(DIRECTORY)?;
    if names.is_empty() || names.iter().any(|name| is_private(name)) {
        return Ok(None); // no sshd, or one that starts
    }
    for kind in FIRST {
        make(host, kind, "").await?;
    }
    let text = "there were no host keys, so that sshd would not have started: ED25519 and ECDSA were made";
    Ok(Some(Told { changed: true, text: text.into() }))
}

/// Makes the RSA key, where there is none.
pub(super) async fn add_rsa(host: &Host, comment: &str) -> Result<Told> {
    if host.files.exists(format!("{DIRECTORY}/{}", private(LATER)))? {
        return Ok(Told { changed: false, text: "the RSA host key is there".into() });
    }
    make(host, LATER, comment).await?;
    Ok(Told { changed: true, text: "the RSA host key was made".into() })
}

/// Every public host key that can be read, in the order of the files' names.
pub(super) fn all(files: &Files) -> Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for name in files.list(DIRECTORY)?.iter().filter(|n| is_host_key(n) && n.ends_with("_key.pub")) {
        let text = files.read_text(format!("{DIRECTORY}/{name}"))?.unwrap_or_default();
        keys.extend(PublicKey::parse(&text).ok());
    }
    Ok(keys)
}

/// What cloud-init writes to the console, where people and scripts look for it: the fingerprints, and the keys.
/// The console itself puts a carriage return before each end of line.
pub(super) fn console_text(keys: &[PublicKey]) -> String {
    const RULE: &str = "#############################################################";
    let mut lines = vec![String::new(), RULE.into(), "-----BEGIN SSH HOST KEY FINGERPRINTS-----".into()];
    lines.extend(keys.iter().map(PublicKey::listing));
    lines.extend(["-----END SSH HOST KEY FINGERPRINTS-----".into(), RULE.into()]);
    let mut lines: Vec<_> = lines.iter().map(|line| format!("ec2: {line}")).collect();
    lines.push("-----BEGIN SSH HOST KEY KEYS-----".into());
    lines.extend(keys.iter().map(PublicKey::line));
    lines.push("-----END SSH HOST KEY KEYS-----".into());
    lines.join("\n") + "\n"
}

/// Makes a pair in the workshop and puts it in place.
async fn make(host: &Host, kind: &str, comment: &str) -> Result<()> {
    let files = &host.files;
    files.remove_tree(WORKSHOP)?;
    files.make_dir(WORKSHOP, 0o700)?;
    let made = make_in_workshop(host, kind, comment).await;
    files.remove_tree(WORKSHOP)?;
    let (secret, open) = made?;
    files.write(format!("{DIRECTORY}/{}", private(kind)), &secret, 0o600)?;
    files.write(format!("{DIRECTORY}/{}", public(kind)), &open, 0o644)
}

async fn make_in_workshop(host: &Host, kind: &str, comment: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let path = format!("{WORKSHOP}/{}", private(kind));
    let limit = if kind == LATER { LATER_LIMIT } else { FIRST_LIMIT };
    let call =
        Call::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", comment, "-f", &path]).limit(limit);
    host.exec.run(&call).await?;
    let none = || Error::new(Code::Exec, format!("{} made no {kind} key", call.line()));
    let secret = host.files.read(&path)?.filter(|bytes| !bytes.is_empty()).ok_or_else(none)?;
    let open = host.files.read(format!("{path}.pub"))?.ok_or_else(none)?;
    PublicKey::parse(&String::from_utf8_lossy(&open)).map_err(|why| none().because(why))?;
    Ok((secret, open))
}

fn private(kind: &str) -> String {
    format!("ssh_host_{kind}_key")
}

fn public(kind: &str) -> String {
    format!("ssh_host_{kind}_key.pub")
}

/// Private keys, public keys and certificates for them.
pub(super) fn is_host_key(name: &str) -> bool {
    name.strip_prefix("ssh_host_").is_some_and(|rest| {
        rest.ends_with("_key") || rest.ends_with("_key.pub") || rest.ends_with("_key-cert.pub")
    })
}

fn is_private(name: &str) -> bool {
    is_host_key(name) && name.ends_with("_key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_by_their_names() {
        for name in ["ssh_host_rsa_key", "ssh_host_dsa_key.pub", "ssh_host_ed25519_key-cert.pub"] {
            assert!(is_host_key(name), "{name}");
        }
        for name in ["sshd_config", "ssh_host_key_backup", "ssh_host_rsa_key.old", "moduli", "ssh_import_id"]
        {
            assert!(!is_host_key(name), "{name}");
        }
        assert!(is_private("ssh_host_rsa_key") && !is_private("ssh_host_rsa_key.pub"));
    }
}
