"""Purpose-made packages for power cuts, in a repository of NVIDIA's layout: a toolkit with everything that a cut can tear
without dpkg's noticing (files without sums, empty files, links, what scripts wrote), with triggers and conffiles, and with
a script that fails where its package's files are torn.

Scripts may run twice, as after a crash, and must leave the same state.
"""
import os
import subprocess
import tempfile

from debs import Package, file, folder, hard_link, noise, symlink
from signed_repo import publish

SERIES, VERSION = "11-8", "11.8.1-1"
HOME = "usr/local/cuda-11.8"
LIBRARIES = f"{HOME}/targets/x86_64-linux/lib"
TOOLKIT = f"cuda-toolkit-{SERIES}"
# Where the distribution's repository lies below the one that is configured.
PLACE = "debian12/x86_64"
STATE = "/var/lib/cuda-cut"
TRIGGERED = f"""\
mkdir -p {STATE}
cat /{HOME}/share/triggers/* >{STATE}/trigger-output"""
DERIVE = f"""\
mkdir -p {STATE}
sha256sum /{HOME}/share/scripts/source >{STATE}/sum
base64 /{HOME}/share/scripts/source >{STATE}/derived
chown games:games {STATE}/derived
ln -sfn derived {STATE}/link"""


def name(part):
    return f"cuda-cut-{part}-{SERIES}"


def library(soname):
    """A shared object for the linker's cache, with 1.5 MB of noise behind it."""
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, soname)
        subprocess.run(["gcc", "-shared", "-nostdlib", "-x", "c", f"-Wl,-soname,{soname},--build-id=none", "-o", path,
                        os.devnull], check=True)
        with open(path, "rb") as source:
            return source.read() + noise(1_500_000, soname)


def packages():
    made = [
        Package(name("libraries"), control={"triggers": "activate-noawait ldconfig\n"}, data="xz-blocks", entries=[
            *[file(f"{LIBRARIES}/libcut{number}.so.11.8", library(f"libcut{number}.so.11")) for number in range(3)],
            *[symlink(f"{LIBRARIES}/libcut{number}.so", f"libcut{number}.so.11.8") for number in range(3)],
            hard_link(f"{LIBRARIES}/libcut-linked.so.11.8", f"{LIBRARIES}/libcut0.so.11.8"),
            symlink(f"{HOME}/lib64", "targets/x86_64-linux/lib")]),
        Package(name("no-sums"), md5sums=False, entries=[
            file(f"{HOME}/share/no-sums/big", noise(2_000_000, "no sums")), file(f"{HOME}/share/no-sums/empty"),
            *[file(f"{HOME}/share/no-sums/{number}", noise(3000, number)) for number in range(20)]]),
        Package(name("headers"), entries=[
            *[file(f"{HOME}/include/cut/{number % 10}/{number}.h", noise(2000, number)) for number in range(150)],
            folder(f"{HOME}/include/cut/empty"), symlink(f"{HOME}/include/cut/link", "0/0.h")]),
        Package(name("scripts"), entries=[file(f"{HOME}/share/scripts/source", noise(120_000, "source"))],
                scripts={"preinst": f"mkdir -p {STATE}\necho made by preinst >{STATE}/preinst", "postinst": DERIVE}),
        Package(name("needs-itself"), entries=[file(f"{HOME}/bin/cut-tool", "#!/bin/sh\necho works\n", mode=0o755)],
                scripts={"postinst": f'[ "$(/{HOME}/bin/cut-tool)" = works ]'}),
        Package(name("conffiles"), control={"conffiles": "/etc/cuda-cut.conf\n/etc/cuda-cut/big.conf\n"}, entries=[
            file("etc/cuda-cut.conf", "answer = 42\n"), file("etc/cuda-cut/big.conf", noise(100_000, "conffile"))]),
        Package(name("trigger"), control={"triggers": f"interest /{HOME}/share/triggers\n"},
                scripts={"postinst": TRIGGERED}),
        Package(name("triggering"), entries=[file(f"{HOME}/share/triggers/one", noise(90_000, "one")),
                                             file(f"{HOME}/share/triggers/two", "2")]),
    ]
    for package in made:
        package.version = VERSION
    depends = ", ".join(package.name for package in made)
    return [*made, Package(TOOLKIT, VERSION, fields={"Depends": depends}, entries=[
        file(f"{HOME}/version.json", '{"cuda": {"version": "11.8.1"}}\n'),
        file(f"{HOME}/bin/nvcc", "#!/bin/sh\necho release 11.8\n", mode=0o755)])]


def repository(folder_of_all, key):
    """Builds and signs it below `folder_of_all`."""
    place = os.path.join(folder_of_all, PLACE)
    os.makedirs(place, exist_ok=True)
    for package in packages():
        package.build(place)
    publish(place, key, os.path.join(folder_of_all, "index.json"))
