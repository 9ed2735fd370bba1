//! The kernel's log since boot.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::{EPIPE, O_NONBLOCK};

use super::files::Files;

const LOG: &str = "/dev/kmsg";
/// The kernel's own limit for its log is 32 MiB; a file in its place may have no end.
const MOST: usize = 64 << 20;
/// How the kernel writes the end of a line inside a record.
const LINE_END: &str = "\\x0a";

/// What `/dev/kmsg` holds, a line for each line of each record, or why it cannot be read.
///
/// A record's first line has a head, `priority,number,microseconds,-;`.
pub(crate) fn read(files: &Files) -> Result<String, String> {
    let path = files.outside(LOG).map_err(|e| e.to_string())?;
    let unreadable = |e: std::io::Error| format!("cannot read {LOG}: {e}");
    let mut file = File::options().read(true).custom_flags(O_NONBLOCK).open(path).map_err(unreadable)?;
    let mut log = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(_) if log.len() >= MOST => break,
            Ok(n) => log.extend_from_slice(&chunk[..n]),
            // The log's end: there is nothing more to read now.
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // A record was overwritten while we read; the next read goes on behind it.
            Err(e) if e.kind() == ErrorKind::Interrupted || e.raw_os_error() == Some(EPIPE) => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
    Ok(String::from_utf8_lossy(&log).replace(LINE_END, "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_record_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        assert!(read(&files).unwrap_err().starts_with("cannot read /dev/kmsg"));
        let log =
            b"4,1,2,-;NVRM: BAR0 is 0M @ 0x0\\x0aNVRM: (PCI:0000:00:1e.0)\n DEVICE=+pci\n6,2,3,-;next\n";
        files.write("/dev/kmsg", log, 0o600).unwrap();
        assert_eq!(
            read(&files).unwrap(),
            "4,1,2,-;NVRM: BAR0 is 0M @ 0x0\nNVRM: (PCI:0000:00:1e.0)\n DEVICE=+pci\n6,2,3,-;next\n"
        );
    }
}
