//! Programs of this machine in a scratch root, where they are run inside.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Copies a program to `/usr/bin`, with the libraries that it names.
pub(crate) fn bring(root: &Path, program: &str) {
    let path = ["/usr/bin", "/bin"].map(|dir| format!("{dir}/{program}"));
    let path =
        path.iter().find(|path| Path::new(path).exists()).unwrap_or_else(|| panic!("{program} is needed"));
    let libraries = Command::new("ldd").arg(path).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let to = |path: &str| {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        to
    };
    fs::copy(path, to(&format!("/usr/bin/{program}"))).unwrap();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        fs::copy(library, to(library)).unwrap();
    }
}

/// busybox, under these names in `/bin`.
pub(crate) fn busybox(root: &Path, names: &[&str]) {
    bring(root, "busybox");
    fs::create_dir_all(root.join("bin")).unwrap();
    for name in names {
        std::os::unix::fs::symlink("/usr/bin/busybox", root.join("bin").join(name)).unwrap();
    }
}
