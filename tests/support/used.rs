//! A machine that was somebody's instance: everything that `seal` takes away, and beside each of it something that stays.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::machine::Machine;

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";
pub(crate) const NAME: &str = "ip-10-0-0-23";
pub(crate) const MAC: &str = "06:1a:2b:3c:4d:5e";
pub(crate) const ID: &str = "f4c0ffee00112233445566778899aabb";
pub(crate) const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";
/// Stands in every private file of the instance.
pub(crate) const SECRET: &str = "only-the-first-instance-knows";

/// Files that go, with what in them names the instance.
pub(crate) const GONE: [(&str, &str); 57] = [
    ("/var/lib/gpu-bootstrap/instance.json", INSTANCE),
    ("/var/lib/gpu-bootstrap/receipt.json", INSTANCE),
    ("/var/lib/gpu-bootstrap/result.json", INSTANCE),
    ("/var/lib/gpu-bootstrap/last-installation.json", INSTANCE),
    ("/var/lib/gpu-bootstrap/spool/sns.1.json", INSTANCE),
    ("/var/lib/gpu-bootstrap/cache/0123", SECRET),
    ("/var/lib/gpu-bootstrap/debs/x.deb", SECRET),
    ("/var/lib/gpu-bootstrap/what-a-later-version-keeps/x", INSTANCE),
    ("/var/lib/gpu-bootstrap/lists-unsynced", "0b6d2a9c"),
    ("/var/lib/gpu-bootstrap/set-aside/var__lib__gpu-bootstrap__receipt.json", INSTANCE),
    ("/run/gpu-bootstrap/status.json", INSTANCE),
    ("/run/gpu-bootstrap/early.json", INSTANCE),
    ("/etc/gpu-bootstrap/90-user-data.toml", INSTANCE),
    ("/var/lib/cloud/instances/i-0123456789abcdef0/user-data.txt", SECRET),
    ("/var/lib/cloud/data/instance-id", INSTANCE),
    ("/home/admin/.ssh/authorized_keys", KEY),
    ("/home/admin/.ssh/authorized_keys2", KEY),
    ("/home/Somebody.Else/.ssh/authorized_keys", KEY),
    ("/home/not-in-passwd/.ssh/authorized_keys", KEY),
    ("/srv/daemon/.ssh/authorized_keys", KEY),
    ("/root/.ssh/authorized_keys", KEY),
    ("/root/.ssh/.gpu-bootstrap-keys", KEY),
    ("/etc/ssh/ssh_host_rsa_key", SECRET),
    ("/etc/ssh/ssh_host_ed25519_key", SECRET),
    ("/etc/ssh/ssh_host_ed25519_key.pub", NAME),
    ("/etc/ssh/ssh_host_ed25519_key-cert.pub", NAME),
    ("/etc/apt/auth.conf", SECRET),
    ("/etc/apt/auth.conf.d/mirror.conf", SECRET),
    ("/etc/apt/apt.conf.d/90gpu-bootstrap-aptproxy", SECRET),
    ("/root/.bash_history", SECRET),
    ("/home/admin/.bash_history", SECRET),
    ("/home/admin/.python_history", SECRET),
    ("/home/admin/.local/share/fish/fish_history", SECRET),
    ("/var/lib/systemd/random-seed", SECRET),
    ("/boot/efi/loader/random-seed", SECRET),
    ("/var/lib/dhcp/dhclient.ens5.leases", MAC),
    ("/var/lib/dhcpcd/ens5.lease", MAC),
    ("/var/lib/dhcpcd/duid", MAC),
    ("/var/lib/NetworkManager/internal-0-ens5.lease", MAC),
    ("/var/lib/NetworkManager/secret_key", SECRET),
    ("/var/lib/systemd/network/dhcp-lease-ens5", MAC),
    ("/run/systemd/netif/leases/2", MAC),
    ("/var/lib/apt/lists/archive_dists_bookworm_InRelease", SECRET),
    ("/var/lib/apt/lists/partial/x", SECRET),
    ("/var/cache/apt/archives/x_1_amd64.deb", SECRET),
    ("/var/cache/apt/archives/partial/x", SECRET),
    ("/var/cache/apt/pkgcache.bin", SECRET),
    ("/var/log/journal/f4c0ffee00112233445566778899aabb/system.journal", NAME),
    ("/var/log/syslog.1", NAME),
    ("/var/log/apt/history.log.1.gz", SECRET),
    ("/var/lib/systemd/coredump/core.sshd", SECRET),
    ("/var/crash/x.crash", SECRET),
    ("/tmp/dir/sub/file", SECRET),
    ("/tmp/file", SECRET),
    ("/tmp/.hidden", SECRET),
    ("/var/tmp/file", SECRET),
    ("/etc/ssh/.gpu-bootstrap-abc123", SECRET),
];

/// Files that are emptied, and keep owner and mode.
pub(crate) const EMPTIED: [&str; 5] = [
    "/var/log/syslog",
    "/var/log/wtmp",
    "/var/log/cloud-init-output.log",
    "/var/log/apt/history.log",
    "/var/log/amazon/ssm/agent.log",
];

