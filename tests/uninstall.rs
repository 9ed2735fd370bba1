//! `uninstall` on real apt and dpkg, in disposable roots: the machine afterwards is the one before the run, to the byte,
//! the mode and the owner of every path, but for what is listed here with its reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/debs.rs"]
mod debs;
#[path = "support/root.rs"]
mod root;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use debs::{Deb, Key, Repository};
use root::Root;
use sha2::{Digest, Sha256};

/// What may differ afterwards, and why.
const DIFFERS: &[(&str, &str)] = &[
    ("/var/lib/gpu-bootstrap", "the agent's own state: downloads and results (--purge removes them)"),
    ("/run/gpu-bootstrap", "the status of the last run; gone with the next boot"),
    ("/var/lib/dpkg/status-old", "dpkg's own copy of its database before the last change"),
    ("/var/lib/dpkg/diversions-old", "as above"),
    ("/var/lib/dpkg/triggers", "dpkg's lock and list of triggers"),
    ("/var/lib/dpkg/lock", "a lock, empty"),
    ("/var/lib/dpkg/lock-frontend", "a lock, empty"),
    ("/var/lib/dpkg/available", "dpkg makes it when it is first written to"),
    ("/var/lib/apt/extended_states", "apt's record of dependencies: without the packages, but written anew"),
    ("/var/lib/apt/lists/lock", "a lock, empty"),
    ("/var/cache/apt", "apt's caches, which it makes whenever it is asked"),
    ("/var/log", "what happened stays in the logs"),
    ("/var/cache/ldconfig/aux-cache", "ldconfig's cache: times of libraries"),
    ("/etc/ld.so.cache", "the linker's cache, written anew; it lists the same libraries"),
];

struct Machine {
    root: Root,
    _repo: Repository,
}

/// A root whose distribution's archive (`/srv/repo`) has a driver, a toolkit and their dependencies.
fn machine() -> Machine {
    let root = Root::new();
    let repo = Repository::new(root.path(), "repo");
    let key = Key::new();
    for deb in packages() {
        repo.add(&deb);
    }
    key.export(&root.at("/etc/apt/keyrings/repo.gpg"));
    root.write(
        "/etc/apt/sources.list",
        &format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", repo.uri()),
    );
    repo.publish(Some(&key));
    root.run("apt-get", &["-qq", "update"]);
    Machine { root, _repo: repo }
}

fn packages() -> Vec<Deb> {
    vec![
        Deb::new("gpu-lib", "1.0"),
        Deb::new("gpu-tool", "1.0")
            .field("Depends", "gpu-lib, gpu-shared")
            .conffile("/etc/gpu-tool.conf", "a = 1\n"),
        Deb::new("gpu-shared", "1.0"),
        Deb::new("user-app", "1.0").field("Depends", "gpu-shared"),
        Deb::new(KERNEL_IMAGE, "6.1").file(KERNEL_FILE, b"kernel"),
    ]
}

const KERNEL_IMAGE: &str = "linux-image-6.1.0-18-cloud-amd64";
const KERNEL_FILE: &str = "/boot/vmlinuz-6.1.0-18-cloud-amd64";

/// The administrator's own step, which every machine runs: packages, a file, a link.
const STEP: &str = r#"title = "tools"
scope = "image"
[[action]]
apt-package = { packages = ["gpu-tool"] }
[[action]]
file = { path = "/etc/profile.d/tools.sh", content = "export A=1\n" }
[[action]]
file = { path = "/opt/tools/etc/new.conf", content = "x\n" }
[[action]]
file = { path = "/etc/motd", content = "ours\n", mode = "0600" }
[[action]]
link = { path = "/usr/local/tools", target = "/opt/tools" }
[[action]]
library-path = { path = "/etc/ld.so.conf.d/gpu-bootstrap-tools.conf", directories = ["/opt/tools/lib"] }
"#;

/// Nothing is wanted but the administrator's step.
const CONFIG: &str = "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n[profile]\npath = false\n[source]\npackages = \"distro\"\n";

