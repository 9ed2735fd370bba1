//! Which file of a library the probe may load: what the dynamic linker would take, else the well-known places,
//! and only where nobody but root can replace it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::host::Host;

/// Where drivers and toolkits put libraries that the linker may not list (containers: `/usr/local/nvidia`).
const PLACES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
];
const MAX_LINKS: usize = 10;

/// What a search for a library came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// To be loaded from here (a path inside the root).
    At(PathBuf),
    /// There, but not to be loaded, and why.
    Unsafe(String),
    /// Nowhere.
    Nowhere,
}

/// The first of `sonames` that is there. Where the linker lists none, `dirs` and the well-known places are looked at.
pub(super) fn find(host: &Host, sonames: &[&str], dirs: &[String]) -> Result<Found> {
    for soname in sonames {
        if let Some(path) = candidates(host, soname, dirs)?.into_iter().next() {
            let file = real_file(host, &path)?.unwrap_or_else(|| path.clone());
            return Ok(match who_may_replace(host, &file)? {
                None => Found::At(path),
                Some(why) => Found::Unsafe(why),
            });
        }
    }
    Ok(Found::Nowhere)
}

/// Every place of a soname where there is a library for this machine, what the linker would take first.
pub(super) fn candidates(host: &Host, soname: &str, dirs: &[String]) -> Result<Vec<PathBuf>> {
    let listed = host.linker_cache()?.into_iter().filter(|l| l.soname == soname).map(|l| l.path);
    let dirs = dirs.iter().map(String::as_str).chain(PLACES);
    let mut there: Vec<PathBuf> = Vec::new();
    for path in listed.chain(dirs.map(|dir| Path::new(dir).join(soname))) {
        if !there.contains(&path)
            && let Some(file) = real_file(host, &path)?
            && is_native(host, &file)?
        {
            there.push(path);
        }
    }
    Ok(there)
}

/// Where the links lead; `None` where nothing is.
pub(super) fn real_file(host: &Host, path: &Path) -> Result<Option<PathBuf>> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match host.files.read_link(&at)? {
            Some(target) => at = at.parent().unwrap_or(Path::new("/")).join(target),
            None => return Ok(host.files.exists(&at)?.then_some(at)),
        }
    }
    Ok(None)
}

/// Whether it is a library for this program's own word size: the linker lists those for 32 bits under the same name.
fn is_native(host: &Host, file: &Path) -> Result<bool> {
    const ELFCLASS64: u8 = 2;
    let head = host.files.read_limited(file, 5)?;
    Ok(head.is_some_and(|h| h.starts_with(b"\x7fELF") && h.get(4) == Some(&ELFCLASS64)))
}

/// Somebody besides root who could put another file there, in words.
fn who_may_replace(host: &Host, file: &Path) -> Result<Option<String>> {
    let outside = host.files.outside(file)?;
    let io = |e| crate::error::Error::io("look at", file, e);
    let real = fs::canonicalize(&outside).map_err(io)?;
    let root = fs::canonicalize(host.files.root()).map_err(io)?;
    for at in real.ancestors().take_while(|a| a.starts_with(&root)) {
        let meta = fs::symlink_metadata(at).map_err(io)?;
        let shared = meta.mode() & 0o022 != 0;
        let sticky = meta.is_dir() && meta.mode() & 0o1000 != 0;
        if meta.uid() != 0 {
            return Ok(Some(format!("{} belongs to user {}", at.display(), meta.uid())));
        }
        if shared && !sticky {
            return Ok(Some(format!("{} may be written by others than root", at.display())));
        }
    }
    Ok(None)
}
