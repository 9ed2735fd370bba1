//! `apt-source`: a repository in apt's sources, bound to our keyring, and nobody else's entry for it.
//!
//! Used after [`super::apt_index`] has judged the repository and [`super::apt_pin`] has restricted it. apt's own
//! copy of the index is then held against the judged one: it must not be older, or a mirror could show one index to
//! the judge and another to apt.

use serde::{Deserialize, Serialize};

use super::repository::private::{Private, malformed};
use super::repository::release::Release;
use super::repository::sources::{self, Entry};
use super::repository::{list_name, location, refusal};
use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// One flat repository in a sources file of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AptSource {
    /// Sources file (deb822).
    pub path: String,
    /// Base URL of the flat repository.
    pub url: String,
    /// dpkg's name of the architecture.
    pub architecture: String,
    /// Keyring.
    pub keyring: String,
}

impl Converge for AptSource {
    async fn check(&self, host: &Host) -> Result<Check> {
        if let Some(rival) = self.rivals(host)?.first() {
            return Ok(Check::needed(format!("{rival} names the same repository")));
        }
        match host.files.read(&self.path)? {
            None => return Ok(Check::needed(format!("{} does not exist", self.path))),
            Some(bytes) if bytes != self.content().as_bytes() => {
                return Ok(Check::needed(format!("{} has other content", self.path)));
            }
            Some(_) => {}
        }
        if !has_packages(host, &list_name(&self.url_with_slash()))? {
            return Ok(Check::deferred(format!(
                "{} is right, and apt has no index of {}",
                self.path, self.url
            )));
        }
        let Some(release) = self.apts_release(host)? else {
            return Ok(Check::deferred(format!("apt has no Release file of {}", self.url)));
        };
        match self.judge(host, &release) {
            Ok(()) => {
                Ok(Check::satisfied(format!("{} is in {}, and apt has its index", self.url, self.path)))
            }
            Err(refused) => Ok(Check::needed(refused.message())),
        }
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        for rival in self.rivals(host)? {
            let kept = host.files.set_aside(&rival)?;
            host.notice(format!(
                "{rival} named the repository {}: set aside as {}",
                self.url,
                kept.display()
            ));
        }
        host.files.write(&self.path, self.content().as_bytes(), 0o644)?;
        let outcome = self.update_and_judge(host).await;
        if outcome.is_err() {
            // A source that does not work would break every other use of apt on this machine.
            host.files.remove(&self.path)?;
        }
        outcome.map(|()| Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("source {}", self.url)
    }
}

impl AptSource {
    pub(crate) fn content(&self) -> String {
        format!(
            "# Written by gpu-bootstrap; changes are undone by its next run.\n\
             Types: deb\nURIs: {}\nSuites: /\nArchitectures: {}\nSigned-By: {}\nBy-Hash: no\n",
            self.url, self.architecture, self.keyring
        )
    }

    fn url_with_slash(&self) -> String {
        format!("{}/", self.url.trim_end_matches('/'))
    }

    async fn update_and_judge(&self, host: &Host) -> Result<()> {
        // All sources: what our packages need from the distribution must be as fresh as they are.
        host.apt().update_for(&[location(&self.url)]).await.map_err(|e| self.blame(e))?;
        let Some(release) = self.apts_release(host)? else {
            return Err(Error::new(Code::Fetch, format!("apt has fetched no Release file of {}", self.url)));
        };
        self.judge(host, &release)
    }

    /// The error of an update of all sources is ours to explain only when it is about our repository.
    fn blame(&self, error: Error) -> Error {
        let about_us = error.causes().iter().any(|c| c.contains(&location(&self.url)));
        if about_us { refusal::explain(&self.url, error) } else { error }
    }

    /// apt's index must be that of the judged repository, and not older than what was judged.
    fn judge(&self, host: &Host, release: &Release) -> Result<()> {
        let Some(judged) = Private::of(&self.url).release(host)? else { return Ok(()) };
        if release.label != judged.label {
            return Err(Error::new(
                Code::WrongRepository,
                format!(
                    "{} was labelled {:?} and is now labelled {:?}",
                    self.url, judged.label, release.label
                ),
            ));
        }
        if release.date < judged.date {
            return Err(Error::new(
                Code::IndexTooOld,
                format!(
                    "apt was given an index of {} dated {}, older than the one that was verified ({}): a replayed index?",
                    self.url, release.date, judged.date
                ),
            )
            .with_hint("mirrors behind one name that are not equally fresh look the same: run again later"));
        }
        Ok(())
    }

    fn apts_release(&self, host: &Host) -> Result<Option<Release>> {
        release_in_lists(host, &list_name(&self.url_with_slash()))
    }

    /// Files of others that name this repository, or the same repository for another distribution: apt refuses two
    /// entries with different keys, and a pin by label holds for all of them alike.
    fn rivals(&self, host: &Host) -> Result<Vec<String>> {
        let entries: Vec<Entry> = sources::read(host)?.into_iter().filter(|e| e.file != self.path).collect();
        let mut rivals: Vec<String> = Vec::new();
        for entry in entries.iter().filter(|e| e.uris.iter().any(|u| self.is_same(u))) {
            // Another entry of the file, or another address in this very entry.
            let apart = |e: &&Entry| e.file == entry.file && !e.uris.iter().all(|u| self.is_same(u));
            if let Some(other) = entries.iter().find(apart) {
                return Err(Error::new(
                    Code::SourceConflict,
                    format!(
                        "{} names the repository {}, and the same file names others (line {})",
                        entry.place(),
                        self.url,
                        other.line
                    ),
                )
                .with_hint(format!(
                    "remove the entry at line {} of {} and run again",
                    entry.line, entry.file
                )));
            }
            if !rivals.contains(&entry.file) {
                rivals.push(entry.file.clone());
            }
        }
        Ok(rivals)
    }

