//! `apt-mirror`: the distribution's own archive by another address, in the sources files that the distribution made. They
//! are written whole, with everything but that address as it was; addresses of anybody else's choice stay.

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::apt_source::release_in_lists;
use super::repository::sources::{self, MAIN_FILE, PARTS_DIR};
use super::repository::{list_name, location};
use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// Another address of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptMirror {
    /// The address to use.
    pub url: String,
    /// The addresses it takes the place of: host and path; `*.` in front stands for any host below.
    pub replaces: Vec<String>,
}

/// A sources file whose addresses are to be others.
struct Change {
    path: String,
    before: Vec<u8>,
    after: String,
    mode: u32,
}

impl AptMirror {
    /// Whether an address is to be replaced.
    fn is_replaced(&self, uri: &str) -> bool {
        let is_http = uri.starts_with("http://") || uri.starts_with("https://");
        let found = location(uri);
        let matches = |pattern: &String| match pattern.strip_prefix('*') {
            Some(end) => found.ends_with(end),
            None => found == *pattern,
        };
        is_http && found != location(&self.url) && self.replaces.iter().any(matches)
    }

    /// The text of a sources file, of either form, with the addresses replaced outside comments.
    fn rewritten(&self, text: &str) -> String {
        let word = |part: &str| {
            let uri = part.trim_end_matches(char::is_whitespace);
            if self.is_replaced(uri) {
                format!("{}{}", self.url, &part[uri.len()..])
            } else {
                part.to_owned()
            }
        };
        let line = |line: &str| {
            if line.trim_start().starts_with('#') {
                return line.to_owned();
            }
            line.split_inclusive(char::is_whitespace).map(word).collect()
        };
        text.split_inclusive('\n').map(line).collect()
    }

    /// The distribution's own sources files that name a replaced address. One that is a link is somebody's arrangement.
    fn changes(&self, host: &Host) -> Result<Vec<Change>> {
        let mut all = Vec::new();
        for path in [MAIN_FILE.to_owned(), format!("{PARTS_DIR}/ubuntu.sources")] {
            let Some(meta) = host.files.lstat(&path)?.filter(std::fs::Metadata::is_file) else { continue };
            let before = host.files.read(&path)?.unwrap_or_default();
            let Ok(text) = std::str::from_utf8(&before) else { continue };
            let after = self.rewritten(text);
            if after != text {
                all.push(Change { path, after, mode: meta.mode() & 0o7777, before });
            }
        }
        Ok(all)
    }

    /// A suite at the new address of which apt has no index; and whether the address is named at all.
    fn missing_index(&self, host: &Host) -> Result<(bool, Option<String>)> {
        let entries = sources::read(host)?;
        let here =
            |entry: &&sources::Entry| entry.uris.iter().any(|uri| location(uri) == location(&self.url));
        let mut named = false;
        for entry in entries.iter().filter(here).filter(|e| e.types.iter().any(|t| t == "deb")) {
            named = true;
            for suite in entry.suites.iter().filter(|suite| !suite.ends_with('/')) {
                let prefix = format!(
                    "{}_dists_{}_",
                    list_name(self.url.trim_end_matches('/')),
                    list_name(&format!(":{suite}"))
                );
                if release_in_lists(host, &prefix)?.is_none() {
                    return Ok((named, Some(suite.clone())));
                }
            }
        }
        Ok((named, None))
    }
}

impl Converge for AptMirror {
    async fn check(&self, host: &Host) -> Result<Check> {
        if let Some(change) = self.changes(host)?.first() {
            return Ok(Check::needed(format!("{} names the archive by another address", change.path)));
        }
        Ok(match self.missing_index(host)? {
            (_, Some(suite)) => Check::needed(format!("apt has no index of {} {suite}", self.url)),
            (true, None) => Check::satisfied(format!("apt's sources name {}", self.url)),
            (false, None) => {
                Check::satisfied("apt's sources name a mirror of somebody's choice, which stays")
            }
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let changes = self.changes(host)?;
        for change in &changes {
            host.note_before(&change.path)?;
            host.files.write(&change.path, change.after.as_bytes(), change.mode)?;
            host.note_written(&change.path)?;
        }
        let updated = host.apt().update_for(&[location(&self.url)]).await;
        if let Err(error) = updated {
            // A mirror that does not answer must not leave the machine without packages.
            for change in &changes {
                host.files.write(&change.path, &change.before, change.mode)?;
            }
            return Err(error);
        }
        Ok(Applied::Done)
    }

    fn describe(&self) -> String {
        format!("the distribution's archive at {}", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://eu-west-1.ec2.archive.ubuntu.com/ubuntu/";

    fn mirror() -> AptMirror {
        let replaces =
            ["archive.ubuntu.com/ubuntu/", "*.ec2.archive.ubuntu.com/ubuntu/"].map(str::to_owned).to_vec();
        AptMirror { url: URL.into(), replaces }
    }

    #[test]
    fn only_the_archives_own_addresses_become_others() {
        let before = "# deb http://archive.ubuntu.com/ubuntu noble main\n\
                      deb http://archive.ubuntu.com/ubuntu/ noble main # as it came\n\
                      deb\t[arch=amd64]  https://archive.ubuntu.com/ubuntu noble-updates main\n\
                      deb http://us-east-1.ec2.archive.ubuntu.com/ubuntu noble main\n\
                      deb http://security.ubuntu.com/ubuntu noble-security main\n\
                      deb http://de.archive.ubuntu.com/ubuntu noble main\n\
                      deb http://mirror.example/archive.ubuntu.com/ubuntu noble main\n\
                      URIs: http://archive.ubuntu.com/ubuntu/ http://mirror.example/ubuntu\n http://archive.ubuntu.com/ubuntu";
        let after = format!(
            "# deb http://archive.ubuntu.com/ubuntu noble main\n\
             deb {URL} noble main # as it came\n\
             deb\t[arch=amd64]  {URL} noble-updates main\n\
             deb {URL} noble main\n\
             deb http://security.ubuntu.com/ubuntu noble-security main\n\
             deb http://de.archive.ubuntu.com/ubuntu noble main\n\
             deb http://mirror.example/archive.ubuntu.com/ubuntu noble main\n\
             URIs: {URL} http://mirror.example/ubuntu\n {URL}"
        );
        assert_eq!(mirror().rewritten(before), after);
        assert_eq!(mirror().rewritten(&after), after);
    }

    #[tokio::test]
    async fn a_link_and_a_mirror_of_somebodys_choice_stay() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        host.files
            .write("/srv/sources", b"deb http://archive.ubuntu.com/ubuntu noble main\n", 0o644)
            .unwrap();
        host.files.symlink(MAIN_FILE, "/srv/sources").unwrap();
        host.files
            .write("/etc/apt/sources.list.d/x.list", b"deb http://mirror.example/u noble main\n", 0o644)
            .unwrap();
        assert_eq!(
            mirror().check(&host).await.unwrap(),
            Check::satisfied("apt's sources name a mirror of somebody's choice, which stays")
        );
    }
}
