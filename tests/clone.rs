//! What an instance of an image does with what is installed on it: real apt and dpkg in a disposable root, a receipt that is
//! not there or of another instance, and no index of any repository, as `seal` leaves it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/apt_machine.rs"]
mod apt_machine;
#[path = "support/debs.rs"]
mod debs;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use apt_machine::{Machine, block};
use debs::Deb;
use gpu_bootstrap::action::Action;
use gpu_bootstrap::action::apt_package::AptPackage;
use gpu_bootstrap::action::apt_source::AptSource;
use gpu_bootstrap::engine::converge::{Outcome, converge};
use gpu_bootstrap::engine::receipt::{self, Receipt};
use gpu_bootstrap::host::{Host, paths};
use gpu_bootstrap::plan::step::Scope;
use gpu_bootstrap::plan::{Plan, Step, digest, show};
use gpu_bootstrap::report::Reports;
use root::Root;

const LIBRARY: &str = "/usr/lib/image/libx.so";
const RECORDS: &str = paths::PACKAGE_FILES_DIR;
/// More than any disk here holds: whoever reads it to its end never ends.
const HUGE: u64 = 1 << 42;

/// A repository in a sources file of ours, and a package of it.
fn plan(machine: &Machine) -> Plan {
    let step = |id: &str, action: Action| {
        let actions = vec![action];
        let digest = digest::step(id, &actions);
        Step { id: id.into(), title: id.into(), scope: Scope::Image, origin: None, actions, digest }
    };
    let source = AptSource {
        path: "/etc/apt/sources.list.d/ours.sources".into(),
        url: format!("{}/", machine.web.url()),
        architecture: "amd64".into(),
        keyring: "/etc/apt/keyrings/repo.gpg".into(),
    };
    let package = AptPackage { packages: vec!["image".into()], ..AptPackage::default() };
    let steps = vec![step("source", Action::AptSource(source)), step("package", Action::AptPackage(package))];
    Plan { digest: digest::plan(&steps), steps }
}

fn run(machine: &Machine, plan: &Plan, receipt: &mut Receipt) -> bool {
    // As a new process: nothing is remembered.
    let host = Host::new(machine.root.path().into());
    match block(converge(plan, &host, receipt, &Reports::default())).unwrap() {
        Outcome::Converged { changed } => changed,
        other @ Outcome::RebootNeeded { .. } => panic!("{other:?}"),
    }
}

/// What apt knows of repositories.
fn lists(machine: &Machine) -> Vec<String> {
    let names = fs::read_dir(machine.root.at("/var/lib/apt/lists")).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.contains("Packages") || name.contains("Release"));
    names
}

fn without_lists(machine: &Machine) {
    for name in lists(machine) {
        fs::remove_file(machine.root.at("/var/lib/apt/lists").join(name)).unwrap();
    }
    assert!(lists(machine).is_empty());
}

fn when_read(machine: &Machine, path: &str) -> SystemTime {
    fs::metadata(machine.root.at(path)).unwrap().accessed().unwrap()
}

fn never_read(machine: &Machine, path: &str) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_hours(24);
    let times = fs::FileTimes::new().set_accessed(long_ago);
    File::options().write(true).open(machine.root.at(path)).unwrap().set_times(times).unwrap();
}

fn image() -> Machine {
    let package = Deb::new("image", "1").file(LIBRARY, b"the library").file("/usr/lib/image/data", b"data");
    let machine = Machine::in_root(Root::new(), &[package]);
    // Its own entry would be another one of the same repository.
    fs::remove_file(machine.root.at("/etc/apt/sources.list")).unwrap();
    assert!(run(&machine, &plan(&machine), &mut Receipt::new("i-first")));
    machine
}

