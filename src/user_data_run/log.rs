//! What scripts say: a file that they write to themselves, so that what they leave running can go on writing when we are
//! gone; what comes is passed on to the journal meanwhile.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::report::streams;

/// The file, for root's eyes alone: scripts print secrets.
pub(super) const PATH: &str = "/var/log/gpu-bootstrap/user-data.log";
const DIR: &str = "/var/log/gpu-bootstrap";
/// The file before this one.
const OLD: &str = "/var/log/gpu-bootstrap/user-data.log.1";
/// A longer file becomes [`OLD`] before it is written to again.
const MOST_BYTES: u64 = 8 << 20;
/// A longer line is passed on in pieces.
const LONGEST_LINE: usize = 2048;

/// The log while one script runs.
pub(super) struct Log {
    writer: File,
    reader: File,
    /// A line that has not ended yet.
    line: Vec<u8>,
}

impl Log {
    /// Opens it and writes whose words follow.
    pub(super) fn open(files: &Files, name: &str) -> Result<Self> {
        files.make_dir(DIR, 0o755)?;
        let meta = files.lstat(DIR)?;
        // Ubuntu's /var/log may be written to by its log daemon.
        if !meta.is_some_and(|meta| meta.is_dir() && meta.uid() == 0) {
            return Err(Error::new(Code::Io, format!("{DIR} is no directory of root's"))
                .with_hint("remove what lies there, or give it to root"));
        }
        if files.lstat(PATH)?.is_some_and(|meta| meta.len() > MOST_BYTES) {
            files.rename(PATH, OLD)?;
        }
        let mut writer = files.open_append(PATH, 0o600)?;
        writeln!(writer, "== {name} {}", crate::host::clock::Clock.now())
            .map_err(|e| Error::io("write to", PATH, e))?;
        let mut reader = File::open(files.outside(PATH)?).map_err(|e| Error::io("open", PATH, e))?;
        reader.seek(SeekFrom::End(0)).map_err(|e| Error::io("seek in", PATH, e))?;
        Ok(Self { writer, reader, line: Vec::new() })
    }

    /// Where the script writes to, for standard output and standard error.
    pub(super) fn writers(&self) -> Result<[File; 2]> {
        let copy = || self.writer.try_clone().map_err(|e| Error::io("open once more", PATH, e));
        Ok([copy()?, copy()?])
    }

    /// Passes on what came since the last call.
    pub(super) fn follow(&mut self) {
        let mut chunk = vec![0; 16 << 10];
        while let Ok(length @ 1..) = self.reader.read(&mut chunk) {
            for piece in chunk[..length].split_inclusive(|b| *b == b'\n') {
                self.line.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.line.len() > LONGEST_LINE {
                    self.say();
                }
            }
        }
    }

    fn say(&mut self) {
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        // The journal is not what counts: the file has it.
        let _ = streams::out(&format!("  {}\n", streams::printable(text.trim_end_matches(['\r', '\n']))));
    }

    /// Passes on the rest, whether its line ended or not.
    pub(super) fn finish(mut self) {
        self.follow();
        if !self.line.is_empty() {
            self.say();
        }
    }
}
