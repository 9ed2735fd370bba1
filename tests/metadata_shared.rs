//! What the units of one boot ask the metadata service together: the real program as each unit starts it, over one scratch
//! machine, with a service as strict as EC2's that counts.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use imds::scripted_http::Reply;
use imds::{Imds, Running};
use machine::{Machine, Ran, binary, ran};
use serde_json::Value;

const KEPT: &str = "/run/gpu-bootstrap/metadata.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";
const LIST: &str = "meta-data/public-keys/";
/// Nothing is reported anywhere: credentials are asked for by whoever reports.
const USER_DATA: &str =
    "#gpu-bootstrap\n[report.cloudwatch]\nenabled = false\n[policy]\non-no-gpu = \"skip\"\n";
/// As the units of the package start them, in the order of a boot.
const UNITS: [&[&str]; 5] = [
    &["early"],
    &["user-data", "run", "--boot", "--stage", "config"],
    &["run", "--boot"],
    &["user-data", "run", "--boot"],
    &["early", "--rsa"],
];

fn service() -> Imds {
    Imds::new()
        .item(LIST, "0=my key")
        .item("meta-data/public-keys/0/openssh-key", format!("{KEY} my key\n"))
        .item("meta-data/local-hostname", "ip-10-0-0-23.ec2.internal\n")
        .item("user-data", USER_DATA)
}

/// An image of Debian with sshd and the login user; its disk is left alone.
fn image() -> Machine {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, for chroot: start it by tests/run");
    let machine = Machine::debian12()
        .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nadmin:x:1001:1002::/home/admin:/bin/sh\n")
        .file("/etc/group", "root:x:0:\n")
        .file("/etc/gpu-bootstrap/image.toml", "[instance]\ngrow-root = false\n")
        .file("/etc/hosts", "127.0.0.1 localhost\n")
        .file("/dev/console", "")
        .file("/dev/null", "")
        .dir("/etc/ssh")
        .dir("/root")
        .dir("/tmp")
        .dir("/home/admin");
    machine.bring("ssh-keygen");
    machine.bring("dash");
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    machine
}

fn call(machine: &Machine, service: &Running, args: &[&str]) -> Ran {
    let mut command = binary();
    command.args(args).arg("--root").arg(machine.root()).args(["--imds-timeout", "30"]);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    ran(&mut command)
}

#[track_caller]
fn well(machine: &Machine, service: &Running, args: &[&str]) -> Ran {
    let ran = call(machine, service, args);
    assert_eq!(ran.code, 0, "{args:?} {ran:#?}");
    ran
}

/// Calls it and returns how many requests it sent.
#[track_caller]
fn asks(machine: &Machine, service: &Running, args: &[&str]) -> usize {
    let before = service.asked().len();
    well(machine, service, args);
    service.asked().len() - before
}

fn number_in(machine: &Machine, report: &str) -> Value {
    let report: Value = serde_json::from_str(&machine.read(&format!("/run/gpu-bootstrap/{report}"))).unwrap();
    report["metadata_requests"].clone()
}

fn kept(machine: &Machine) -> Value {
    serde_json::from_str(&machine.read(KEPT)).unwrap()
}

/// The answers become so many seconds older.
fn age(machine: &Machine, seconds: f64) {
    let mut document = kept(machine);
    for answer in document["answers"].as_array_mut().unwrap() {
        answer["asked"] = (answer["asked"].as_f64().unwrap() - seconds).into();
    }
    fs::write(machine.outside(KEPT), document.to_string()).unwrap();
}

#[test]
fn five_units_of_a_new_instance_ask_six_requests_and_one_for_each_further_key() {
    let (machine, service) = (image(), service().start());
    let asked: Vec<_> = UNITS.iter().map(|unit| asks(&machine, &service, unit)).collect();
    assert_eq!(asked, [6, 0, 0, 0, 0], "{:?}", service.asked());
    assert_eq!(
        (number_in(&machine, "early.json"), number_in(&machine, "user-data.json")),
        (6.into(), 0.into())
    );
    assert!(machine.outside("/etc/ssh/ssh_host_rsa_key").exists());
    assert!(machine.read("/home/admin/.ssh/authorized_keys").contains(KEY));
    let mode = fs::metadata(machine.outside(KEPT)).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600, "user-data may hold secrets");
    assert!(!machine.read(KEPT).contains("AQAEAFTNrA4e"), "no token is kept");

    let two_keys = self::service()
        .item(LIST, "0=a\n1=b")
        .item("meta-data/public-keys/1/openssh-key", format!("{KEY} b\n"))
        .start();
    let machine = image();
    for unit in UNITS {
        well(&machine, &two_keys, unit);
    }
    assert_eq!(two_keys.asked().len(), 7);
}

