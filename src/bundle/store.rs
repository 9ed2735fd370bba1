//! Where a bundle is put, in a directory or a bucket, so that at every moment the manifest that lies there is of a whole bundle.
//!
//! Files lie in a directory that is named after what they are ([`manifest::directory_of`]). A bundle that is made anew gets
//! another one, beside the first; what both have is linked (copied by S3 itself). When all is there and on the disk, the
//! new manifest takes the old one's name in one move, and only then are the old files removed.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::manifest::{self, File, Manifest};
use super::{Location, Remote, verify};
use crate::error::{Code, Error, Result};
use crate::host::files::Files;

/// Where work goes on in a bundle's own directory; it is gone when the bundle is whole.
pub(super) const WORK: &str = ".gpu-bootstrap-create";

/// A place, held as long as a bundle is made there.
pub(super) struct Store {
    location: Location,
    pub(super) remote: Remote,
    /// The files of whoever calls.
    files: Files,
    /// The directory; none for a bucket.
    pub(super) dir: Option<PathBuf>,
    /// Where this bundle's files lie in it.
    directory: String,
    /// What was there before, relative to the place.
    before: Vec<String>,
    /// Two at work in one directory would remove each other's files.
    _held: Option<Flock<std::fs::File>>,
}

impl Store {
    /// Takes hold of a place in which a bundle may be made.
    pub(super) async fn open(location: &Location, remote: Remote) -> Result<Self> {
        let files = Files::new("/".into());
        let (dir, held, before) = match location {
            Location::S3 { .. } => (None, None, remote.list(location).await?),
            Location::Directory(path) => {
                files.make_dir(path, 0o755)?;
                let held = hold(&files, path)?;
                let before = files.tree(path)?;
                if !is_free_or_ours(&files, path, &before)? {
                    let text = format!("--output {path} is neither empty nor a bundle");
                    return Err(
                        Error::new(Code::Usage, text).with_hint("name an empty directory, or a new one")
                    );
                }
                (Some(PathBuf::from(path)), Some(held), before)
            }
        };
        Ok(Self {
            location: location.clone(),
            remote,
            files,
            dir,
            directory: String::new(),
            before,
            _held: held,
        })
    }

