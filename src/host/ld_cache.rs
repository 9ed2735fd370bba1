//! What the dynamic linker knows: `/etc/ld.so.cache`, read as it is on disk. Used by the actions that make or
//! prove search paths; no program is started.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

use super::Host;

const CACHE: &str = "/etc/ld.so.cache";
/// The format since glibc 2.2. Up to glibc 2.31 an older table stands before it in the same file.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// A library the linker can find by its soname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// `libcuda.so.1`
    pub soname: String,
    /// Where it is (inside the root).
    pub path: PathBuf,
}

impl Host {
    /// Every library in the linker's cache; empty when ldconfig never ran.
    pub fn linker_cache(&self) -> Result<Vec<Library>> {
        let Some(bytes) = self.files.read(CACHE)? else { return Ok(Vec::new()) };
        parse(&bytes).ok_or_else(|| {
            Error::new(Code::Io, format!("cannot understand {CACHE}"))
                .with_hint("run ldconfig, then run again")
        })
    }
}

/// Header (magic, number of libraries at 20), then entries of flags, soname and path (offsets from the magic).
pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<Library>> {
    let start = bytes.windows(MAGIC.len()).position(|w| w == MAGIC)?;
    let table = &bytes[start..];
    let count = number(table, 20)?;
    (0..count)
        .map(|i| {
            let entry = HEADER + i * ENTRY;
            Some(Library {
                soname: text(table, number(table, entry + 4)?)?.into_owned(),
                path: PathBuf::from(text(table, number(table, entry + 8)?)?.as_ref()),
            })
        })
        .collect()
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(four)).ok()
}

fn text(bytes: &[u8], at: usize) -> Option<std::borrow::Cow<'_, str>> {
    let rest = bytes.get(at..)?;
    Some(String::from_utf8_lossy(&rest[..rest.iter().position(|&b| b == 0)?]))
}

/// Which directory this is, whatever it is called: ldconfig lists a directory only under the first of its names.
/// `None` if it is not there.
pub fn directory_id(host: &Host, dir: &Path) -> Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    // Resolving a name below it resolves every link on the way, the directory's own included.
    let below = host.files.outside(dir.join("x"))?;
    match std::fs::metadata(below.parent().unwrap_or(&below)) {
        Ok(meta) => Ok(meta.is_dir().then(|| (meta.dev(), meta.ino()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("stat", dir, e)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cache as ldconfig writes it.
    pub(crate) fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut entries = Vec::new();
        let base = HEADER + libraries.len() * ENTRY;
        let mut add = |s: &str| {
            let at = u32::try_from(base + strings.len()).unwrap();
            strings.extend(s.bytes().chain([0]));
            at
        };
        for (soname, path) in libraries {
            let (soname, path) = (add(soname), add(path));
            for word in [0x303, soname, path, 0, 0, 0] {
                entries.extend(word.to_ne_bytes());
            }
        }
        let mut out = MAGIC.to_vec();
        out.extend(u32::try_from(libraries.len()).unwrap().to_ne_bytes());
        out.extend(u32::try_from(strings.len()).unwrap().to_ne_bytes());
        out.resize(HEADER, 0);
        [out, entries, strings].concat()
    }

    #[test]
    fn both_layouts_are_read_and_torn_ones_refused() {
        let new = cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1"), ("liba.so", "/opt/liba.so")]);
        let read = parse(&new).unwrap();
        assert_eq!(read[1], Library { soname: "liba.so".into(), path: "/opt/liba.so".into() });
        let old_first = [b"ld.so-1.7.0\0\0\0\0\0".as_slice(), &new].concat();
        assert_eq!(parse(&old_first).unwrap(), read);
        assert!(parse(&new[..60]).is_none() && parse(b"").is_none());
    }

    #[test]
    fn this_machine_s_cache_is_read() {
        let libraries = Host::new("/".into()).linker_cache().unwrap();
        assert!(libraries.iter().any(|l| l.soname == "libc.so.6" && l.path.is_absolute()), "{libraries:?}");
    }
}
