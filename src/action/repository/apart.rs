//! A repository's index, fetched by apt apart from the machine's own sources and lists, its signature verified by apt
//! against one key. The one place where an index comes from: [`crate::action::apt_index`] judges what the machine's apt may
//! see, [`super::sums`] takes a package file's sum from it.

use sha2::{Digest, Sha256};

use super::private::{Private, malformed};
use super::refusal;
use super::release::Release;
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// A flat repository.
pub(crate) struct Apart<'a> {
    /// Base URL.
    pub(crate) url: &'a str,
    /// dpkg's name of the architecture.
    pub(crate) architecture: &'a str,
    /// The keyring that must have signed it, as programs see it.
    pub(crate) keyring: &'a str,
}

/// An index whose signature apt has verified.
pub(crate) struct Verified {
    pub(crate) release: Release,
    pub(crate) release_bytes: Vec<u8>,
    pub(crate) packages: Vec<u8>,
}

impl Apart<'_> {
    /// Fetches the index by way of `private`'s directory; nothing is kept there. apt removes what it could not verify.
    pub(crate) async fn fetch(&self, host: &Host, private: &Private) -> Result<Verified> {
        // What an interrupted run left behind could be taken for a fresh answer.
        host.files.remove_tree(private.incoming_dir())?;
        let outcome = self.fetch_into(host, private).await;
        host.files.remove_tree(private.incoming_dir())?;
        outcome
    }

    async fn fetch_into(&self, host: &Host, private: &Private) -> Result<Verified> {
        host.files.write(private.sources_path(), self.sources().as_bytes(), 0o644)?;
        host.apt()
            .update_apart(&private.sources_path(), &private.incoming_dir())
            .await
            .map_err(|e| refusal::explain(self.url, e))?;
        let (release_bytes, packages) = self.fetched(host, private)?;
        let release = Release::parse(&String::from_utf8_lossy(&release_bytes))
            .map_err(|why| malformed(self.url, "Release", &why))?;
        self.judge_sum(&release, &packages)?;
        Ok(Verified { release, release_bytes, packages })
    }

    /// The sources file for apt apart. `By-Hash` is off because this repository once advertised it without having
    /// it; the plain names exist in every flat repository.
    fn sources(&self) -> String {
        format!(
            "Types: deb\nURIs: {}\nSuites: /\nArchitectures: {}\nSigned-By: {}\nTargets: Packages\nBy-Hash: no\n",
            self.url, self.architecture, self.keyring
        )
    }

    fn fetched(&self, host: &Host, private: &Private) -> Result<(Vec<u8>, Vec<u8>)> {
        let dir = private.incoming_dir();
        let names = host.files.list(&dir)?;
        let read = |suffixes: &[&str]| -> Result<Option<Vec<u8>>> {
            let name = names.iter().find(|n| suffixes.iter().any(|s| n.ends_with(s)));
            name.map_or(Ok(None), |n| host.files.read(format!("{dir}/{n}")))
        };
        let plain = read(&["_Packages"])?;
        // Docker's images tell apt to keep its indexes compressed.
        let packages = match (plain, read(&["_Packages.gz"])?) {
            (Some(bytes), _) => Some(bytes),
            (None, Some(gz)) => Some(gunzip(self.url, &gz)?),
            (None, None) => None,
        };
        match (read(&["InRelease", "_Release"])?, packages) {
            (Some(release), Some(packages)) => Ok((release, packages)),
            (release, _) => Err(Error::new(
                Code::Fetch,
                format!(
                    "{} has no {} for {}",
                    self.url,
                    if release.is_none() { "Release file" } else { "Packages file" },
                    self.architecture
                ),
            )
            .with_hint(
                "check that the address is that of a flat repository for this distribution and architecture",
            )),
        }
    }

    /// apt has compared the sums already; this proves that what is kept is what the kept Release file vouches for.
    fn judge_sum(&self, release: &Release, packages: &[u8]) -> Result<()> {
        let Some(vouched) = release.file("Packages") else { return Ok(()) };
        let sum = format!("{:x}", Sha256::digest(packages));
        if sum == vouched.sha256.to_ascii_lowercase() {
            return Ok(());
        }
        Err(Error::new(
            Code::IndexTampered,
            format!(
                "sha256 of the Packages file of {} is {sum}, its Release file says {}",
                self.url, vouched.sha256
            ),
        )
        .with_hint("run again; if it stays, do not trust the mirror"))
    }
}

fn gunzip(url: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .read_to_end(&mut plain)
        .map_err(|e| malformed(url, "Packages.gz", "it cannot be unpacked").because(e))?;
    Ok(plain)
}
