//! `apt-distrust`: keys that must not be in apt's global trust, where they would vouch for every repository that
//! names no keyring of its own.
//!
//! A file of trusted keys may hold other keys, too. It is never edited: the other keys are written to a file of
//! ours first, and then the whole file is set aside, so that at no instant a key is missing.

use serde::{Deserialize, Serialize};

use super::repository::openpgp::{self, Certificate};
use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// Keys that apt must not trust globally.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptDistrust {
    /// Fingerprints: 40 hexadecimal digits each.
    pub fingerprints: Vec<String>,
}

const MAIN_FILE: &str = "/etc/apt/trusted.gpg";
const PARTS_DIR: &str = "/etc/apt/trusted.gpg.d";

/// A file of trusted keys that holds a distrusted one.
struct Finding {
    path: String,
    distrusted: Vec<String>,
    others: Vec<Certificate>,
}

impl Converge for AptDistrust {
    async fn check(&self, host: &Host) -> Result<Check> {
        let findings = self.findings(host)?;
        if findings.is_empty() {
            return Ok(Check::satisfied(format!("apt does not trust {}", self.fingerprints.join(", "))));
        }
        let places: Vec<_> =
            findings.iter().map(|f| format!("{} in {}", f.distrusted.join(", "), f.path)).collect();
        Ok(Check::needed(format!("apt trusts the retired key {}", places.join("; "))))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        for finding in self.findings(host)? {
            let keys = finding.distrusted.join(", ");
            if finding.others.is_empty() {
                let kept = host.files.set_aside(&finding.path)?;
                host.notice(format!(
                    "{} held the retired key {keys}: set aside as {}",
                    finding.path,
                    kept.display()
                ));
                continue;
            }
            let rest = rest_path(&finding.path);
            let bytes = finding.others.iter().flat_map(|c| c.bytes.iter().copied()).collect::<Vec<_>>();
            host.files.write(&rest, &bytes, 0o644)?;
            let kept = host.files.set_aside(&finding.path)?;
            host.notice(format!(
                "{} held the retired key {keys} among others: set aside as {}; its other {} keys are in {rest}",
                finding.path,
                kept.display(),
                finding.others.len()
            ));
        }
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("no trust in {}", self.fingerprints.join(", "))
    }
}

impl AptDistrust {
    fn findings(&self, host: &Host) -> Result<Vec<Finding>> {
        let mut paths = vec![MAIN_FILE.to_owned()];
        // apt reads these two suffixes only.
        let parts = host.files.list(PARTS_DIR)?;
        let parts = parts.iter().filter(|n| matches!(n.rsplit_once('.'), Some((_, "gpg" | "asc"))));
        paths.extend(parts.map(|n| format!("{PARTS_DIR}/{n}")));
        let mut findings = Vec::new();
        for path in paths {
            let Some(bytes) = host.files.read(&path)? else { continue };
            // apt, too, trusts nothing in a file that is no plain keyring (and warns about it).
            let Ok(certificates) = openpgp::certificates(&bytes) else { continue };
            let (bad, others): (Vec<_>, Vec<_>) =
                certificates.into_iter().partition(|c| self.fingerprints.contains(&c.fingerprint));
            if !bad.is_empty() {
                let distrusted = bad.into_iter().map(|c| c.fingerprint).collect();
                findings.push(Finding { path, distrusted, others });
            }
        }
        Ok(findings)
    }
}

/// Where the other keys of a file go: a drop-in of our own, named after it.
fn rest_path(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.strip_suffix(".gpg").or_else(|| name.strip_suffix(".asc")).unwrap_or(name);
    let stem = stem.strip_prefix("gpu-bootstrap-").unwrap_or(stem);
    format!("{PARTS_DIR}/gpu-bootstrap-{stem}.gpg")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = include_str!("../../tests/fixtures/keys/throw-away.asc");
    const FINGERPRINT: &str = include_str!("../../tests/fixtures/keys/throw-away.fingerprint");
    const OTHER: &str = include_str!("../../tests/fixtures/keys/throw-away-2.asc");

    fn scratch() -> (tempfile::TempDir, Host, AptDistrust) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        (dir, host, AptDistrust { fingerprints: vec![FINGERPRINT.trim().to_owned()] })
    }

    #[tokio::test]
    async fn a_file_with_the_key_alone_is_set_aside() {
        let (_dir, host, action) = scratch();
        host.files.write("/etc/apt/trusted.gpg.d/cuda.asc", KEY.as_bytes(), 0o644).unwrap();
        host.files.write("/etc/apt/trusted.gpg.d/other.asc", OTHER.as_bytes(), 0o644).unwrap();
        assert_eq!(action.check(&host).await.unwrap().state(), "needed");
        action.apply(&host).await.unwrap();
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        assert_eq!(host.files.list(PARTS_DIR).unwrap(), ["other.asc"]);
    }

    #[tokio::test]
    async fn the_other_keys_of_a_shared_file_stay_trusted() {
        let (_dir, host, action) = scratch();
        let both = format!("{OTHER}{KEY}");
        host.files.write(MAIN_FILE, &openpgp::dearmour(&both).unwrap(), 0o644).unwrap();
        action.apply(&host).await.unwrap();
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        assert!(!host.files.exists(MAIN_FILE).unwrap());
        let rest = host.files.read("/etc/apt/trusted.gpg.d/gpu-bootstrap-trusted.gpg").unwrap().unwrap();
        assert_eq!(rest, openpgp::dearmour(OTHER).unwrap());
    }
}