    /// Begins a bundle of these files.
    pub(super) fn begin<'a>(&mut self, files: impl Iterator<Item = &'a File>) -> &str {
        self.directory = manifest::directory_of(files);
        &self.directory
    }

    fn place(&self, file: &File) -> String {
        manifest::join(&self.directory, &file.path)
    }

    /// Whether a file is there; one that another bundle, or an interrupted attempt at one, has brought here is taken over.
    pub(super) async fn has(&self, file: &File, room: &Path) -> Result<bool> {
        let place = self.place(file);
        if self.is_at(&place, file).await? {
            return Ok(true);
        }
        let elsewhere = self
            .before
            .iter()
            .filter(|other| **other != place && inside(other).is_some_and(|(_, path)| path == file.path));
        for other in elsewhere {
            if !self.is_at(other, file).await? {
                continue;
            }
            let Some(dir) = &self.dir else {
                self.remote.copy(&self.location, other, &place).await?;
                return Ok(true);
            };
            let copy = room.join("taken-over");
            self.files.remove(&copy)?;
            self.files.link_or_copy(dir.join(other), &copy)?;
            self.files.settle(&copy, dir.join(&place))?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn is_at(&self, place: &str, file: &File) -> Result<bool> {
        match &self.dir {
            Some(dir) => Ok(verify::one(&self.files, &dir.display().to_string(), place, file).is_ok()),
            None => self.remote.has(&self.location, place, file).await,
        }
    }

    /// Takes a file that has been verified; it is gone from where it was.
    pub(super) async fn put(&self, from: &Path, file: &File) -> Result<()> {
        let place = self.place(file);
        if let Some(dir) = &self.dir {
            return self.files.settle(from, dir.join(place));
        }
        self.remote.put(&self.location, &place, from, file).await?;
        self.files.remove(from)
    }

    /// The manifest takes its place, and what it does not name is removed.
    pub(super) async fn publish(&self, manifest: &Manifest, bytes: &[u8], room: &Path) -> Result<()> {
        let Some(dir) = &self.dir else {
            let at = room.join("manifest");
            self.files.write(&at, bytes, 0o644)?;
            let (path, size) = (manifest::NAME.to_owned(), bytes.len() as u64);
            let file = File { path, size, sha256: manifest::sum(bytes) };
            self.remote.put(&self.location, manifest::NAME, &at, &file).await?;
            for path in self.remote.list(&self.location).await?.iter().filter(|p| is_left(p, manifest)) {
                self.remote.remove(&self.location, path).await?;
            }
            return Ok(());
        };
        self.files.sync_tree(dir)?;
        self.files.write(dir.join(manifest::NAME), bytes, 0o644)?;
        for path in self.files.tree(dir)?.iter().filter(|p| is_left(p, manifest)) {
            self.files.remove(dir.join(path))?;
        }
        // What is left of other bundles' directories is empty.
        let names = self.files.list(dir)?.into_iter();
        let mut others = names.filter(|name| *name != manifest.directory && manifest::is_directory(name));
        others.try_for_each(|name| self.files.remove_tree(dir.join(name)))
    }
}

/// The path of a file of whichever bundle, below the directory of that one's files.
fn inside(place: &str) -> Option<(&str, &str)> {
    place.split_once('/').filter(|(dir, _)| manifest::is_directory(dir))
}

/// Whether a file is of another bundle, or of none.
fn is_left(place: &str, manifest: &Manifest) -> bool {
    inside(place).is_some_and(|(dir, path)| dir != manifest.directory || manifest.file(path).is_none())
}

/// Whether a bundle may be made there, where what is in its directories and not in the manifest is removed: nothing lies there,
/// or a bundle does, or what an interrupted `create` has left. A file called `manifest.json` is not yet a bundle.
fn is_free_or_ours(files: &Files, dir: &str, names: &[String]) -> Result<bool> {
    let is_work = |name: &String| name.starts_with(WORK);
    if names.iter().any(is_work) || names.iter().all(|name| inside(name).is_some()) {
        return Ok(true);
    }
    let path = Path::new(dir).join(manifest::NAME);
    let bytes = files.read_limited(&path, manifest::LIMIT)?;
    Ok(bytes.is_some_and(|bytes| Manifest::read(&bytes, None, &path.display().to_string()).is_ok()))
}

fn hold(files: &Files, dir: &str) -> Result<Flock<std::fs::File>> {
    Flock::lock(files.open_dir(dir)?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => {
            Error::new(Code::Locked, format!("another `bundle create` is at work in {dir}"))
        }
        e => Error::io("lock", dir, e.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::manifest::example;

    #[test]
    fn what_is_left_lies_where_bundles_files_do_and_is_not_named() {
        let mut manifest = example(&[("debs/a.deb", b"x")]);
        manifest.directory = manifest::directory_of(manifest.files.iter());
        let own = format!("{}/debs/a.deb", manifest.directory);
        for (path, left) in [
            (own.as_str(), false),
            ("files-0123456789abcdef/debs/a.deb", true),
            (&own.replace("a.deb", "b.deb"), true),
            ("keys/mine.asc", false),
            ("manifest.json", false),
            ("thesis.tex", false),
            ("files-mine/letter", false),
        ] {
            assert_eq!(is_left(path, &manifest), left, "{path}");
        }
    }

    #[tokio::test]
    async fn until_the_new_manifest_is_there_nothing_of_the_old_bundle_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (files, at) = (Files::new("/".into()), dir.path().display().to_string());
        let named = |content: &[u8]| {
            let mut manifest = example(&[("debs/a.deb", content)]);
            manifest.directory = manifest::directory_of(manifest.files.iter());
            manifest
        };
        let (old, new) = (named(b"old"), named(b"new"));
        let lies = |manifest: &Manifest| format!("{at}/{}/debs/a.deb", manifest.directory);
        files.write(lies(&old), b"old", 0o644).unwrap();
        files.write(format!("{at}/manifest.json"), &old.text(), 0o644).unwrap();
        let remote = Remote::new(&crate::config::schema::AwsConfig::default(), None, None);
        let mut store = Store::open(&Location::Directory(at.clone()), remote).await.unwrap();
        store.begin(new.files.iter());
        files.write(format!("{at}/{WORK}/new"), b"new", 0o644).unwrap();
        store.put(Path::new(&format!("{at}/{WORK}/new")), &new.files[0]).await.unwrap();
        // Its place is taken, so the manifest cannot be written: as if the disk were full in that moment.
        files.remove(format!("{at}/manifest.json")).unwrap();
        files.make_dir(format!("{at}/manifest.json/in-the-way"), 0o755).unwrap();
        store.publish(&new, &new.text(), dir.path()).await.unwrap_err();
        assert_eq!(files.read(lies(&old)).unwrap().unwrap(), b"old");
        files.remove_tree(format!("{at}/manifest.json")).unwrap();
        store.publish(&new, &new.text(), dir.path()).await.unwrap();
        assert!(!files.exists(lies(&old)).unwrap() && files.exists(lies(&new)).unwrap());
    }

    #[test]
    fn a_place_is_free_ours_or_somebodys() {
        let dir = tempfile::tempdir().unwrap();
        let (files, at) = (Files::new("/".into()), dir.path().display().to_string());
        let free = || is_free_or_ours(&files, &at, &files.tree(&at).unwrap()).unwrap();
        assert!(free());
        files.write(format!("{at}/files-0123456789abcdef/debs/a.deb"), b"", 0o644).unwrap();
        assert!(free(), "what a killed create leaves");
        files.write(format!("{at}/thesis.tex"), b"years", 0o644).unwrap();
        assert!(!free());
        files.write(format!("{at}/manifest.json"), b"{\"name\": \"a web page\"}", 0o644).unwrap();
        assert!(!free());
        files.write(format!("{at}/manifest.json"), &example(&[]).text(), 0o644).unwrap();
        assert!(free(), "a bundle");
    }
}
