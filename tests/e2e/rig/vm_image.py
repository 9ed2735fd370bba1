"""A bootable disk with a small Debian 12 on which the project's unit is enabled, for vm.py.

One ext4 file system without a partition table; kernel and initial file system lie beside it, because the virtual machine
starts them directly.  Made once below WORK and copied on write by each machine.
"""
import contextlib
import os
import re
import shutil
import subprocess

from cargo import PROJECT

PACKAGES = ("apt,ca-certificates,gpgv,iproute2,kmod,udev,systemd,systemd-sysv,pciutils,e2fsprogs,initramfs-tools,"
            "linux-image-cloud-amd64")
# Only what this machine has: an initial file system with every driver takes an emulated processor half a minute.
INITIAL_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"]
SIZE_MB = 1800
AGENT, CATALOG = "/usr/bin/gpu-bootstrap", "/srv/catalog"
DROP_IN = "/etc/systemd/system/gpu-bootstrap.service.d/e2e.conf"
ADDRESS, GATEWAY = "10.0.0.23", "10.0.0.1"
# What would only take time, or change files at a time of its own.
MASKED = ["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
          "fstrim.timer", "systemd-tmpfiles-clean.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
          "systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
          "systemd-timesyncd.service", "systemd-pstore.service", "modprobe@drm.service", "modprobe@fuse.service",
          "modprobe@configfs.service", "modprobe@efi_pstore.service", "systemd-network-generator.service"]
# Data stays in memory until somebody asks for it to be written: what a power cut can take away is as much as possible.
# The kernel's own default writes it after 30 s, and an emulated machine is too slow to have much that is younger.
DELAYED_WRITEBACK = """\
vm.dirty_writeback_centisecs = 0
vm.dirty_expire_centisecs = 360000
vm.dirty_background_ratio = 90
vm.dirty_ratio = 95
"""
NETWORK = f"""\
[Match]
Name=en* eth*
[Network]
Address={ADDRESS}/24
Gateway={GATEWAY}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
# Ends the machine when the run has ended.  A reboot that the agent asked for comes first: its job can't be replaced.
POWER_OFF = """\
[Unit]
Description=power off after the run
After=gpu-bootstrap.service
[Service]
Type=oneshot
ExecStart=/usr/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
"""
MACHINE_ID = "e2e0e2e0e2e0e2e0e2e0e2e0e2e0e2e0"


class Image:
    """`disk` (raw), `kernel` and `initial`: files below `folder`.  `device`: what the kernel calls the root;
    `begin`: where its file system begins on the disk, in bytes."""

    def __init__(self, folder, device="/dev/vda", begin=0):
        self.folder, self.device, self.begin = folder, device, begin
        self.disk, self.kernel, self.initial = (os.path.join(folder, name) for name in ("disk.raw", "vmlinuz", "initrd"))


def command(*arguments):
    """A drop-in with which the unit, for the rest as it is shipped, starts the agent with more arguments."""
    return f"[Service]\nExecStart=\nExecStart={' '.join([AGENT, 'run', '--boot', *arguments])}\n"


def root(archive, name="root-vm", packages=PACKAGES, modules=INITIAL_MODULES):
    """The root file system that every image begins with."""
    modules = "\\n".join(modules)
    # Before the kernel is installed, whose script makes the initial file system.
    initial = ('mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/usr/share/initramfs-tools/modules.d && '
               'printf "MODULES=list\\nCOMPRESS=gzip\\n" >"$1"/etc/initramfs-tools/conf.d/vm.conf && '
               f'printf "{modules}\\n" >"$1"/usr/share/initramfs-tools/modules.d/vm')
    options = [f"--dpkgopt=path-exclude=/usr/share/{excluded}/*" for excluded in ("man", "locale", "doc")]
    return archive.root(name, packages, [*options, f"--essential-hook={initial}",
                                              '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/*'])


def make(folder, tree, agent, catalog, sysctl=DELAYED_WRITEBACK):
    """Makes the image from the root file system `tree` below `folder`; `catalog` is the text of a repositories.toml that
    replaces the agent's own, or None."""
    image = Image(folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image.disk, f"{SIZE_MB}M"], check=True,
                   stdout=subprocess.DEVNULL)
    with mounted(image.disk, "rw") as place:
        fill(place, agent, catalog, sysctl)
        for name, target in (("vmlinuz", image.kernel), ("initrd.img", image.initial)):
            shutil.copyfile(newest(place, name), target)
    return image


def newest(place, name):
    """The file of the newest kernel in a root's /boot, as a boot loader chooses it."""
    found = [entry for entry in os.listdir(f"{place}/boot") if entry.startswith(f"{name}-")]
    return os.path.join(place, "boot", max(found, key=lambda entry: [int(part) for part in re.findall(r"\d+", entry)]))


def fill(place, agent, catalog, sysctl):
    for path, text in {
            "/etc/fstab": "/dev/vda / ext4 defaults,errors=remount-ro 0 1\n",
            "/etc/hostname": "ip-10-0-0-23\n", "/etc/hosts": f"127.0.0.1 localhost\n{ADDRESS} ip-10-0-0-23\n",
            "/etc/machine-id": f"{MACHINE_ID}\n", "/etc/resolv.conf": "",
            "/etc/systemd/journald.conf.d/e2e.conf": "[Journal]\nStorage=volatile\n",
            "/etc/systemd/network/10-e2e.network": NETWORK, "/etc/sysctl.d/90-e2e.conf": sysctl,
            "/etc/systemd/system/e2e-power-off.service": POWER_OFF}.items():
        write(place + path, text)
    if catalog is not None:
        write(f"{place}{CATALOG}/repositories.toml", catalog)
        write(place + DROP_IN, command("--catalog", CATALOG))
    shutil.copy(os.path.join(PROJECT, "packaging/gpu-bootstrap.service"), f"{place}/etc/systemd/system/")
    shutil.copy(agent, place + AGENT)
    chroot = ["chroot", place, "systemctl", "--quiet"]
    subprocess.run([*chroot, "enable", "systemd-networkd", "gpu-bootstrap", "e2e-power-off"], check=True)
    subprocess.run([*chroot, "mask", *MASKED], check=True)


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


@contextlib.contextmanager
def mounted(disk, options, begin=0):
    """The file system that begins there on a raw disk, mounted while the context lasts; its path.

    Mounting replays the journal into the file, as the next boot would."""
    place = f"{disk}.mounted"
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,offset={begin},{options}", disk, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        os.rmdir(place)


def check(disk, begin=0):
    """Whether the file system is whole, in one sentence if it is not."""
    done = subprocess.run(["e2fsck", "-f", "-n", f"{disk}?offset={begin}"], capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"the file system is damaged: {done.stdout[-2000:]}"]
