//! The instance store, on real block devices: images behind loop devices that sysfs calls `nvme1n1`, with real mkfs, blkid
//! and mount, inside a disposable root and mount namespaces of their own. systemd and mdadm are stand-ins; docs/instance.md
//! says what only EC2 can prove.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/root.rs"]
mod root;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use gpu_bootstrap::action::{Action, Check};
use gpu_bootstrap::error::Code;
use gpu_bootstrap::host::Host;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use root::Root;
use serde_json::Value;

const MODEL: &str = "Amazon EC2 NVMe Instance Storage        \n";
const EBS: &str = "Amazon Elastic Block Store              \n";
/// What the root needs besides the base.
const PACKAGES: &[&str] = &["e2fsprogs", "mount", "xfsprogs"];
/// Small, so that every byte can be compared.
const BYTES: u64 = 48 << 20;
/// Less is none to mkfs.xfs.
const BYTES_FOR_XFS: u64 = 320 << 20;
const CONFIG: &str = "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n\
                      [instance]\nstore = \"/mnt\"\n";

/// Plays systemd: mounts what a unit names, by its label, and says whether it is mounted.
const SYSTEMCTL: &str = r#"#!/bin/sh
for unit; do :; done
file="/etc/systemd/system/$unit"
where=$(sed -n 's/^Where=//p' "$file"); label=$(sed -n 's|^What=/dev/disk/by-label/||p' "$file")
case $1 in
show)
    state=inactive; if grep -q " $where " /proc/self/mountinfo; then state=active; fi
    enabled=disabled; if [ -e "/run/enabled-$unit" ]; then enabled=enabled; fi
    printf 'LoadState=loaded\nActiveState=%s\nUnitFileState=%s\n' "$state" "$enabled" ;;
enable)
    for device in /dev/nvme*n1; do
        if [ "$(blkid -p -s LABEL -o value "$device")" = "$label" ]; then
            mkdir -p "$where"; : >"/run/enabled-$unit"
            exec mount -o "$(sed -n 's/^Options=//p' "$file")" "$device" "$where"
        fi
    done
    echo "no device has the label $label" >&2; exit 1 ;;
esac
"#;

/// A machine with a GPU and disks; everything vanishes with it.
struct Machine {
    root: Root,
    images: tempfile::TempDir,
    loops: Vec<(String, String)>,
}

impl Machine {
    fn new() -> Self {
        let root = Root::with(PACKAGES);
        let pci = "/sys/bus/pci/devices/0000:00:1e.0";
        for (file, value) in [("vendor", "0x10de"), ("device", "0x1eb8"), ("class", "0x030200")] {
            root.write(&format!("{pci}/{file}"), value);
        }
        root.write("/etc/gpu-bootstrap/store.toml", CONFIG);
        root.write("/run/systemd/system/.keep", "");
        program(&root, "/usr/local/sbin/systemctl", SYSTEMCTL);
        fs::copy(env!("CARGO_BIN_EXE_gpu-bootstrap"), root.at("/usr/local/bin/gpu-bootstrap")).unwrap();
        fs::create_dir_all(root.at("/proc")).unwrap();
        run(Command::new("mount").args(["-t", "proc", "proc"]).arg(root.at("/proc")));
        Self { root, images: tempfile::tempdir().unwrap(), loops: Vec::new() }
    }

    /// Adds a blank disk.
    fn disk(self, name: &str, model: &str) -> Self {
        self.disk_of(BYTES, name, model)
    }

