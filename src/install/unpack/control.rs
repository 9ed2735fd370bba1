//! What a package's control data says that matters for placing its files.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::archive::Member;
use super::{Trouble, stream, tar};

/// More than any package's control data: the kernel's have half a megabyte of sums.
const MOST: u64 = 32 << 20;

/// From `control`, `conffiles` and `md5sums`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) arch: String,
    /// It may be installed for several architectures at once, sharing files.
    pub(super) multi_arch_same: bool,
    /// Configuration files: dpkg compares and keeps them.
    pub(super) conffiles: Vec<PathBuf>,
    /// Whether the package brings its own sums; if not, dpkg makes them while it unpacks.
    pub(super) has_sums: bool,
}

impl Control {
    /// Reads the control member.
    pub(super) fn read(file: &File, member: Member) -> Result<Self, Trouble> {
        let mut bytes = Vec::new();
        stream::open(file, member)?.take(MOST).read_to_end(&mut bytes).map_err(Trouble::reading)?;
        let mut control = Self::default();
        for (name, content) in tar::files(&bytes)? {
            match name.strip_prefix(b"./").unwrap_or(&name) {
                b"control" => control.fields(content),
                b"conffiles" => control.conffiles = conffiles(content),
                b"md5sums" => control.has_sums = true,
                _ => {}
            }
        }
        if control.name.is_empty() || control.version.is_empty() || control.arch.is_empty() {
            return Err(Trouble::unsuitable("control data without name, version or architecture"));
        }
        Ok(control)
    }

    fn fields(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "package" => value.clone_into(&mut self.name),
                "version" => value.clone_into(&mut self.version),
                "architecture" => value.clone_into(&mut self.arch),
                "multi-arch" => self.multi_arch_same = value == "same",
                _ => {}
            }
        }
    }
}

/// A path a line; newer dpkg allows a flag before it.
fn conffiles(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let path = |line: &[u8]| {
        let at = line.iter().position(|b| *b == b'/')?;
        Some(Path::new(std::ffi::OsStr::from_bytes(&line[at..])).to_path_buf())
    };
    lines.filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_configuration_files_are_read() {
        let mut control = Control::default();
        control.fields(
            b"Package: libx\nVersion: 1:2-3\nArchitecture: amd64\nMulti-Arch: same\nDescription: a\n b: c\n",
        );
        assert_eq!(
            (control.name.as_str(), control.version.as_str(), control.arch.as_str(), control.multi_arch_same),
            ("libx", "1:2-3", "amd64", true)
        );
        assert_eq!(
            conffiles(b"/etc/a\nremove-on-upgrade /opt/b c\n\n"),
            [PathBuf::from("/etc/a"), "/opt/b c".into()]
        );
    }
}
