//! The early part of a boot without cloud-init: the real program over scratch machines, with a metadata service as strict as
//! EC2's, the real `ssh-keygen`, and tools for disks that only say what they were asked.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imds::scripted_http::Reply;
use imds::{Imds, Running, document};
use machine::{Machine, Ran, binary, ran};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

const FIRST: &str = "i-0123456789abcdef0";
const OTHER: &str = "i-0fedcba9876543210";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";
const OWN: &str = "from=\"10.0.0.0/8\" ssh-rsa AAAAB3NzaC1yc2E mine\n# a word of my own\n";
const FOREVER: usize = usize::MAX;
const AUTHORIZED: &str = "/home/admin/.ssh/authorized_keys";
const LIST: &str = "meta-data/public-keys/";
const NAME: &str = "meta-data/local-hostname";
/// Who logs in, by /etc/passwd.
const ADMIN: u32 = 1001;
const GROUP: u32 = 1002;

/// A service of an instance with a key pair and a name.
fn service() -> Imds {
    Imds::new()
        .item(LIST, "0=my key")
        .item("meta-data/public-keys/0/openssh-key", format!("{KEY} my key\n"))
        .item(NAME, "ip-10-0-0-23.ec2.internal\n")
}

/// The same of another instance, with another name.
fn other(service: Imds) -> Imds {
    service
        .item("dynamic/instance-identity/document", document("g5.xlarge").replace(FIRST, OTHER))
        .item(NAME, "ip-10-9-9-9.ec2.internal")
}

/// Debian with sshd, made on another instance; the root has a disk with room. No disk of the host is ever touched: the
/// tools are scripts that write down what they were asked.
fn image() -> Machine {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root, for chroot and owners: start it by tests/run"
    );
    let machine = Machine::debian12()
        .file(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
             admin:x:1001:1002:Debian:/home/admin:/bin/bash\n",
        )
        .file("/etc/hostname", "image-builder\n")
        .file("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 image-builder # gpu-bootstrap\n")
        .file("/etc/ssh/sshd_config", "UsePAM yes\n")
        .file("/etc/ssh/ssh_host_rsa_key", "another instance's secret")
        .file("/etc/ssh/ssh_host_ed25519_key", "another instance's secret")
        .file("/etc/ssh/ssh_host_rsa_key-cert.pub", "another instance's certificate")
        .file("/dev/console", "")
        .file("/dev/null", "")
        .dir("/root")
        .dir("/home/admin");
    disk(&machine, 62_914_560);
    for program in ["ssh-keygen", "dash"] {
        machine.bring(program);
    }
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    machine.tool("resize2fs", "");
    // What growpart says, and what the kernel knows afterwards.
    machine.tool(
        "growpart",
        "echo 62650368 >/sys/devices/pci/nvme0n1/nvme0n1p1/size; echo 'CHANGED: partition=1 start=262144'",
    );
    machine
}