    fn disk_of(mut self, bytes: u64, name: &str, model: &str) -> Self {
        let image = self.images.path().join(name);
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        let number = fs::metadata(&device).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let node = self.root.at(&format!("/dev/{name}"));
        mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor)).unwrap();
        let dir = format!("/sys/class/block/{name}");
        self.root.write(&format!("{dir}/device/model"), model);
        self.root.write(&format!("{dir}/size"), &format!("{}\n", bytes / 512));
        self.root.write(&format!("{dir}/dev"), &format!("{major}:{minor}\n"));
        fs::create_dir_all(self.root.at(&format!("{dir}/holders"))).unwrap();
        self.loops.push((name.into(), device));
        self
    }

    fn device(&self, name: &str) -> &str {
        &self.loops.iter().find(|(known, _)| known == name).unwrap().1
    }

    /// The run of the real binary, inside the root: (exit code, what it said).
    fn run(&self) -> (i32, String) {
        let output = self.root.command("gpu-bootstrap", &["run", "--no-imds"]).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), said)
    }

    fn converges(&self) -> String {
        let (code, said) = self.run();
        assert_eq!(code, 0, "{said}");
        said
    }

    fn receipt(&self) -> Value {
        serde_json::from_str(&self.root.read("/var/lib/gpu-bootstrap/receipt.json")).unwrap()
    }

    /// What is mounted at a path of the root: (file system, its label).
    fn mounted(&self, path: &str) -> Option<(String, String)> {
        let mounts = self.root.run("cat", &["/proc/self/mountinfo"]);
        let line = mounts.lines().rfind(|l| l.split(' ').nth(4) == Some(path))?;
        let mut after = line.split_once(" - ")?.1.split(' ');
        let (kind, source) = (after.next()?.to_owned(), after.next()?);
        let label = self.root.run("blkid", &["-p", "-s", "LABEL", "-o", "value", source]);
        Some((kind, label.trim().to_owned()))
    }

    /// A stop and a start: nothing is mounted, the devices are blank.
    fn stop_and_start(&self) {
        let _ = self.root.command("umount", &["/mnt"]).output();
        for (name, device) in &self.loops {
            let image = fs::File::options().write(true).open(self.images.path().join(name)).unwrap();
            image.set_len(0).unwrap();
            image.set_len(BYTES).unwrap();
            run(Command::new("blockdev").args(["--flushbufs", device]));
        }
    }

    /// Everything that a device holds.
    fn bytes(&self, name: &str) -> Vec<u8> {
        run(Command::new("blockdev").args(["--flushbufs", self.device(name)]));
        fs::read(self.images.path().join(name)).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for path in ["/mnt", "/proc"] {
            let _ = Command::new("umount").arg(self.root.at(path)).stderr(Stdio::null()).status();
        }
        for (_, device) in &self.loops {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn program(root: &Root, path: &str, text: &str) {
    root.write(path, text);
    fs::set_permissions(root.at(path), fs::Permissions::from_mode(0o755)).unwrap();
}

fn pair(kind: &str, label: &str) -> (String, String) {
    (kind.into(), label.into())
}

#[test]
fn a_blank_device_is_formatted_mounted_kept_and_made_anew_after_a_stop() {
    let machine = Machine::new().disk("nvme0n1", EBS).disk("nvme1n1", MODEL);
    let volume = machine.bytes("nvme0n1");
    machine.converges();
    assert_eq!(machine.mounted("/mnt"), Some(pair("ext4", "gpu-store")));
    let unit = machine.root.read("/etc/systemd/system/mnt.mount");
    assert!(unit.contains("What=/dev/disk/by-label/gpu-store\nWhere=/mnt\n"), "{unit}");

    machine.root.write("/mnt/data", "of the user's");
    let receipt = machine.receipt();
    let said = machine.converges();
    assert!(said.contains("ok       instance store: /dev/nvme1n1 has our file system"), "{said}");
    assert_eq!(machine.receipt(), receipt);
    assert_eq!(machine.root.read("/mnt/data"), "of the user's");

    // A reboot: the file system is whole, and only mounted.
    machine.root.run("umount", &["/mnt"]);
    machine.converges();
    assert_eq!(machine.root.read("/mnt/data"), "of the user's");

    machine.stop_and_start();
    machine.converges();
    assert_eq!(machine.mounted("/mnt"), Some(pair("ext4", "gpu-store")));
    assert!(!machine.root.at("/mnt/data").exists());
    assert!(machine.bytes("nvme0n1") == volume, "the EBS volume was written to");
}

#[test]
fn a_file_system_that_was_not_finished_is_made_anew() {
    let machine = Machine::new().disk("nvme1n1", MODEL);
    machine.root.run("mkfs.ext4", &["-q", "-L", "gpu-making", "/dev/nvme1n1"]);
    let said = machine.converges();
    assert!(said.contains("done     instance store"), "{said}");
    assert_eq!(machine.mounted("/mnt"), Some(pair("ext4", "gpu-store")));
}

/// Runs over a machine of which something is in use: one error, and not a byte of the devices changes.
fn left_alone(machine: &Machine, words: &str) {
    let before: Vec<_> = machine.loops.iter().map(|(name, _)| machine.bytes(name)).collect();
    let (code, said) = machine.run();
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(words) && said.contains("[store-in-use]") && said.contains("what to do: "),
        "{words}: {said}"
    );
    for ((name, _), before) in machine.loops.iter().zip(before) {
        assert!(machine.bytes(name) == before, "{words}: {name} was written to");
    }
}

#[test]
fn what_is_not_blank_and_not_ours_is_never_touched() {
    let machine = Machine::new().disk("nvme1n1", MODEL);
    machine.root.run("mkfs.ext4", &["-q", "-L", "data", "/dev/nvme1n1"]);
    left_alone(&machine, "/dev/nvme1n1 has a signature (ext4, called \"data\"); it was left as it is");
    machine.stop_and_start();
    machine.root.run("mkswap", &["/dev/nvme1n1"]);
    left_alone(&machine, "has a signature (swap)");
    machine.stop_and_start();
    // An empty partition table, of the kind that fdisk writes.
    let mut table = vec![0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(machine.root.at("/table"), table).unwrap();
    machine.root.run("dd", &["if=/table", "of=/dev/nvme1n1", "conv=notrunc,fsync", "status=none"]);
    left_alone(&machine, "has a partition table (dos)");
    machine.stop_and_start();
    // What the kernel has of it counts, whatever its bytes say.
    machine.root.write("/sys/class/block/nvme1n1/nvme1n1p1/partition", "1\n");
    left_alone(&machine, "has a partition (nvme1n1p1)");
    fs::remove_dir_all(machine.root.at("/sys/class/block/nvme1n1/nvme1n1p1")).unwrap();
    fs::create_dir_all(machine.root.at("/sys/class/block/nvme1n1/holders/dm-0")).unwrap();
    left_alone(&machine, "is used by dm-0");
}

#[test]
fn a_directory_that_holds_something_is_not_hidden() {
    let machine = Machine::new().disk("nvme1n1", MODEL);
    machine.root.write("/mnt/precious", "x");
    left_alone(&machine, "/mnt is not empty");
    fs::remove_file(machine.root.at("/mnt/precious")).unwrap();
    machine.root.run("mount", &["-t", "tmpfs", "somebody", "/mnt"]);
    left_alone(&machine, "/mnt is where somebody is mounted");
}

#[test]
fn an_instance_without_a_store_is_told_so_and_nothing_is_done() {
    let machine = Machine::new().disk("nvme1n1", EBS);
    let before = machine.bytes("nvme1n1");
    let said = machine.converges();
    assert!(said.contains("notice   this instance has no instance store; /mnt is left as it is"), "{said}");
    assert!(!machine.root.at("/etc/systemd/system/mnt.mount").exists());
    assert!(machine.bytes("nvme1n1") == before);
    let facts = machine.root.run("gpu-bootstrap", &["detect", "--no-imds", "--json"]);
    let facts: Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["disk"]["instance_store"]["value"], Value::Array(Vec::new()));
}

/// The action as a step file has it.
fn action(file_system: &str) -> Action {
    serde_json::from_value(serde_json::json!({
        "instance-store": { "path": "/mnt", "file-system": file_system }
    }))
    .unwrap()
}

#[tokio::test]
async fn xfs_is_made_under_another_label_first_too() {
    let machine = Machine::new().disk_of(BYTES_FOR_XFS, "nvme1n1", MODEL);
    let host = Host::new(machine.root.path().to_owned());
    machine.root.run("mkfs.xfs", &["-q", "-L", "gpu-making", "/dev/nvme1n1"]);
    let xfs = action("xfs");
    assert!(matches!(xfs.check(&host).await.unwrap(), Check::Needed { .. }));
    xfs.apply(&host).await.unwrap();
    assert!(matches!(xfs.check(&host).await.unwrap(), Check::Satisfied { .. }));
    let found = machine.root.run("blkid", &["-p", "-o", "export", "/dev/nvme1n1"]);
    assert!(found.contains("TYPE=xfs\n") && found.contains("LABEL=gpu-store\n"), "{found}");
    // One of the other kind is ours all the same, and may hold something.
    assert!(matches!(action("ext4").check(&host).await.unwrap(), Check::Satisfied { .. }));
}

/// What blkid, mdadm, wipefs and mkfs do to devices, in files: `/state/NAME` is what blkid says of it. All calls are kept.
const STAND_INS: &str = r#"#!/bin/sh
name=${0##*/}
[ "$name" = blkid ] || echo "$name $*" >>/calls
for last; do :; done
device=${last##*/}
array() { # of these devices
    for member; do mkdir -p "/sys/class/block/${member##*/}/holders/md127" "/sys/class/block/md127/slaves/${member##*/}"; done
    mkdir -p /sys/class/block/md127/holders; echo 2048 >/sys/class/block/md127/size; : >/dev/md127
}
members() { for word; do case $word in /dev/nvme*) echo "$word" ;; esac; done; }
case $name in
blkid) [ -s "/state/$device" ] || exit 2; cat "/state/$device" ;;
wipefs) rm -f "/state/$device" ;;
mkfs.ext4) printf 'LABEL=gpu-making\nTYPE=ext4\n' >"/state/$device" ;;
e2label) device=${1##*/}; printf 'LABEL=gpu-store\nTYPE=ext4\n' >"/state/$device" ;;
mdadm)
    case $1 in
    --create) for member in $(members "$@"); do printf 'LABEL=any:gpu-store\nTYPE=linux_raid_member\n' >"/state/${member##*/}"; done
        array $(members "$@") ;;
    --assemble) array $(members "$@") ;;
    --stop) rm -rf "/sys/class/block/$device" /sys/class/block/nvme*/holders/"$device" ;;
    esac ;;
