//! What takes a package's place until dpkg has it: the stub, which is the package with links for its big files, and the
//! placeholder, which is what programs see that look at archives before.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
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
        let Ok(archive) = Archive::read(&file, size) else {
            return fs::copy(package, placeholder).map(drop);
        };
        // With the header of the data: readers go from header to header.
        let mut beginning = vec![0; usize::try_from(archive.data.at).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut beginning, 0)?;
        File::options().write(true).open(placeholder)?.write_all_at(&beginning, 0)
    };
    fill().map_err(|e| Error::io("fill", placeholder, e))
}
