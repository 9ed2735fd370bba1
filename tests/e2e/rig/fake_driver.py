"""The packages that Debian's own driver consists of, with a simulated driver inside: kernel modules for one kernel, built
from fake_driver_module/ with that kernel's headers, and libcuda and NVML as the rehearsal has them."""
import os
import re
import shutil
import subprocess

import debs
import host
from cargo import PROJECT
from mirror import Mirror

RIG = os.path.dirname(os.path.abspath(__file__))
SUITE, VERSION = "bookworm", "535.261.03"
CUDA = "12.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# What the simulated driver is told of the GPUs; a machine with another one is told so by `gpu_is`.
SETTINGS = "etc/simulated-driver"
# As in the world: the package starts its own service while it is configured.  And what a scene wants it to do besides.
SERVICE = "nvidia-persistenced.service"
UNIT = "[Unit]\nDescription=stands in for NVIDIA's\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
HOOK = "/srv/e2e-postinst"
START = f"""\
if [ -d /run/systemd/system ]; then systemctl daemon-reload; systemctl start {SERVICE}; fi
if [ -x {HOOK} ]; then {HOOK}; fi"""
SOURCES = ["cuda.c", "nvml.c", "libraries.c", "settings.c"]
COMPONENTS = ["main", "contrib", "non-free", "non-free-firmware"]


def mirror(folder, key, kernel, gpu_address, say):
    """An archive in `folder` that has the driver, with modules for `kernel` only, and that kernel's headers (empty)."""
    place = os.path.join(folder, "made")
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    site = Mirror(os.path.join(folder, "mirror"), key)
    for component in COMPONENTS:
        site.add_package(debs.Package(f"component-{component}").build(place), SUITE, component)
    headers = f"linux-headers-{kernel}"
    for package in (debs.Package(headers, architecture="amd64"),
                    debs.Package("linux-headers-cloud-amd64", architecture="amd64", fields={"Depends": headers})):
        site.add_package(package.build(place), SUITE, "main")
    for package in driver(os.path.join(folder, "build"), kernel, gpu_address, say):
        site.add_package(package.build(place), SUITE, "non-free")
    site.publish()
    return site


def driver(build, kernel, gpu_address, say):
    modules = f"lib/modules/{kernel}/updates/dkms"
    made = [debs.file(f"{modules}/{name}", content) for name, content in kernel_modules(build, kernel, gpu_address, say)]
    settings = f"gpus=1x1eb8\npci={gpu_address}\nlabel=(simulated)\nversion={VERSION}\ncuda={CUDA}\n"

    def package(name, *entries, **more):
        return debs.Package(name, f"{VERSION}-1", "amd64", entries=list(entries), **more)
    return [
        package("nvidia-kernel-dkms", *made, scripts={"postinst": f"depmod {kernel}"}),
        package("libcuda1", *library(build, "libcuda.so.1"), debs.file(SETTINGS, settings),
                control={"triggers": "activate-noawait ldconfig\n"}),
        package("libnvidia-ml1", *library(build, "libnvidia-ml.so.1"), control={"triggers": "activate-noawait ldconfig\n"}),
        package("nvidia-smi"), package("nvidia-modprobe"),
        package("nvidia-persistenced", debs.file(f"lib/systemd/system/{SERVICE}", UNIT), scripts={"postinst": START})]


def gpu_is(place, device):
    """The machine whose root is `place` has another GPU now, by its PCI device id; the file keeps its size."""
    path = os.path.join(place, SETTINGS)
    text = read(path).decode()
    with open(path, "w", encoding="utf-8") as out:
        out.write(re.sub(r"(?<=^gpus=1x)....$", device, text, count=1, flags=re.M))


def library(build, soname):
    """The simulated driver of a rehearsal under this name."""
    path = os.path.join(build, soname)
    sources = [os.path.join(PROJECT, "src/rehearse/driver", source) for source in SOURCES]
    subprocess.run(["gcc", "-std=gnu11", "-Os", "-fPIC", "-shared", "-s", f"-Wl,-soname,{soname}", "-o", path, *sources],
                   check=True)
    name = f"{soname.removesuffix('.1')}.{VERSION}"
    return [debs.file(f"{LIBRARIES}/{name}", read(path)), debs.symlink(f"{LIBRARIES}/{soname}", name)]


def kernel_modules(build, kernel, gpu_address, say):
    """[(file name, content)], built with the kernel's headers."""
    headers = f"/usr/src/linux-headers-{kernel}"
    if not os.path.isdir(headers):
        host.install([os.path.basename(headers)], say)
    shutil.rmtree(build, ignore_errors=True)
    shutil.copytree(os.path.join(RIG, "fake_driver_module"), build)
    for name in ("uvm", "modeset"):
        shutil.copy(os.path.join(build, "companion.c"), os.path.join(build, f"companion-{name}.c"))
    subprocess.run(["make", "--silent", "-C", headers, f"M={build}", f"DRIVER_VERSION={VERSION}",
                    f"GPU_ADDRESS={gpu_address}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"],
                   check=True, stdout=subprocess.DEVNULL)
    return [(name, read(os.path.join(build, name))) for name in ("nvidia.ko", "nvidia-uvm.ko", "nvidia-modeset.ko")]


def read(path):
    with open(path, "rb") as source:
        return source.read()