esac
"#;

/// A root in which programs are stand-ins and devices are files.
fn simulated(devices: &[&str]) -> Root {
    let root = Root::with(PACKAGES);
    for name in ["blkid", "wipefs", "mkfs.ext4", "e2label", "mdadm"] {
        program(&root, &format!("/usr/local/sbin/{name}"), STAND_INS);
    }
    for name in devices {
        root.write(&format!("/sys/class/block/{name}/device/model"), MODEL);
        root.write(&format!("/sys/class/block/{name}/size"), "2048\n");
        fs::create_dir_all(root.at(&format!("/sys/class/block/{name}/holders"))).unwrap();
        root.write(&format!("/dev/{name}"), "");
    }
    root.write("/calls", "");
    root.write("/proc/self/mountinfo", "");
    fs::create_dir_all(root.at("/state")).unwrap();
    root
}

/// Applies it between its two checks, and returns the calls: program and first argument.
async fn applied(root: &Root) -> Vec<String> {
    let (host, store) = (Host::new(root.path().to_owned()), action("ext4"));
    root.write("/calls", "");
    let before = store.check(&host).await.unwrap();
    assert!(matches!(before, Check::Needed { .. }), "{before:?}");
    assert_eq!(root.read("/calls"), "", "a check changes nothing");
    store.apply(&host).await.unwrap();
    let after = store.check(&host).await.unwrap();
    assert_eq!(after, Check::Satisfied { evidence: "/dev/md127 has our file system".into() });
    let first_two = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    root.read("/calls").lines().map(first_two).collect()
}

