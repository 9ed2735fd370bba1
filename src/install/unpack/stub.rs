//! What takes a package's place until dpkg has it: the stub, which is the package with links for its big files, and the
//! placeholder, which is what programs see that look at archives before.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::archive::{self, Archive};
use super::{Stage, Trouble};
use crate::error::{Error, Result};
use crate::host::fault::{self, Kind};

/// A package's stub while it is made.
pub(super) struct Stub {
    file: BufWriter<File>,
    path: PathBuf,
    inside: String,
    data_header_at: u64,
    data: u64,
}

impl Stub {
    /// Begins with everything that the package has before its data, control data included, byte by byte.
    pub(super) fn make(
        stage: &Stage,
        number: usize,
        package: &File,
        archive: &Archive,
    ) -> Result<Self, Trouble> {
        let name = format!("{number}.deb");
        let path = stage.stub(&name);
        let broken = |e| Trouble::writing(stage.stub(&name), e);
        let file =
            fault::point(Kind::Create, &path).and_then(|()| File::create_new(&path)).map_err(broken)?;
        let mut stub = Self {
            file: BufWriter::with_capacity(256 << 10, file),
            inside: Stage::stub_inside(&name),
            path,
            data_header_at: archive.data_header_at,
            data: 0,
        };
        let mut before = vec![0; usize::try_from(archive.data_header_at).unwrap_or(usize::MAX)];
        package.read_exact_at(&mut before, 0).map_err(Trouble::reading)?;
        stub.raw(&before)?;
        // The size is filled in at the end.
        stub.raw(&archive::data_header(0))?;
        Ok(stub)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        fault::point(Kind::Write, &self.path)
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|e| Trouble::writing(&self.path, e))
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.data += bytes.len() as u64;
        self.raw(bytes)
    }

    /// Completes and closes the stub; its path inside the root.
    pub(super) fn close(mut self) -> Result<String, Trouble> {
        if self.data % 2 == 1 {
            self.raw(b"\n")?;
        }
        let done = fault::point(Kind::Write, &self.path).and_then(|()| self.file.flush()).and_then(|()| {
            let file = self.file.get_mut();
            file.seek(SeekFrom::Start(self.data_header_at))?;
            file.write_all(&archive::data_header(self.data))
        });
        done.map_err(|e| Trouble::writing(&self.path, e))?;
        Ok(self.inside)
    }
}

/// Gives a placeholder of the right size the beginning of the verified package, up to its data: what programs want
/// that look at archives before dpkg does. A package that cannot be read here stands there whole.
pub(in crate::install) fn fill_placeholder(package: &Path, placeholder: &Path) -> Result<()> {
    let fill = || -> io::Result<()> {
        fault::point(Kind::Write, placeholder)?;
        let file = File::open(package)?;
        let size = file.metadata()?.len();
        // With the header of the data: readers go from header to header.
        let wanted = Archive::read(&file, size).map_or(size, |archive| archive.data.at);
        // Never shorter, not for a moment: apt, which looks at its size meanwhile, would fetch another one.
        let mut placeholder = File::options().write(true).open(placeholder)?;
        io::copy(&mut file.take(wanted), &mut placeholder).map(drop)
    };
    fill().map_err(|e| Error::io("fill", placeholder, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_filled_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (package, placeholder) = (dir.path().join("package"), dir.path().join("placeholder"));
        std::fs::write(&package, b"no archive").unwrap();
        // A longer one shows whether it is emptied first.
        std::fs::write(&placeholder, [7; 20]).unwrap();
        fill_placeholder(&package, &placeholder).unwrap();
        assert_eq!(
            std::fs::read(&placeholder).unwrap(),
            b"no archive\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07"
        );
    }
}
