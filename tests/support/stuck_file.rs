//! A file that holds whoever opens it inside the kernel, where no signal reaches: a FUSE file system that takes the
//! request and never answers. So waits a process on a driver whose device is dead.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// The file; whoever it holds is let go when this is dropped.
pub(crate) struct StuckFile {
    at: PathBuf,
}

impl StuckFile {
    /// Mounted over the file `at`, for this thread and the processes that it starts.
    pub(crate) fn over(at: PathBuf) -> Self {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.expect("the kernel has FUSE (modprobe fuse)");
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("stuck"), &at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        std::thread::spawn(move || serve(device));
        Self { at }
    }
}

impl Drop for StuckFile {
    fn drop(&mut self) {
        // By force: the kernel then fails every request that waits. Detached, so that nothing is left mounted.
        let _ = umount2(&self.at, MntFlags::MNT_FORCE);
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Answers the greeting and no other request, until the file system is gone.
fn serve(mut device: File) {
    const INIT: u32 = 26;
    let mut request = vec![0; 1 << 20];
    while let Ok(40..) = device.read(&mut request) {
        // struct fuse_in_header (linux/fuse.h): len, opcode, unique, …
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        if opcode == INIT {
            device.write_all(&greeting(&request[8..16])).unwrap();
        }
    }
}

/// struct `fuse_out_header` and struct `fuse_init_out`: version 7.31, no features.
fn greeting(unique: &[u8]) -> Vec<u8> {
    const LENGTH: u32 = 16 + 64;
    let mut answer = [LENGTH.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    answer.extend_from_slice(unique);
    for word in [7u32, 31, 0, 0, 0, 4096] {
        answer.extend_from_slice(&word.to_ne_bytes());
    }
    answer.resize(LENGTH as usize, 0);
    answer
}

/// The state letters (proc(5)) of the processes whose root directory is `root`.
pub(crate) fn processes_in(root: &Path) -> Vec<char> {
    let root = fs::canonicalize(root).unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    pids.filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|r| r == root))
        .filter_map(|pid| {
            // A process may end at any moment.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        })
        .collect()
}