    fn is_same(&self, uri: &str) -> bool {
        let (ours, theirs) = (location(&self.url), location(uri));
        theirs == ours || (family(&theirs).is_some() && family(&theirs) == family(&ours))
    }
}

/// What the repositories of one publisher for several distributions share: `host/path/` before
/// `{distro}/{arch}/`. `None` for an address that is not laid out like that.
fn family(location: &str) -> Option<&str> {
    let (rest, arch) = location.trim_end_matches('/').rsplit_once('/')?;
    let (family, distro) = rest.rsplit_once('/')?;
    let known_arch = ["x86_64", "sbsa", "aarch64", "arm64", "ppc64el"].contains(&arch);
    let known_distro = ["ubuntu", "debian", "wsl-ubuntu"].iter().any(|d| distro.starts_with(d));
    (known_arch && known_distro).then_some(family)
}

/// apt's Release file for the index files whose names begin with `prefix`.
pub(super) fn release_in_lists(host: &Host, prefix: &str) -> Result<Option<Release>> {
    if host.apt().lists_are_in_doubt()? {
        return Ok(None);
    }
    for name in ["InRelease", "Release"] {
        let path = format!("{}/{prefix}{name}", host.apt_lists());
        if let Some(text) = host.files.read_text(&path)? {
            return Release::parse(&text).map(Some).map_err(|why| malformed(prefix, &path, &why));
        }
    }
    Ok(None)
}

/// Whether apt has the Packages file for `prefix`, in any of the forms in which it keeps it.
pub(super) fn has_packages(host: &Host, prefix: &str) -> Result<bool> {
    if host.apt().lists_are_in_doubt()? {
        return Ok(false);
    }
    for suffix in ["", ".lz4", ".gz", ".xz", ".zst", ".bz2", ".lzma"] {
        if host.files.exists(format!("{}/{prefix}Packages{suffix}", host.apt_lists()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS_DIR: &str = "/var/lib/apt/lists";

    fn source() -> AptSource {
        AptSource {
            path: "/etc/apt/sources.list.d/gpu-bootstrap-nvidia.sources".into(),
            url: "https://repo.example.org/cuda/repos/ubuntu2204/x86_64/".into(),
            architecture: "amd64".into(),
            keyring: "/usr/share/keyrings/gpu-bootstrap-nvidia.gpg".into(),
        }
    }

    fn rivals(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        for (path, text) in files {
            host.files.write(path, text.as_bytes(), 0o644).unwrap();
        }
        source().rivals(&host)
    }

    #[tokio::test]
    async fn lists_that_a_power_cut_may_have_torn_count_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        let source = source();
        let put = |path: &str, bytes: &[u8]| host.files.write(path, bytes, 0o644).unwrap();
        put(&source.path, source.content().as_bytes());
        let prefix = format!("{LISTS_DIR}/{}", list_name(&source.url_with_slash()));
        put(&format!("{prefix}Packages"), b"");
        put(&format!("{prefix}InRelease"), b"");
        // In the boot that wrote them the page cache is whole: such a file is somebody else's doing, and an error.
        put("/proc/sys/kernel/random/boot_id", b"one\n");
        put(crate::host::paths::LISTS_UNSYNCED, b"one");
        assert!(source.check(&host).await.is_err());
        put("/proc/sys/kernel/random/boot_id", b"two\n");
        assert_eq!(source.check(&host).await.unwrap().state(), "deferred");
    }

    #[test]
    fn entries_for_the_same_repository_are_rivals_whatever_their_form() {
        let list = "/etc/apt/sources.list.d/cuda.list";
        for text in [
            "deb https://repo.example.org/cuda/repos/ubuntu2204/x86_64/ /\n",
            "deb http://repo.example.org/cuda/repos/ubuntu2204/x86_64 /\n",
            "deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] https://repo.example.org/cuda/repos/ubuntu2004/x86_64/ /\n",
        ] {
            assert_eq!(rivals(&[(list, text)]).unwrap(), [list], "{text}");
        }
        let sources = "/etc/apt/sources.list.d/cuda.sources";
        let stanza = "Types: deb\nURIs: https://repo.example.org/cuda/repos/ubuntu2204/x86_64/\nSuites: /\n";
        assert_eq!(rivals(&[(sources, stanza)]).unwrap(), [sources]);
    }

    #[test]
    fn other_repositories_and_our_own_file_are_none() {
        let none: [String; 0] = [];
        let own = source();
        assert_eq!(
            rivals(&[
                ("/etc/apt/sources.list", "deb http://deb.example.org/debian bookworm main\n"),
                (
                    "/etc/apt/sources.list.d/a.list",
                    "deb https://repo.example.org/other/repos/ubuntu2204/x86_64/ /\n"
                ),
                (
                    "/etc/apt/sources.list.d/b.list",
                    "# deb https://repo.example.org/cuda/repos/ubuntu2204/x86_64/ /\n"
                ),
                (&own.path, &own.content()),
            ])
            .unwrap(),
            none
        );
    }

    #[test]
    fn a_shared_file_is_refused_with_the_line_to_remove() {
        let text = "deb http://deb.example.org/debian bookworm main\ndeb https://repo.example.org/cuda/repos/ubuntu2204/x86_64/ /\n";
        let error = rivals(&[("/etc/apt/sources.list", text)]).unwrap_err();
        assert_eq!(error.code(), Code::SourceConflict);
        assert!(error.message().starts_with("/etc/apt/sources.list:2 "), "{}", error.message());
        assert!(error.hint().unwrap().contains("line 2"));
    }
}