const DEVICES: &[&str] = &["nvme1n1", "nvme2n1", "nvme10n1"];
const MEMBER: &str = "LABEL=any:gpu-store\nTYPE=linux_raid_member\n";

#[tokio::test]
async fn several_devices_become_one_array_in_the_order_of_their_numbers() {
    let root = simulated(DEVICES);
    assert_eq!(applied(&root).await, ["mdadm --create", "mkfs.ext4 -q", "e2label /dev/md127"]);
    let calls = root.read("/calls");
    assert!(calls.contains("--level=0 --metadata=1.2"), "{calls}");
    assert!(calls.contains("--raid-devices=3 /dev/nvme1n1 /dev/nvme2n1 /dev/nvme10n1\n"), "{calls}");
}

#[tokio::test]
async fn an_array_that_is_there_is_put_together_and_not_made() {
    let root = simulated(DEVICES);
    for name in DEVICES {
        root.write(&format!("/state/{name}"), MEMBER);
    }
    root.write("/state/md127", "LABEL=gpu-store\nTYPE=ext4\n");
    assert_eq!(applied(&root).await, ["mdadm --assemble"]);
    // The kernel took two of three by itself.
    let root = simulated(DEVICES);
    for name in DEVICES {
        root.write(&format!("/state/{name}"), MEMBER);
    }
    root.write("/state/md127", "LABEL=gpu-store\nTYPE=ext4\n");
    for name in &DEVICES[..2] {
        fs::create_dir_all(root.at(&format!("/sys/class/block/{name}/holders/md127"))).unwrap();
        fs::create_dir_all(root.at(&format!("/sys/class/block/md127/slaves/{name}"))).unwrap();
    }
    assert_eq!(applied(&root).await, ["mdadm --stop", "mdadm --assemble"]);
}

