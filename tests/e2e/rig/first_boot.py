"""What the scenes of ../first-boot share: images, instances that boot from them, what an ssh client outside sees of them, and
what holds on every machine that is set up."""
import json
import os
import re
import shutil
import subprocess
import time

import archive
import check
import fake_driver
import fake_gpu
import instance_image
import metadata
import mirror
import pci
import ssh
import vm
import vm_image
from signed_repo import Key

NEEDED = {"mmdebstrap": "mmdebstrap", "curl": "curl", "dpkg-deb": "dpkg", "gpg": "gnupg", "gpgconf": "gnupg", "gcc": "gcc",
          "make": "make", "xz": "xz-utils", **vm.NEEDED, **instance_image.NEEDED, **ssh.NEEDED}
DISK = "4G"
DUTIES = ["ssh-keys", "host-keys", "hostname", "grow-root"]
STATE = "/var/lib/gpu-bootstrap"
# For the run, which the package's other unit starts: there is no GPU.
USER_DATA = '#gpu-bootstrap\n[policy]\non-no-gpu = "skip"\n'
# What is installed where there is one: Debian's driver, by the archive of fake_driver.py.
# Steps that may do something in any boot; the rest belongs to the image, and was done while it was made.
OF_EACH_BOOT = {"kernel-module", "persistence", "device-query"}
STACK = '[source]\npackages = "distro"\n[cuda]\ntoolkit = "none"\n[cudnn]\nversion = "none"\n'
# They ask the metadata service, too: an image has them where a scene says so.
LATER = ["gpu-bootstrap.service", "gpu-bootstrap-cloud-config.service", "gpu-bootstrap-user-data.service"]
# Debian's own images say the first two; this one has one locale.
CLOUD_CONFIG = f"""\
apt: {{preserve_sources_list: true}}
manage_etc_hosts: true
locale: C.UTF-8
system_info:
  default_user:
    name: {instance_image.USER}
"""
# Started from where a `systemctl start` could wait for itself.
OTHER = "e2e-other.service"
CLOUD_INIT = ",cloud-init,netplan.io,isc-dhcp-client"
# The root grows behind sshd's start.
WAIT = "while [ $(systemctl show --property=SubState --value gpu-bootstrap-early) = running ]; do sleep 0.5; done"
QUESTIONS = {
    "hostname": "hostname",
    "hosts": "cat /etc/hosts",
    "early": "cat /run/gpu-bootstrap/early.json",
    "authorized": f"cat ~{instance_image.USER}/.ssh/authorized_keys",
    "public": "cat /etc/ssh/ssh_host_*_key.pub",
    "private": "for key in /etc/ssh/ssh_host_*_key; do ssh-keygen -y -f $key; done | cut -d' ' -f1,2",
    "modes": "stat -c '%n %a %U' /etc/ssh/ssh_host_*_key",
    # Everything that a new instance may have changed, with its time and its inode; a file that is written anew has another.
    "files": f"find /etc /root /home /var/lib/gpu-bootstrap -printf '%p %y %m %U %T@ %i %l\\n' | sort",
    "sizes": "cat /sys/class/block/vda/size /sys/class/block/vda1/size; df --block-size=1 --output=size / | tail -n 1",
    "failed": "systemctl --failed --plain --no-legend",
    "rings": "journalctl -b --no-pager | grep -i 'ordering cycle' || true",
    "ready": "systemctl show --property=ActiveEnterTimestampMonotonic --value gpu-bootstrap-early",
    "ssh-began": "systemctl show --property=ExecMainStartTimestampMonotonic --value ssh",
    "network": "cat /run/systemd/netif/links/*",
}
LEFT = re.compile(r"/etc/ssh/(ssh_config|sshd_config|moduli|ssh_host_(rsa|ecdsa|ed25519)_key(\.pub)?|sshd?_config\.d)"
                  rf"|{STATE}/((instance|user-data|receipt|result)\.json|lock|spool|cache)"
                  rf"|/home/{instance_image.USER}/\.ssh/authorized_keys|/root/\.ssh/authorized_keys")


def say(text):
    print(f"first-boot: {text}", flush=True)


class Instance:
    """One of EC2's: what the metadata service and the firmware say of it, its key pair, its network card."""

    def __init__(self, number, folder, kind=pci.INSTANCE_TYPE, gpu=None):
        """`kind`: its type; `gpu`: what fake_gpu.py made, for one that has one."""
        self.id, self.name, self.kind, self.gpu = f"i-0{number:016x}", f"ip-10-0-251-{number}", kind, gpu
        self.mac, self.uuid = f"0a:ff:d2:00:00:{number:02x}", f"{pci.UUID[:-2]}{number:02x}"
        self.key = ssh.Key(os.path.join(folder, f"pair-{number}"), f"pair-{number}")

    def items(self):
        document = {**metadata.DOCUMENT, "instanceId": self.id, "instanceType": self.kind}
        return {"dynamic/instance-identity/document": json.dumps(document), "meta-data/instance-id": self.id,
                "meta-data/instance-type": self.kind,
                "meta-data/public-keys": f"0=pair-{self.name}", "meta-data/public-keys/0/openssh-key": self.key.public,
                "meta-data/local-hostname": f"{self.name}.ec2.internal", "meta-data/hostname": f"{self.name}.ec2.internal",
                "meta-data/mac": self.mac, **metadata.card(self.mac, self.name)}


