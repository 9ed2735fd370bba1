//! `disk_setup`, `fs_setup`, `mounts` and `swap` of `#cloud-config` on real block devices: images behind loop devices, with real
//! sfdisk, partx, mkfs, blkid, mkswap, mount and findmnt in a disposable root. swapon is a stand-in: swap belongs to the whole
//! machine.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/root.rs"]
mod root;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use root::Root;

const PACKAGES: &[&str] = &["e2fsprogs", "fdisk", "mount", "xfsprogs"];
const MB: u64 = 1 << 20;

/// A machine with blank disks; everything vanishes with it.
struct Machine {
    root: Root,
    images: tempfile::TempDir,
    /// `/dev/loop3`
    disks: Vec<String>,
}

impl Machine {
    fn new(sizes: &[u64]) -> Self {
        let root = Root::with(PACKAGES);
        fs::copy(env!("CARGO_BIN_EXE_gpu-bootstrap"), root.at("/usr/local/bin/gpu-bootstrap")).unwrap();
        root.write("/etc/fstab", "# static\nproc /proc proc defaults 0 0\n");
        program(&root, "swapon", "echo \"swapon $*\" >>/asked; echo \"$1 file 1 0 -2\" >>/swaps");
        for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
            fs::create_dir_all(root.at(path)).unwrap();
            run(Command::new("mount").args(["-t", kind, kind]).arg(root.at(path)));
        }
        // What the kernel has as swap is the whole machine's; the stand-in's is this one's.
        root.write("/swaps", "Filename Type Size Used Priority\n");
        run(Command::new("mount").args(["--bind"]).arg(root.at("/swaps")).arg(root.at("/proc/swaps")));
        let mut machine = Self { root, images: tempfile::tempdir().unwrap(), disks: Vec::new() };
        for (number, size) in sizes.iter().enumerate() {
            let image = machine.images.path().join(number.to_string());
            fs::File::create(&image).unwrap().set_len(*size).unwrap();
            let device =
                run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
            machine.disks.push(device);
        }
        machine
    }

    /// `user-data run` inside the root: (exit code, what it said).
    fn act(&self, user_data: &str) -> (i32, String) {
        self.root.write("/given", user_data);
        let args = ["user-data", "run", "--no-imds", "--again", "--file", "/given"];
        let output = self.root.command("gpu-bootstrap", &args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    #[track_caller]
    fn apply(&self, user_data: &str) -> String {
        let (code, said) = self.act(user_data);
        assert_eq!(code, 0, "{said}");
        said
    }

    /// It fails with these words, and not a byte of any disk changes.
    #[track_caller]
    fn is_refused(&self, user_data: &str, words: &str) {
        let before = self.bytes();
        let (code, said) = self.act(user_data);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(words) && said.contains("what to do: "), "{words}: {said}");
        assert!(self.bytes() == before, "{words}: a disk was written to");
    }

    fn blkid(&self, device: &str) -> String {
        let args = ["-p", "-o", "value", "-s", "TYPE", "-s", "LABEL", "-s", "PTTYPE", device];
        let output = self.root.command("blkid", &args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words: Vec<_> = text.split_whitespace().collect();
        words.sort_unstable();
        words.join(" ")
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        let read = |(number, device): (usize, &String)| {
            run(Command::new("blockdev").args(["--flushbufs", device]));
            fs::read(self.images.path().join(number.to_string())).unwrap()
        };
        self.disks.iter().enumerate().map(read).collect()
    }

    fn is_mounted(&self, path: &str) -> bool {
        self.root.run("cat", &["/proc/self/mountinfo"]).lines().any(|l| l.split(' ').nth(4) == Some(path))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for path in ["/data", "/more", "/proc/swaps", "/proc", "/sys", "/dev"] {
            let _ = Command::new("umount").arg(self.root.at(path)).stderr(Stdio::null()).status();
        }
        for device in &self.disks {
            let _ = Command::new("partx").args(["--delete", device]).stderr(Stdio::null()).status();
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn program(root: &Root, name: &str, text: &str) {
    let path = format!("/usr/local/sbin/{name}");
    root.write(&path, &format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(root.at(&path), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_blank_disk_is_divided_formatted_and_mounted_and_a_second_time_nothing_changes() {
    let machine = Machine::new(&[480 * MB]);
    let disk = &machine.disks[0];
    let user_data = format!(
        "#cloud-config\ndevice_aliases: {{store: {disk}}}\ndisk_setup:\n  store: {{table_type: gpt, layout: [20, [5, 82], 75]}}\n\
         fs_setup:\n- {{device: store.1, filesystem: ext4, label: data}}\n- {{device: store.2, filesystem: swap, label: more}}\n\
         - {{device: store, partition: 3, filesystem: xfs}}\n\
         mounts:\n- [LABEL=data, /data]\n- [store.3, /more, xfs, noatime]\n- [store.2, none, swap, sw, 0, 0]\n\
         swap: {{filename: /data/swap, size: 8M}}\n"
    );
    machine.apply(&user_data);
    assert_eq!(machine.blkid(disk), "gpt");
    assert_eq!(machine.blkid(&format!("{disk}p1")), "data ext4");
    assert_eq!(machine.blkid(&format!("{disk}p2")), "more swap");
    assert_eq!(machine.blkid(&format!("{disk}p3")), "xfs");
    assert!(machine.is_mounted("/data") && machine.is_mounted("/more"));
    let fstab = machine.root.read("/etc/fstab");
    let ours: Vec<_> = fstab.lines().filter(|line| line.contains("comment=cloudconfig")).collect();
    assert_eq!(
        ours,
        [
            "LABEL=data\t/data\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2",
            &format!("{disk}p3\t/more\txfs\tnoatime,nofail,comment=cloudconfig\t0\t2"),
            &format!("{disk}p2\tnone\tswap\tsw,nofail,comment=cloudconfig\t0\t0"),
            "/data/swap\tnone\tswap\tsw,comment=cloudconfig\t0\t0",
        ]
    );
    assert_eq!(machine.root.read("/asked"), format!("swapon {disk}p2\nswapon /data/swap\n"));
    let swap = fs::metadata(machine.root.at("/data/swap")).unwrap();
    assert_eq!((swap.len(), swap.permissions().mode() & 0o7777), (8 * MB, 0o600));
    assert_eq!(machine.blkid("/data/swap"), "swap");

    machine.root.write("/data/mine", "of the user's");
    let said = machine.apply(&user_data);
    assert!(said.contains("store has these partitions already"), "{said}");
    assert_eq!(machine.root.read("/etc/fstab"), fstab);
    assert_eq!(machine.root.read("/data/mine"), "of the user's");
    assert_eq!(machine.root.read("/asked").lines().count(), 2, "swap is switched on once");
}

#[test]
fn what_holds_something_is_left_alone_unless_overwrite_is_said() {
    let machine = Machine::new(&[40 * MB]);
    let disk = machine.disks[0].clone();
    machine.root.run("mkfs.ext4", &["-q", "-L", "old", &disk]);
    let table = |more: &str| {
        format!("#cloud-config\ndisk_setup:\n  {disk}: {{table_type: mbr, layout: true{more}}}\n")
    };
    let system = |more: &str| {
        format!("#cloud-config\nfs_setup:\n- {{device: {disk}, filesystem: ext4, label: new{more}}}\n")
    };
    machine.is_refused(&table(""), "holds ext4, called \"old\"; it was left as it is");
    machine.is_refused(&system(", partition: none"), "holds ext4, called \"old\"; it was left as it is");
    machine.is_refused(&system(", partition: auto"), "holds ext4, called \"old\"; it was left as it is");
    let any = machine.apply(&system(""));
    assert!(any.contains("has its ext4 already"), "any takes what is there: {any}");
    assert_eq!(machine.blkid(&disk), "ext4 old");
    machine.apply(&system(", partition: none, overwrite: true"));
    assert_eq!(machine.blkid(&disk), "ext4 new");
    machine.apply(&table(", overwrite: true"));
    assert_eq!((machine.blkid(&disk), machine.blkid(&format!("{disk}p1"))), ("dos".into(), String::new()));
    machine.is_refused(&system(", partition: 2"), "has no partition 2");
    machine.is_refused(&system(", partition: none"), "has a partition table");
    machine.apply(&system(", partition: 1"));
    assert_eq!(machine.blkid(&format!("{disk}p1")), "ext4 new");
}

#[test]
fn what_is_in_use_is_never_touched() {
    let machine = Machine::new(&[40 * MB]);
    let disk = machine.disks[0].clone();
    machine.root.run("mkfs.ext4", &["-q", "-L", "old", &disk]);
    fs::create_dir_all(machine.root.at("/data")).unwrap();
    machine.root.run("mount", &["-o", "ro", &disk, "/data"]);
    let table = format!("#cloud-config\ndisk_setup: {{{disk}: {{layout: true, overwrite: true}}}}\n");
    let system = format!(
        "#cloud-config\nfs_setup: [{{device: {disk}, partition: none, filesystem: xfs, overwrite: true}}]\n"
    );
    machine.is_refused(&table, "is mounted at /data; it was left as it is");
    machine.is_refused(&system, "is mounted at /data; it was left as it is");
    machine.root.run("umount", &["/data"]);
    machine.root.write("/swaps", &format!("Filename\n{disk} partition 1 0 -2\n"));
    machine.is_refused(&system, "is swap; it was left as it is");
}

#[test]
fn a_file_system_that_was_cut_off_and_a_table_that_is_empty_are_made_anew() {
    let machine = Machine::new(&[40 * MB]);
    let disk = machine.disks[0].clone();
    machine.root.run("mkfs.ext4", &["-q", "-L", "gpu-making", &disk]);
    let system = format!(
        "#cloud-config\nfs_setup: [{{device: {disk}, partition: auto, filesystem: ext4, label: data}}]\n"
    );
    machine.apply(&system);
    assert_eq!(machine.blkid(&disk), "data ext4");
    machine.root.run("wipefs", &["--all", "--quiet", &disk]);
    machine
        .root
        .run("sh", &["-c", &format!("echo label: gpt | sfdisk -q --no-reread --no-tell-kernel {disk}")]);
    assert_eq!(machine.blkid(&disk), "gpt");
    machine.apply(&system);
    assert_eq!(machine.blkid(&disk), "data ext4");
}

#[test]
fn a_mount_that_fails_leaves_an_fstab_that_boots() {
    let machine = Machine::new(&[40 * MB]);
    let disk = machine.disks[0].clone();
    let before = machine.root.read("/etc/fstab");
    let (code, said) = machine.act(&format!(
        "#cloud-config\nmounts:\n- [{disk}, /data, auto, defaults]\n- [/dev/sdz, /more]\n- [ephemeral0, /scratch]\n- [none, /tmpfs, tmpfs, size=1M]\n"
    ));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("mounts: 2 failed; the first: mounts: there is no /dev/sdz"), "{said}");
    let fstab = machine.root.read("/etc/fstab");
    assert_eq!(
        fstab.strip_prefix(&before).unwrap(),
        format!(
            "{disk}\t/data\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2\n\
             /dev/sdz\t/more\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2\n\
             none\t/tmpfs\ttmpfs\tsize=1M,nofail,comment=cloudconfig\t0\t2\n"
        )
    );
    assert!(machine.is_mounted("/tmpfs") && !machine.root.at("/scratch").exists());
    machine.root.run("umount", &["/tmpfs"]);
    assert!(!Path::new(&machine.root.at("/run/gpu-bootstrap/fstab")).exists());
}

#[test]
fn a_swap_file_is_made_over_nothing() {
    let machine = Machine::new(&[]);
    machine.root.write("/precious", "of the user's");
    machine.is_refused(
        "#cloud-config\nswap: {filename: /precious, size: 4M}\n",
        "/precious is there, and is no swap",
    );
    assert_eq!(machine.root.read("/precious"), "of the user's");
    program(&machine.root, "swapon", "echo 'Operation not permitted' >&2; exit 255");
    let (code, said) = machine.act("#cloud-config\nswap: {filename: /srv/swap, size: 4M}\n");
    assert!(code == 1 && said.contains("/srv/swap cannot be swap"), "{said}");
    assert!(!machine.root.at("/srv/swap").exists() && !machine.root.read("/etc/fstab").contains("/srv/swap"));
}

/// A program that does its work, and takes the agent with it the first time.
fn kills(root: &Root, name: &str) {
    let text = format!(
        "/usr/sbin/{name} \"$@\" || exit\nif [ ! -e /killed-{name} ]; then : >/killed-{name}; kill -9 $PPID; fi"
    );
    program(root, name, &text);
}

#[test]
fn killed_behind_each_step_it_comes_to_the_same_end() {
    let machine = Machine::new(&[40 * MB]);
    let disk = &machine.disks[0];
    let programs = ["sfdisk", "mkfs.ext4", "e2label", "mkswap"];
    for name in programs {
        kills(&machine.root, name);
    }
    let user_data = format!(
        "#cloud-config\ndisk_setup: {{{disk}: {{table_type: gpt, layout: true}}}}\n\
         fs_setup: [{{device: {disk}, partition: 1, filesystem: ext4, label: data}}]\n\
         mounts: [[LABEL=data, /data]]\nswap: {{filename: /data/swap, size: 4M}}\n"
    );
    for name in programs {
        let (code, said) = machine.act(&user_data);
        assert_eq!(code, -1, "{name}: {said}");
        assert!(machine.root.at(&format!("/killed-{name}")).exists(), "{name}: {said}");
        assert!(!machine.root.at("/data/swap").exists(), "{name}: it is there only when it is whole");
    }
    machine.apply(&user_data);
    assert_eq!(machine.blkid(&format!("{disk}p1")), "data ext4");
    assert_eq!(machine.blkid("/data/swap"), "swap");
    let mut left: Vec<_> =
        fs::read_dir(machine.root.at("/data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lost+found", "swap"], "what was half made is gone");
    let fstab = machine.root.read("/etc/fstab");
    assert_eq!(fstab.lines().filter(|line| line.contains("comment=cloudconfig")).count(), 2, "{fstab}");
}
