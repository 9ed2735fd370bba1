"""An EC2 instance as a virtual machine: QEMU without hardware virtualisation, started on the disks of vm_image.py.

All machines of one `Site` share a network namespace in which 169.254.169.254 is the metadata service and 10.0.0.1:8080 (for
the guest) a file server; there is no other network, and nothing listens in this machine's own namespace.  QEMU's user
network needs no privileges: what the guest connects to, QEMU connects to inside that namespace.

Killing QEMU is a power cut: the guest's memory is gone, and with it every write that its kernel had not yet sent to the
disk.  What it had sent survives, as on a disk with a cache that does not lie.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time

import archive
import pci
from instance import METADATA, PORT
from vm_image import ADDRESS, GATEWAY, mounted

RIG = os.path.dirname(os.path.abspath(__file__))
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs", "setpriv": "util-linux",
          "ip": "iproute2", "nsenter": "util-linux"}
FILES_URL = f"http://{GATEWAY}:{PORT}"
# Ends with the process that started it, whatever kills that one.
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
# no_timer_check: on a busy machine the emulated timer fails the kernel's check of it, and the guest goes on with a slower one.
KERNEL_LINE = "ro console=ttyS0 quiet net.ifnames=1 systemd.show_status=0 mitigations=off no_timer_check"
MAC = "0a:ff:d2:11:22:33"
# An emulated processor does in minutes what takes seconds, and this machine may have other work.
PATIENCE_SECONDS = 900


class Site:
    """The network and the services that machines find; `prefixes`: {path prefix: directory} of the file server."""

    def __init__(self, work, prefixes):
        self.work = work
        self.folder = os.path.join(work, "site")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.user_data = os.path.join(self.folder, "user-data")
        self.log, self.metadata_log = (os.path.join(self.folder, f"{name}.jsonl") for name in ("http", "metadata"))
        self.items = os.path.join(self.folder, "items.json")
        self.describe({})
        self.holder = subprocess.Popen(["unshare", "--net", *DIE_WITH_US, "sleep", "infinity"], stdin=subprocess.DEVNULL)
        self.processes = [self.holder]
        try:
            self.serve(prefixes)
        except BaseException:
            self.close()
            raise

    def serve(self, prefixes):
        self.netns = f"/proc/{self.holder.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(self.netns) != own, "the network namespace", 20)
        for command in (["link", "set", "lo", "up"], ["address", "add", f"{METADATA}/32", "dev", "lo"]):
            subprocess.run(["nsenter", f"--net={self.netns}", "ip", *command], check=True)
        arguments = ["--log", self.log]
        for prefix, folder in prefixes.items():
            arguments += ["--serve", f"{prefix}={folder}"]
        server, _ = archive.serve(self.folder, *arguments, netns=self.netns, port=PORT)
        self.processes.append(server)
        self.start_metadata()

    def start_metadata(self):
        ready = os.path.join(self.folder, "metadata.ready")
        if os.path.exists(ready):
            os.unlink(ready)
        self.metadata = subprocess.Popen(
            [sys.executable, os.path.join(RIG, "metadata.py"), "--netns", self.netns, "--bind", METADATA, "--port", "80",
             "--user-data", self.user_data, "--log", self.metadata_log, "--ready", ready, "--items", self.items],
            stdin=subprocess.DEVNULL)
        self.processes.append(self.metadata)
        wait_until(lambda: os.path.exists(ready), "the metadata service", 20)

    def stop_metadata(self):
        """From here on nobody answers at its address."""
        self.metadata.terminate()
        self.metadata.wait()
        self.processes.remove(self.metadata)

    def describe(self, items):
        """What the metadata service says from now on besides, or instead of, what it always says; see metadata.py."""
        with open(f"{self.items}.new", "w", encoding="utf-8") as out:
            json.dump(items, out)
        os.replace(f"{self.items}.new", self.items)

    def metadata_requests(self):
        """[(method, path)] of everything that the metadata service was ever asked."""
        if not os.path.exists(self.metadata_log):
            return []
        with open(self.metadata_log, encoding="utf-8") as source:
            return [(line["method"], line["path"]) for line in map(json.loads, source)]

    def configure(self, text):
        """What machines get as user-data from now on."""
        with open(self.user_data, "w", encoding="utf-8") as out:
            out.write(text)

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


class Disk:
    """A machine's disk: what it wrote, over the image."""

    def __init__(self, image, path, size=None):
        """`size`: of the disk, as for qemu-img; larger than the image, as a volume may be."""
        self.path, self.format, self.begin = path, "qcow2", image.begin
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.disk, path,
                        *([size] if size else [])], check=True)

    def flatten(self):
        """From here on a raw disk, whose file system `mounted` can reach."""
        if self.format == "raw":
            return self.path
        raw = f"{self.path}.raw"
        subprocess.run(["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", self.path, raw], check=True)
        os.unlink(self.path)
        self.path, self.format = raw, "raw"
        return raw

    def look(self, question):
        """`question(directory)`, asked of the disk as the next boot will find it; the disk itself stays as it is.  A machine
        may run on it: then what its kernel has not written yet is not seen."""
        copy = f"{self.path}.look"
        subprocess.run(["qemu-img", "convert", "-q", "-U", "-f", self.format, "-O", "raw", self.path, copy], check=True)
        try:
            with mounted(copy, "rw", self.begin) as place:
                return question(place)
        finally:
            os.unlink(copy)

    def remove(self):
        if os.path.exists(self.path):
            os.unlink(self.path)


