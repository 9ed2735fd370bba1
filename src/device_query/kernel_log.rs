//! Xids and `SXid`s: what the NVIDIA module reported of GPUs and of `NVSwitch`es to the kernel's log since boot.

use serde::Serialize;

use crate::host::files::Files;
use crate::host::kernel_log;

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

/// A report of an `NVSwitch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sxid {
    /// The switch's PCI address, as the module prints it.
    pub pci: String,
    /// The number.
    #[serde(rename = "sxid")]
    pub number: u32,
    /// Whether the module calls it fatal.
    pub fatal: bool,
}

/// What the log holds, each report once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// Of GPUs.
    pub xids: Vec<Xid>,
    /// Of `NVSwitch`es.
    pub sxids: Vec<Sxid>,
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

/// Every report since boot, or why the log cannot be read.
pub(super) fn reports(files: &Files) -> Result<Reports, String> {
    kernel_log::read(files).map(|log| parse(&log))
}

pub(super) fn parse(log: &str) -> Reports {
    let mut reports = Reports::default();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("SXid (") {
            put(&mut reports.sxids, sxid(rest));
        } else if let Some((_, rest)) = line.split_once("NVRM: Xid (") {
            put(&mut reports.xids, xid(rest));
        } else if let Some((_, rest)) = line.split_once("NVRM: ") {
            put(&mut reports.xids, fallen_off(rest));
        }
    }
    reports
}

fn put<T: PartialEq>(to: &mut Vec<T>, report: Option<T>) {
    to.extend(report.filter(|r| !to.contains(r)));
}

/// `PCI:0000:00:1e): 79, pid=…`: the address and the number.
fn report(rest: &str) -> Option<(String, u32)> {
    let (pci, rest) = rest.split_once(')')?;
    let number: String =
        rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Some((pci.trim_start_matches("PCI:").to_owned(), number.parse().ok()?))
}

/// From `6,1234,…;NVRM: Xid (PCI:0000:00:1e): 79, pid=…, GPU has fallen off the bus.`
fn xid(rest: &str) -> Option<Xid> {
    report(rest).map(|(pci, xid)| Xid { pci, xid })
}

/// From `4,1,2,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up`
fn sxid(rest: &str) -> Option<Sxid> {
    report(rest).map(|(pci, number)| Sxid { pci, number, fatal: rest.contains(", Fatal") })
}

/// From `NVRM: GPU 0000:00:1e.0: GPU has fallen off the bus.`, which some modules print without a number: 79.
fn fallen_off(rest: &str) -> Option<Xid> {
    let (gpu, _) = rest.strip_prefix("GPU ")?.split_once(": GPU has fallen off the bus")?;
    Some(Xid { pci: gpu.rsplit_once('.').map_or(gpu, |(slot, _)| slot).to_owned(), xid: 79 })
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
                   3,9,9,-;NVRM: Xid (0000:00:1f): 63, Row remapping\n\
                   3,9,9,-;NVRM: GPU 0000:00:1e.0: GPU has fallen off the bus.\n\
                   3,9,9,-;NVRM: GPU 0000:00:1d.0: GPU has fallen off the bus.\n";
        let xids = parse(log).xids;
        assert_eq!(
            xids.iter().map(|x| (x.pci.as_str(), x.xid, x.gravity())).collect::<Vec<_>>(),
            [
                ("0000:00:1e", 79, Gravity::Fatal),
                ("0000:00:1f", 31, Gravity::Program),
                ("0000:00:1f", 63, Gravity::Warning),
                ("0000:00:1d", 79, Gravity::Fatal)
            ]
        );
    }

    #[test]
    fn sxids_are_of_switches_and_say_how_bad_they_are() {
        let log = "4,1,2,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up\n\
                   4,1,2,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up\n\
                   4,1,2,-;nvidia-nvswitch1: SXid (PCI:0000:c2:00.0): 12028, Non-fatal, Link 2 egress\n";
        let reports = parse(log);
        assert_eq!(reports.xids, []);
        let shown: Vec<_> = reports.sxids.iter().map(|s| (s.pci.as_str(), s.number, s.fatal)).collect();
        assert_eq!(shown, [("0000:c1:00.0", 20034, true), ("0000:c2:00.0", 12028, false)]);
    }
}
