//! `seal`: a machine that was somebody's instance, before and after; everything for which it is refused; what a kill in the
//! middle leaves; and what becomes of the next instance.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/used.rs"]
mod used;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use imds::{Imds, document};
use machine::{Machine, Ran, binary, ran};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use used::{EMPTIED, GONE, INSTANCE, KEPT, KEY, MAC, NAME, traces, tree, used};

const OTHER: &str = "i-0fedcba9876543210";

fn seal(machine: &Machine, args: &[&str]) -> Ran {
    ran(binary().arg("seal").args(args).arg("--root").arg(machine.root()))
}

#[track_caller]
fn sealed(machine: &Machine, args: &[&str]) -> Ran {
    let ran = seal(machine, args);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

/// Refused, with this code and these words, and nothing was changed.
#[track_caller]
fn refused(machine: &Machine, code: &str, exit: i32, words: &[&str]) {
    let before = tree(machine);
    for args in [&["--dry-run"][..], &[]] {
        let ran = seal(machine, args);
        assert!(ran.code == exit && ran.stderr.contains(&format!("[{code}]")), "{args:?}: {ran:#?}");
        for word in words.iter().chain(&["what to do: "]) {
            assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
        }
    }
    // Locks were taken, which is a file each.
    let mut after = tree(machine);
    after.retain(|path, _| before.contains_key(path) || !(path.ends_with("lock") || path.contains("lock-")));
    assert_eq!(after, before);
}

#[test]
fn what_is_the_instances_goes_and_what_is_the_images_stays() {
    let machine = used();
    let before = tree(&machine);
    for (path, _) in GONE {
        assert!(before.contains_key(path), "{path}");
    }
    let told = sealed(&machine, &["--dry-run", "--shell-history"]);
    assert_eq!(tree(&machine), before, "a dry run changes nothing");
    assert!(told.stdout.ends_with("nothing was changed\n"), "{}", told.stdout);

    let ran = sealed(&machine, &["--shell-history"]);
    assert!(ran.stdout.ends_with("sealed   stop this machine now, and capture it\n"), "{}", ran.stdout);
    assert_eq!(traces(&machine), [] as [String; 0]);
    let after = tree(&machine);
    for (path, _) in GONE {
        assert!(!after.contains_key(path), "{path}");
    }
    for (path, content) in KEPT {
        assert_eq!(machine.read(path), content, "{path}");
        assert_eq!(after[path], before[path], "{path}");
    }
    // Whatever else is not as it was is one of these.
    let named: BTreeSet<&str> = GONE.iter().map(|(path, _)| *path).chain(EMPTIED).collect();
    let others = [
        ("/etc/hostname", "localhost\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 localhost # gpu-bootstrap\n"),
        ("/etc/machine-id", ""),
    ];
    for (path, content) in others {
        assert_eq!(machine.read(path), content, "{path}");
    }
    assert_eq!(
        fs::read_link(machine.outside("/var/lib/dbus/machine-id")).unwrap().to_str(),
        Some("/etc/machine-id")
    );
    let allowed = |path: &str| {
        named.contains(path)
            || named.iter().any(|gone| gone.starts_with(&format!("{path}/")))
            || others.iter().any(|(other, _)| *other == path)
            || ["/var/lib/dbus/machine-id", "/tmp/to-tree", "/var/tmp/to-file", "/etc/ssh/ssh_host_dsa_key"]
                .contains(&path)
            || path == "/var/log/second-name.log"
    };
    for path in before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)) {
        assert!(allowed(path) || path.ends_with("lock") || path.ends_with("lock-frontend"), "{path} changed");
    }
    for path in EMPTIED {
        assert_eq!(
            after[path].trim_end(),
            before[path].split_inclusive(' ').take(3).collect::<String>().trim_end()
        );
    }
    assert_eq!((machine.read("/data/theirs"), machine.read("/data/tree/theirs")), ("x".into(), "x".into()));

    let again = sealed(&machine, &["--shell-history"]);
    assert!(!again.stdout.contains("gone "), "{}", again.stdout);
    assert_eq!(tree(&machine), after);
    let told = sealed(&machine, &["--dry-run", "--shell-history"]);
    assert!(told.stdout.ends_with("sealed   nothing of this instance is left\n"), "{}", told.stdout);
}

