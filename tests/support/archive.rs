//! Packages of the distribution's archive, downloaded and unpacked without touching this machine's apt.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's own, from debian-archive-keyring, which every Debian has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Runs a program to its end and returns what it printed; panics where it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The archive that this machine's own apt uses.
pub(crate) fn site() -> String {
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE)",
        "Identifier: Packages",
    ]));
    let wanted = targets.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|w| w[1] == "bookworm");
    wanted.expect("this machine's apt has a source for bookworm")[0].to_owned()
}

/// A release in that archive, as options that touch nothing of the machine's apt.
fn apt(state: &Path, release: &str, component: &str) -> Vec<String> {
    fs::create_dir_all(state.join("lists/partial")).unwrap();
    fs::create_dir_all(state.join("cache/archives/partial")).unwrap();
    let list = state.join("sources.list");
    fs::write(&list, format!("deb [signed-by={KEYRING}] {} {release} {component}\n", site())).unwrap();
    [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".into(),
        format!("Dir::State::Lists={}", state.join("lists").display()),
        format!("Dir::Cache={}", state.join("cache").display()),
        // Nothing is installed here: the release's own version is wanted, not this machine's.
        "Dir::State::status=/dev/null".into(),
        "APT::Sandbox::User=root".into(),
        "Acquire::Languages=none".into(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect()
}

/// Downloads packages and returns the directory that they were unpacked into.
pub(crate) fn unpacked(release: &str, component: &str, packages: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let options = apt(work.path(), release, component);
    run(Command::new("apt-get").args(&options).args(["-qq", "update"]));
    run(Command::new("apt-get")
        .args(&options)
        .args(["-qq", "download"])
        .args(packages)
        .current_dir(work.path()));
    let to = work.path().join("unpacked");
    for entry in fs::read_dir(work.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(path).arg(&to));
        }
    }
    (work, to)
}
