//! Members that are decoded from their beginning to their end: gzip, zstd, none, and xz without a list of blocks.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::Trouble;
use super::archive::{Compression, Member};
use super::xz;

/// Compressed bytes read at once.
const READ: usize = 256 << 10;
/// The widest window that `zstd --ultra -22` uses.
const MOST_WINDOW_LOG: u32 = 27;

/// The decoded bytes of a member.
pub(super) fn open(file: &File, member: Member) -> Result<Box<dyn Read + Send + '_>, Trouble> {
    let bytes = BufReader::with_capacity(READ, Part { file, at: member.at, end: member.at + member.size });
    Ok(match member.compression {
        Compression::None => Box::new(bytes),
        Compression::Gzip => Box::new(MultiGzDecoder::new(bytes)),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(xz::MEMORY, CONCATENATED)
                .map_err(|e| Trouble::unsuitable(format!("xz: {e}")))?;
            Box::new(XzDecoder::new_stream(bytes, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(Trouble::reading)?;
            decoder.window_log_max(MOST_WINDOW_LOG).map_err(Trouble::reading)?;
            Box::new(decoder)
        }
    })
}

/// A part of a file, without moving the file's own position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decoded(packed: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        file.write_all(packed).unwrap();
        file.write_all(b"more").unwrap();
        let member = Member { at: 3, size: packed.len() as u64, compression };
        let mut out = Vec::new();
        open(&file, member).map_err(|_| io::Error::other("unsuitable"))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_format_gives_the_bytes_back_and_a_cut_one_gives_an_error() {
        let data: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&data).unwrap();
        let zst = zstd::encode_all(&data[..], 3).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&data).unwrap();
        for (packed, compression) in [
            (gz.finish().unwrap(), Compression::Gzip),
            (zst, Compression::Zstd),
            (xz.finish().unwrap(), Compression::Xz),
        ] {
            assert!(decoded(&packed, compression).unwrap() == data, "{compression:?}");
            assert!(decoded(&packed[..packed.len() / 2], compression).is_err(), "{compression:?}");
        }
        assert_eq!(decoded(b"plain", Compression::None).unwrap(), b"plain");
    }
}
