//! `#cloud-config` without cloud-init: the real program over scratch machines. `tests/e2e/cloud-config` compares it with
//! cloud-init itself, with the real tools for users; here those only say what they were asked.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use machine::{Machine, Ran, binary, ran};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SUDOERS: &str = "/etc/sudoers.d/90-gpu-bootstrap-users";

/// A machine with a shell, a login user, and tools that write down what they were asked.
fn image() -> Machine {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root, for chroot and owners: start it by tests/run"
    );
    let machine = Machine::debian12()
        .file("/dev/null", "")
        .file(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nadmin:x:1001:1002::/home/admin:/bin/sh\n",
        )
        .file("/etc/group", "root:x:0:\nadm:x:4:\nadmin:x:1002:\n")
        .file("/etc/hostname", "before\n")
        .file("/usr/share/zoneinfo/Europe/Berlin", "TZif")
        .dir("/root")
        .dir("/home/admin");
    machine.bring("dash");
    machine.bring("cat");
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    fs::set_permissions(machine.root(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(machine.outside("/home/admin"), Some(1001), Some(1002)).unwrap();
    machine.tool(
        "useradd",
        "for name; do :; done; echo \"$name:x:1500:1500::/home/$name:/bin/sh\" >>/etc/passwd",
    );
    machine.tool("groupadd", "echo \"$1:x:1500:\" >>/etc/group");
    for name in ["usermod", "passwd", "apt-get"] {
        machine.tool(name, "");
    }
    machine.tool("chpasswd", "cat >>/secrets");
    machine
}

fn act(machine: &Machine, user_data: &str, args: &[&str]) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, user_data).unwrap();
    let mut command = binary();
    command
        .args(["user-data", "run", "--no-imds", "--root"])
        .arg(machine.root())
        .arg("--file")
        .arg(file.path())
        .args(args);
    ran(&mut command)
}