impl Machine {
    /// With a GPU on the bus and the configuration in place: the machine before the run.
    fn prepared() -> Self {
        let machine = machine();
        let root = &machine.root;
        let gpu = "/sys/bus/pci/devices/0000:00:1e.0";
        for (file, text) in [("vendor", "0x10de\n"), ("device", "0x1eb8\n"), ("class", "0x030200\n")] {
            root.write(&format!("{gpu}/{file}"), text);
        }
        root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        root.write("/etc/gpu-bootstrap/a.toml", CONFIG);
        root.write("/etc/gpu-bootstrap/steps.d/50-tools.toml", STEP);
        root.write("/etc/motd", "theirs\n");
        machine
    }

    fn agent(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(args)
            .arg("--root")
            .arg(self.root.path());
        if args[0] == "run" {
            command.arg("--no-imds");
        }
        command.output().unwrap()
    }

    /// A run, or an uninstall, that must end well; returns what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.agent(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn state(&self, package: &str) -> String {
        let query = ["-W", "-f", "${db:Status-Abbrev}", package];
        let output = self.root.command("dpkg-query", &query).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        walk(self.root.path(), self.root.path(), &mut tree);
        tree
    }
}

/// Every path with its kind, mode, owner and content.
fn walk(root: &Path, dir: &Path, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let inside = format!("/{}", path.strip_prefix(root).unwrap().display());
        if DIFFERS.iter().any(|(p, _)| inside == *p || inside.starts_with(&format!("{p}/"))) {
            continue;
        }
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if meta.is_file() && inside == "/var/lib/dpkg/status" {
            status(&fs::read_to_string(&path).unwrap())
        } else if meta.is_file() {
            format!("{:x}", Sha256::digest(fs::read(&path).unwrap()))
        } else {
            String::new()
        };
        tree.insert(inside, format!("{:o} {}:{} {content}", meta.mode(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            walk(root, &path, tree);
        }
    }
}

/// dpkg's database without its order.
fn status(text: &str) -> String {
    let mut stanzas: Vec<_> = text.split("\n\n").map(str::trim).filter(|s| !s.is_empty()).collect();
    stanzas.sort_unstable();
    format!("{:x}", Sha256::digest(stanzas.join("\n\n")))
}

fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let gone = before.iter().filter(|(path, _)| !after.contains_key(*path)).map(|(p, _)| format!("- {p}"));
    let new = after.iter().filter(|(path, _)| !before.contains_key(*path)).map(|(p, v)| format!("+ {p} {v}"));
    let other = before.iter().filter_map(|(path, was)| {
        let is = after.get(path)?;
        (is != was).then(|| format!("! {path}: {was} → {is}"))
    });
    let all: Vec<_> = gone.chain(new).chain(other).collect();
    assert!(all.is_empty(), "{all:#?}");
}