/// Files that stay as they are: each lies beside something that goes.
pub(crate) const KEPT: [(&str, &str); 21] = [
    ("/var/lib/gpu-bootstrap/choice.json", "{}"),
    ("/var/lib/gpu-bootstrap/packages/apt-0.record", "gpu-bootstrap packages 1\n"),
    ("/var/lib/gpu-bootstrap/lists/repository/Release", "x"),
    ("/var/lib/gpu-bootstrap/set-aside/etc__apt__preferences.d__pin", "theirs"),
    ("/etc/gpu-bootstrap/50-image.toml", "[instance]\ngrow-root = false\n"),
    ("/var/lib/cloud/seed/nocloud/meta-data", "of the image"),
    ("/home/admin/.ssh/config", "Host *"),
    ("/home/admin/.ssh/known_hosts", "github.com"),
    ("/home/admin/.ssh/id_ed25519", "the image's, for all we know"),
    ("/home/admin/.aws/credentials", "the image's, for all we know"),
    ("/home/admin/.cache/huggingface/model", "gigabytes"),
    ("/home/admin/notes", "x"),
    ("/etc/ssh/sshd_config", "UsePAM yes\n"),
    ("/etc/ssh/moduli", "x"),
    ("/etc/apt/sources.list", "deb http://deb.example.org/debian bookworm main\n"),
    ("/var/lib/dhcp/dhcpd.leases", "a server's"),
    ("/var/lib/NetworkManager/NetworkManager.state", "x"),
    ("/var/lib/apt/lists/lock", ""),
    ("/var/lib/apt/extended_states", "x"),
    ("/etc/netplan/10-ena.yaml", "network:\n  ethernets:\n    any:\n      match: {driver: ena}\n"),
    ("/var/lib/dpkg/status", "Package: x\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n"),
];

pub(crate) const HOSTS: &str =
    "127.0.0.1 localhost\n127.0.1.1 ip-10-0-0-23.ec2.internal ip-10-0-0-23 # gpu-bootstrap\n";

/// Debian 12 as the first instance left it.
pub(crate) fn used() -> Machine {
    used_in(&std::env::temp_dir())
}

/// The same, below this directory.
pub(crate) fn used_in(dir: &Path) -> Machine {
    let mut machine = Machine::debian12_in(dir)
        .file(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/srv/daemon:/usr/sbin/nologin\n\
             admin:x:1001:1002:Debian:/home/admin:/bin/bash\nSomebody.Else:x:1003:1003::/home/Somebody.Else:/bin/sh\n",
        )
        .file("/etc/shadow", "root:*:1::::::\nadmin:!:1::::::\n")
        .file("/etc/hostname", &format!("{NAME}\n"))
        .file("/etc/hosts", HOSTS)
        .file("/etc/machine-id", &format!("{ID}\n"))
        .file("/var/lib/dbus/machine-id", &format!("{ID}\n"));
    for (path, content) in GONE {
        machine = machine.file(path, &format!("{content}\n"));
    }
    for path in EMPTIED {
        machine = machine.file(path, &format!("{NAME} {INSTANCE}\n"));
    }
    for (path, content) in KEPT {
        machine = machine.file(path, content);
    }
    let wtmp = machine.outside("/var/log/wtmp");
    fs::set_permissions(&wtmp, fs::Permissions::from_mode(0o664)).unwrap();
    // Where links lead, nothing goes.
    let machine = machine.file("/data/theirs", "x").file("/data/tree/theirs", "x");
    for link in ["/tmp/to-tree", "/var/tmp/to-file", "/var/log/to-file.log", "/etc/ssh/ssh_host_dsa_key"] {
        let target = if link.ends_with("tree") { "../data/tree" } else { "/data/theirs" };
        symlink(target, machine.outside(link)).unwrap();
    }
    fs::hard_link(machine.outside("/data/theirs"), machine.outside("/var/log/second-name.log")).unwrap();
    machine
}

/// Every path of the machine with its kind, mode, owner, and content or target; of the lock only that it is there.
pub(crate) fn tree(machine: &Machine) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else if meta.is_file() {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            } else {
                String::new()
            };
            let inside = format!("/{}", path.strip_prefix(root).unwrap().display());
            into.insert(inside, format!("{:o} {} {} {content}", meta.mode(), meta.uid(), meta.gid()));
            if meta.is_dir() {
                walk(root, &path, into);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(machine.root(), machine.root(), &mut all);
    if let Some(lock) = all.get_mut("/var/lib/gpu-bootstrap/lock") {
        lock.clear(); // its holder's number
    }
    all
}

/// Everything in names and contents that names the first instance.
pub(crate) fn traces(machine: &Machine) -> Vec<String> {
    let words = [INSTANCE, NAME, MAC, ID, KEY.split(' ').nth(1).unwrap(), SECRET];
    let all = tree(machine);
    let found = all.iter().filter_map(|(path, state)| {
        let word = words.iter().find(|word| path.contains(*word) || state.contains(*word))?;
        Some(format!("{path}: {word}"))
    });
    found.collect()
}