/// A root of 8 GB at the end of a disk of so many sectors.
fn disk(machine: &Machine, sectors: u64) {
    let write = |path: &str, text: String| {
        let path = machine.outside(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("/proc/self/mountinfo", "27 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n".into());
    write("/sys/devices/pci/nvme0n1/size", format!("{sectors}\n"));
    for (item, number) in [("partition", 1), ("start", 262_144), ("size", 16_512_991_u64)] {
        write(&format!("/sys/devices/pci/nvme0n1/nvme0n1p1/{item}"), format!("{number}\n"));
    }
    for (link, target) in [
        ("/sys/class/block/nvme0n1", "../../devices/pci/nvme0n1"),
        ("/sys/class/block/nvme0n1p1", "../../devices/pci/nvme0n1/nvme0n1p1"),
        ("/sys/dev/block/259:1", "../../devices/pci/nvme0n1/nvme0n1p1"),
    ] {
        let link = machine.outside(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        if !link.is_symlink() {
            symlink(target, link).unwrap();
        }
    }
}

fn early(machine: &Machine, service: Option<&Running>, args: &[&str]) -> Ran {
    early_within("1", machine, service, args)
}

fn early_within(seconds: &str, machine: &Machine, service: Option<&Running>, args: &[&str]) -> Ran {
    let mut command = binary();
    command.arg("early").args(args).arg("--root").arg(machine.root()).args(["--imds-timeout", seconds]);
    if let Some(service) = service {
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    }
    ran(&mut command)
}

/// Runs the early part, which must exit with 0.
#[track_caller]
fn boot(machine: &Machine, service: &Running) -> Value {
    // The machine that runs the tests may have other work.
    let ran = early_within("30", machine, Some(service), &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    report(machine)
}

fn report(machine: &Machine) -> Value {
    serde_json::from_str(&machine.read("/run/gpu-bootstrap/early.json")).unwrap()
}

/// The outcome of each duty.
fn outcomes(report: &Value) -> BTreeMap<&str, &str> {
    let duties = report["duties"].as_array().unwrap();
    duties.iter().map(|d| (d["duty"].as_str().unwrap(), d["outcome"].as_str().unwrap())).collect()
}

/// The sentence of a duty.
#[track_caller]
fn sentence<'a>(report: &'a Value, duty: &str) -> &'a str {
    let duties = report["duties"].as_array().unwrap();
    duties.iter().find(|d| d["duty"] == duty).unwrap()["text"].as_str().unwrap()
}

/// Every file with its mode, owner, inode and content, but for programs, and what is ours to write at every boot.
fn tree(machine: &Machine) -> BTreeMap<String, String> {
    fn walk(dir: &Path, into: &mut BTreeMap<String, String>) {
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
            let state = format!("{:o} {} {} {} {content}", meta.mode(), meta.uid(), meta.gid(), meta.ino());
            into.insert(path.display().to_string(), state);
            if meta.is_dir() {
                walk(&path, into);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(machine.root(), &mut all);
    let left_out = ["/run", "/usr", "/lib"].map(|dir| format!("{}{dir}", machine.root().display()));
    all.retain(|path, _| !left_out.iter().any(|dir| path.starts_with(dir)));
    all
}

fn owner(machine: &Machine, path: &str) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(machine.outside(path)).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn asked(machine: &Machine) -> String {
    fs::read_to_string(machine.outside("/asked")).unwrap_or_default()
}

/// A user's file, with directory.
fn own_keys(machine: &Machine, text: &str) {
    fs::create_dir_all(machine.outside("/home/admin/.ssh")).unwrap();
    fs::write(machine.outside(AUTHORIZED), text).unwrap();
}

#[test]
fn a_new_instance_gets_keys_name_and_size_by_six_requests() {
    let (machine, service) = (image(), service().start());
    own_keys(&machine, OWN);
    let report = boot(&machine, &service);

    assert_eq!((&report["instance"], &report["metadata_requests"]), (&"new".into(), &6.into()));
    assert_eq!(service.asked().len(), 6, "{:?}", service.asked());
    assert!(outcomes(&report).values().all(|outcome| *outcome == "changed"), "{report:#}");
    assert_eq!(machine.read(AUTHORIZED), format!("{OWN}{KEY} my key #gpu-bootstrap\n"));
    assert_eq!(owner(&machine, AUTHORIZED), (ADMIN, GROUP, 0o600));
    assert_eq!(owner(&machine, "/home/admin/.ssh"), (ADMIN, GROUP, 0o700));
    let of_root = machine.read("/root/.ssh/authorized_keys");
    assert!(
        of_root.starts_with("no-port-forwarding,") && of_root.contains("exit 142\" ssh-ed25519 "),
        "{of_root}"
    );
    assert_eq!(owner(&machine, "/root/.ssh/authorized_keys"), (0, 0, 0o600));

    for kind in ["ed25519", "ecdsa"] {
        assert_eq!(owner(&machine, &format!("/etc/ssh/ssh_host_{kind}_key")), (0, 0, 0o600));
        assert_eq!(owner(&machine, &format!("/etc/ssh/ssh_host_{kind}_key.pub")), (0, 0, 0o644));
        let public = machine.read(&format!("/etc/ssh/ssh_host_{kind}_key.pub"));
        assert!(public.ends_with(" root@ip-10-0-0-23\n"), "{public}");
    }
    for of_another in ["ssh_host_rsa_key", "ssh_host_rsa_key-cert.pub"] {
        assert!(!machine.outside(&format!("/etc/ssh/{of_another}")).exists(), "{of_another}");
    }
    assert_eq!(machine.read("/etc/ssh/sshd_config"), "UsePAM yes\n");
    assert!(!machine.outside("/run/gpu-bootstrap/host-keys").exists());

    assert_eq!(machine.read("/etc/hostname"), "ip-10-0-0-23\n");
    let hosts = "127.0.0.1 localhost\n127.0.1.1 ip-10-0-0-23.ec2.internal ip-10-0-0-23 # gpu-bootstrap\n";
    assert_eq!(machine.read("/etc/hosts"), hosts);
    assert_eq!(asked(&machine), "growpart /dev/nvme0n1 1\nresize2fs /dev/nvme0n1p1\n");

    let state: Value = serde_json::from_str(&machine.read("/var/lib/gpu-bootstrap/instance.json")).unwrap();
    assert_eq!(state["instance_id"], FIRST);
    assert_eq!(owner(&machine, "/var/lib/gpu-bootstrap/instance.json").2, 0o644);
}

#[test]
fn the_console_shows_what_ssh_keygen_lists() {
    let (machine, service) = (image(), service().start());
    boot(&machine, &service);
    let console = machine.read("/dev/console");
    let between = |begin: &str, end: &str| {
        let (_, rest) = console.split_once(begin).unwrap_or_else(|| panic!("{console}"));
        rest.split_once(end).unwrap().0.to_owned()
    };
    let shown = between(
        "-----BEGIN SSH HOST KEY FINGERPRINTS-----\n",
        "ec2: -----END SSH HOST KEY FINGERPRINTS-----\n",
    );
    let mut listed = String::new();
    let mut keys = String::new();
    for kind in ["ecdsa", "ed25519"] {
        let path = machine.outside(&format!("/etc/ssh/ssh_host_{kind}_key.pub"));
        let output = Command::new("ssh-keygen").arg("-lf").arg(&path).output().unwrap();
        listed.push_str("ec2: ");
        listed.push_str(&String::from_utf8(output.stdout).unwrap());
        keys.push_str(&fs::read_to_string(path).unwrap());
    }
    assert_eq!(shown, listed);
    assert_eq!(between("-----BEGIN SSH HOST KEY KEYS-----\n", "-----END SSH HOST KEY KEYS-----\n"), keys);
}

#[test]
fn the_same_instance_is_left_alone() {
    let (machine, service) = (image(), service().start());
    boot(&machine, &service);
    // Whatever the user made of it since then.
    own_keys(&machine, OWN);
    fs::write(machine.outside("/etc/hostname"), "named-by-hand\n").unwrap();
    fs::write(machine.outside("/proc/sys/kernel/random/boot_id"), "another boot\n").unwrap();
    let before = tree(&machine);
    let report = boot(&machine, &service);
    assert_eq!((&report["instance"], &report["metadata_requests"]), (&"same".into(), &3.into()));
    assert_eq!(tree(&machine), before);
}

#[test]
fn firmware_that_knows_the_instance_saves_every_request() {
    let (machine, service) = (image().file("/sys/class/dmi/id/board_asset_tag", FIRST), service().start());
    boot(&machine, &service);
    let asked = service.asked().len();
    assert_eq!(boot(&machine, &service)["instance"], "same");
    assert_eq!(service.asked().len(), asked);
    // A copy of the disk in another instance: the firmware says so, and the service is asked.
    fs::write(machine.outside("/sys/class/dmi/id/board_asset_tag"), OTHER).unwrap();
    let of_other = other(self::service()).start();
    assert_eq!(boot(&machine, &of_other)["instance"], "new");
}

#[test]
fn a_clone_gets_everything_anew_and_keeps_what_is_the_users() {
    let (machine, first) = (image(), service().start());
    own_keys(&machine, OWN);
    boot(&machine, &first);
    let rsa = early(&machine, Some(&first), &["--rsa"]);
    assert_eq!(rsa.code, 0, "{rsa:#?}");
    let of_first: Vec<_> = ["rsa", "ecdsa", "ed25519"]
        .map(|kind| machine.read(&format!("/etc/ssh/ssh_host_{kind}_key.pub")))
        .map(|key| key.split(' ').nth(1).unwrap().to_owned())
        .into();

    let fresh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC6O0oUWtRsLd0Oc7sh5KqcMBNuC2yCKgMwTAHvFCQxr";
    let second =
        other(service()).item("meta-data/public-keys/0/openssh-key", format!("{fresh} other key")).start();
    assert_eq!(boot(&machine, &second)["instance"], "new");
    assert_eq!(machine.read(AUTHORIZED), format!("{OWN}{fresh} other key #gpu-bootstrap\n"));
    assert_eq!(machine.read("/etc/hostname"), "ip-10-9-9-9\n");
    assert!(!machine.outside("/etc/ssh/ssh_host_rsa_key").exists(), "the first instance's secret");
    // Nothing that runs or lets anybody in is the first instance's any more.
    fs::write(machine.outside("/dev/console"), "").unwrap();
    for (path, content) in tree(&machine) {
        for trace in of_first.iter().map(String::as_str).chain([FIRST, "ip-10-0-0-23", KEY]) {
            assert!(!content.contains(trace), "{path}: {trace}");
        }
    }
}

#[test]
fn without_the_metadata_service_all_stays_as_it_was() {
    let machine = image();
    own_keys(&machine, OWN);
    let before = tree(&machine);
    let faulty: [(&str, Imds); 4] = [
        ("nobody is allowed", service().fault("PUT", "token", FOREVER, imds::error(403))),
        ("it is busy for ever", service().fault("GET", "document", FOREVER, imds::error(503))),
        ("somebody else answers", service().item("dynamic/instance-identity/document", "<html>login</html>")),
        ("it gives no user-data", service().fault("GET", "user-data", FOREVER, imds::error(503))),
    ];
    for (why, service) in faulty {
        let ran = early(&machine, Some(&service.start()), &[]);
        assert_eq!(ran.code, 1, "{why}: {ran:#?}");
        assert_eq!(report(&machine)["instance"], "unknown", "{why}");
        assert!(ran.stderr.contains("metadata") || ran.stderr.contains("document"), "{why}: {}", ran.stderr);
        assert_eq!(tree(&machine), before, "{why}");
    }
    // The next boot, with a service.
    assert_eq!(boot(&machine, &service().start())["instance"], "new");
}

#[test]
fn sshd_has_keys_to_start_with_even_without_the_metadata_service() {
    let (machine, service) = (image(), service().fault("PUT", "token", FOREVER, imds::error(403)).start());
    for name in ["rsa_key", "ed25519_key", "rsa_key-cert.pub"] {
        fs::remove_file(machine.outside(&format!("/etc/ssh/ssh_host_{name}"))).unwrap();
    }
    let ran = early(&machine, Some(&service), &[]);
    assert_eq!(ran.code, 0, "something was done: {ran:#?}");
    assert_eq!(
        outcomes(&report(&machine)),
        [("instance", "failed"), ("missing-host-keys", "changed")].into()
    );
    assert!(machine.outside("/etc/ssh/ssh_host_ed25519_key").exists());
    assert!(machine.read("/dev/console").contains("(ED25519)"), "nobody could tell whose they are");
    assert!(!machine.outside("/var/lib/gpu-bootstrap/instance.json").exists(), "it is nobody's yet");
}

/// What a user does with the home directory.
type Way = (&'static str, fn(&Machine));

#[test]
fn nothing_is_written_over_what_a_user_put_in_the_way() {
    let ways: [Way; 7] = [
        ("the directory is a link", |m| symlink("/srv/secret-dir", m.outside("/home/admin/.ssh")).unwrap()),
        ("the directory is a link inside", |m| {
            fs::create_dir(m.outside("/home/admin/elsewhere")).unwrap();
            symlink("elsewhere", m.outside("/home/admin/.ssh")).unwrap();
        }),
        ("the directory is a file", |m| fs::write(m.outside("/home/admin/.ssh"), "x").unwrap()),
        ("the file is a link", |m| {
            fs::create_dir(m.outside("/home/admin/.ssh")).unwrap();
            symlink(m.outside("/srv/secret"), m.outside(AUTHORIZED)).unwrap();
        }),
        ("the file has a second name", |m| {
            fs::create_dir(m.outside("/home/admin/.ssh")).unwrap();
            fs::hard_link(m.outside("/srv/secret"), m.outside(AUTHORIZED)).unwrap();
        }),
        ("the file is a pipe", |m| {
            fs::create_dir(m.outside("/home/admin/.ssh")).unwrap();
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::unistd::mkfifo(&m.outside(AUTHORIZED), mode).unwrap();
        }),
        ("the file is a directory", |m| fs::create_dir_all(m.outside(AUTHORIZED)).unwrap()),
    ];
    for (way, put) in ways {
        let machine = image().file("/srv/secret", "root's own\n").dir("/srv/secret-dir");
        put(&machine);
        let theirs = |tree: BTreeMap<String, String>| -> BTreeMap<_, _> {
            tree.into_iter().filter(|(path, _)| path.contains("/home/") || path.contains("/srv/")).collect()
        };
        let before = theirs(tree(&machine));
        let report = boot(&machine, &service().start());
        assert_eq!(theirs(tree(&machine)), before, "{way}");
        assert_eq!(outcomes(&report)["ssh-keys"], "failed", "{way}");
        assert!(sentence(&report, "ssh-keys").contains("it was left alone"), "{way}: {report:#}");
        assert_eq!(outcomes(&report)["host-keys"], "changed", "{way}: the others go on");
        assert_eq!(machine.read("/etc/hostname"), "ip-10-0-0-23\n", "{way}");
    }
}

#[test]
fn a_file_that_lay_in_the_way_of_the_new_one_is_not_followed() {
    let machine = image().file("/srv/secret", "root's own\n");
    own_keys(&machine, OWN);
    symlink(machine.outside("/srv/secret"), machine.outside("/home/admin/.ssh/.gpu-bootstrap-keys")).unwrap();
    let report = boot(&machine, &service().start());
    assert_eq!(outcomes(&report)["ssh-keys"], "changed");
    assert_eq!(machine.read("/srv/secret"), "root's own\n");
    assert_eq!(owner(&machine, "/srv/secret").0, 0);
    assert!(!machine.outside("/home/admin/.ssh/.gpu-bootstrap-keys").is_symlink());
}

#[test]
fn what_failed_is_tried_again_at_the_next_boot_and_nothing_else() {
    let machine = image();
    symlink("/srv", machine.outside("/home/admin/.ssh")).unwrap();
    boot(&machine, &service().fault("GET", NAME, FOREVER, imds::error(418)).start());
    let host_key = machine.read("/etc/ssh/ssh_host_ed25519_key");
    assert!(machine.read("/etc/ssh/ssh_host_ed25519_key.pub").ends_with(" root\n"), "no name was known");
    assert_eq!(machine.read("/etc/hostname"), "image-builder\n");

    fs::remove_file(machine.outside("/home/admin/.ssh")).unwrap();
    let report = boot(&machine, &service().start());
    assert_eq!(outcomes(&report), [("ssh-keys", "changed"), ("hostname", "changed")].into());
    assert_eq!(machine.read("/etc/ssh/ssh_host_ed25519_key"), host_key);
    assert_eq!(boot(&machine, &service().start())["instance"], "same");
}

#[test]
fn odd_keys_are_left_out_by_name_and_good_ones_stay() {
    let odd = [
        format!("{KEY} good\r\n"),
        format!("command=\"reboot\" {KEY} with options\n"),
        "ssh-rsa AAAA\u{1b}[2J escape\n".into(),
        "ssh-dss AAAAB3NzaC1kc3M= old\n".into(),
        "<html>login</html>\n".into(),
    ];
    let service = service()
        .item(LIST, "0=good\n1=../../user-data\n../../user-data=x\n7=gone\n")
        .item("meta-data/public-keys/0/openssh-key", odd.concat())
        .item("meta-data/public-keys/1/openssh-key", "\n\n")
        .start();
    let machine = image();
    let report = boot(&machine, &service);
    assert_eq!(machine.read(AUTHORIZED), format!("{KEY} good #gpu-bootstrap\n"));
    let text = sentence(&report, "ssh-keys");
    assert_eq!(text.matches("was left out").count(), 4, "{text}");
    assert!(text.contains("public-keys/7/openssh-key does not exist"), "{text}");
    assert!(!service.asked().iter().any(|path| path.contains("..")), "{:?}", service.asked());
}

#[test]
fn a_key_pair_without_a_usable_key_takes_nobodys_away() {
    for (list, key) in [("0=x", "rubbish"), ("0=x", ""), ("<html>", "")] {
        let machine = image();
        let before = format!("{OWN}ssh-rsa AAAA earlier #gpu-bootstrap\n");
        own_keys(&machine, &before);
        let service = service().item(LIST, list).item("meta-data/public-keys/0/openssh-key", key);
        let report = boot(&machine, &service.start());
        assert_eq!(outcomes(&report)["ssh-keys"], "failed", "{list} {key}");
        assert_eq!(machine.read(AUTHORIZED), before, "{list} {key}");
    }
}

#[test]
fn an_instance_without_a_key_pair_has_no_key_of_an_earlier_one() {
    let machine = image();
    own_keys(&machine, &format!("{OWN}ssh-rsa AAAA earlier #gpu-bootstrap\n"));
    let service = Imds::new().item(NAME, "a.b").start();
    let report = boot(&machine, &service);
    assert_eq!(machine.read(AUTHORIZED), OWN);
    assert!(sentence(&report, "ssh-keys").contains("no key pair"));
    assert!(!machine.outside("/root/.ssh").exists(), "nothing is made for nothing");
}

#[test]
fn each_further_key_costs_one_request() {
    let service = service()
        .item(LIST, "0=a\n1=b")
        .item("meta-data/public-keys/1/openssh-key", format!("{KEY} the same again"))
        .start();
    let machine = image();
    boot(&machine, &service);
    assert_eq!(service.asked().len(), 7);
    assert_eq!(machine.read(AUTHORIZED).lines().count(), 1, "one key, whatever its names");
}

#[test]
fn a_user_that_the_image_does_not_have_is_said_and_the_rest_goes_on() {
    let machine = image();
    let service = service().item("user-data", "#gpu-bootstrap\n[instance]\nuser = \"ubuntu\"\n").start();
    let report = boot(&machine, &service);
    assert_eq!(sentence(&report, "ssh-keys"), "/etc/passwd has no user ubuntu with a home directory");
    assert!(!machine.outside("/home/admin/.ssh").exists() && !machine.outside("/root/.ssh").exists());
    assert_eq!(outcomes(&report)["host-keys"], "changed");
    // A home directory that is not there is not made: it would be another one than the image's mount point.
    let machine = image();
    fs::remove_dir(machine.outside("/home/admin")).unwrap();
    let report = boot(&machine, &self::service().start());
    assert_eq!(outcomes(&report)["ssh-keys"], "failed");
    assert!(!machine.outside("/home/admin").exists());
}

#[test]
fn the_metadata_service_may_have_ipv6_only() {
    let service = service().start_at("[::1]:0".parse().unwrap());
    assert_eq!(boot(&image(), &service)["instance"], "new");
    assert_eq!(service.asked().len(), 6);
}

#[test]
fn a_busy_service_is_asked_again() {
    let busy = Reply::status(503, "").with("Retry-After", "0");
    let service = service().fault("GET", "public-keys", 2, busy).start();
    let machine = image();
    assert_eq!(outcomes(&boot(&machine, &service))["ssh-keys"], "changed");
}

#[test]
fn what_the_configuration_switches_off_is_not_done() {
    let off = "#gpu-bootstrap\n[instance]\nssh-keys = false\nhostname = false\ngrow-root = false\n";
    let (machine, service) = (image(), service().item("user-data", off).start());
    let before = tree(&machine);
    let report = boot(&machine, &service);
    assert!(outcomes(&report).values().all(|outcome| *outcome == "off"), "{report:#}");
    let mut after = tree(&machine);
    after.retain(|path, _| !path.contains("/var/lib/gpu-bootstrap"));
    assert_eq!(after, before);
    assert_eq!(service.asked().len(), 3);
    assert_eq!(boot(&machine, &service)["instance"], "same");
}

#[test]
fn configuration_that_user_data_will_write_counts_before_it_is_written() {
    let script = "#!/bin/sh\ncat >/etc/gpu-bootstrap/a.toml <<'EOF'\n[instance]\nhostname = false\nEOF\n";
    let files = "#cloud-config\nwrite_files:\n- path: /etc/gpu-bootstrap/a.toml\n  encoding: b64\n  content: W2luc3RhbmNlXQpob3N0bmFtZSA9IGZhbHNlCg==\n";
    for user_data in [script, files] {
        let (machine, service) = (image(), service().item("user-data", user_data).start());
        let report = boot(&machine, &service);
        assert_eq!(outcomes(&report)["hostname"], "off", "{report:#}");
        assert_eq!(machine.read("/etc/hostname"), "image-builder\n");
        assert!(!machine.outside("/etc/gpu-bootstrap/a.toml").exists(), "nothing is run to find it");
    }
}

#[test]
fn a_mistake_in_the_configuration_keeps_nobody_out() {
    let machine = image().file("/etc/gpu-bootstrap/a.toml", "[instance]\nhostname = false\n");
    let service = service().item("user-data", "#gpu-bootstrap\n[instance]\nuser = 5\n").start();
    let report = boot(&machine, &service);
    assert!(sentence(&report, "configuration").contains("instance.user takes"), "{report:#}");
    assert_eq!(outcomes(&report)["ssh-keys"], "changed");
    assert_eq!(outcomes(&report)["hostname"], "off", "what has no mistake counts");
}

#[test]
fn where_cloud_init_is_at_work_nothing_is_done() {
    let machine = image().file("/run/cloud-init/enabled", "");
    let (service, before) = (service().start(), tree(&machine));
    let ran = early(&machine, Some(&service), &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stdout.contains("cloud-init is at work here (/run/cloud-init/enabled)"), "{ran:#?}");
    assert_eq!(early(&machine, Some(&service), &["--rsa"]).code, 0);
    assert_eq!(tree(&machine), before);
    assert!(service.asked().is_empty());
}

#[test]
fn off_ec2_nothing_is_done() {
    let machine = image().file("/sys/class/dmi/id/sys_vendor", "QEMU\n");
    let before = tree(&machine);
    let ran = early(&machine, None, &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stdout.contains("this is no EC2 instance"), "{ran:#?}");
    assert_eq!(tree(&machine), before);
}

#[test]
fn the_rsa_key_follows_and_is_made_once() {
    let (machine, service) = (image(), service().start());
    let ran = early(&machine, Some(&service), &["--rsa"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(machine.read("/etc/ssh/ssh_host_rsa_key"), "another instance's secret", "not its turn");
    boot(&machine, &service);
    let asked = service.asked().len();
    assert_eq!(early(&machine, Some(&service), &["--rsa"]).code, 0);
    let key = machine.read("/etc/ssh/ssh_host_rsa_key");
    assert!(key.contains("PRIVATE KEY"));
    assert_eq!(owner(&machine, "/etc/ssh/ssh_host_rsa_key"), (0, 0, 0o600));
    let console = machine.read("/dev/console");
    assert!(console.contains("root@ip-10-0-0-23 (RSA)\n"), "{console}");
    assert_eq!(early(&machine, Some(&service), &["--rsa"]).code, 0);
    assert_eq!(machine.read("/etc/ssh/ssh_host_rsa_key"), key);
    assert_eq!(service.asked().len(), asked, "nobody is asked for it");
}

#[test]
fn a_key_that_cannot_be_made_leaves_the_old_ones() {
    let machine = image();
    machine.tool("ssh-keygen", "echo no entropy >&2; exit 1");
    let report = boot(&machine, &service().start());
    assert!(sentence(&report, "host-keys").contains("no entropy"), "{report:#}");
    assert_eq!(machine.read("/etc/ssh/ssh_host_ed25519_key"), "another instance's secret");
    assert_eq!(outcomes(&report)["ssh-keys"], "changed");
}

/// Starts the early part as systemd does, which listens at the socket that is returned.
fn start(machine: &Machine, service: Option<&Running>) -> (Child, UnixDatagram) {
    let path = machine.outside("/run/notify");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = binary();
    command.args(["early", "--imds-timeout", "30", "--root"]).arg(machine.root()).env("NOTIFY_SOCKET", &path);
    if let Some(service) = service {
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    }
    (command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), socket)
}

#[track_caller]
fn hears_that_sshd_may_start(socket: &UnixDatagram) {
    let mut said = [0; 16];
    let length = socket.recv(&mut said).expect("sshd would wait for ever");
    assert_eq!(&said[..length], b"READY=1");
}

#[test]
fn sshd_starts_when_people_can_log_in_and_before_the_root_has_grown() {
    let (machine, service) = (image(), service().start());
    machine.tool(
        "growpart",
        "until [ -e /go ]; do :; done; echo 62650368 >/sys/devices/pci/nvme0n1/nvme0n1p1/size",
    );
    let (mut child, socket) = start(&machine, Some(&service));
    hears_that_sshd_may_start(&socket);
    assert_eq!(machine.read(AUTHORIZED), format!("{KEY} my key #gpu-bootstrap\n"));
    assert!(machine.read("/etc/ssh/ssh_host_ed25519_key").contains("PRIVATE KEY"));
    assert_eq!(machine.read("/etc/hostname"), "ip-10-0-0-23\n");
    assert!(machine.read("/dev/console").contains("(ED25519)"), "shown before anybody can come");
    assert!(!asked(&machine).contains("resize2fs"));
    fs::write(machine.outside("/go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(outcomes(&report(&machine))["grow-root"], "changed");
}

#[test]
fn sshd_starts_whatever_the_early_part_finds() {
    let done = image().file("/sys/class/dmi/id/board_asset_tag", FIRST);
    let first = service().start();
    boot(&done, &first);
    let without_keys = image();
    for name in ["rsa_key", "ed25519_key", "rsa_key-cert.pub"] {
        fs::remove_file(without_keys.outside(&format!("/etc/ssh/ssh_host_{name}"))).unwrap();
    }
    let refused = service().fault("PUT", "token", FOREVER, imds::error(403)).start();
    for (machine, service) in [
        (&done, None),
        (&image().file("/run/cloud-init/enabled", ""), None),
        (&image().file("/sys/class/dmi/id/sys_vendor", "QEMU\n"), None),
        (&without_keys, Some(&refused)),
    ] {
        let (mut child, socket) = start(machine, service);
        hears_that_sshd_may_start(&socket);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_run_at_boot_waits_until_the_root_has_grown() {
    let machine = image();
    let path = machine.outside("/run/gpu-bootstrap/early.lock");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let held = Flock::lock(fs::File::create(path).unwrap(), FlockArg::LockExclusive).unwrap();
    let run = ["run", "--boot", "--no-reboot", "--no-imds", "--root"];
    let mut child =
        binary().args(run).arg(machine.root()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let result = machine.outside("/run/gpu-bootstrap/result.json");
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none() && !result.exists(), "it did not wait");
    drop(held);
    child.wait().unwrap();
    assert!(result.exists());
}

#[test]
fn a_run_at_boot_does_not_wait_for_the_rsa_key() {
    let (machine, service) = (image(), service().start());
    boot(&machine, &service);
    machine.tool("ssh-keygen", "until [ -e /go ]; do :; done; exit 1");
    let start = |args: &[&str]| {
        let mut command = binary();
        command.args(args).arg("--root").arg(machine.root()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let ends = |what: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !what() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        what()
    };
    let mut rsa = start(&["early", "--rsa"]);
    let began = ends(&mut || asked(&machine).contains("ssh-keygen -q -t rsa"));
    let mut run = start(&["run", "--boot", "--no-reboot", "--no-imds"]);
    let ended = ends(&mut || run.try_wait().unwrap().is_some());
    let still = rsa.try_wait().unwrap().is_none();
    // Whatever was found: nothing is left running.
    fs::write(machine.outside("/go"), "").unwrap();
    for child in [&mut rsa, &mut run] {
        child.wait().unwrap();
    }
    assert!(began && still, "no RSA key was being made: {began}, {still}");
    assert!(ended, "the run waits for the RSA key");
}

#[test]
fn a_root_that_has_all_of_its_disk_is_not_touched() {
    let machine = image();
    disk(&machine, 262_144 + 16_512_991 + 2048);
    let report = boot(&machine, &service().start());
    assert_eq!(asked(&machine), "resize2fs /dev/nvme0n1p1\n", "which knows by itself");
    assert_eq!(outcomes(&report)["grow-root"], "unchanged");
}

#[test]
fn growing_tells_what_stands_in_its_way() {
    for (rest, outcome, words) in [
        (
            "echo 'NOCHANGE: partition 1 is size 16512991. it cannot be grown'; exit 1",
            "unchanged",
            "all of its disk",
        ),
        ("echo 'FAILED: sfdisk not found' >&2; exit 2", "failed", "sfdisk not found"),
        ("echo 'CHANGED: partition=1'", "failed", "changed nothing that the kernel knows of"),
    ] {
        let machine = image();
        machine.tool("growpart", rest);
        let report = boot(&machine, &service().start());
        assert_eq!(outcomes(&report)["grow-root"], outcome, "{report:#}");
        assert!(sentence(&report, "grow-root").contains(words), "{report:#}");
    }
    let machine = image();
    fs::remove_file(machine.outside("/usr/bin/growpart")).unwrap();
    let report = boot(&machine, &service().start());
    let text = sentence(&report, "grow-root");
    assert!(text.contains("could be 23623 MB larger, but this image has no growpart"), "{text}");
    assert_eq!(asked(&machine), "", "nothing was tried");
}

#[test]
fn user_data_says_whether_the_root_grows() {
    for (user_data, calls, words) in [
        (
            "#cloud-config\ngrowpart: {mode: off}\n",
            "resize2fs /dev/nvme0n1p1\n",
            "its partition is left as it is",
        ),
        (
            "#cloud-config\nresize_rootfs: false\n",
            "growpart /dev/nvme0n1 1\n",
            "its file system is left as it is",
        ),
        (
            "#cloud-config\ngrowpart: {mode: off}\nresize_rootfs: false\n",
            "",
            "the root stays as it is, by user-data",
        ),
        ("#cloud-config\ngrowpart: {devices: [/dev/sdf1]}\n", "resize2fs /dev/nvme0n1p1\n", "left as it is"),
        // Nothing of such user-data is done, and so this is not either.
        (
            "#cloud-config\ngrowpart: {mode: off}\nchef: {}\n",
            "growpart /dev/nvme0n1 1\nresize2fs /dev/nvme0n1p1\n",
            "",
        ),
        ("#cloud-config\n{}\n", "growpart /dev/nvme0n1 1\nresize2fs /dev/nvme0n1p1\n", ""),
    ] {
        let machine = image();
        let report = boot(&machine, &service().item("user-data", user_data).start());
        assert_eq!(asked(&machine), calls, "{user_data}");
        assert!(sentence(&report, "grow-root").contains(words), "{user_data}: {report:#}");
    }
    let machine = image().file("/etc/growroot-disabled", "");
    boot(&machine, &service().start());
    assert_eq!(asked(&machine), "resize2fs /dev/nvme0n1p1\n");
    let machine = image().file("/etc/growroot-disabled", "");
    let even = "#cloud-config\ngrowpart: {ignore_growroot_disabled: true}\n";
    boot(&machine, &service().item("user-data", even).start());
    assert_eq!(asked(&machine), "growpart /dev/nvme0n1 1\nresize2fs /dev/nvme0n1p1\n");
}

#[test]
fn other_file_systems_have_their_own_tools() {
    for (file_system, tool_name, call) in
        [("xfs", "xfs_growfs", "xfs_growfs /\n"), ("btrfs", "btrfs", "btrfs filesystem resize max /\n")]
    {
        let machine = image();
        disk(&machine, 262_144 + 16_512_991);
        let mounts = machine.read("/proc/self/mountinfo").replace("ext4", file_system);
        fs::write(machine.outside("/proc/self/mountinfo"), mounts).unwrap();
        machine.tool(tool_name, "");
        boot(&machine, &service().start());
        assert_eq!(asked(&machine), call);
    }
    let machine = image();
    fs::write(machine.outside("/proc/self/mountinfo"), "1 1 0:5 / / rw - overlay overlay rw\n").unwrap();
    let report = boot(&machine, &service().start());
    assert_eq!(sentence(&report, "grow-root"), "the root is overlay, which is not grown here");
}

#[test]
fn a_state_that_cannot_be_kept_is_said_and_stops_nothing() {
    let machine = image().file("/var/lib/gpu-bootstrap", "not a directory");
    let report = boot(&machine, &service().start());
    assert_eq!(outcomes(&report)["state"], "failed");
    assert!(
        outcomes(&report).iter().all(|(duty, outcome)| *duty == "state" || *outcome == "changed"),
        "{report:#}"
    );
}
