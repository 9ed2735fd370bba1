"""Ways to damage a machine that was converged with the `nvidia` source, and what may be touched to heal each."""
import dataclasses
import os
import typing

import repack

PROFILE = "/etc/profile.d/gpu-bootstrap-cuda.sh"
PIN = "/etc/apt/preferences.d/00-gpu-bootstrap-nvidia.pref"
LINKER = "/etc/ld.so.conf.d/gpu-bootstrap-cuda.conf"
KEYRING = "/usr/share/keyrings/gpu-bootstrap-nvidia.gpg"
SOURCE = "/etc/apt/sources.list.d/gpu-bootstrap-nvidia.sources"
LINK = "/usr/local/cuda"
LIBRARIES = "/" + repack.TARGET + "/lib"
BIG_PACKAGE, BIG_LIBRARY = f"libcufft-{repack.SERIES}", f"{LIBRARIES}/libcufft.so.10.9.0.58"
SMALL_PACKAGE, SMALL_LIBRARY = f"cuda-cudart-{repack.SERIES}", f"{LIBRARIES}/libcudart.so.11.8.89"


@dataclasses.dataclass
class Damage:
    name: str
    do: typing.Callable
    # packages that dpkg may touch while healing; the trigger of the linker's cache may run besides
    packages: frozenset = frozenset()


def truncate(machine, path, size):
    os.truncate(machine.path(path), size)


def edit_pin(machine):
    text = machine.read(PIN)
    if "Pin-Priority: -1" not in text:
        raise AssertionError(f"{PIN} pins nothing negative:\n{text}")
    machine.write(PIN, text.replace("Pin-Priority: -1", "Pin-Priority: 1001"))


def other_version(machine, spare):
    machine.copy(spare, "/run/e2e/spare.deb", 0o644)
    machine.run("apt-mark", "unhold", repack.OTHER_PACKAGE)
    machine.run("dpkg", "--install", "/run/e2e/spare.deb")


def all_of(spare):
    """Every damage; `spare` is a package file of another version."""
    return [
        Damage("profile file deleted", lambda m: m.run("rm", PROFILE)),
        Damage("profile file edited", lambda m: m.write(PROFILE, "export PATH=/nowhere:$PATH\n")),
        Damage("pin edited", edit_pin),
        Damage("package source deleted", lambda m: m.run("rm", SOURCE)),
        Damage("keyring emptied", lambda m: truncate(m, KEYRING, 0)),
        Damage("linker directories deleted", lambda m: m.run("sh", "-c", f"rm {LINKER} && ldconfig")),
        Damage("link deleted", lambda m: m.run("rm", LINK)),
        Damage("link leads elsewhere", lambda m: m.run("ln", "-sfn", "/usr/local/cuda-9.9", LINK)),
        Damage("hold taken away", lambda m: m.run("apt-mark", "unhold", BIG_PACKAGE)),
        Damage("library of 279 MB deleted", lambda m: m.run("rm", BIG_LIBRARY), frozenset({BIG_PACKAGE})),
        Damage("library truncated", lambda m: truncate(m, SMALL_LIBRARY, 1000), frozenset({SMALL_PACKAGE})),
        Damage("package removed",
               lambda m: m.run("dpkg", "--force-depends", "--force-hold", "--remove", SMALL_PACKAGE),
               frozenset({SMALL_PACKAGE})),
        Damage("held version changed", lambda m: other_version(m, spare), frozenset({repack.OTHER_PACKAGE})),
    ]
