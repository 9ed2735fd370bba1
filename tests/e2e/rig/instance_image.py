"""An image without cloud-init as somebody would make it for EC2: Debian with sshd, growpart, systemd-networkd and the
project's own package, on a disk with a partition table.

What belongs to one machine is taken off: host keys, machine-id, the builder's name.  Like vm_image.py's, it is made once and
copied on write by each machine, whose disk may be larger than the image.
"""
import contextlib
import os
import shutil
import subprocess

import cargo
import vm_image
from vm_image import write

NEEDED = {"sfdisk": "fdisk", "losetup": "mount"}
PACKAGES = f"{vm_image.PACKAGES},openssh-server,cloud-guest-utils,fdisk,sudo,xfsprogs,btrfs-progs"
USER = "admin"
ROOT_MB = 1700
# Where the only partition begins, in bytes.
BEGIN = 1 << 20
MODULES = {"ext4": [], "xfs": ["xfs"], "btrfs": ["btrfs"]}
MAKE = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}
MOUNT = {"ext4": "defaults,errors=remount-ro 0 1", "xfs": "defaults 0 0", "btrfs": "defaults 0 0"}
# What this virtual machine has instead of EC2's network cards; the rest is the package's own file.
DRIVER = "[Match]\nDriver=virtio_net\n"
BUILDER = "image-builder"


def package(work, binary):
    """The project's Debian package with this binary; its path."""
    manual, out = os.path.join(work, "manual"), os.path.join(work, "package")
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([f"{cargo.PROJECT}/packaging/manual", manual], check=True)
    name = subprocess.run([f"{cargo.PROJECT}/packaging/deb", "--manual", manual, "--out", out, binary], check=True,
                          capture_output=True, text=True).stdout.split()[-1]
    return os.path.join(out, name)


def root(archive, name="root-instance", more=""):
    """The root file system of the image, without the project's package; `more`: further packages, each after a comma."""
    return vm_image.root(archive, name, PACKAGES + more)


def make(folder, tree, deb, file_system="ext4", sysctl="", adapt=lambda place: None):
    """Makes the image below `folder` from the root file system `tree` and the project's package `deb` (None: without it);
    `adapt`, called with the mounted root, does the rest."""
    image = vm_image.Image(folder, "/dev/vda1", BEGIN)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(image.disk, "wb") as disk:
        disk.truncate(BEGIN + (ROOT_MB + 1) * (1 << 20))  # and 1 MB for the table's copy
    subprocess.run(["sfdisk", "--quiet", image.disk], check=True, text=True,
                   input=f"label: gpt\nstart={BEGIN // 512}, size={ROOT_MB}MiB, type=linux, name=root\n")
    with looped(image.disk) as device:
        # The guest's own tools: what they make, its kernel mounts.
        with_devices(tree, [*MAKE[file_system], device])
        place = f"{image.disk}.mounted"
        os.makedirs(place, exist_ok=True)
        subprocess.run(["mount", device, place], check=True)
        try:
            subprocess.run(["cp", "--archive", f"{tree}/.", place], check=True)
            fill(place, deb, file_system, sysctl)
            adapt(place)
            for name, target in (("vmlinuz", image.kernel), ("initrd.img", image.initial)):
                shutil.copyfile(vm_image.newest(place, name), target)
        finally:
            subprocess.run(["umount", place], check=True)
            os.rmdir(place)
    return image


def fill(place, deb, file_system, sysctl):
    for path, text in {
            "/etc/fstab": f"/dev/vda1 / {file_system} {MOUNT[file_system]}\n", "/etc/hostname": f"{BUILDER}\n",
            "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {BUILDER} # gpu-bootstrap\n", "/etc/resolv.conf": "",
            "/etc/machine-id": "", "/etc/systemd/journald.conf.d/e2e.conf": "[Journal]\nStorage=volatile\n",
            "/etc/systemd/network/zz-gpu-bootstrap.network.d/e2e.conf": DRIVER, "/etc/sysctl.d/90-e2e.conf": sysctl,
            "/etc/sudoers.d/e2e": f"{USER} ALL=(ALL) NOPASSWD:ALL\n"}.items():
        write(place + path, text)
    chroot = ["chroot", place]
    for command in (["useradd", "--create-home", "--shell", "/bin/bash", USER],
                    ["systemctl", "--quiet", "enable", "systemd-networkd"], ["systemctl", "--quiet", "mask", *vm_image.MASKED]):
        subprocess.run([*chroot, *command], check=True, stdout=subprocess.DEVNULL)
    if deb:
        shutil.copy(deb, f"{place}/tmp/package.deb")
        subprocess.run([*chroot, "dpkg", "--install", "/tmp/package.deb"], check=True, stdout=subprocess.DEVNULL)
        os.unlink(f"{place}/tmp/package.deb")
    with os.scandir(f"{place}/etc/ssh") as found:
        for entry in found:
            if entry.name.startswith("ssh_host_"):
                os.unlink(entry.path)
    if MODULES[file_system]:
        with open(f"{place}/usr/share/initramfs-tools/modules.d/vm", "a", encoding="utf-8") as modules:
            modules.write("\n".join(MODULES[file_system]) + "\n")
        subprocess.run([*chroot, "update-initramfs", "-u", "-k", "all"], check=True, stdout=subprocess.DEVNULL)


def with_devices(tree, command):
    """Runs a command in the root file system `tree`, with this machine's devices and mounts to be seen."""
    script = 'tree=$1; shift; for part in dev proc; do mount --bind /$part "$tree/$part"; done; exec chroot "$tree" "$@"'
    subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", tree, *command], check=True)


@contextlib.contextmanager
def looped(disk):
    """The partition of a raw disk as a block device, while the context lasts."""
    device = subprocess.run(["losetup", "--find", "--show", "--offset", str(BEGIN), "--sizelimit", str(ROOT_MB << 20), disk],
                            check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
