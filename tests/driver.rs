//! Upgrades of the driver and changes of its branch on real apt and dpkg, with packages that depend on and exclude each
//! other as Ubuntu's, Debian's and NVIDIA's do; what keeps others from upgrading it; the kernel on hold.

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

use apt_machine::{Machine, block};
use debs::Deb;
use gpu_bootstrap::action::apt_package::AptPackage;
use gpu_bootstrap::action::kernel_hold::KernelHold;
use gpu_bootstrap::action::kernel_module::KernelModule;
use gpu_bootstrap::action::{Action, Applied, Check};
use gpu_bootstrap::error::Code;

const PINNED: &[&str] = &["nvidia-*", "libnvidia-*"];

fn driver(names: &[&str], version: &str) -> Action {
    let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    Action::AptPackage(AptPackage {
        packages: owned(names),
        hold: true,
        pinned: owned(PINNED),
        pinned_version: version.to_owned(),
        ..AptPackage::default()
    })
}

/// A branch whose names alone tell it from others, in place of `rival` and of what hangs on that.
fn instead(names: &[&str], rival: &str) -> Action {
    Action::AptPackage(AptPackage {
        packages: names.iter().map(|name| (*name).to_owned()).collect(),
        without: vec![rival.to_owned()],
        hold: true,
        ..AptPackage::default()
    })
}

/// Debian's: branches can be installed beside each other, and each hangs on a package that brings it into use.
fn debian(infix: &str, version: &str) -> Vec<Deb> {
    let base = format!("nvidia-{infix}alternative");
    let exact = format!("{base} (= {version})");
    let part = |name: String| Deb::new(&name, version).field("Depends", &exact);
    let kernel = format!("nvidia-{infix}kernel-support");
    vec![
        Deb::new(&base, version),
        part(kernel.clone()),
        Deb::new(&format!("nvidia-{infix}kernel-dkms"), version).field("Depends", &kernel),
        part(format!("libnvidia-{infix}cuda1")),
    ]
}

/// Ubuntu's: every branch has names of its own, and each excludes the others by a virtual package.
fn ubuntu(branch: &str, version: &str) -> Vec<Deb> {
    let exact = |name: &str| format!("{name} (= {version})");
    let alone =
        |deb: Deb, role: &str| deb.field("Provides", role).field("Conflicts", role).field("Replaces", role);
    let [headless, compute, common, utils, modules] = [
        format!("nvidia-headless-no-dkms-{branch}"),
        format!("libnvidia-compute-{branch}"),
        format!("nvidia-kernel-common-{branch}"),
        format!("nvidia-utils-{branch}"),
        format!("linux-modules-nvidia-{branch}-aws"),
    ];
    let depends = |names: &[&String]| names.iter().map(|n| exact(n)).collect::<Vec<_>>().join(", ");
    vec![
        alone(Deb::new(&compute, version), "libnvidia-compute")
            .file("/usr/lib/x86_64-linux-gnu/libcuda.so.1", version),
        alone(Deb::new(&common, version), "nvidia-kernel-common").file("/etc/nvidia/common", branch),
        alone(Deb::new(&utils, version), "nvidia-utils").field("Depends", &depends(&[&compute])),
        Deb::new(&headless, version).field("Depends", &depends(&[&compute, &common])),
        Deb::new(&modules, "6.8.0-1021.1").field("Depends", &depends(&[&common])),
    ]
}

/// NVIDIA's from branch 580 on: one name for all branches, every part in exactly one version.
fn nvidia(version: &str) -> Vec<Deb> {
    let exact = |name: &str| format!("{name} (= {version})");
    let others = "libnvidia-compute-580-server, libnvidia-compute-535-server";
    vec![
        Deb::new("nvidia-open", version)
            .field("Depends", &[exact("nvidia-driver-cuda"), exact("nvidia-dkms-open")].join(", ")),
        Deb::new("nvidia-driver-cuda", version).field("Depends", &exact("libnvidia-compute")),
        Deb::new("libnvidia-compute", version)
            .field("Conflicts", others)
            .field("Replaces", others)
            .file("/usr/lib/x86_64-linux-gnu/libcuda.so.1", version),
        Deb::new("nvidia-dkms-open", version)
            .field("Conflicts", "nvidia-kernel-common-580-server, nvidia-kernel-common-535-server"),
    ]
}

