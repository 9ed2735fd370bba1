"""The distribution's driver for real: Debian's own packages, DKMS, a compiler, and the headers of a cloud kernel.

The machine pretends to run that kernel: /proc/sys/kernel/osrelease and `uname -r` name it, and nothing else does.  The module
is compiled and never loaded, so that a run ends with `driver-not-loaded`; what is looked at is what it left on the disk.
driver_vm.py boots that disk.
"""
import contextlib
import os
import re
import shutil
import subprocess

import archive
import check
import vm_image
from agent import Agent
from cargo import PROJECT
from instance import Instance

SUITES = {"debian11": "bullseye", "debian12": "bookworm", "debian13": "trixie"}
CONFIG = """\
#gpu-bootstrap
[source]
packages = "distro"
[cuda]
toolkit = "none"
[cudnn]
version = "none"
"""
# Debian 11 as its last point release left it: what its security index names is gone from the archive (2026-11-27), kernels
# and drivers alike.  There only branch 470 is what the catalog says.
WITHOUT_SECURITY, WISHES = {"debian11"}, {"debian11": "470"}
# The cloud kernel itself, as on an image of Debian's for EC2; its headers and the compiler come with the driver.
PACKAGES = f"{archive.BASE_PACKAGES},pciutils,linux-image-cloud-amd64"
# The machine whose disk goes on in other scenes, and where that lies: what it wrote, over its base.
KEPT, LAYER = "debian12", "driver"
UNAME = """\
#!/bin/sh
# Stands for the kernel that this machine would have booted.
case "$*" in -r) echo {kernel} ;; *) exec /bin/uname.real "$@" ;; esac
"""
# Names of the module's file, by the branch that Debian gives it.
MODULES = {"470": "nvidia-tesla-470"}


def run(work, binary, say, name, suite):
    """The scene `dkms-…`."""
    place, instance = os.path.join(work, name), os.path.join(work, name, "instances", name)
    shutil.rmtree(os.path.join(place, LAYER), ignore_errors=True)
    with started(work, binary, name, suite, keep=name == KEPT) as (machine, agent):
        kernel = boots(machine)
        wish = WISHES.get(name, "")
        config = CONFIG + (f'[driver]\nbranch = "{wish}"\n' if wish else "")
        installs(agent, machine, lambda text: say(f"{name}: {text}"), config)
        looks(machine, agent, kernel, lambda text: say(f"{name}: {text}"), wish)
    if name == KEPT:
        os.rename(os.path.join(instance, "fs/upper"), os.path.join(place, LAYER))
        shutil.rmtree(instance)


def switch(work, binary, say):
    """The scene `switch-debian12`: the machine has the newest branch, and its user wishes for 470."""
    with started(work, binary, KEPT, SUITES[KEPT], "switch", [kept(work, binary, say)]) as (machine, agent):
        kernel = boots(machine)
        before = versions(machine)
        check.true(before["libcuda1"][1].startswith("535."), f"the driver before the switch: {before.get('libcuda1')}")
        installs(agent, machine, say, CONFIG + '[driver]\nbranch = "470"\n', "--replan")
        looks(machine, agent, kernel, say, "470")
        after = versions(machine)
        check.equal(sorted(name for name, (_, version) in after.items() if version.startswith("535.") and name in DRIVER),
                    [], "packages of branch 535 that would keep it in use")
        loose = sorted(name for name in after if "tesla-470" in name and after[name][0] != "hold")
        check.equal(loose, [], "packages of the driver that are not on hold")
        # Whatever is installed, removed or upgraded next: apt finds the machine in order.
        for command in (["apt-get", "check"], ["apt-get", "--simulate", "upgrade"], ["dpkg", "--audit"]):
            done = machine.run(*command)
            check.true("broken" not in done.stdout + done.stderr, f"{command}: {done.stdout}{done.stderr}")
        modprobe = machine.run("modprobe", "--set-version", kernel, "--show-depends", "nvidia").stdout
        check.true("modprobe -i nvidia-tesla-470" in modprobe, f"what a boot would load: {modprobe}")


# What brings a driver into use, by the names of the newest branch.  Its firmware and the like may stay: nothing leads to them.
DRIVER = {"libcuda1", "libnvidia-ml1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-kernel-support", "nvidia-alternative",
          "libnvidia-cfg1"}