#[test]
fn an_instance_of_an_image_asks_no_repository_and_reads_no_file_of_a_package() {
    let machine = image();
    let plan = plan(&machine);
    without_lists(&machine);
    // A library as large as no disk: its size is compared, and nothing of it is read.
    File::options().write(true).open(machine.root.at(LIBRARY)).unwrap().set_len(HUGE).unwrap();
    let [record] =
        &fs::read_dir(machine.root.at(RECORDS)).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>()[..]
    else {
        panic!("one record")
    };
    let text = fs::read_to_string(record).unwrap();
    let size = format!("{} {LIBRARY}\n", "the library".len());
    assert!(text.contains(&size), "{text}");
    fs::write(record, text.replace(&size, &format!("{HUGE} {LIBRARY}\n"))).unwrap();
    for path in [LIBRARY, "/usr/lib/image/data"] {
        never_read(&machine, path);
    }
    let before = (when_read(&machine, LIBRARY), when_read(&machine, "/usr/lib/image/data"));

    let mut receipt = Receipt::new("i-second");
    assert!(!run(&machine, &plan, &mut receipt), "{receipt:#?}");
    assert!(lists(&machine).is_empty(), "apt was asked to fetch indexes");
    assert_eq!(receipt.steps.iter().map(|s| &*s.state).collect::<Vec<_>>(), ["done", "done"]);
    let [source, package] = &receipt.steps[..] else { panic!("{receipt:#?}") };
    assert!(source.evidence[0].ends_with(", and no package is to be installed"), "{source:?}");
    assert_eq!(package.evidence, ["image installed, 2 files as recorded"]);
    assert_eq!((when_read(&machine, LIBRARY), when_read(&machine, "/usr/lib/image/data")), before);
    // That reading would have been noticed:
    fs::read(machine.root.at("/usr/lib/image/data")).unwrap();
    assert_ne!(
        when_read(&machine, "/usr/lib/image/data"),
        before.1,
        "this file system keeps no times of reading"
    );
}

#[test]
fn what_is_missing_on_an_image_brings_the_indexes_and_then_the_package() {
    let machine = image();
    let plan = plan(&machine);
    without_lists(&machine);
    let state = |step: usize| {
        let host = Host::new(machine.root.path().into());
        let shown = block(show::look(&plan, &[], &[], &host));
        (shown.steps[step].actions[0].state.clone(), shown.steps[step].actions[0].why.clone())
    };
    assert_eq!(state(0).0, "satisfied");
    fs::remove_file(machine.root.at(LIBRARY)).unwrap();
    let (source, why) = state(0);
    assert_eq!((&*source, &*state(1).0), ("needed", "needed"));
    assert!(why.contains("apt has no index of"), "{why}");
    let mut receipt = Receipt::new("i-second");
    assert!(run(&machine, &plan, &mut receipt));
    assert_eq!(machine.root.read(LIBRARY), "the library");
    assert!(!lists(&machine).is_empty());
    // A sources file that somebody changed is put right, whether anything is to be installed or not.
    machine
        .root
        .write("/etc/apt/sources.list.d/ours.sources", "Types: deb\nURIs: http://192.0.2.9\nSuites: /\n");
    assert_eq!(state(0).0, "needed");
}

#[test]
fn an_instance_is_new_on_an_image_until_it_has_a_receipt() {
    let machine = image();
    let files = &machine.host.files;
    let is_new = |instance: &str| receipt::is_of_an_image(files, instance).unwrap();
    Receipt::new("i-first").save(files).unwrap();
    assert!(!is_new("i-second"), "nothing was chosen on it");
    files.write(paths::CHOICE, b"{}", 0o644).unwrap();
    assert!(is_new("i-second") && !is_new("i-first"));
    files.remove(paths::RECEIPT).unwrap();
    assert!(is_new("i-first"), "a sealed one");
}

#[test]
fn prewarming_reads_every_file_of_the_packages_and_says_what_is_gone() {
    let machine = image();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_hours(24);
    let prewarm = || {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"))
            .args(["prewarm", "--jobs", "2", "--root"])
            .arg(machine.root.path())
            .output()
            .unwrap();
        let said = [&out.stdout[..], &out.stderr].concat();
        (out.status.code(), String::from_utf8(said).unwrap())
    };
    let data = "/usr/lib/image/data";
    for path in [LIBRARY, data] {
        never_read(&machine, path);
    }
    let (code, said) = prewarm();
    assert!(code == Some(0) && said.starts_with("read 2 files, 0 MB, in "), "{code:?} {said}");
    for path in [LIBRARY, data] {
        assert_ne!(when_read(&machine, path), long_ago, "{path} was not read");
    }

    fs::remove_file(machine.root.at(LIBRARY)).unwrap();
    fs::remove_file(machine.root.at(data)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", machine.root.at(data)).unwrap();
    let (code, said) = prewarm();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("read 0 files") && said.contains(LIBRARY) && said.contains(data), "{said}");

    fs::remove_dir_all(machine.root.at(RECORDS)).unwrap();
    let (code, said) = prewarm();
    assert!(code == Some(7) && said.contains("no run has installed a package here"), "{code:?} {said}");
}
