//! The C libraries of other Debian releases, each from a root that mmdebstrap made of the release's own packages.
//! A root is made once and kept; what needs one copies the files that it wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::archive::{run, site};
use crate::simulated_driver::{C_LIBRARY, LIBRARIES, LOADER, Simulated};

/// Part of the kept directory's name: raise it when the recipe below changes.
const RECIPE: &str = "c-library-1";

/// The directory of a release's C library.
fn libraries_of(release: &str) -> PathBuf {
    let root = root_of(release);
    // Debian 13 has them in /usr; before, /lib was a directory of its own inside a package.
    let places = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
    places.into_iter().find(|dir| dir.join("libc.so.6").exists()).expect("a release has a C library")
}

/// The kept root, made if it is not there. Other test processes wait meanwhile.
fn root_of(release: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = cache.join(format!("{RECIPE}-{release}"));
    let lock = File::create(cache.join(format!("{RECIPE}-{release}.lock"))).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    if !kept.exists() {
        let new = tempfile::tempdir_in(cache).unwrap();
        run(Command::new("mmdebstrap")
            .args(["--quiet", "--variant=extract", "--mode=root", "--include=libc6,libgcc-s1", release])
            .arg(new.path())
            .arg(format!("deb {} {release} main", site())));
        fs::rename(new.keep(), &kept).unwrap();
    }
    kept
}

/// Puts a release's C library in the place of this machine's; returns the version that it says it has.
pub(crate) fn install(release: &str, machine: &Simulated) -> String {
    let to = machine.at(LIBRARIES);
    // None of this machine's may stay, for another release has fewer or more of them.
    for library in C_LIBRARY {
        fs::remove_file(to.join(library)).unwrap();
    }
    let from = libraries_of(release);
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to));
    // Through the links: inside the machine they would lead elsewhere.
    fs::copy(from.join("ld-linux-x86-64.so.2"), machine.at(LOADER)).unwrap();
    let library = format!("{LIBRARIES}/libc.so.6");
    let said = run(Command::new("chroot").arg(machine.at("/")).arg(LOADER).arg(library));
    let (_, version) = said.split_once("release version ").expect("the C library says its version");
    version.split(['.', '\n']).take(2).collect::<Vec<_>>().join(".")
}
