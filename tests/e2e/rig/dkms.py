"""The distribution's driver for real: Debian's own packages, DKMS, a compiler, and the headers of a cloud kernel.

The machine pretends to run that kernel: /proc/sys/kernel/osrelease and `uname -r` name it, and nothing else does.  The module
is compiled and never loaded, so that the run ends with `driver-not-loaded`; what is looked at is what it left on the disk.
"""
import os
import re
import subprocess

import archive
import check
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
# The cloud kernel itself, as on an image of Debian's for EC2; its headers and the compiler come with the driver.
PACKAGES = archive.BASE_PACKAGES + ",linux-image-cloud-amd64"
UNAME = """\
#!/bin/sh
# Stands for the kernel that this machine would have booted.
case "$*" in -r) echo {kernel} ;; *) exec /bin/uname.real "$@" ;; esac
"""


def run(work, binary, say, name, suite):
    """The scene `dkms-…`."""
    place = os.path.join(work, name)
    os.makedirs(place, exist_ok=True)
    packages = archive.Archive(place, suite)
    measure = os.path.join(work, "measure")
    subprocess.run(["gcc", "-O2", "-static", "-o", measure, os.path.join(PROJECT, "tests/e2e/rig/measure.c")], check=True)
    machine = None
    try:
        base = packages.root("base", PACKAGES)
        machine = Instance(name, base, packages, place)
        kernel = machine.run("sh", "-c", "ls /lib/modules").stdout.split()[-1]
        boots(machine, kernel)
        with open(machine.user_data, "w", encoding="utf-8") as out:
            out.write(CONFIG)
        agent = Agent(machine, binary, measure)
        agent.run(expect=5)
        result = agent.result()
        check.equal(result["error"]["code"], "driver-not-loaded", f"the error's code ({result['error']})")
        say(f"{name}: verdict: {result['error']['message']}")
        looks(machine, agent, kernel, lambda text: say(f"{name}: {text}"))
    finally:
        if machine:
            machine.close()
        packages.close()


def boots(machine, kernel):
    """From here on the machine says that it runs this kernel."""
    machine.write("/run/e2e/osrelease", f"{kernel}\n")
    machine.run("mount", "--bind", "/run/e2e/osrelease", "/proc/sys/kernel/osrelease")
    machine.run("mv", "/bin/uname", "/bin/uname.real")
    machine.write("/bin/uname", UNAME.format(kernel=kernel), 0o755)


def looks(machine, agent, kernel, say):
    """The module is there, of the libraries' version; the agent's own step says so, and how it is signed."""
    library = machine.run("sh", "-c", "readlink -f $(ldconfig -p | sed -n 's/.*libcuda.so.1 .*=> //p' | head -n 1)").stdout
    libraries = library.strip().rpartition(".so.")[2]
    modinfo = ""
    for module in ("nvidia", "nvidia-current"):
        done = machine.run("modinfo", "-k", kernel, module, check=False)
        modinfo = modinfo or (done.stdout if done.returncode == 0 else "")
    version = re.search(r"^version:\s+(\S+)$", modinfo, re.M)
    check.true(version, f"kernel {kernel} has no NVIDIA module")
    check.equal(version[1], libraries, f"version of the module for {kernel}")
    magic = re.search(r"^vermagic:\s+(\S+)", modinfo, re.M)
    check.equal(magic and magic[1], kernel, "the kernel that the module is for")
    state = {step: (word, why) for step, _, word, why in agent.plan()}["driver-match"]
    check.equal(state[0], "satisfied", f"driver-match ({state[1]})")
    say(state[1])
    check.true('Package-Blacklist:: "libnvidia-.*$"' in machine.run("apt-config", "dump").stdout,
               "apt's configuration does not keep unattended-upgrades from the driver")
