//! What links name: fetched once, verified by its SHA-256, and kept under that name, so that later boots need no network
//! and whoever looks for configuration needs none at all.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::include::Link;
use super::{MAX_UNPACKED, links, open};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fetch::redact_url;
use crate::host::files::Files;
use crate::host::paths::INCLUDED_DIR;
use crate::text;

/// What links name, by its SHA-256, which is taken here.
#[derive(Clone, Debug, Default)]
pub struct Included(HashMap<String, Vec<u8>>);

impl Included {
    /// Adds it, and returns its sum.
    pub fn insert(&mut self, bytes: Vec<u8>) -> String {
        let sha256 = text::hex(&Sha256::digest(&bytes));
        self.0.insert(sha256.clone(), bytes);
        sha256
    }

    /// The bytes with this sum.
    pub fn get(&self, sha256: &str) -> Option<&[u8]> {
        self.0.get(sha256).map(Vec::as_slice)
    }

    /// What this machine has of it. What cannot be read, or has other bytes than its name says, is not there.
    pub(crate) fn kept(files: &Files, user_data: &[u8]) -> Self {
        let mut included = Self::default();
        loop {
            let missing = included.missing(user_data);
            let before = included.0.len();
            for link in missing {
                match read(files, &link.sha256) {
                    Ok(Some(bytes)) => drop(included.insert(bytes)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!("{error}"),
                }
            }
            if included.0.len() == before {
                return included;
            }
        }
    }

    /// What this machine has of what the user-data in a file names.
    pub fn for_file(files: &Files, path: &Path) -> Result<Self> {
        Ok(Self::kept(files, &crate::config::user_data::load(path)?))
    }

    /// What this machine has of it, and the rest from where the links lead. Everything or an error.
    pub(crate) async fn fetched(host: &Host, user_data: &[u8]) -> Result<Self> {
        let mut included = Self::kept(&host.files, user_data);
        loop {
            let missing = included.missing(user_data);
            if missing.is_empty() {
                return Ok(included);
            }
            for link in missing {
                if included.get(&link.sha256).is_none() {
                    included.insert(fetch(host, &link).await?);
                }
            }
        }
    }

    /// Removes what is kept and of no use to this user-data: another one's may hold its secrets.
    pub(crate) fn sweep(&self, files: &Files) -> Result<()> {
        let names = files.list(INCLUDED_DIR)?;
        let stale = names.iter().filter(|name| self.get(name).is_none());
        stale.map(|name| files.remove(format!("{INCLUDED_DIR}/{name}"))).collect::<Result<Vec<_>>>().map(drop)
    }

    /// Links whose bytes are not there. Of what is refused, nothing is needed.
    fn missing(&self, user_data: &[u8]) -> Vec<Link> {
        let Ok(opened) = open(user_data, self) else { return Vec::new() };
        let mut links = links(&opened.parts);
        links.retain(|link| self.get(&link.sha256).is_none());
        links
    }
}

fn read(files: &Files, sha256: &str) -> Result<Option<Vec<u8>>> {
    let path = format!("{INCLUDED_DIR}/{sha256}");
    let Some(bytes) = files.read_limited(&path, MAX_UNPACKED as u64)? else { return Ok(None) };
    if text::hex(&Sha256::digest(&bytes)) != sha256 {
        return Err(Error::new(Code::ChecksumMismatch, format!("{path} has other bytes than its name says")));
    }
    Ok(Some(bytes))
}

async fn fetch(host: &Host, link: &Link) -> Result<Vec<u8>> {
    let bytes = host.fetch.get(link.url.as_str(), MAX_UNPACKED).await?;
    let found = text::hex(&Sha256::digest(&bytes));
    if found != link.sha256 {
        let shown = redact_url(link.url.as_str());
        let message = format!("sha256 of {shown} is {found}, expected {}; nothing was kept", link.sha256);
        return Err(Error::new(Code::ChecksumMismatch, message)
            .with_hint("correct the sum behind the URL in the user-data, or put back the file"));
    }
    host.files.make_dir(INCLUDED_DIR, 0o700)?;
    host.files.write(format!("{INCLUDED_DIR}/{found}"), &bytes, 0o600)?;
    Ok(bytes)
}
