//! Looking at every file of a bundle: each that is not what the manifest says is named.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use super::manifest::{self, File, Manifest};
use super::{Location, Remote};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::files::Files;
use crate::host::tree;
use crate::install::fetch::Item;
use crate::install::fetch_files;

/// Files of a bucket that are fetched to be hashed, and removed, together.
const BATCH: usize = 16;

/// What is wrong with a bundle: paths relative to it, and a few words about each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Files of the manifest that are missing or others.
    pub wrong: BTreeMap<String, String>,
    /// Files that the manifest does not name. Nothing uses them.
    pub extra: Vec<String>,
}

impl Faults {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.wrong.is_empty() && self.extra.is_empty()
    }

    /// The first files that are wrong, as an error.
    pub fn refuse(&self, place: &str) -> Result<()> {
        let Some((path, what)) = self.wrong.iter().next() else { return Ok(()) };
        let more = self.wrong.len() - 1;
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Error::new(Code::BundleTampered, format!("{place}: {path} {what}{more}")))
    }
}

/// Looks at a bundle in a directory of these files. They are hashed by all cores.
pub fn directory(files: &Files, dir: &str, manifest: &Manifest) -> Result<Faults> {
    let mut faults = Faults::default();
    let wrong = Mutex::new(&mut faults.wrong);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(manifest.files.len()) {
            scope.spawn(|| {
                while let Some(file) = manifest.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = manifest.place(&file.path);
                    if let Err(what) = one(files, dir, &path, file) {
                        let mut wrong = wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        wrong.insert(path, what);
                    }
                }
            });
        }
    });
    faults.extra = not_named(files.tree(dir)?, manifest);
    Ok(faults)
}

/// The files that the manifest does not name, sorted.
fn not_named(mut there: Vec<String>, manifest: &Manifest) -> Vec<String> {
    let named: HashSet<String> = manifest.files.iter().map(|f| manifest.place(&f.path)).collect();
    there.retain(|path| path != manifest::NAME && !named.contains(path));
    there.sort();
    there
}

/// How the file at `path` below `dir` differs from what it should be, if it does. No link is followed on the way to it.
pub fn one(files: &Files, dir: &str, path: &str, file: &File) -> Result<(), String> {
    let (mut opened, size) = files.open_plain(dir, path)?;
    if size != file.size {
        return Err(format!("has {size} bytes, not {}", file.size));
    }
    let sum = tree::sha256(&mut opened).map_err(|e| format!("cannot be read: {e}"))?;
    if sum == file.sha256 { Ok(()) } else { Err(format!("has the sha256 {sum}, not {}", file.sha256)) }
}

/// Looks at a bundle anywhere: what is in a bucket is fetched, some files at a time.
pub async fn anywhere(
    host: &Host,
    location: &Location,
    remote: &Remote,
    manifest: &Manifest,
) -> Result<Faults> {
    let Location::S3 { .. } = location else {
        return directory(&host.files, &location.to_string(), manifest);
    };
    let mut faults = Faults::default();
    let keys = remote.list(location).await?;
    let there: HashSet<&str> = keys.iter().map(String::as_str).collect();
    let room = tempfile::tempdir().map_err(|e| Error::io("make a directory in", std::env::temp_dir(), e))?;
    let files = manifest.files.iter().map(|f| (manifest.place(&f.path), f));
    let (there, missing): (Vec<_>, Vec<_>) = files.partition(|(path, _)| there.contains(path.as_str()));
    faults.wrong.extend(missing.into_iter().map(|(path, _)| (path, "is missing".to_owned())));
    for batch in there.chunks(BATCH) {
        let paths: Vec<_> = batch.iter().map(|(path, _)| path.clone()).collect();
        let urls = remote.urls(location, &paths).await?;
        let item = |(number, ((_, file), uri)): (usize, (&(String, &File), String))| Item {
            uri,
            size: file.size,
            sha256: file.sha256.clone(),
            path: room.path().join(number.to_string()),
        };
        let items: Vec<Item> = batch.iter().zip(urls).enumerate().map(item).collect();
        for (number, error) in fetch_files(host, items.clone()).await? {
            faults.wrong.insert(batch[number].0.clone(), format!("cannot be used: {error}"));
        }
        let here = Files::new(room.path().into());
        (0..items.len()).try_for_each(|number| here.remove(format!("/{number}")))?;
    }
    faults.extra = not_named(keys, manifest);
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bundle::manifest::{NAME, example};

    #[test]
    fn every_way_to_be_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), bytes).unwrap();
        };
        let names = ["a/good", "a/flipped", "a/short", "a/gone", "a/link", "behind/x", "a/dir"];
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (*n, b"content".as_slice())).collect();
        let mut manifest = example(&files);
        put(NAME, b"");
        put("a/good", b"content");
        put("a/flipped", b"contenu");
        put("a/short", b"cont");
        put("a/more", b"");
        put("elsewhere", b"content");
        put("real/x", b"content");
        std::os::unix::fs::symlink("../elsewhere", dir.path().join("a/link")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("behind")).unwrap();
        fs::create_dir(dir.path().join("a/dir")).unwrap();
        let files = Files::new(dir.path().into());
        let faults = directory(&files, "/", &manifest).unwrap();
        let said = |path: &str| faults.wrong.get(path).map_or("", String::as_str);
        assert!(said("a/flipped").contains("has the sha256"));
        assert!(said("a/short").contains("has 4 bytes, not 7"));
        assert_eq!(said("a/gone"), "is missing");
        assert!(said("a/link").contains("symbolic link") && said("behind/x").contains("symbolic link"));
        assert_eq!(said("a/dir"), "is no regular file");
        assert_eq!(said("a/good"), "");
        assert_eq!(faults.extra, ["a/more", "behind", "elsewhere", "real/x"]);
        assert_eq!(faults.refuse("/b").unwrap_err().code(), Code::BundleTampered);
        // The same files in a directory of their own: what lay there before is nobody's.
        manifest.directory = "files-0123456789abcdef".into();
        put("files-0123456789abcdef/a/good", b"content");
        let faults = directory(&files, "/", &manifest).unwrap();
        assert!(!faults.wrong.contains_key("files-0123456789abcdef/a/good"), "{faults:?}");
        assert_eq!(faults.wrong["files-0123456789abcdef/a/flipped"], "is missing");
        assert!(faults.extra.contains(&"a/good".to_owned()), "{faults:?}");
    }
}
