//! Writes Debian packages: an `ar` archive of a version, control files and data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::error::{Code, Error, Result};

/// A package to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Package {
    /// Its name.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
    /// `amd64`, `arm64` or `all`.
    pub(super) architecture: &'static str,
    /// Dependencies, each as it stands in the control file.
    pub(super) depends: Vec<String>,
    /// First line of the description.
    pub(super) description: String,
    /// Maintainer scripts by name (`postinst`, `prerm`, …), shell.
    pub(super) scripts: BTreeMap<&'static str, String>,
    /// Whether dpkg is to have the dynamic linker's cache renewed, as every package with public libraries asks.
    pub(super) linker_cache: bool,
    /// Files by absolute path.
    pub(super) files: BTreeMap<String, Content>,
}

/// What lies at a path.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A file, mode 0644.
    File(Vec<u8>),
    /// A file, mode 0755.
    Program(String),
    /// A symbolic link.
    Link(String),
}

impl Package {
    /// The control fields, without a blank line at the end. The same text goes into the package and the index.
    pub(super) fn control(&self) -> String {
        let kib = self.files.values().map(|c| c.bytes().len()).sum::<usize>() / 1024 + 1;
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: gpu-bootstrap rehearse\nInstalled-Size: {kib}\n",
            self.name, self.version, self.architecture
        );
        if !self.depends.is_empty() {
            let _ = writeln!(text, "Depends: {}", self.depends.join(", "));
        }
        let _ = writeln!(text, "Section: devel\nPriority: optional\nDescription: {}", self.description);
        text
    }

    /// `name_version_architecture.deb`, without an epoch, as in NVIDIA's repositories.
    pub(super) fn file_name(&self) -> String {
        let version = self.version.split_once(':').map_or(self.version.as_str(), |(_, v)| v);
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }

    /// The package as bytes; every time in it is `time` (seconds since 1970).
    pub(super) fn write(&self, time: u64) -> Result<Vec<u8>> {
        let mut control = Tar::new(time);
        control.file("./control", self.control().as_bytes(), 0o644)?;
        for (name, script) in &self.scripts {
            control.file(&format!("./{name}"), format!("#!/bin/sh\nset -e\n{script}\n").as_bytes(), 0o755)?;
        }
        if self.linker_cache {
            control.file("./triggers", b"activate-noawait ldconfig\n", 0o644)?;
        }
        let mut data = Tar::new(time);
        for (path, content) in &self.files {
            data.parents(path)?;
            match content {
                Content::File(bytes) => data.file(&format!(".{path}"), bytes, 0o644)?,
                Content::Program(text) => data.file(&format!(".{path}"), text.as_bytes(), 0o755)?,
                Content::Link(target) => data.entry(&format!(".{path}"), b'2', 0o777, &[], target)?,
            }
        }
        let mut out = b"!<arch>\n".to_vec();
        member(&mut out, "debian-binary", b"2.0\n", time);
        member(&mut out, "control.tar.gz", &control.finish()?, time);
        member(&mut out, "data.tar.gz", &data.finish()?, time);
        Ok(out)
    }
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Program(text) => text.as_bytes(),
            Self::Link(_) => &[],
        }
    }
}

/// One member of the outer `ar` archive.
fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8], time: u64) {
    let header = format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", bytes.len());
    out.extend(header.as_bytes());
    out.extend(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
}

/// A `ustar` archive; all owners are root.
struct Tar {
    bytes: Vec<u8>,
    time: u64,
    directories: Vec<String>,
}

impl Tar {
    fn new(time: u64) -> Self {
        let mut tar = Self { bytes: Vec::new(), time, directories: Vec::new() };
        // dpkg wants the top directory to be there; its name is short, so that this cannot fail.
        let _ = tar.entry("./", b'5', 0o755, &[], "");
        tar
    }

    /// Entries for all directories above `path` that have none yet: dpkg makes no directory by itself.
    fn parents(&mut self, path: &str) -> Result<()> {
        let ends: Vec<usize> = path.match_indices('/').map(|(i, _)| i).skip(1).collect();
        for end in ends {
            let directory = format!(".{}/", &path[..end]);
            if !self.directories.contains(&directory) {
                self.entry(&directory, b'5', 0o755, &[], "")?;
                self.directories.push(directory);
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.entry(name, b'0', mode, bytes, "")
    }

    fn entry(&mut self, name: &str, kind: u8, mode: u32, bytes: &[u8], link: &str) -> Result<()> {
        if name.len() > 100 || link.len() > 100 {
            let text = format!("{name} is too long a path for a simulated package");
            return Err(Error::new(Code::RehearsalFailed, text));
        }
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}\0{:07o}\0{:07o}\0", 0, 0));
        put(124, &format!("{:011o}\0{:011o}\0", bytes.len(), self.time));
        put(148, "        "); // the checksum counts itself as blanks
        put(157, link);
        put(257, "ustar\x0000root");
        put(297, "root");
        header[156] = kind;
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(())
    }

    /// The archive, compressed.
    fn finish(mut self) -> Result<Vec<u8>> {
        self.bytes.extend([0; 1024]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let done = gzip.write_all(&self.bytes).and_then(|()| gzip.finish());
        done.map_err(|e| Error::new(Code::RehearsalFailed, "cannot compress a simulated package").because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_reads_what_was_written() {
        let package = Package {
            name: "cuda-x".into(),
            version: "1:12.8.1-1".into(),
            architecture: "all",
            depends: vec!["cuda-y (= 1)".into()],
            description: "simulated".into(),
            linker_cache: true,
            scripts: BTreeMap::from([("postinst", "true".to_owned())]),
            files: BTreeMap::from([
                ("/usr/local/cuda-12.8/bin/nvcc".to_owned(), Content::Program("#!/bin/sh\n".into())),
                ("/usr/local/cuda-12.8/lib64".to_owned(), Content::Link("targets/lib".into())),
                ("/usr/share/doc/cuda-x/copyright".to_owned(), Content::File(b"odd".to_vec())),
            ]),
        };
        assert_eq!(package.file_name(), "cuda-x_12.8.1-1_all.deb");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), package.write(1_700_000_000).unwrap()).unwrap();
        let dpkg = |option: &str| {
            let out = std::process::Command::new("dpkg-deb").arg(option).arg(file.path()).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        assert!(dpkg("--field").contains("Version: 1:12.8.1-1\n"));
        assert!(dpkg("--info").contains("triggers"));
        let listing = dpkg("--contents");
        assert!(listing.contains("drwxr-xr-x root/root"), "{listing}");
        assert!(listing.contains("-rwxr-xr-x root/root        10"), "{listing}");
        assert!(listing.contains("./usr/local/cuda-12.8/lib64 -> targets/lib"), "{listing}");
    }

    #[test]
    fn a_path_that_does_not_fit_is_an_error() {
        let files = BTreeMap::from([("/x".repeat(60), Content::File(Vec::new()))]);
        assert!(Package { files, ..Package::default() }.write(0).is_err());
    }
}