#[tokio::test]
async fn an_array_that_was_half_made_is_made_anew() {
    let root = simulated(DEVICES);
    root.write("/state/nvme1n1", MEMBER);
    assert_eq!(
        applied(&root).await,
        ["wipefs --all", "mdadm --create", "mkfs.ext4 -q", "e2label /dev/md127"]
    );
    assert!(root.read("/calls").starts_with("wipefs --all --quiet /dev/nvme1n1\n"));
}

#[tokio::test]
async fn one_foreign_device_among_several_and_nothing_is_touched() {
    let root = simulated(DEVICES);
    root.write("/state/nvme10n1", "TYPE=ext4\n");
    let (host, store) = (Host::new(root.path().to_owned()), action("ext4"));
    for error in [store.check(&host).await.unwrap_err(), store.apply(&host).await.unwrap_err()] {
        assert_eq!(error.code(), Code::StoreInUse);
        assert!(error.message().starts_with("/dev/nvme10n1 has a signature (ext4)"), "{error}");
    }
    assert_eq!(root.read("/calls"), "");
}

/// systemd itself reads the unit as it is meant: nothing that boots waits for it.
#[test]
fn systemd_takes_the_unit() {
    let machine = Machine::new().disk("nvme1n1", MODEL);
    machine.converges();
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("mnt.mount");
    fs::copy(machine.root.at("/etc/systemd/system/mnt.mount"), &unit).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours = said.lines().filter(|line| line.contains("mnt.mount")).collect::<Vec<_>>();
    assert!(ours.is_empty(), "{said}");
    assert!(Path::new("/usr/bin/systemd-analyze").exists());
}