class Machine:
    """One boot of a disk: `power on` at construction.  Times are of time.monotonic()."""

    def __init__(self, site, image, disk, serial, kernel=None, initial=None, gpu=None, ahead=0, mac=MAC,
                 instance_id=pci.DMI["board_asset_tag"], ssh_port=None, instance_type=pci.INSTANCE_TYPE, uuid=pci.UUID):
        """`serial`: the file that gets the console.  `gpu`: what fake_gpu.py made, for a machine that has one.  `ahead`: days
        by which its clock is wrong.  `instance_id`, `instance_type`, `uuid` (of which systemd makes a machine-id): by its
        firmware.  `ssh_port`: of the site's loopback interface, where its sshd is reached."""
        self.site, self.serial = site, serial
        self.requests = os.path.getsize(site.log) if os.path.exists(site.log) else 0
        machine = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults",
                   "-display", "none", "-no-user-config", "-no-reboot", "-monitor", "none"]
        identity = ["-smbios", f"type=1,manufacturer={pci.DMI['sys_vendor']},product={instance_type},uuid={uuid},"
                               f"serial={uuid}",
                    "-smbios", f"type=0,vendor={pci.DMI['bios_vendor']},version={pci.DMI['bios_version']}",
                    "-smbios", f"type=2,asset={instance_id}"]
        boot = ["-kernel", kernel or image.kernel, "-initrd", initial or image.initial, "-append",
                f"root={image.device} {KERNEL_LINE}"]
        forward = f",hostfwd=tcp:127.0.0.1:{ssh_port}-{ADDRESS}:22" if ssh_port else ""
        devices = ["-drive", f"file={disk.path},if=none,id=disk,format={disk.format},cache=writeback",
                   "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
                   "-netdev", f"user,id=net,net=10.0.0.0/24,host={GATEWAY},dns=10.0.0.3,dhcpstart={ADDRESS},ipv6=off"
                              f"{forward}",
                   "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile=", "-serial", f"file:{serial}"]
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + ahead * 86_400))
        program = gpu.command if gpu else ["qemu-system-x86_64"]
        self.began, self.wall_began = time.monotonic(), time.time()
        self.process = subprocess.Popen(
            ["nsenter", f"--net={site.netns}", *DIE_WITH_US, *program, *machine, *identity, *boot, *devices,
             "-rtc", f"base={clock}", *(gpu.devices if gpu else [])],
            stdin=subprocess.DEVNULL, env={**os.environ, **(gpu.environment if gpu else {})})

    def console(self):
        try:
            with open(self.serial, encoding="utf-8", errors="replace", newline="") as source:
                return source.read().replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait_for_line(self, pattern, seconds=PATIENCE_SECONDS):
        """Until the console shows it: the match; None when the machine went off without it."""
        def shown():
            off = self.process.poll() is not None
            return re.search(pattern, self.console(), re.M) or off
        found = wait_until(shown, f"{pattern!r} on the console", seconds, self.console)
        return None if found is True else found

    def wait_for_request(self, pattern, seconds=PATIENCE_SECONDS):
        """Until the file server was asked for a path that matches; False when the machine went off before."""
        def asked():
            off = self.process.poll() is not None
            return "yes" if any(re.search(pattern, path) for path in self.requested()) else off
        return wait_until(asked, f"a request of {pattern!r}", seconds, self.console) == "yes"

    def requested(self):
        """Paths that this machine has asked the file server for."""
        if not os.path.exists(self.site.log):
            return []
        with open(self.site.log, encoding="utf-8") as source:
            source.seek(self.requests)
            return [json.loads(line)["path"] for line in source.read().splitlines(keepends=True) if line.endswith("\n")]

    def wait_until_off(self, seconds=PATIENCE_SECONDS):
        """Until the guest powers itself off or reboots: `off` or `reboot`."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            self.cut()
            raise RuntimeError(f"the machine was still on after {seconds} s:\n{self.console()[-6000:]}") from late
        self.wall_ended = time.time()
        last = re.findall(r"reboot: (Power down|Restarting system)", self.console())
        if not last:
            raise RuntimeError(f"the machine ended by itself:\n{self.console()[-6000:]}")
        return "off" if last[-1] == "Power down" else "reboot"

    def cut(self):
        """The power is cut."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.wall_ended = time.time()


def wait_until(ready, what, seconds, context=lambda: ""):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ready():
            return answer
        time.sleep(0.02)
    raise RuntimeError(f"{what}: not within {seconds} s\n{context()[-6000:]}")