#[test]
fn that_there_is_no_user_data_is_an_answer_too() {
    let service = Imds::new().item("meta-data/local-hostname", "a.b").start();
    let machine = image().file("/etc/gpu-bootstrap/b.toml", USER_DATA);
    let asked: Vec<_> = UNITS.iter().map(|unit| asks(&machine, &service, unit)).collect();
    assert_eq!(asked, [5, 0, 0, 0, 0], "token, document, user-data, list of keys, name");
}

#[test]
fn whoever_calls_by_hand_asks_and_leaves_nothing() {
    let (machine, service) = (image(), service().start());
    well(&machine, &service, &["early"]);
    let before = machine.read(KEPT);
    for by_hand in [&["run"][..], &["user-data", "run"], &["detect"], &["plan"]] {
        assert_eq!(asks(&machine, &service, by_hand), 3, "{by_hand:?}");
    }
    assert_eq!(machine.read(KEPT), before);
    fs::remove_file(machine.outside(KEPT)).unwrap();
    well(&machine, &service, &["user-data", "run"]);
    assert!(!machine.outside(KEPT).exists());
}

#[test]
fn another_boot_and_what_is_old_are_asked_anew() {
    let (machine, service) = (image(), service().start());
    let unit = UNITS[1];
    well(&machine, &service, &["early"]);
    age(&machine, 14.0 * 60.0);
    assert_eq!(asks(&machine, &service, unit), 0);
    age(&machine, 61.0);
    assert_eq!(asks(&machine, &service, unit), 3, "the instance may have been hibernated");
    assert_eq!(asks(&machine, &service, unit), 0);
    fs::write(machine.outside(BOOT_ID), "0b6d2a9c-7c3e-4c55-9f0a-000000000002\n").unwrap();
    assert_eq!(asks(&machine, &service, unit), 3);
    // Another service stands for another instance.
    let other = self::service().start();
    assert_eq!(asks(&machine, &other, unit), 3);
}

#[test]
fn what_is_torn_or_anybodys_is_asked_anew_and_said_once() {
    let (machine, service) = (image(), service().start());
    let unit = UNITS[1];
    well(&machine, &service, &["early"]);
    let (whole, place) = (machine.read(KEPT), machine.outside(KEPT));
    let damages: [(&str, &dyn Fn()); 5] = [
        ("torn", &|| fs::write(&place, &whole[..whole.len() / 2]).unwrap()),
        ("empty", &|| fs::write(&place, "").unwrap()),
        ("anybody's", &|| fs::set_permissions(&place, fs::Permissions::from_mode(0o666)).unwrap()),
        ("another user's", &|| std::os::unix::fs::chown(&place, Some(1001), None).unwrap()),
        ("a link", &|| {
            fs::rename(&place, machine.outside("/tmp/elsewhere")).unwrap();
            symlink("/tmp/elsewhere", &place).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let before = service.asked().len();
        let ran = well(&machine, &service, unit);
        assert_eq!(service.asked().len() - before, 3, "{what}");
        assert_eq!(ran.stderr.matches("asked anew").count(), 1, "{what} {ran:#?}");
        assert_eq!(asks(&machine, &service, unit), 0, "{what}: it is whole again");
        assert!(!place.is_symlink());
    }
}

#[test]
fn a_request_that_failed_is_not_kept_and_counts() {
    let forbidden = imds::error(403);
    let service = service().fault("GET", "document", 1, forbidden).start();
    let machine = image();
    let ran = call(&machine, &service, &["early"]);
    assert!(ran.stderr.contains("403"), "{ran:#?}");
    assert_eq!(number_in(&machine, "early.json"), 2, "the token, and the request that failed");
    assert!(!machine.outside(KEPT).exists());
    assert_eq!(asks(&machine, &service, UNITS[1]), 3);

    // What is no document is not kept either: the next unit asks whether it is one now.
    let nonsense = Reply::ok("<html>login</html>");
    let service = self::service().fault("GET", "document", 1, nonsense).start();
    let machine = image();
    let ran = call(&machine, &service, &["user-data", "run", "--boot"]);
    assert_eq!((ran.code, number_in(&machine, "user-data.json")), (1, 2.into()), "{ran:#?}");
    assert_eq!(asks(&machine, &service, UNITS[2]), 3);
}

#[test]
fn an_instance_that_is_set_up_asks_for_all_units_together_what_one_asks() {
    let (machine, service) = (image(), service().start());
    for unit in UNITS {
        well(&machine, &service, unit);
    }
    fs::write(machine.outside(BOOT_ID), "0b6d2a9c-7c3e-4c55-9f0a-000000000002\n").unwrap();
    let asked: Vec<_> = UNITS.iter().map(|unit| asks(&machine, &service, unit)).collect();
    assert_eq!(asked, [3, 0, 0, 0, 0], "{:?}", service.asked());
}
