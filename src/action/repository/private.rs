//! The private index: the copy of a repository's `InRelease` and Packages that apt has verified apart from the
//! machine's own lists, and that has passed our own checks since.
//!
//! It is written durably, Packages first and the Release file last, and only after everything about it was verified:
//! a file that is there is whole and verified, so that a check needs no signature and no network. That the two
//! belong together is told by the size that the Release file vouches for; the directory is root's.

use std::io::BufReader;

use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::{Host, paths};

use super::packages::Index;
use super::release::Release;

/// How the directories are called, below that of the index, into which apt fetches.
const INCOMING: &str = "incoming.gpu-bootstrap-";

/// Where the private index of one repository lies.
#[derive(Clone, Debug)]
pub(crate) struct Private {
    url: String,
    dir: String,
}

impl Private {
    /// The private index of the repository at `url`.
    pub(crate) fn of(url: &str) -> Self {
        let name = super::list_name(&format!("https://{}", super::location(url)));
        Self { url: url.to_owned(), dir: format!("{}/{}", paths::LISTS_DIR, name.trim_end_matches('_')) }
    }

    /// The index of a repository of which only sums are taken, verified by this key: not one that the machine's apt may be
    /// shown, so it lies apart from those.
    pub(crate) fn of_files(url: &str, fingerprint: &str) -> Self {
        let Self { url, dir } = Self::of(url);
        let name = dir.rsplit('/').next().unwrap_or_default();
        Self { dir: format!("{}/files_{fingerprint}_{name}", paths::LISTS_DIR), url }
    }

    /// The keyring of such an index. apt takes percent signs out of this path, which the other names have.
    pub(crate) fn keyring_path(fingerprint: &str) -> String {
        format!("{}/keyring_{fingerprint}/keyring.gpg", paths::LISTS_DIR)
    }

    /// The verified Release file.
    pub(crate) fn release_path(&self) -> String {
        format!("{}/Release", self.dir)
    }

    /// The verified Packages file.
    pub(crate) fn packages_path(&self) -> String {
        format!("{}/Packages", self.dir)
    }

    /// The sources file that names this repository only.
    pub(crate) fn sources_path(&self) -> String {
        format!("{}/apart.sources", self.dir)
    }

    /// The directory into which apt fetches before anything is believed. This process's own: an apt that outlived its
    /// agent may still be at work in another one, and two in one directory take each other's files away.
    pub(crate) fn incoming_dir(&self) -> String {
        format!("{}/{INCOMING}{:06x}", self.dir, std::process::id())
    }

    /// The verified Release file, or `None` when there is none.
    pub(crate) fn release(&self, host: &Host) -> Result<Option<Release>> {
        let path = self.release_path();
        let Some(text) = host.files.read_text(&path)? else { return Ok(None) };
        Release::parse(&text).map(Some).map_err(|why| malformed(&self.url, &path, &why))
    }

    /// The verified index; an error when there is none.
    pub(crate) fn index(&self, host: &Host) -> Result<Index> {
        let path = self.packages_path();
        let outside = host.files.outside(&path)?;
        let file = std::fs::File::open(outside).map_err(|e| Error::io("open", &path, e))?;
        Index::read(BufReader::with_capacity(64 * 1024, file))
            .map_err(|why| malformed(&self.url, &path, &why))
    }

    /// Removes what killed runs left of indexes that they were fetching. Only the holder of the lock may do this.
    pub(crate) fn sweep(files: &Files) -> Result<()> {
        for name in files.list(paths::LISTS_DIR)? {
            let dir = format!("{}/{name}", paths::LISTS_DIR);
            files.sweep(&dir)?;
            for incoming in files.list(&dir)?.iter().filter(|name| name.starts_with(INCOMING)) {
                files.remove_tree(format!("{dir}/{incoming}"))?;
            }
        }
        Ok(())
    }

    /// Keeps a verified index.
    pub(crate) fn keep(&self, host: &Host, release: &[u8], packages: &[u8]) -> Result<()> {
        host.files.write(self.packages_path(), packages, 0o644)?;
        host.files.write(self.release_path(), release, 0o644)
    }
}

/// An index that cannot be parsed.
pub(crate) fn malformed(url: &str, path: &str, why: &str) -> Error {
    Error::new(Code::IndexMalformed, format!("the index of {url} is malformed: {path}: {why}")).with_hint(
        "the repository's publisher has to mend it; run again later, or use a mirror of an earlier state",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_processes_were_fetching_goes_and_what_was_verified_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let private = Private::of("http://192.0.2.1/repos");
        private.keep(&host, b"release", b"packages").unwrap();
        for incoming in [private.incoming_dir(), format!("{}/{INCOMING}00beef", private.dir)] {
            host.files.make_dir(format!("{incoming}/partial"), 0o755).unwrap();
            host.files.write(format!("{incoming}/partial/x"), b"", 0o644).unwrap();
        }
        Private::sweep(&host.files).unwrap();
        assert_eq!(host.files.list(&private.dir).unwrap(), ["Packages", "Release"]);
    }
}