#[test]
fn each_line_says_what_went_and_what_stays_with_its_reason() {
    let machine = used()
        .file("/etc/shadow", "root:*:1::::::\nadmin:$6$x:1::::::\n")
        .file("/etc/ssh/sshd_config.d/10-x.conf", "\nAuthorizedKeysFile /etc/keys/%u\n")
        .file("/etc/hosts", &format!("127.0.0.1 localhost\n10.0.0.23 {NAME}\n"));
    let ran = sealed(&machine, &[]);
    for line in [
        "gone     what gpu-bootstrap knows of this instance: /var/lib/gpu-bootstrap/instance.json, ",
        "gone     keys that log in: /home/Somebody.Else/.ssh/authorized_keys (keys: 1), ",
        "left     /home/admin/.ssh/id_ed25519 is a private key of a user\n",
        "left     /home/admin/.aws/credentials may hold a secret of a user's\n",
        "left     /etc/shadow gives admin a password\n",
        "left     /etc/ssh/sshd_config.d/10-x.conf lets sshd look for keys in /etc/keys/%u, too (line 2)\n",
        "clean    shell history\nleft     ",
        "left     /home/admin/.bash_history stays; --shell-history removes it\n",
        "left     /etc/hosts names ip-10-0-0-23 in line 2, which is not ours\n",
        "note     reports that nobody has taken yet go with the rest (files: 1)\n",
        "note     there is no cloud-init, and gpu-bootstrap-early.service is not enabled: ",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    assert!(machine.outside("/home/admin/.bash_history").exists());
}

#[test]
fn the_document_has_every_path() {
    let machine = used();
    let told: Value = serde_json::from_str(&sealed(&machine, &["--dry-run", "--json"]).stdout).unwrap();
    assert_eq!((&told["sealed"], &told["dry_run"]), (&false.into(), &true.into()));
    let item = |document: &Value, name: &str| -> Value {
        document["items"].as_array().unwrap().iter().find(|i| i["item"] == name).unwrap().clone()
    };
    assert_eq!(item(&told, "machine-id")["outcome"], "would-go");
    let done: Value = serde_json::from_str(&sealed(&machine, &["--json"]).stdout).unwrap();
    assert_eq!(done["sealed"], true);
    let paths = item(&done, "state")["paths"].as_array().unwrap().len();
    assert!(paths > 6, "{done:#}");
    let history = item(&done, "shell-history");
    assert_eq!((&history["outcome"], history["left"].as_array().unwrap().len()), (&"clean".into(), 4));
    let told: Value = serde_json::from_str(&sealed(&machine, &["--dry-run", "--json"]).stdout).unwrap();
    assert_eq!(told["sealed"], true, "{told:#}");
}

#[test]
fn files_that_name_a_mac_address_are_refused_with_their_lines() {
    let machine = used()
        .file("/etc/netplan/50-net.yaml", &format!("network:\n  # {MAC}\n  x: {{macaddress: '{MAC}'}}\n"))
        .file("/etc/systemd/network/10-x.network.d/y.conf", "[Match]\nMACAddress=06-1A-2B-3C-4D-5E\n")
        .file("/etc/systemd/network/20-x.link", &format!("[Match]\nMACAddress={MAC}\n"))
        .file("/etc/network/interfaces", &format!("iface x\n\thwaddress ether {MAC}\n"))
        .file("/etc/network/interfaces.d/x", &format!("hwaddress {MAC}\n"))
        .file("/etc/udev/rules.d/70-persistent-net.rules", &format!("ATTR{{address}}==\"{MAC}\"\n"))
        .file("/etc/NetworkManager/system-connections/x", &format!("\n\nmac-address={MAC}\n"));
    refused(
        &machine,
        "network-names-mac",
        1,
        &[
            "/etc/netplan/50-net.yaml:3 names 06:1a:2b:3c:4d:5e",
            "/etc/systemd/network/10-x.network.d/y.conf:2 names 06-1A-2B-3C-4D-5E",
            "/etc/systemd/network/20-x.link:2",
            "/etc/network/interfaces:2",
            "/etc/network/interfaces.d/x:1",
            "/etc/udev/rules.d/70-persistent-net.rules:1",
            "/etc/NetworkManager/system-connections/x:3",
            "driver",
        ],
    );
}

/// A stock image's own files: cloud-init writes them anew on the next instance, unless it was told not to.
#[test]
fn what_cloud_init_writes_anew_goes_and_is_refused_where_it_would_not() {
    let stock = || {
        used()
            .file("/usr/bin/cloud-init", "")
            .file("/etc/netplan/50-cloud-init.yaml", &format!("macaddress: {MAC}\n"))
            .file("/etc/cloud/clean.d/README", "")
            .file("/etc/cloud/clean.d/10-mine", "")
    };
    let machine = stock();
    let ran = sealed(&machine, &["--shell-history"]);
    assert!(!machine.outside("/etc/netplan/50-cloud-init.yaml").exists());
    assert!(ran.stdout.contains("left     /etc/cloud/clean.d/10-mine "), "{}", ran.stdout);
    assert!(!ran.stdout.contains("README") && !ran.stdout.contains("note     there is no"), "{}", ran.stdout);
    assert_eq!(traces(&machine), [] as [String; 0]);

    for told_not_to in [
        ("/etc/cloud/cloud.cfg.d/99-net.cfg", "network: {config: disabled}\n"),
        ("/etc/cloud/cloud-init.disabled", ""),
    ] {
        let machine = stock().file(told_not_to.0, told_not_to.1);
        refused(&machine, "network-names-mac", 1, &["/etc/netplan/50-cloud-init.yaml:1"]);
    }
}

#[test]
fn half_installed_packages_are_refused() {
    let machine = used().file("/var/lib/gpu-bootstrap/in-flight.json", "{\"version\":1,\"packages\":[]}");
    refused(&machine, "packages-in-flight", 1, &["in-flight.json", "gpu-bootstrap run"]);
    let torn = "Package: half\nStatus: install ok unpacked\nArchitecture: all\nVersion: 1\n";
    refused(&used().file("/var/lib/dpkg/status", torn), "packages-in-flight", 1, &["half"]);
}

#[test]
fn a_run_that_goes_on_and_a_user_who_is_not_root_are_refused() {
    let machine = used();
    let lock = fs::File::create(machine.outside("/var/lib/gpu-bootstrap/lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    refused(&machine, "locked", 4, &["another run"]);
    drop(lock);
    fs::set_permissions(machine.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let before = tree(&machine);
    let mut command = Command::new(machine.outside("/agent"));
    fs::copy(env!("CARGO_BIN_EXE_gpu-bootstrap"), machine.outside("/agent")).unwrap();
    command.args(["seal", "--root"]).arg(machine.root()).uid(65534).gid(65534).stdin(Stdio::null());
    let ran = ran(&mut command);
    assert!(ran.code == 6 && ran.stderr.contains("[not-root]"), "{ran:#?}");
    fs::remove_file(machine.outside("/agent")).unwrap();
    assert_eq!(tree(&machine), before);
}

/// What a user (or an attacker) put in the way is not followed; keys that cannot be looked at are not passed by.
#[test]
fn links_of_users_lead_nowhere() {
    let machine = used();
    fs::remove_dir_all(machine.outside("/home/admin/.ssh")).unwrap();
    symlink("/data/tree", machine.outside("/home/admin/.ssh")).unwrap();
    fs::write(machine.outside("/data/tree/authorized_keys"), KEY).unwrap();
    let ran = seal(&machine, &[]);
    assert!(ran.code == 1 && ran.stderr.contains("/home/admin/.ssh leads over a link"), "{ran:#?}");
    assert_eq!(machine.read("/data/tree/authorized_keys"), KEY);
    assert_eq!(machine.read("/etc/machine-id").trim(), used::ID, "it does not look sealed");
    assert!(
        !machine.outside("/var/lib/gpu-bootstrap/instance.json").exists(),
        "its next boot lets its key in"
    );

    fs::remove_file(machine.outside("/home/admin/.ssh")).unwrap();
    fs::remove_dir_all(machine.outside("/var/log")).unwrap();
    symlink("/data/tree", machine.outside("/var/log")).unwrap();
    let ran = sealed(&machine, &[]);
    assert!(ran.stdout.contains("left     /var/log leads over a link"), "{}", ran.stdout);
    assert_eq!(
        (machine.read("/data/tree/authorized_keys"), machine.read("/data/tree/theirs")),
        (KEY.into(), "x".into())
    );
}

/// Another file system, and one that is the same to `st_dev`: neither is a part of the image.
#[test]
fn what_is_mounted_is_not_entered() {
    let machine = used().dir("/tmp/other").dir("/tmp/deep/bound").dir("/var/log/bound");
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), &machine.outside("/tmp/other"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(machine.outside("/tmp/other/x"), "x").unwrap();
    for bound in ["/tmp/deep/bound", "/var/log/bound"] {
        mount(Some(&machine.outside("/data/tree")), &machine.outside(bound), none, MsFlags::MS_BIND, none)
            .unwrap();
    }
    let ran = sealed(&machine, &[]);
    for path in ["/tmp/other", "/tmp/deep/bound", "/var/log/bound"] {
        assert!(ran.stdout.contains(&format!("left     {path} is mounted")), "{path}: {}", ran.stdout);
    }
    assert_eq!((machine.read("/tmp/other/x"), machine.read("/data/tree/theirs")), ("x".into(), "x".into()));
    assert!(!machine.outside("/tmp/dir").exists());
    for mounted in ["/tmp/other", "/tmp/deep/bound", "/var/log/bound"] {
        umount2(&machine.outside(mounted), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Programs below this root may be scripts.
fn shell(machine: &Machine) {
    machine.bring("dash");
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
}

/// Something lets a key in again while the machine is being sealed.
#[test]
fn what_comes_again_is_an_error_and_nothing_looks_sealed() {
    let machine = used().dir("/run/systemd/system").file("/dev/null", "");
    shell(&machine);
    machine.tool("systemctl", "echo 'ssh-rsa AAAA again' >/root/.ssh/authorized_keys");
    machine.tool("journalctl", "");
    let ran = seal(&machine, &[]);
    assert!(ran.code == 1 && ran.stderr.contains("[verify-failed]"), "{ran:#?}");
    assert!(
        ran.stderr.contains("keys that log in came again: /root/.ssh/authorized_keys (keys: 1)"),
        "{ran:#?}"
    );
    assert_eq!(machine.read("/etc/machine-id").trim(), used::ID);
}

#[test]
fn the_next_instance_gets_keys_and_a_name_of_its_own() {
    let machine = used()
        .file("/etc/systemd/system/multi-user.target.wants/gpu-bootstrap-early.service", "")
        .file("/dev/console", "")
        .file("/dev/null", "")
        .dir("/run/systemd/system")
        .dir("/usr/bin");
    machine.bring("ssh-keygen");
    shell(&machine);
    // systemd's part: told once, before what it would write is taken away.
    machine.tool("systemctl", "test -s /var/lib/systemd/random-seed");
    machine.tool("journalctl", "test -d /var/log/journal");
    for _ in 0..2 {
        let ran = sealed(&machine, &["--shell-history"]);
        assert!(
            !ran.stdout.contains("note     there is no") && !ran.stdout.contains("failed"),
            "{}",
            ran.stdout
        );
    }
    assert_eq!(
        machine.read("/asked"),
        "systemctl stop systemd-random-seed.service\njournalctl --relinquish-var\n"
    );

    let service = Imds::new()
        .item("dynamic/instance-identity/document", document("g5.xlarge").replace(INSTANCE, OTHER))
        .item("meta-data/public-keys/", "0=theirs")
        .item("meta-data/public-keys/0/openssh-key", format!("{KEY} theirs\n"))
        .item("meta-data/local-hostname", "ip-10-9-9-9.ec2.internal")
        .start();
    let mut early = binary();
    early.args(["early", "--imds-timeout", "5", "--root"]).arg(machine.root());
    early.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    let ran = ran(&mut early);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(machine.read("/etc/hostname"), "ip-10-9-9-9\n");
    assert!(machine.read("/etc/hosts").contains("ip-10-9-9-9.ec2.internal ip-10-9-9-9 # gpu-bootstrap"));
    assert_eq!(machine.read("/home/admin/.ssh/authorized_keys"), format!("{KEY} theirs #gpu-bootstrap\n"));
    let host_key = machine.read("/etc/ssh/ssh_host_ed25519_key.pub");
    assert!(
        host_key.ends_with(" root@ip-10-9-9-9\n") && machine.outside("/etc/ssh/ssh_host_ecdsa_key").exists()
    );
    let state = machine.read("/var/lib/gpu-bootstrap/instance.json");
    assert!(state.contains(OTHER) && !state.contains(INSTANCE), "{state}");
    // The key pair is the same, the rest of the first instance is not there.
    let left: Vec<_> =
        traces(&machine).into_iter().filter(|trace| !trace.contains("authorized_keys: ")).collect();
    assert_eq!(left, [] as [String; 0]);
}

/// On a whole machine with packages: an instance of the image applies nothing, asks no repository, and says what it goes by.
#[test]
fn an_instance_of_a_sealed_image_applies_no_step() {
    const CATALOG: &str = "/run/gpu-bootstrap-rehearsal/catalog";
    let script = format!(
        "gpu-bootstrap run --catalog {CATALOG} >/dev/null
         cp /var/log/dpkg.log /root; gpu-bootstrap seal >/dev/null
         gpu-bootstrap plan --catalog {CATALOG}
         gpu-bootstrap run --catalog {CATALOG}
         ls /var/lib/apt/lists; test ! -s /var/log/dpkg.log; test ! -s /var/log/apt/history.log; echo no package came
         rm /usr/local/cuda-13.*/lib64/libcudart.so.13; gpu-bootstrap run --catalog {CATALOG}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"));
    command.args(["rehearse", "--", "sh", "-ec", &script]).stdin(Stdio::null());
    let ran = ran(&mut command);
    let (before, after) = ran.stdout.split_once("no package came").unwrap_or_else(|| panic!("{ran:#?}"));
    assert_eq!(ran.code, 0, "{ran:#?}");
    for words in [
        "is new on this image: what an earlier run installed is proved by dpkg's database",
        "20 of 20 actions are satisfied",
        "(driver, image)",
        "(device-query, boot)",
        "and no package is to be installed",
        "\nconverged after ",
    ] {
        assert!(before.contains(words), "{words}: {before}");
    }
    assert!(!before.lines().any(|line| line.starts_with("done ")), "{before}");
    assert!(!before.contains("InRelease"), "apt has fetched an index: {before}");
    // A file is gone: that package comes again, and for it the indexes.
    assert!(
        after.contains("done     components of the distribution") && after.contains("done     CUDA toolkit"),
        "{after}"
    );
}

#[cfg(feature = "fault-points")]
mod kills {
    use std::os::unix::process::ExitStatusExt;

    use super::used::used_in;
    use super::*;

    /// Every effect that sealing this machine has, with ROOT for its root.
    fn points(machine: &Machine) -> Vec<String> {
        let list = tempfile::NamedTempFile::new().unwrap();
        let mut command = binary();
        command.args(["seal", "--shell-history", "--root"]).arg(machine.root());
        command.env("GPU_BOOTSTRAP_FAULT_LIST", list.path());
        assert_eq!(ran(&mut command).code, 0);
        let listed = fs::read_to_string(list.path()).unwrap();
        listed.replace(&machine.root().display().to_string(), "ROOT").lines().map(str::to_owned).collect()
    }

    /// Sealing, with a fault at one of them.
    fn with(machine: &Machine, fault: &str, point: &str) -> Command {
        let point = point.replace("ROOT", &machine.root().display().to_string());
        let mut command = binary();
        command.args(["seal", "--shell-history", "--root"]).arg(machine.root());
        command.env("GPU_BOOTSTRAP_FAULT", format!("{fault}\t{point}"));
        command
    }

    /// A disk that fails: what lets somebody in is an error, what does not is said, and stops nothing else.
    #[test]
    fn what_cannot_be_removed_is_an_error_or_is_said() {
        let points = points(&used());
        let removal = |path: &str| {
            let found =
                points.iter().find(|p| p.starts_with("Remove\t") && p.ends_with(&format!("\t{path}")));
            found.unwrap_or_else(|| panic!("{path}: {points:#?}"))
        };
        for path in ["/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_rsa_key", "/etc/apt/auth.conf"] {
            let machine = used();
            let ran = ran(&mut with(&machine, "EIO", removal(path)));
            assert!(
                ran.code == 1 && ran.stderr.contains(&format!("cannot remove {path} [io]")),
                "{path}: {ran:#?}"
            );
            assert_eq!(machine.read("/etc/machine-id").trim(), used::ID, "{path}");
            sealed(&machine, &["--shell-history"]);
        }
        let machine = used();
        let ran = ran(&mut with(&machine, "EIO", removal("/tmp/dir/sub/file")));
        assert_eq!(ran.code, 0, "{ran:#?}");
        let said = ran.stdout.lines().any(|l| l.starts_with("left     cannot remove /tmp/dir/sub/file: "));
        assert!(said && !machine.outside("/tmp/file").exists(), "{ran:#?}");
    }

    /// Killed at every effect on the machine: it looks sealed only when it is, its next boot would let its key pair in
    /// whenever a key is gone, and a second call ends where an undisturbed one does.
    #[test]
    fn a_kill_anywhere_leaves_nothing_that_looks_sealed_and_the_next_call_finishes() {
        let memory = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), memory.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let wanted = used_in(memory.path());
        let points = points(&wanted);
        assert!(points.len() > 80, "{points:#?}");
        let mut early_enough = 0;
        for point in &points {
            let machine = used_in(memory.path());
            let status = with(&machine, "kill", point).output().unwrap().status;
            assert_eq!(status.signal(), Some(9), "{point}");
            let looks_sealed = machine.read("/etc/machine-id").is_empty();
            let left = traces(&machine);
            assert!(!looks_sealed || left.is_empty(), "{point}: {left:#?}");
            let is_key = |path: &&str| path.contains("authorized_keys") || path.contains("ssh_host_");
            let lost =
                GONE.iter().map(|(path, _)| *path).filter(is_key).any(|path| !machine.outside(path).exists());
            let is_set_up = machine.outside("/var/lib/gpu-bootstrap/instance.json").exists();
            assert!(!lost || !is_set_up, "{point}: nobody could log in any more");
            early_enough += usize::from(is_set_up);
            sealed(&machine, &["--shell-history"]);
            let (is, wanted) = (tree(&machine), tree(&wanted));
            let other: Vec<_> =
                is.keys().chain(wanted.keys()).filter(|path| is.get(*path) != wanted.get(*path)).collect();
            assert_eq!(other, [] as [&String; 0], "{point}");
        }
        assert!(early_enough > 5, "{early_enough}");
        umount2(memory.path(), MntFlags::MNT_DETACH).unwrap();
    }
}
