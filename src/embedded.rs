//! What the binary carries compressed: steps, catalog, probe, simulated driver. `build.rs` compresses it, and
//! docs/decisions/0009-size.md says what that saves.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// A file's name and its compressed contents.
pub(crate) type File = (&'static str, &'static [u8]);

/// The bytes as they were before `build.rs` compressed them.
pub(crate) fn inflate(compressed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ZlibDecoder::new(compressed).read_to_end(&mut bytes).expect("build.rs compressed it");
    bytes
}

/// Like [`inflate`], for what was text.
pub(crate) fn inflate_text(compressed: &[u8]) -> String {
    String::from_utf8(inflate(compressed)).expect("build.rs compressed a text")
}
