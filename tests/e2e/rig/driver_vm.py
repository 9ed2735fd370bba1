"""The driver meets a kernel: a virtual machine boots the disk on which dkms.py had it compiled, and loads it.

No GPU can be emulated, so the driver refuses to stay, for two reasons, one boot each:

  none      the kernel's PCI bus has no GPU; the agent alone is shown a Tesla T4, by files over /sys/bus/pci
  silent    the bus has a device with a T4's identity that does not answer as a GPU (fake_gpu.py)

The words are the driver's own.  What the agent makes of them must be its verdict.
"""
import json
import os
import re
import shutil
import subprocess

import check
import dkms
import fake_gpu
import pci
import vm
import vm_image

DISK_MB = 5000
STATE = "/var/lib/gpu-bootstrap"
SHOWN = "/srv/pci"
DROP_IN = "/etc/systemd/system/gpu-bootstrap.service.d/pci.conf"
ONLY_FOR_THE_AGENT = f"""\
[Service]
BindReadOnlyPaths={SHOWN}/sys-bus-pci:/sys/bus/pci {SHOWN}/proc-bus-pci:/proc/bus/pci
"""
# What the kernel itself has seen, for comparison.
LOG = "/var/log/e2e-kernel"
KEEP_THE_LOG = f"[Service]\nExecStartPre=/bin/sh -c 'uname -r >{LOG}; dmesg >>{LOG}; cat /proc/modules >>{LOG}'\n"


def run(work, binary, say):
    """The scene `vm`."""
    layer = dkms.kept(work, binary, say)
    place = os.path.join(work, "vm")
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(os.path.join(place, "empty"))
    image = make(place, layer, os.path.join(work, dkms.KEPT, "base"), binary)
    site = vm.Site(place, {"debian": os.path.join(place, "empty")})
    try:
        site.configure(dkms.CONFIG)
        refused(site, image, "none", None, "No NVIDIA GPU found", "no-gpu = ", say)
        with vm_image.mounted(image.disk, "rw") as root:
            os.unlink(root + DROP_IN)
        gpu = fake_gpu.make(os.path.join(place, "qemu-with-gpu"))
        refused(site, image, "silent", gpu, "", "stop and start the instance", say)
    finally:
        site.close()
        shutil.rmtree(place, ignore_errors=True)


def make(place, layer, base, binary):
    """The disk: `layer` over `base`, with the unit enabled as on any image."""
    image = vm_image.Image(os.path.join(place, "image"))
    os.makedirs(image.folder)
    tree = os.path.join(place, "tree")
    os.makedirs(tree)
    script = 'mount -t overlay overlay -o "lowerdir=$1:$2" "$3"; mke2fs -q -F -t ext4 -d "$3" "$4" "$5"'
    subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", layer, base, tree, image.disk,
                    f"{DISK_MB}M"], check=True, stdout=subprocess.DEVNULL)
    shown = os.path.join(place, "pci")
    pci.make(shown)
    with vm_image.mounted(image.disk, "rw") as root:
        os.rename(f"{root}/bin/uname.real", f"{root}/bin/uname")
        shutil.rmtree(root + STATE)  # another machine's runs
        vm_image.fill(root, binary, None, "")
        vm_image.write(root + DROP_IN, ONLY_FOR_THE_AGENT)
        vm_image.write(f"{root}/etc/systemd/system/e2e-power-off.service.d/log.conf", KEEP_THE_LOG)
        for part in ("sys-bus-pci", "proc-bus-pci"):
            shutil.copytree(os.path.join(shown, part), f"{root}{SHOWN}/{part}", symlinks=True)
        for name, target in (("vmlinuz", image.kernel), ("initrd.img", image.initial)):
            shutil.copyfile(vm_image.newest(root, name), target)
    return image


def refused(site, image, name, gpu, words, remedy, say):
    """One boot: the driver is loaded and refuses; the verdict has its words, and what to do."""
    disk = vm.Disk(image, os.path.join(site.work, f"{name}.qcow2"))
    machine = vm.Machine(site, image, disk, os.path.join(site.work, f"console-{name}"), gpu=gpu)
    try:
        machine.wait_until_off()
    finally:
        machine.cut()
    with vm_image.mounted(disk.flatten(), "ro") as root:
        result, log = json.loads(read(f"{root}{STATE}/result.json")), read(root + LOG)
    disk.remove()
    kernel, error = log.splitlines()[0], result["error"]
    check.equal((result["outcome"], result["exit_code"], error and error["code"]), ("failed", 5, "gpu-not-driven"),
                f"the verdict ({error})")
    said = re.search(rf'^kernel {re.escape(kernel)} loaded the NVIDIA module, .*: "(.+)" \(kernel log\)$', error["message"])
    check.true(said and words in said[1], f"the sentence: {error['message']}")
    # Word for word what the driver said, over however many lines.
    spoken = " ".join(re.findall(r"NVRM: (.*)", log))
    check.true(said[1] in " ".join(spoken.split()), f"{said[1]!r} is not what the kernel's log has: {spoken}")
    check.true(remedy in error["hint"], f"what to do: {error['hint']}")
    check.true("out-of-tree module taints kernel" in log, "the kernel's log says nothing of the module")
    check.true(not re.search(r"^nvidia ", log, re.M), "the module is still loaded")
    console = " ".join(machine.console().split())
    check.true(said[1] in console, f"the console does not say it: {machine.console()[-3000:]}")
    steps = {step["id"]: step["state"] for step in result["steps"]}
    check.equal((steps["driver-match"], steps["kernel-module"]), ("done", "failed"), f"the steps ({steps})")
    say(f"{name}: {error['message']}; {error['hint']}")


def read(path):
    with open(path, encoding="utf-8", errors="replace") as source:
        return source.read()
