//! Looking at every file of a bundle: each that is not what the manifest says is named.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::manifest::{File, Manifest, NAME};
use super::{Location, Remote};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::install::fetch::Item;
use crate::install::fetch_files;
use crate::text::hex;

/// Files of a bucket that are fetched to be hashed, and removed, together.
const BATCH: usize = 16;

/// What is wrong with a bundle: paths, and a few words about each.
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

/// Looks at a bundle in a directory (outside path). Files are hashed by all cores.
pub fn directory(dir: &Path, manifest: &Manifest) -> Faults {
    let mut faults = Faults::default();
    let wrong = Mutex::new(&mut faults.wrong);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(manifest.files.len()) {
            scope.spawn(|| {
                while let Some(file) = manifest.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = one(dir, file) {
                        let mut wrong = wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        wrong.insert(file.path.clone(), what);
                    }
                }
            });
        }
    });
    let named: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    faults.extra = all(dir).into_iter().filter(|p| p != NAME && !named.contains(p.as_str())).collect();
    faults
}

/// How one file differs, if it does. No link is followed on the way to it.
pub fn one(dir: &Path, file: &File) -> Result<(), String> {
    let mut at = dir.to_path_buf();
    for name in file.path.split('/') {
        at.push(name);
        match fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_symlink() => return Err("is or lies behind a symbolic link".into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("is missing".into()),
            Err(e) => return Err(format!("cannot be read: {e}")),
        }
    }
    let cannot = |e: io::Error| format!("cannot be read: {e}");
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut opened = OpenOptions::new().read(true).custom_flags(flags).open(&at).map_err(cannot)?;
    let meta = opened.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err("is no regular file".into());
    }
    if meta.len() != file.size {
        return Err(format!("has {} bytes, not {}", meta.len(), file.size));
    }
    let sum = hash(&mut opened).map_err(cannot)?;
    if sum == file.sha256 { Ok(()) } else { Err(format!("has the sha256 {sum}, not {}", file.sha256)) }
}

/// SHA-256 of what can be read, in hexadecimal.
pub fn hash(from: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Every file below `dir`, by its path relative to it, sorted. Links are files.
pub fn all(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, to: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), &format!("{path}/"), to);
            } else {
                to.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}

/// Looks at a bundle anywhere: what is in a bucket is fetched, some files at a time.
pub async fn anywhere(
    host: &Host,
    location: &Location,
    remote: &Remote,
    manifest: &Manifest,
) -> Result<Faults> {
    let Location::S3 { .. } = location else {
        return Ok(directory(&host.files.outside(location.to_string())?, manifest));
    };
    let mut faults = Faults::default();
    let keys: HashSet<String> = remote.list(location).await?.into_iter().collect();
    let room = tempfile::tempdir().map_err(|e| Error::io("make a directory in", std::env::temp_dir(), e))?;
    for (path, what) in
        manifest.files.iter().filter(|f| !keys.contains(&f.path)).map(|f| (f.path.clone(), "is missing"))
    {
        faults.wrong.insert(path, what.into());
    }
    let there: Vec<&File> = manifest.files.iter().filter(|f| keys.contains(&f.path)).collect();
    for batch in there.chunks(BATCH) {
        let paths: Vec<_> = batch.iter().map(|f| f.path.clone()).collect();
        let urls = remote.urls(location, &paths).await?;
        let item = |(number, (file, uri)): (usize, (&&File, String))| Item {
            uri,
            size: file.size,
            sha256: file.sha256.clone(),
            path: room.path().join(number.to_string()),
        };
        let items: Vec<Item> = batch.iter().zip(urls).enumerate().map(item).collect();
        for (number, error) in fetch_files(host, items.clone()).await? {
            faults.wrong.insert(batch[number].path.clone(), format!("cannot be used: {error}"));
        }
        for item in items {
            let _ = fs::remove_file(item.path); // those that failed are not there
        }
    }
    let named: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    faults.extra = keys.into_iter().filter(|k| k != NAME && !named.contains(k.as_str())).collect();
    faults.extra.sort();
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::manifest::example;

    #[test]
    fn every_way_to_be_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), bytes).unwrap();
        };
        let names = ["a/good", "a/flipped", "a/short", "a/gone", "a/link", "behind/x", "a/dir"];
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (*n, b"content".as_slice())).collect();
        let manifest = example(&files);
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
        let faults = directory(dir.path(), &manifest);
        let said = |path: &str| faults.wrong.get(path).map_or("", String::as_str);
        assert!(said("a/flipped").contains("has the sha256"));
        assert!(said("a/short").contains("has 4 bytes, not 7"));
        assert_eq!(said("a/gone"), "is missing");
        assert!(said("a/link").contains("symbolic link") && said("behind/x").contains("symbolic link"));
        assert_eq!(said("a/dir"), "is no regular file");
        assert_eq!(said("a/good"), "");
        assert_eq!(faults.extra, ["a/more", "behind", "elsewhere", "real/x"]);
        assert_eq!(faults.refuse("/b").unwrap_err().code(), Code::BundleTampered);
    }
}