/// What dpkg has of the driver: `hi nvidia-open 580.82.07-1`, …
fn set(m: &Machine) -> Vec<String> {
    let format = "${db:Status-Abbrev}${Package} ${Version}\\n";
    let output = m.root.command("dpkg-query", &["-W", "-f", format]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let is_driver =
        |line: &&str| line.contains("nvidia") && !line.starts_with("rc") && !line.starts_with("un");
    text.lines()
        .filter(is_driver)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn brings(m: &Machine, action: &Action, why: &str) {
    match block(action.check(&m.host)).unwrap() {
        Check::Needed { why: found } => assert!(found.contains(why), "{why:?} is not in {found:?}"),
        other => panic!("{other:?}"),
    }
    block(action.apply(&m.host)).unwrap();
    let check = block(action.check(&m.host)).unwrap();
    assert_eq!(check.state(), "satisfied", "{check:?}");
}

fn machine() -> Machine {
    let mut all = ubuntu("535-server", "535.247.01-0ubuntu1");
    all.extend(ubuntu("580-server", "580.95.05-0ubuntu1"));
    for version in ["580.82.07-1", "580.95.05-1", "595.45.04-1"] {
        all.extend(nvidia(version));
    }
    all.push(Deb::new("keepme", "1.0"));
    Machine::new(&all)
}

#[test]
fn a_branch_that_could_stay_beside_another_goes_with_all_that_hangs_on_it() {
    let mut all = debian("", "535.309.01-1");
    all.extend(debian("tesla-470-", "470.256.02-1"));
    all.push(Deb::new("nvidia-modprobe", "535.309.01-1"));
    let m = Machine::new(&all);
    let new = instead(
        &["nvidia-kernel-dkms", "libnvidia-cuda1", "nvidia-modprobe"],
        "nvidia-tesla-470-alternative",
    );
    let old = instead(
        &["nvidia-tesla-470-kernel-dkms", "libnvidia-tesla-470-cuda1", "nvidia-modprobe"],
        "nvidia-alternative",
    );
    brings(&m, &new, "nvidia-kernel-dkms is not installed");
    brings(&m, &old, "nvidia-alternative 535.309.01-1 would keep another driver in use");
    assert_eq!(
        set(&m),
        [
            "hi libnvidia-tesla-470-cuda1 470.256.02-1",
            "hi nvidia-modprobe 535.309.01-1",
            "hi nvidia-tesla-470-alternative 470.256.02-1",
            "hi nvidia-tesla-470-kernel-dkms 470.256.02-1",
            "hi nvidia-tesla-470-kernel-support 470.256.02-1",
        ]
    );
    brings(&m, &new, "nvidia-tesla-470-alternative 470.256.02-1 would keep another driver in use");
    assert!(set(&m).iter().all(|line| !line.contains("tesla")), "{:?}", set(&m));
    // Somebody brings the other one back beside it: all that is wanted is there, and one thing more.
    m.root.run("apt-get", &["-qq", "install", "nvidia-tesla-470-alternative"]);
    brings(&m, &new, "nvidia-tesla-470-alternative 470.256.02-1 would keep another driver in use");
    assert!(set(&m).iter().all(|line| !line.contains("tesla")), "{:?}", set(&m));
}

#[test]
fn a_branch_gives_way_to_another_though_all_of_it_is_on_hold() {
    let m = machine();
    m.root.run("apt-get", &["-qq", "install", "keepme"]);
    m.root.run("apt-mark", &["hold", "keepme"]);
    let names = |branch: &str| {
        [
            format!("linux-modules-nvidia-{branch}-aws"),
            format!("nvidia-headless-no-dkms-{branch}"),
            format!("nvidia-utils-{branch}"),
        ]
    };
    let of = |branch: &str| driver(&names(branch).each_ref().map(String::as_str), "");
    let held = |branch: &str, version: &str| {
        vec![
            format!("hi libnvidia-compute-{branch} {version}"),
            format!("ii linux-modules-nvidia-{branch}-aws 6.8.0-1021.1"),
            format!("hi nvidia-headless-no-dkms-{branch} {version}"),
            format!("hi nvidia-kernel-common-{branch} {version}"),
            format!("hi nvidia-utils-{branch} {version}"),
        ]
    };
    for (branch, version) in [
        ("535-server", "535.247.01-0ubuntu1"),
        ("580-server", "580.95.05-0ubuntu1"),
        ("535-server", "535.247.01-0ubuntu1"),
    ] {
        brings(&m, &of(branch), " installed");
        assert_eq!(set(&m), held(branch, version));
    }
    // From the distribution's to NVIDIA's, which has other names.
    m.root.write(
        "/etc/apt/preferences.d/pin",
        "Package: nvidia-* libnvidia-compute\nPin: version 595.*\nPin-Priority: 1001\n",
    );
    brings(&m, &driver(&["nvidia-open"], "595.*"), "nvidia-open is not installed");
    // The modules' package needed the old branch's files, and went with it.
    let names = ["libnvidia-compute", "nvidia-dkms-open", "nvidia-driver-cuda", "nvidia-open"];
    assert_eq!(set(&m), names.map(|name| format!("hi {name} 595.45.04-1")));
    assert_eq!(m.state("keepme"), "hi 1.0");
}

#[test]
fn another_branch_under_the_same_names_is_noticed_and_comes_as_one() {
    let m = machine();
    let pin = |version: &str| {
        let text =
            format!("Package: nvidia-* libnvidia-compute\nPin: version {version}\nPin-Priority: 1001\n");
        m.root.write("/etc/apt/preferences.d/pin", &text);
    };
    for (wanted, version, why) in [
        ("580.82.*", "580.82.07-1", "nvidia-open is not installed"),
        ("580.95.*", "580.95.05-1", "nvidia-open is 580.82.07-1, wanted 580.95.*"),
        ("595.*", "595.45.04-1", "nvidia-open is 580.95.05-1, wanted 595.*"),
        ("580.95.*", "580.95.05-1", "nvidia-open is 595.45.04-1, wanted 580.95.*"),
    ] {
        pin(wanted);
        brings(&m, &driver(&["nvidia-open"], wanted), why);
        let names = ["libnvidia-compute", "nvidia-dkms-open", "nvidia-driver-cuda", "nvidia-open"];
        assert_eq!(set(&m), names.map(|name| format!("hi {name} {version}")));
    }
}

#[test]
fn a_hold_of_somebody_else_s_stays_and_nothing_is_changed() {
    let m = machine();
    m.repo.add(&Deb::new("keepme", "2.0"));
    m.repo.add(
        &Deb::new("nvidia-pushy", "1.0")
            .field("Depends", "keepme (>= 2), nvidia-driver-cuda (= 595.45.04-1)"),
    );
    m.repo.publish(Some(&m.key));
    m.root.run("apt-get", &["-qq", "update"]);
    m.root.run("apt-get", &["-qq", "install", "keepme=1.0"]);
    m.root.run("apt-mark", &["hold", "keepme"]);
    m.root.write(
        "/etc/apt/preferences.d/pin",
        "Package: nvidia-* libnvidia-compute\nPin: version 580.82.*\nPin-Priority: 1001\n",
    );
    block(driver(&["nvidia-open"], "580.82.*").apply(&m.host)).unwrap();
    let before = set(&m);
    let error = block(driver(&["nvidia-pushy"], "").apply(&m.host)).unwrap_err();
    assert_eq!(error.code(), Code::AptUnsolvable, "{error} {:?}", error.causes());
    assert_eq!((set(&m), m.state("keepme")), (before, "hi 1.0".to_owned()));
}

#[test]
fn the_kernel_is_held_with_what_brings_the_next_one() {
    let m = Machine::new(&[
        Deb::new("linux-image-6.5.0-1-oem", "6.5.0-1").file("/boot/vmlinuz-6.5.0-1-oem", "kernel"),
        Deb::new("linux-image-oem", "6.5.0.1").field("Depends", "linux-image-6.5.0-1-oem"),
        Deb::new("linux-oem", "6.5.0.1").field("Depends", "linux-image-oem"),
        Deb::new("linux-libc-dev", "6.5.0-1"),
    ]);
    m.root.run("apt-get", &["-qq", "install", "linux-oem", "linux-libc-dev"]);
    let action = Action::KernelHold(KernelHold { release: "6.5.0-1-oem".into() });
    assert_eq!(block(action.check(&m.host)).unwrap().state(), "needed");
    block(action.apply(&m.host)).unwrap();
    assert_eq!(block(action.check(&m.host)).unwrap().state(), "satisfied");
    for (package, state) in [
        ("linux-image-6.5.0-1-oem", "hi 6.5.0-1"),
        ("linux-image-oem", "hi 6.5.0.1"),
        ("linux-oem", "hi 6.5.0.1"),
        ("linux-libc-dev", "ii 6.5.0-1"),
    ] {
        assert_eq!(m.state(package), state);
    }
}

/// A driver that was loaded with another parameter is taken out only where nobody computes with it.
#[test]
fn a_driver_in_use_is_not_taken_out_in_part() {
    let m = Machine::new(&[]);
    for (path, text) in [
        ("/sys/module/nvidia/refcnt", "1\n"),
        ("/sys/module/nvidia/holders/nvidia_uvm", ""),
        ("/sys/module/nvidia_uvm/refcnt", "2\n"), // somebody has /dev/nvidia-uvm open
        ("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n"),
        ("/proc/driver/nvidia/params", "EnableGpuFirmware: 1\n"),
        ("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n"),
        ("/usr/local/sbin/rmmod", "#!/bin/sh\necho \"$1\" >>/removed\n"),
    ] {
        m.root.write(path, text);
    }
    let program = m.root.at("/usr/local/sbin/rmmod");
    std::fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let action = Action::KernelModule(KernelModule {
        modules: vec!["nvidia".into()],
        parameters: vec!["EnableGpuFirmware=0".into()],
    });
    let applied = block(action.apply(&m.host)).unwrap();
    assert!(matches!(applied, Applied::RebootNeeded { .. }), "{applied:?}");
    assert!(!m.root.at("/removed").exists(), "a module of a driver in use was asked to go");
    // Free now: all of it is asked to go.
    m.root.write("/sys/module/nvidia_uvm/refcnt", "0\n");
    drop(block(action.apply(&m.host)));
    assert_eq!(m.root.read("/removed"), "nvidia_uvm\nnvidia\n");
}
