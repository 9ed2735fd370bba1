//! Tests that need a small disk: the test's own program again, in a mount namespace of its own.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

use std::path::Path;
use std::process::Command;

/// Set where [`run_in_namespace`] started a test: one that mounts must not do it elsewhere.
pub(crate) const MARK: &str = "GPU_BOOTSTRAP_TEST_IN_NAMESPACE";

/// Runs the ignored test `child` in a mount namespace of its own; it must print `words`.
pub(crate) fn run_in_namespace(child: &str, words: &str) {
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(words), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of 1 MiB at `dir`, until it is dropped. For tests that [`run_in_namespace`] started.
pub(crate) struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    pub(crate) fn at(dir: &'a Path) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir).status().unwrap();
        assert!(mounted.success());
        Self(dir)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lets the directory be removed; the mount vanishes with the namespace in any case.
        let _ = Command::new("umount").arg(self.0).status();
    }
}