/// Acts on the user-data, which must exit with 0.
#[track_caller]
fn apply(machine: &Machine, user_data: &str) -> Ran {
    let ran = act(machine, user_data, &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

fn text(machine: &Machine, path: &str) -> String {
    fs::read_to_string(machine.outside(path)).unwrap_or_default()
}

fn owner(machine: &Machine, path: &str) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(machine.outside(path)).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

#[test]
fn all_of_it_is_done_once_in_order_and_boot_commands_at_every_boot() {
    let user_data = format!(
        "#cloud-config\nruncmd:\n- cat /etc/app/a /srv/late >>/marks\nwrite_files:\n- {{path: /srv/late, content: \"late\\n\", defer: true}}\n\
         - path: /etc/app/a\n  content: |\n    early\n  owner: daemon:adm\n  permissions: '0640'\nbootcmd:\n- [sh, -c, 'echo boot >>/marks']\n\
         hostname: gpu.example.com\ntimezone: Europe/Berlin\nssh_authorized_keys:\n- {KEY} me\n"
    );
    let machine = image();
    apply(&machine, &user_data);
    assert_eq!(text(&machine, "/marks"), "boot\nearly\nlate\n");
    assert_eq!(owner(&machine, "/etc/app/a"), (1, 4, 0o640));
    assert_eq!(text(&machine, "/etc/hostname"), "gpu\n");
    assert_eq!(text(&machine, "/etc/timezone"), "Europe/Berlin\n");
    assert_eq!(
        fs::read_link(machine.outside("/etc/localtime")).unwrap().to_str(),
        Some("/usr/share/zoneinfo/Europe/Berlin")
    );
    assert_eq!(text(&machine, "/home/admin/.ssh/authorized_keys"), format!("{KEY} me\n"));
    assert_eq!(owner(&machine, "/home/admin/.ssh/authorized_keys"), (1001, 1002, 0o600));
    assert!(text(&machine, "/root/.ssh/authorized_keys").contains("Please login as the user \\\"admin\\\""));
    fs::write(machine.outside("/etc/app/a"), "mine now").unwrap();
    fs::write(machine.outside(BOOT_ID), "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e40\n").unwrap();
    apply(&machine, &user_data);
    assert_eq!(text(&machine, "/marks"), "boot\nearly\nlate\nboot\n");
    assert_eq!(text(&machine, "/etc/app/a"), "mine now", "once for each instance");
}

#[test]
fn what_is_not_supported_is_named_with_its_place_before_anything_is_done() {
    let user_data = "#cloud-config\nbootcmd: [echo x >/marks]\nchef: {}\nwrite_files:\n- path: /srv/a\n  mode: '0600'\nusers:\n\
                     - name: a\n  shel: /bin/sh\nruncmd: echo\n";
    let machine = image();
    let ran = act(&machine, user_data, &[]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    for words in [
        "part-001 (line 3, column 1): chef is not supported; supported are bootcmd, write_files, ",
        "part-001 (line 6, column 3): write_files.mode is not supported; supported are path, content, ",
        "part-001 (line 9, column 3): users.shel is not supported; supported are name, gecos, ",
        "part-001 (line 10, column 9): runcmd takes a list, and this is a text",
        "[user-data-invalid]",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(
        !machine.outside("/marks").exists()
            && !machine.outside("/srv/a").exists()
            && !machine.outside("/asked").exists()
    );
}

#[test]
fn users_are_made_by_the_systems_tools_and_passwords_by_standard_input() {
    let user_data = format!(
        "#cloud-config\ngroups:\n- team: [daemon]\nusers:\n- default\n- name: anna\n  gecos: Anna A\n  groups: adm, fresh\n  uid: 1500\n\
         \x20 plain_text_passwd: secret\n  lock_passwd: false\n  sudo: ALL=(ALL) NOPASSWD:ALL\n  ssh_authorized_keys: ['no-pty {KEY} a']\n\
         - name: daemon\n  sudo: [ALL=(ALL) ALL]\n"
    );
    let machine = image().dir("/home/anna");
    let ran = apply(&machine, &user_data);
    assert_eq!(
        text(&machine, "/asked"),
        "groupadd team\nusermod -a -G team daemon\ngroupadd fresh\nuseradd --comment Anna A --uid 1500 --groups adm,fresh -m anna\n\
         chpasswd \npasswd -l daemon\n"
    );
    assert_eq!(text(&machine, "/secrets"), "anna:secret\n");
    assert!(
        !ran.stdout.contains("secret")
            && !text(&machine, "/run/gpu-bootstrap/user-data.json").contains("secret")
    );
    let rules = text(&machine, SUDOERS);
    assert!(rules.ends_with("\n# User rules for anna\nanna ALL=(ALL) NOPASSWD:ALL\n\n# User rules for daemon\ndaemon ALL=(ALL) ALL\n"), "{rules}");
    assert_eq!(owner(&machine, SUDOERS), (0, 0, 0o440));
    assert_eq!(text(&machine, "/home/anna/.ssh/authorized_keys"), format!("no-pty {KEY} a\n"));
}

#[test]
fn rules_that_sudo_does_not_take_are_not_written() {
    let machine = image().dir("/usr/sbin").file("/usr/sbin/visudo", "");
    machine.tool("visudo", "echo 'parse error near line 4' >&2; exit 1");
    let ran = act(&machine, "#cloud-config\nusers:\n- name: anna\n  sudo: ALL=(ALL\n", &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(
        ran.stderr.contains("sudo does not take these rules") && ran.stderr.contains("near line 4"),
        "{ran:#?}"
    );
    assert!(!machine.outside(SUDOERS).exists());
    assert!(text(&machine, "/asked").contains("useradd -m anna"), "the user is there all the same");
}

#[test]
fn no_file_is_written_through_a_users_link_and_the_others_are() {
    let machine = image().file("/etc/shadow", "root's\n");
    symlink("/etc", machine.outside("/home/admin/dir")).unwrap();
    symlink("/etc/shadow", machine.outside("/home/admin/file")).unwrap();
    let user_data = "#cloud-config\nwrite_files:\n- {path: /home/admin/dir/evil, content: x}\n- {path: /home/admin/file, content: x}\n\
                     - {path: /home/admin/.config/app, content: x, owner: 'admin:admin'}\n- {path: /srv/none, content: x, owner: nobody-here}\n";
    let ran = act(&machine, user_data, &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(
        ran.stderr.contains("3 of 4 files failed; the first: /home/admin/dir/evil leads over a link"),
        "{ran:#?}"
    );
    assert_eq!(text(&machine, "/etc/shadow"), "root's\n");
    assert!(!machine.outside("/etc/evil").exists() && !machine.outside("/srv/none").exists());
    assert_eq!(owner(&machine, "/home/admin/.config/app"), (1001, 1002, 0o644));
}

#[test]
fn packages_are_apts_business_with_our_options() {
    let machine = image();
    apply(&machine, "#cloud-config\npackage_upgrade: true\npackages:\n- nginx\n- [libfoo, '1.2']\n");
    let asked = text(&machine, "/asked");
    let calls: Vec<_> = asked.lines().filter(|line| line.starts_with("apt-get ")).collect();
    for (call, end) in
        calls.iter().zip([" update", " --no-remove dist-upgrade", " --no-remove install nginx libfoo=1.2"])
    {
        assert!(call.ends_with(end) && call.contains("APT::Get::AllowUnauthenticated=0"), "{call}");
    }
    assert_eq!(calls.len(), 3, "{asked}");
}

#[test]
fn the_stage_before_the_gpus_does_its_part_and_the_other_one_the_rest() {
    let user_data = "#cloud-config\nbootcmd: [echo boot >>/marks]\nwrite_files:\n- {path: /etc/gpu-bootstrap/50-a.toml, content: \"[driver]\\n\"}\n\
                     runcmd: [echo run >>/marks]\n";
    let machine = image();
    assert_eq!(act(&machine, user_data, &["--stage", "config"]).code, 0);
    assert_eq!(text(&machine, "/marks"), "boot\n");
    assert_eq!(text(&machine, "/etc/gpu-bootstrap/50-a.toml"), "[driver]\n");
    apply(&machine, user_data);
    assert_eq!(text(&machine, "/marks"), "boot\nrun\n", "the boot command has run in this boot");
}

#[test]
fn user_data_check_says_what_each_key_would_do() {
    let check = |user_data: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, user_data).unwrap();
        let ran = ran(binary().args(["user-data", "check"]).arg(file.path()));
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.stdout
    };
    let told = check(
        "#cloud-config\nruncmd: [a, b]\nusers: [default, anna]\nwrite_files: [{path: /a, content: x, permissions: '0600'}]\n",
    );
    assert!(
        told.ends_with(
            "\nOn an image without cloud-init, in this order:\n  write_files (per-instance): writes /a (1 bytes, 0600, root:root)\n\
             \x20 users (per-instance): users anna; default is the login user, whom the image has\n\
             \x20 runcmd (per-instance): runs a script of 14 bytes\n"
        ),
        "{told}"
    );
    let told = check("#cloud-config\nchef: {}\n");
    assert!(
        told.contains("  part-001 (line 2, column 1): chef is not supported")
            && told.contains("nothing of the user-data was done"),
        "{told}"
    );
}

/// A Nitro instance: the root's disk, an EBS volume that was attached as sdf, a device of the instance store.
fn nitro() -> Machine {
    let machine =
        image().file("/proc/self/mountinfo", "27 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n");
    let mut machine = machine.file("/etc/fstab", "UUID=1 / ext4 errors=remount-ro 0 1\n");
    for (name, model) in [
        ("nvme0n1", "Amazon Elastic Block Store"),
        ("nvme1n1", "Amazon EC2 NVMe Instance Storage"),
        ("nvme2n1", "Amazon Elastic Block Store"),
    ] {
        let dir = format!("/sys/class/block/{name}");
        machine = machine
            .file(&format!("{dir}/device/model"), &format!("{model}        \n"))
            .file(&format!("{dir}/size"), "62914560\n")
            .file(&format!("/dev/{name}"), "");
    }
    let machine = machine
        .file("/dev/nvme0n1p1", "")
        .file("/sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n")
        .file("/sys/class/block/nvme0n1p1/partition", "1\n")
        .file("/sys/class/block/nvme0n1p1/dev", "259:1\n");
    machine.tool("ebsnvme-id", "case $2 in */nvme2n1) echo sdf ;; *) echo /dev/xvda ;; esac");
    machine.tool("blkid", "for device; do :; done; echo TYPE=ext4; echo UUID=of-${device#/dev/}");
    machine.tool("mount", "echo \"40 27 0:9 / $1 rw - ext4 /dev/any rw\" >>/proc/self/mountinfo");
    machine
}

#[test]
fn what_has_another_name_on_nitro_is_found_and_stands_in_fstab_by_its_uuid() {
    let machine = nitro();
    apply(
        &machine,
        "#cloud-config\nmounts:\n- [/dev/xvdf, /data, auto, defaults]\n- [ephemeral0, /scratch]\n- [ephemeral1, /more]\n",
    );
    assert_eq!(
        text(&machine, "/etc/fstab"),
        "UUID=1 / ext4 errors=remount-ro 0 1\n\
         UUID=of-nvme2n1\t/data\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2\n\
         UUID=of-nvme1n1\t/scratch\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2\n"
    );
    assert!(machine.outside("/data").is_dir() && machine.outside("/scratch").is_dir());
    let asked = text(&machine, "/asked");
    assert!(asked.contains("mount /data\n") && asked.contains("mount /scratch\n"), "{asked}");
}

#[test]
fn the_roots_disk_is_never_touched() {
    for user_data in [
        "disk_setup: {/dev/sda: {layout: true, overwrite: true}}",
        "disk_setup: {nvme0n1: {layout: true, overwrite: true}}",
        "fs_setup: [{device: /dev/nvme0n1, partition: none, filesystem: ext4, overwrite: true}]",
        "fs_setup: [{device: /dev/xvda, partition: 1, filesystem: swap, overwrite: true}]",
    ] {
        let machine = nitro();
        let ran = act(&machine, &format!("#cloud-config\n{user_data}\n"), &[]);
        assert_eq!(ran.code, 1, "{user_data}: {ran:#?}");
        assert!(
            ran.stderr.contains("/dev/nvme0n1p1 is what the machine runs from; it was left as it is"),
            "{ran:#?}"
        );
        let asked = text(&machine, "/asked");
        assert!(
            asked.lines().all(|line| line.starts_with("blkid ") || line.starts_with("ebsnvme-id ")),
            "{asked}"
        );
    }
}

#[test]
fn another_partition_grows_at_every_boot() {
    let machine = nitro()
        .file("/sys/devices/nvme2n1/size", "62914560\n")
        .file("/sys/devices/nvme2n1/nvme2n1p1/start", "2048\n")
        .file("/sys/devices/nvme2n1/nvme2n1p1/size", "1000\n")
        .file("/sys/devices/nvme2n1/nvme2n1p1/partition", "1\n")
        .file("/dev/nvme2n1p1", "");
    symlink("../../devices/nvme2n1/nvme2n1p1", machine.outside("/sys/class/block/nvme2n1p1")).unwrap();
    machine.tool("growpart", "echo 62910000 >/sys/devices/nvme2n1/nvme2n1p1/size; echo CHANGED");
    let user_data = "#cloud-config\ngrowpart: {devices: [/, /dev/sdf1, /dev/sdf]}\n";
    let ran = act(&machine, user_data, &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("growpart: /dev/sdf is no partition that is there"), "{ran:#?}");
    let grown = |machine: &Machine| text(machine, "/asked").matches("growpart /dev/nvme2n1 1\n").count();
    assert_eq!(grown(&machine), 1);
    fs::write(machine.outside("/sys/devices/nvme2n1/nvme2n1p1/size"), "1000\n").unwrap();
    fs::write(machine.outside(BOOT_ID), "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e40\n").unwrap();
    apply(&machine, "#cloud-config\ngrowpart: {devices: [/, /dev/sdf1]}\n");
    assert_eq!(grown(&machine), 2);
}

#[test]
fn user_data_check_says_what_becomes_of_disks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        &file,
        "#cloud-config\nmounts: [[sdf.1, /data]]\nswap: {size: auto}\ndisk_setup: {sdf: {layout: true}}\ngrowpart: {mode: off}\n",
    )
    .unwrap();
    let ran = ran(binary().args(["user-data", "check"]).arg(file.path()));
    for line in [
        "growpart (per-boot): the root's partition stays as it is, its file system fills it",
        "disk_setup (per-instance): sdf gets a dos table of 1 partitions (only if it holds nothing)",
        "mounts (per-instance): sdf.1 is mounted at /data (defaults,nofail); /swap.img becomes a swap file as large as memory and \
         disk suggest",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {ran:#?}");
    }
}