#[test]
fn the_machine_is_the_one_before_the_run_and_the_next_run_installs_again() {
    let machine = Machine::prepared();
    let before = machine.tree();
    machine.ok(&["run"]);
    assert_eq!(machine.state("gpu-tool"), "ii");
    assert_eq!(machine.root.read("/etc/motd"), "ours\n");
    let with = machine.tree();
    assert_ne!(before, with);

    let shown = machine.ok(&["uninstall", "--dry-run"]);
    for line in [
        "remove   3 packages: gpu-lib, gpu-shared, gpu-tool",
        "remove   /etc/profile.d/tools.sh",
        "remove   /usr/local/tools",
        "restore  /etc/motd",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    assert_same(&with, &machine.tree());

    machine.ok(&["uninstall", "--yes"]);
    assert_same(&before, &machine.tree());
    assert!(machine.ok(&["uninstall", "--yes"]).contains("nothing that a run has added is here"));

    machine.ok(&["run"]);
    assert_same(&with, &machine.tree());
    machine.ok(&["uninstall", "--yes", "--purge"]);
    assert_same(&before, &machine.tree());
    let mut left: Vec<_> = fs::read_dir(machine.root.at("/var/lib/gpu-bootstrap"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["lock"]);
}

#[test]
fn what_somebody_has_changed_or_needs_stays_and_is_named() {
    let machine = Machine::prepared();
    machine.ok(&["run"]);
    // The user installs something that needs one of our dependencies, asks for another, and edits two files.
    machine.root.run("apt-get", &["-qq", "-y", "install", "user-app"]);
    machine.root.run("apt-mark", &["manual", "gpu-lib"]);
    machine.root.write("/etc/profile.d/tools.sh", "export A=2\n");
    machine.root.write("/etc/gpu-tool.conf", "a = 2\n");
    let shown = machine.ok(&["uninstall", "--yes"]);
    for line in [
        "remove   1 packages: gpu-tool",
        "leave    gpu-shared:all: user-app needs it",
        "leave    gpu-lib:all: somebody has asked for it since",
        "leave    /etc/profile.d/tools.sh: it was changed since it was written",
        "leave    /etc/gpu-tool.conf: this configuration file of gpu-tool:all was changed",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    assert_eq!(machine.root.read("/etc/profile.d/tools.sh"), "export A=2\n");
    assert_eq!(machine.root.read("/etc/gpu-tool.conf"), "a = 2\n");
    assert_eq!(machine.root.read("/etc/motd"), "theirs\n");
    let states = ["gpu-tool", "gpu-lib", "gpu-shared", "user-app"].map(|p| machine.state(p));
    assert_eq!(states, ["rc", "ii", "ii", "ii"]);
    // What stays stays known: without the user's package it goes.
    machine.root.run("apt-get", &["-qq", "-y", "remove", "user-app"]);
    machine.ok(&["uninstall", "--yes"]);
    assert!(!machine.state("gpu-shared").contains("ii"));
}

#[test]
fn a_kernel_that_was_put_on_hold_gets_its_updates_again() {
    let machine = Machine::prepared();
    machine.root.run("apt-get", &["-qq", "-y", "install", KERNEL_IMAGE]);
    let hold = "title = \"kernel\"\nscope = \"image\"\n[[action]]\nkernel-hold = { release = \"6.1.0-18-cloud-amd64\" }\n";
    machine.root.write("/etc/gpu-bootstrap/steps.d/50-tools.toml", hold);
    machine.ok(&["run"]);
    assert_eq!(machine.state(KERNEL_IMAGE), "hi");
    let shown = machine.ok(&["uninstall", "--yes"]);
    assert!(shown.contains(&format!("unhold   {KERNEL_IMAGE}")), "{shown}");
    assert_eq!(machine.state(KERNEL_IMAGE), "ii");
    // One that the administrator holds is theirs.
    machine.root.run("apt-mark", &["hold", KERNEL_IMAGE]);
    machine.ok(&["run"]);
    machine.ok(&["uninstall", "--yes"]);
    assert_eq!(machine.state(KERNEL_IMAGE), "hi");
}

#[test]
fn without_a_yes_and_beside_another_run_nothing_is_changed() {
    let machine = Machine::prepared();
    machine.ok(&["run"]);
    let with = machine.tree();
    let refused = machine.agent(&["uninstall"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--yes"), "{refused:?}");
    let lock =
        fs::OpenOptions::new().write(true).open(machine.root.at("/var/lib/gpu-bootstrap/lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    for args in [&["uninstall", "--yes"][..], &["uninstall", "--dry-run"]] {
        assert_eq!(machine.agent(args).status.code(), Some(4), "{args:?}");
    }
    drop(held);
    assert_same(&with, &machine.tree());
}

#[test]
fn one_that_is_killed_is_begun_again() {
    let machine = Machine::prepared();
    let before = machine.tree();
    machine.ok(&["run"]);
    // Killed between packages and files, by a package's script that does not end; the script is not there the next time.
    let script = "/var/lib/dpkg/info/gpu-tool.prerm";
    machine.root.write(script, "#!/bin/sh\ntouch /removing\nsleep 4\n");
    fs::set_permissions(machine.root.at(script), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"))
        .args(["uninstall", "--yes", "--root"])
        .arg(machine.root.path())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while !machine.root.at("/removing").exists() {
        assert!(began.elapsed().as_secs() < 60, "the removal does not begin");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    machine.root.write(script, "#!/bin/sh\n");
    fs::remove_file(machine.root.at("/removing")).unwrap();
    machine.ok(&["uninstall", "--yes"]);
    assert_same(&before, &machine.tree());
}