class Rig:
    """What is made once, and only if a scene asks for it: images, network, key pairs, a driver's packages."""

    def __init__(self, work, binary):
        self.work = work
        self.deb = instance_image.package(work, binary)
        # Where machines without the package fetch it.
        self.binary = os.path.join(work, "agent", "gpu-bootstrap")
        os.makedirs(os.path.dirname(self.binary), exist_ok=True)
        shutil.copy(binary, self.binary)
        self.images, self.driver = {}, None
        self.site = vm.Site(work, {"debian": os.path.join(work, "driver", "mirror"), "agent": os.path.dirname(self.binary)})
        self.site.configure(USER_DATA)
        self.instances = [self.instance(number) for number in (1, 2, 3)]
        self.stranger, self.builder = (ssh.Key(os.path.join(work, "keys", name), name) for name in ("stranger", "builder"))
        self.client = ssh.Client(self.site.netns, self.site.folder)
        self.console = ""

    def instance(self, number, kind=pci.INSTANCE_TYPE, gpu=None):
        made = fake_gpu.make(os.path.join(self.work, f"qemu-{gpu[1]:04x}"), gpu) if gpu else None
        return Instance(number, os.path.join(self.work, "keys"), kind, made)

    def image(self, name="ext4"):
        """`ext4`, `xfs`, `btrfs`: without cloud-init, and without the units that come after the early one.  `baked`: with all
        units, and with an archive that has a driver.  `cloud-init`: somebody else's, with cloud-init and that archive."""
        if name not in self.images:
            more = CLOUD_INIT if name == "cloud-init" else ""
            packages = archive.Archive(self.work)
            try:
                tree = instance_image.root(packages, "root-cloud-init" if more else "root-instance", more)
            finally:
                packages.close()
            folder = os.path.join(self.work, f"image-{name}")
            if name in ("baked", "cloud-init"):
                archived = self.archive(vm_image.newest(tree, "vmlinuz").rpartition("vmlinuz-")[2])
                deb = None if more else self.deb
                self.images[name] = instance_image.make(folder, tree, deb, adapt=lambda place: self.fill(place, archived, more))
            else:
                # Each scene says when the run is to be there, too; its requests would be counted otherwise.
                self.images[name] = instance_image.make(
                    folder, tree, self.deb, name, vm_image.DELAYED_WRITEBACK,
                    lambda place: subprocess.run(["chroot", place, "systemctl", "--quiet", "disable", *LATER], check=True))
        return self.images[name]

    def archive(self, kernel):
        """What an image with a driver has of apt's: {path: content}."""
        if self.driver is None:
            key = Key(os.path.join(self.work, "gpg"))
            try:
                site = fake_driver.mirror(os.path.join(self.work, "driver"), key, kernel, fake_gpu.ADDRESS, say)
                keyring = os.path.join(self.work, "keyring.gpg")
                key.gpg("--output", keyring, "--export")
            finally:
                key.close()
            self.driver = {mirror.KEYRING: fake_driver.read(keyring), "/etc/apt/sources.list.d/debian.sources":
                           site.sources(f"{vm.FILES_URL}/debian").encode()}
        return self.driver

    @staticmethod
    def fill(place, archived, with_cloud_init):
        for path, content in archived.items():
            os.makedirs(os.path.dirname(place + path), exist_ok=True)
            with open(place + path, "wb") as out:
                out.write(content)
        # What leaves traces of an instance, as on a real one.
        vm_image.write(f"{place}/etc/systemd/journald.conf.d/e2e.conf", "[Journal]\nStorage=persistent\n")
        subprocess.run(["chroot", place, "systemctl", "--quiet", "unmask", "systemd-random-seed", "systemd-update-utmp",
                        "systemd-update-utmp-runlevel"], check=True)
        vm_image.write(f"{place}/etc/systemd/system/{OTHER}", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n")
        if with_cloud_init:
            vm_image.write(f"{place}/etc/cloud/cloud.cfg.d/01_e2e.cfg", CLOUD_CONFIG)
            vm_image.write(f"{place}/etc/hosts", "127.0.0.1 localhost\n")

    def disk(self, name, image="ext4"):
        return vm.Disk(self.image(image), os.path.join(self.work, "disks", f"{name}.qcow2"), DISK)

    def boot(self, disk, label, instance, **how):
        return Boot(self, disk, label, instance, **how)


class Boot:
    """One boot of a disk as an instance; ends with the context, by a power cut unless `off` was called."""

    def __init__(self, rig, disk, label, instance, image="ext4", instance_id=None):
        self.rig, self.disk, self.instance, self.label = rig, disk, instance, label
        serial = os.path.join(rig.work, f"console-{label}")
        if os.path.exists(serial):
            os.unlink(serial)
        rig.site.describe(instance.items())
        self.asked = len(rig.site.metadata_requests())
        self.machine = vm.Machine(rig.site, rig.image(image), disk, serial, gpu=instance.gpu, mac=instance.mac,
                                  instance_id=instance_id or instance.id, ssh_port=ssh.PORT, instance_type=instance.kind,
                                  uuid=instance.uuid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.machine.cut()
        self.rig.console = self.machine.console()

    def requests(self):
        return self.rig.site.metadata_requests()[self.asked:]

    def seconds(self):
        return time.monotonic() - self.machine.began

    def wait(self):
        """Until sshd answers: seconds since the power was switched on."""
        self.rig.client.wait(self.machine)
        return self.seconds()

    def trust_console(self):
        """The console's host keys are those that ssh must find; returns their fingerprints as the console shows them."""
        keys = ssh.between(self.machine.console(), "KEYS")
        check.true(keys, "there are no host keys on the console")
        self.rig.client.trust(keys)
        return ssh.between(self.machine.console(), "FINGERPRINTS")

    def ask(self, key=None):
        """The answers to QUESTIONS, by a login with the instance's key."""
        script = WAIT + "\n" + "\n".join(f"echo '== {name}'; {question}" for name, question in QUESTIONS.items())
        done = self.rig.client.run(key or self.instance.key, "sudo sh", text=script)
        check.equal(done.returncode, 0, f"the login as {instance_image.USER} ({done.stderr.strip()})")
        answers = re.split(r"^== (.+)\n", done.stdout, flags=re.M)
        found = {name: text.strip() for name, text in zip(answers[1::2], answers[2::2])}
        check.equal(set(found), set(QUESTIONS), f"answered ({done.stderr})")
        found["early"] = json.loads(found["early"])
        return found

    def sudo(self, script, key=None):
        """What a script of root's says, which must end well."""
        done = self.rig.client.run(key or self.instance.key, "sudo sh -e", text=script, seconds=vm.PATIENCE_SECONDS)
        check.equal(done.returncode, 0, f"{script.strip()!r} ({done.stderr.strip()[-2000:]})")
        return done.stdout

    def result(self):
        """What the run of this boot came to, by its own account, when it has ended."""
        return json.loads(self.sudo(f"systemctl start gpu-bootstrap.service\ncat {STATE}/result.json\n"))

    def refuses(self, key, whose):
        done = self.rig.client.run(key, "true")
        check.true(done.returncode == 255 and "Permission denied" in done.stderr, f"{whose} key: {done}")

    def wait_for_rsa(self):
        self.machine.wait_for_line(r"\(RSA\)")
        vm.wait_until(lambda: self.rig.client.offers("rsa"), "the RSA key", vm.PATIENCE_SECONDS, self.machine.console)

    def off(self):
        self.rig.client.run(self.instance.key, "sudo systemctl poweroff")
        self.machine.wait_until_off()


def is_set_up(boot, found, fingerprints=None, alone=True):
    """What holds on every machine that is set up, by the answers to QUESTIONS; `alone`: no run is at work meanwhile."""
    name = boot.instance.name
    check.equal(found["hostname"], name, "hostname")
    check.true(f"127.0.1.1 {name}.ec2.internal {name} # gpu-bootstrap" in found["hosts"], found["hosts"])
    mine = [line for line in found["authorized"].splitlines() if line.endswith("#gpu-bootstrap")]
    check.equal(mine, [f"{boot.instance.key.public.strip()} #gpu-bootstrap"], "the keys of ours")
    disk, partition, file_system = map(int, found["sizes"].split())
    check.true(disk - partition < 3 * 2048 and file_system > 0.9 * partition * 512, f"sizes: {found['sizes']}")
    public = [" ".join(line.split()[:2]) for line in found["public"].splitlines()]
    check.equal(sorted(public), sorted(found["private"].splitlines()), "public keys and those that belong to the private ones")
    check.true(all(line.endswith(" 600 root") for line in found["modes"].splitlines()), found["modes"])
    check.equal((found["failed"], found["rings"]), ("", ""), "units that failed, and rings of units")
    check.true(0 < int(found["ready"]) <= int(found["ssh-began"]), "sshd began before the early part let it")
    check.true("systemd/network/zz-gpu-bootstrap.network" in found["network"], found["network"])
    left = [line.split()[0] for line in found["files"].splitlines()
            if re.match(r"/etc/ssh/|/var/lib/gpu-bootstrap/|/home/\w+/\.ssh/|/root/\.ssh/", line)]
    left = [path for path in left if not LEFT.match(path) and (alone or not path.startswith(f"{STATE}/"))]
    check.equal(left, [], "files that nobody needs")
    if fingerprints is not None:
        lists = [subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=line, capture_output=True, text=True,
                                check=True).stdout.strip() for line in found["public"].splitlines()]
        check.equal(sorted(fingerprints), sorted(lists), "fingerprints on the console")


def duties(found):
    return {duty["duty"]: duty["outcome"] for duty in found["early"]["duties"]}