def kept(work, binary, say):
    """What the scene of that machine left; it runs if it has not yet."""
    layer = os.path.join(work, KEPT, LAYER)
    if not os.path.isdir(layer):
        run(work, binary, say, KEPT, SUITES[KEPT])
    return layer


@contextlib.contextmanager
def started(work, binary, name, suite, instance=None, layers=(), keep=False):
    """A machine of that release, its disk the base with `layers` over it; (Instance, Agent)."""
    place = os.path.join(work, name)
    os.makedirs(place, exist_ok=True)
    packages = archive.Archive(place, suite, security=name not in WITHOUT_SECURITY)
    measure = os.path.join(work, "measure")
    subprocess.run(["gcc", "-O2", "-static", "-o", measure, os.path.join(PROJECT, "tests/e2e/rig/measure.c")], check=True)
    machine = None
    try:
        machine = Instance(instance or name, ":".join([*layers, base(packages)]), packages, place, keep=keep)
        yield machine, Agent(machine, binary, measure)
    finally:
        if machine:
            machine.close()
        packages.close()


def base(packages):
    """The root of a machine without the driver; the one that is kept is to boot as a virtual machine, too."""
    if packages.suite == SUITES[KEPT]:
        return vm_image.root(packages, "base", f"{archive.BASE_PACKAGES},{vm_image.PACKAGES}")
    return packages.root("base", PACKAGES)


def boots(machine):
    """From here on the machine says that it runs the kernel that is installed; its release."""
    kernel = machine.run("sh", "-c", "ls /lib/modules").stdout.split()[-1]
    machine.write("/run/e2e/osrelease", f"{kernel}\n")
    machine.run("mount", "--bind", "/run/e2e/osrelease", "/proc/sys/kernel/osrelease")
    if not os.path.exists(machine.path("/bin/uname.real")):
        machine.run("mv", "/bin/uname", "/bin/uname.real")
    machine.write("/bin/uname", UNAME.format(kernel=kernel), 0o755)
    return kernel


def installs(agent, machine, say, config=CONFIG, *arguments):
    """A run (with `arguments`) that does everything but load the module, and a second one that changes nothing."""
    with open(machine.user_data, "w", encoding="utf-8") as out:
        out.write(config)
    agent.run(*arguments, expect=5)
    error = agent.result()["error"]
    check.equal(error["code"], "driver-not-loaded", f"the error's code ({error})")
    say(f"verdict: {error['message']}")
    done = machine.dpkg_log()
    agent.run(expect=5)
    check.equal(machine.dpkg_log(), done, "what dpkg did in the second run")
    changed = [step["id"] for step in agent.result()["steps"] if step["changed"]]
    check.equal(changed, [], "steps that changed something in the second run")


def versions(machine):
    """{package: (what dpkg wants of it, version)} of everything installed."""
    shown = machine.run("dpkg-query", "--show", "--showformat", "${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\n")
    lines = [line.split(" ") for line in shown.stdout.splitlines()]
    return {name: (want, version) for want, state, name, version in lines if state == "installed"}


def looks(machine, agent, kernel, say, branch=""):
    """The module is there, of the libraries' version; the agent's own step says so, and how it is signed."""
    library = machine.run("sh", "-c", "readlink -f $(ldconfig -p | sed -n 's/.*libcuda.so.1 .*=> //p' | head -n 1)").stdout
    libraries = library.strip().rpartition(".so.")[2]
    check.true(libraries.startswith(branch), f"the libraries are {libraries}")
    modinfo = machine.run("modinfo", "-k", kernel, MODULES.get(branch, "nvidia-current")).stdout
    version = re.search(r"^version:\s+(\S+)$", modinfo, re.M)
    check.equal(version and version[1], libraries, f"version of the module for {kernel}")
    magic = re.search(r"^vermagic:\s+(\S+)", modinfo, re.M)
    check.equal(magic and magic[1], kernel, "the kernel that the module is for")
    built = sorted(machine.run("sh", "-c", f"find /lib/modules/{kernel} -name 'nvidia*.ko*'").stdout.split())
    check.true(all(branch in path for path in built), f"modules for {kernel}: {built}")
    state = {step: (word, why) for step, _, word, why in agent.plan()}["driver-match"]
    check.equal(state[0], "satisfied", f"driver-match ({state[1]})")
    say(state[1])
    check.true('Package-Blacklist:: "libnvidia-.*$"' in machine.run("apt-config", "dump").stdout,
               "apt's configuration does not keep unattended-upgrades from the driver")
