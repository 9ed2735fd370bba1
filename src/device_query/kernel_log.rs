//! Xids: what the NVIDIA module reported to the kernel's log since boot.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::{EPIPE, O_NONBLOCK};
use serde::Serialize;

use crate::host::files::Files;

const LOG: &str = "/dev/kmsg";

/// After these a GPU must be reset or replaced: what AWS's own node monitoring agent for EKS calls fatal, less 63
/// (a row was remapped: the row-remap check says what that needs).
const FATAL: [u32; 20] =
    [46, 48, 54, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 142, 143, 151, 155, 156, 158];
/// Reports of a program's own mistakes, and of what a reset has already contained.
const OF_PROGRAMS: [u32; 5] = [13, 31, 43, 45, 94];

/// One report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Xid {
    /// The GPU's PCI address, as the module prints it.
    pub pci: String,
    /// The number.
    pub xid: u32,
}

/// How bad an Xid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gravity {
    /// The hardware needs a reset or a replacement.
    Fatal,
    /// To be watched.
    Warning,
    /// A program's own mistake.
    Program,
}

impl Xid {
    pub(super) fn gravity(&self) -> Gravity {
        if FATAL.contains(&self.xid) {
            Gravity::Fatal
        } else if OF_PROGRAMS.contains(&self.xid) {
            Gravity::Program
        } else {
            Gravity::Warning
        }
    }
}

/// Every Xid since boot, or why the log cannot be read.
pub(super) fn xids(files: &Files) -> Result<Vec<Xid>, String> {
    let path = files.outside(LOG).map_err(|e| e.to_string())?;
    let unreadable = |e: std::io::Error| format!("cannot read {LOG}: {e}");
    let mut file = File::options().read(true).custom_flags(O_NONBLOCK).open(path).map_err(unreadable)?;
    let mut log = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => log.extend_from_slice(&chunk[..n]),
            // The log's end: there is nothing more to read now.
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // A record was overwritten while we read; the next read goes on behind it.
            Err(e) if e.kind() == ErrorKind::Interrupted || e.raw_os_error() == Some(EPIPE) => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
    Ok(parse(&String::from_utf8_lossy(&log)))
}

/// Lines like `6,1234,…;NVRM: Xid (PCI:0000:00:1e): 79, pid=…, GPU has fallen off the bus.` Each pair once.
fn parse(log: &str) -> Vec<Xid> {
    let mut found: Vec<Xid> = Vec::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once("NVRM: Xid (") else { continue };
        let Some((pci, rest)) = rest.split_once(')') else { continue };
        let number: String =
            rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        let Ok(xid) = number.parse() else { continue };
        let xid = Xid { pci: pci.trim_start_matches("PCI:").to_owned(), xid };
        if !found.contains(&xid) {
            found.push(xid);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_are_found_once_and_weighed() {
        let log = "6,1,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.195.03\n\
                   3,9,8,-;NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', GPU has fallen off the bus.\n\
                   3,9,9,-;NVRM: Xid (PCI:0000:00:1e): 79, pid=12, GPU has fallen off the bus.\n\
                   3,9,9,-;NVRM: Xid (PCI:0000:00:1f): 31, pid=12, Ch 00000008\n\
                   3,9,9,-;NVRM: Xid (0000:00:1f): 63, Row remapping\n";
        let xids = parse(log);
        assert_eq!(
            xids.iter().map(|x| (x.pci.as_str(), x.xid, x.gravity())).collect::<Vec<_>>(),
            [
                ("0000:00:1e", 79, Gravity::Fatal),
                ("0000:00:1f", 31, Gravity::Program),
                ("0000:00:1f", 63, Gravity::Warning)
            ]
        );
    }
}
