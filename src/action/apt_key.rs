//! `apt-key`: a keyring file that holds exactly one certificate, the one whose fingerprint is pinned.
//!
//! The key is embedded in the catalog; nothing is fetched. A keyring is looked into, not just compared, so that
//! the reason for replacing it can be told (a second key in it is a finding).

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::repository::openpgp::{self, Certificate};
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// A keyring with one key. Its file is world-readable: apt verifies as the user `_apt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptKey {
    /// Keyring file.
    pub path: String,
    /// The one key: 40 hexadecimal digits.
    pub fingerprint: String,
    /// The key, ASCII-armoured.
    pub key: String,
}

const MODE: u32 = 0o644;

impl Converge for AptKey {
    async fn check(&self, host: &Host) -> Result<Check> {
        let wanted = self.certificate()?;
        let path = &self.path;
        let Some(meta) = host.files.lstat(path)? else {
            return Ok(Check::needed(format!("{path} does not exist")));
        };
        if !meta.is_file() {
            return Ok(Check::needed(format!("{path} is not a regular file")));
        }
        let bytes = host.files.read(path)?.unwrap_or_default();
        if bytes != wanted.bytes {
            return Ok(Check::needed(format!("{path} {}", difference(&bytes, &wanted))));
        }
        let mode = meta.mode() & 0o7777;
        if mode != MODE {
            return Ok(Check::needed(format!("{path} has mode {mode:04o}, wanted {MODE:04o}")));
        }
        Ok(Check::satisfied(format!("{path} holds the key {} and no other", wanted.fingerprint)))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        host.files.write(&self.path, &self.certificate()?.bytes, MODE)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("keyring {} with the key {}", self.path, self.fingerprint)
    }
}

impl AptKey {
    /// The embedded key, if it is what the pin says, and alone.
    fn certificate(&self) -> Result<Certificate> {
        let mut found = openpgp::certificates(self.key.as_bytes()).map_err(|why| {
            Error::new(Code::KeyInvalid, format!("the key for {} cannot be read: {why}", self.path))
                .with_hint(
                    "the catalog must hold the key ASCII-armoured, as `gpg --armor --export` prints it",
                )
        })?;
        let wanted = self.fingerprint.replace(' ', "").to_ascii_uppercase();
        if found.len() != 1 {
            return Err(Error::new(
                Code::KeyNotAlone,
                format!("the key for {} comes with others: {}", self.path, fingerprints(&found)),
            )
            .with_hint(format!("the catalog must hold the key {wanted} and no other")));
        }
        match found.pop() {
            Some(certificate) if certificate.fingerprint == wanted => Ok(certificate),
            other => Err(Error::new(
                Code::KeyMismatch,
                format!(
                    "the key for {} is {}, pinned is {wanted}",
                    self.path,
                    other.map(|c| c.fingerprint).unwrap_or_default()
                ),
            )
            .with_hint("compare the fingerprint with the one that the repository's owner publishes, and correct the catalog")),
        }
    }
}

/// How a keyring differs from the wanted one, as the end of a sentence.
fn difference(bytes: &[u8], wanted: &Certificate) -> String {
    match openpgp::certificates(bytes) {
        Err(why) => format!("is no keyring: {why}"),
        Ok(found) if found.len() > 1 => format!("holds {} keys: {}", found.len(), fingerprints(&found)),
        Ok(found) if found[0].fingerprint == wanted.fingerprint => "holds the key in another form".to_owned(),
        Ok(found) => format!("holds another key: {}", fingerprints(&found)),
    }
}

fn fingerprints(certificates: &[Certificate]) -> String {
    certificates.iter().map(|c| c.fingerprint.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded(key: &str, fingerprint: &str) -> AptKey {
        AptKey { path: "/usr/share/keyrings/x.gpg".into(), fingerprint: fingerprint.into(), key: key.into() }
    }

    #[test]
    fn nvidias_keys_have_their_published_fingerprints() {
        for (key, fingerprint) in [
            (
                include_str!("../../steps/catalog/keys/3bf863cc.asc"),
                "EB69 3B30 35CD 5710 E231  E123 A4B4 6996 3BF8 63CC",
            ),
            (
                include_str!("../../steps/catalog/keys/8793f200.asc"),
                "0218 2E60 104F CDC2 6EAE  1B85 97A5 D4CB 8793 F200",
            ),
            (
                include_str!("../../steps/catalog/keys/7fa2af80.asc"),
                "AE09 FE4B BD22 3A84 B2CC  FCE3 F60F 4B3D 7FA2 AF80",
            ),
        ] {
            let certificate = embedded(key, fingerprint).certificate().unwrap();
            assert_eq!(certificate.fingerprint, fingerprint.replace(' ', ""));
        }
    }

    #[test]
    fn a_keyring_is_no_login_page() {
        let error = embedded("<html>Sign in</html>", "00").certificate().unwrap_err();
        assert_eq!(error.code(), Code::KeyInvalid);
    }
}
