//! OpenSSH public keys: one line of text each. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// Longest line that is looked at; an RSA key of 16384 bits has 2.8 kB.
const MAX_LINE: usize = 8192;

/// Kinds of keys that sshd takes, each with its name in fingerprints.
const KINDS: [(&str, &str); 7] = [
    ("ssh-ed25519", "ED25519"),
    ("ssh-rsa", "RSA"),
    ("ecdsa-sha2-nistp256", "ECDSA"),
    ("ecdsa-sha2-nistp384", "ECDSA"),
    ("ecdsa-sha2-nistp521", "ECDSA"),
    ("sk-ssh-ed25519@openssh.com", "ED25519-SK"),
    ("sk-ecdsa-sha2-nistp256@openssh.com", "ECDSA-SK"),
];

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    kind: &'static str,
    name: &'static str,
    blob: Vec<u8>,
    comment: String,
}

impl PublicKey {
    /// Reads a line `KIND BASE64 [COMMENT]`, or says why it is none. Options before the key are no part of one: whoever
    /// could put them there would say what a login may do.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        if line.len() > MAX_LINE {
            return Err(format!("it is longer than {MAX_LINE} bytes"));
        }
        if line.chars().any(char::is_control) {
            return Err("it has control characters".into());
        }
        let mut words = line.splitn(3, ' ');
        let (kind, packed) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let Some((kind, name)) = KINDS.into_iter().find(|(known, _)| *known == kind) else {
            let shown: String = kind.chars().take(40).collect();
            return Err(format!("{shown:?} is no kind of key that sshd takes"));
        };
        let blob = STANDARD.decode(packed).map_err(|e| format!("its {kind} key is no base64: {e}"))?;
        let comment = words.next().unwrap_or_default().trim().to_owned();
        let starts = fields(&blob).take(2).collect::<Vec<_>>();
        if !matches!(starts[..], [first, second] if first == kind.as_bytes() && !second.is_empty()) {
            return Err(format!("its bytes are no {kind} key"));
        }
        Ok(Self { kind, name, blob, comment })
    }

    /// `KIND BASE64`, by which two keys are the same whatever their comments.
    pub fn bare(&self) -> String {
        format!("{} {}", self.kind, STANDARD.encode(&self.blob))
    }

    /// The line.
    pub fn line(&self) -> String {
        format!("{} {}", self.bare(), self.comment).trim_end().to_owned()
    }

    /// `SHA256:…`, as OpenSSH writes it.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// The line of `ssh-keygen -l`: bits, fingerprint, comment, kind.
    pub fn listing(&self) -> String {
        let comment = if self.comment.is_empty() { "no comment" } else { &self.comment };
        format!("{} {} {comment} ({})", self.bits(), self.fingerprint(), self.name)
    }

    fn bits(&self) -> usize {
        match self.kind {
            "ecdsa-sha2-nistp384" => 384,
            "ecdsa-sha2-nistp521" => 521,
            // Exponent, modulus; the modulus without the zeros before its first bit.
            "ssh-rsa" => fields(&self.blob).nth(2).map_or(0, |modulus| {
                let digits = modulus.iter().skip_while(|b| **b == 0).count();
                let first = modulus.iter().find(|b| **b != 0).copied().unwrap_or_default();
                (digits * 8).saturating_sub(first.leading_zeros() as usize)
            }),
            _ => 256,
        }
    }
}

/// The strings of a key's bytes, each with four bytes of length before it (RFC 4253, section 6.6).
fn fields(blob: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = blob;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, after) = after.split_at_checked(length)?;
        rest = after;
        Some(field)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by OpenSSH's ssh-keygen, and listed by its -l.
    const SAMPLES: [(&str, &str); 3] = [
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI my key",
            "256 SHA256:7HUpii+AS6h8myoTk5rTPwsiGA13jQYcL71YmVaAX+A my key (ED25519)",
        ),
        (
            "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBLLn6T6m5b7JuisKKqx3/K30OPRo88RAMkR4zhxCA1mzi2hVcMuVkChoy5eeCven5PONXEX73gpNKMKALSo+1LR8WWIyTyQFeDzYJ3OVpiE8bzgiAzOXxkTYUN6cFYBDOg== root@host",
            "384 SHA256:QBDnRZEZ35F8tdJq0aPya1kfB9+ob2EkY8HT5r9nbis root@host (ECDSA)",
        ),
        (
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCXaihcdxahSeUTI2TOWLFHjejvlc3YF8vzsmD7GFeIlaV/a2cgK00xjBDyM5QhQXPlbPfwx85r2OWGdQtYcuKrx/wgyZqz1KJ/mnpORSUFtzKrCfHbK+FEctKOsulOoQtI+jwu35UeQjeBe/f+9k1kv35NggmKU1WNU78pj1b2Yv/wMhOSBtT5kHU4mls6/97l+ZQOzpAcWwakj4HRCgWjifA4mGkYux8vLwQ5e5UOpgnS0cDsnQsT/nnaEurF06TpqGbuUK0RDIL/Ybqq3cCCQUPfR3gcILNdouk16+xtVQgKdDhEvup2gcqHyJGqy7nKJGWfM1RB7GoQrfM5OPM9 root@ip-10-0-0-23",
            "2048 SHA256:xjPkbtGx5rrsgVJQ1CXlmcsbKWduXs2s+K/5D+0wqIU root@ip-10-0-0-23 (RSA)",
        ),
    ];

    #[test]
    fn fingerprints_are_those_of_ssh_keygen() {
        for (line, listing) in SAMPLES {
            let key = PublicKey::parse(line).unwrap();
            assert_eq!(key.listing(), listing);
            assert_eq!(key.line(), line);
        }
    }

    #[test]
    fn odd_lines_are_no_keys_and_say_why() {
        let good = SAMPLES[0].0;
        let packed = good.split(' ').nth(1).unwrap();
        for (line, why) in [
            (String::new(), "no kind of key"),
            (format!("command=\"reboot\" {good}"), "no kind of key"),
            (format!("ssh-dss {packed}"), "no kind of key"),
            (format!("ssh-rsa {packed}"), "no ssh-rsa key"),
            ("ssh-ed25519".into(), "no ssh-ed25519 key"),
            ("ssh-ed25519 AAAA====".into(), "no base64"),
            (format!("ssh-ed25519 {}", &packed[..16]), "no ssh-ed25519 key"),
            (format!("{good}\nssh-rsa"), "control characters"),
            (format!("{good}\u{1b}[2J"), "control characters"),
            (format!("{good}{}", "x".repeat(MAX_LINE)), "longer than"),
        ] {
            let told = PublicKey::parse(&line).unwrap_err();
            assert!(told.contains(why), "{line:?}: {told}");
        }
        assert_eq!(PublicKey::parse(&format!("  {good}\r\n")).unwrap().line(), good);
    }
}
