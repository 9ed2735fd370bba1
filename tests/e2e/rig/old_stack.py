"""The old stack: Ubuntu 18.04 with CUDA 10.2 and cuDNN 7.6.5, from repositories laid out as NVIDIA's were after the key was
rotated in April 2022.

The system, its apt and its dpkg are Ubuntu's own. NVIDIA's packages are purpose-made: their names, versions, relations,
paths and scripts are the real ones, what is in them is not. Test keys sign in NVIDIA's place. On the machine lies what a
script of 2020 left: the retired key (the real one) trusted for everything, the pin file, and sources without a keyring.
"""
import difflib
import os
import re
import shutil
import subprocess

import bionic
import check
import debs
from agent import Agent
from cargo import PROJECT
from instance import FILES_URL, Instance
from signed_repo import Key, publish

GOLDEN = os.path.join(PROJECT, "tests/e2e/golden/old-stack.txt")
CUDA = "10.2.89-1"
CUDNN = "7.6.5.32-1+cuda10.2"
HOME, LIBRARIES = "usr/local/cuda-10.2", "usr/lib/x86_64-linux-gnu"
LAYOUT = "ubuntu1804/x86_64"
RETIRED = os.path.join(PROJECT, "steps/catalog/keys/7fa2af80.asc")
# What instructions of that time had people do.
PIN = "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
CUDA_LIST = f"deb {FILES_URL}/nvidia/{LAYOUT} /\n"
MACHINE_LEARNING_LIST = f"deb {FILES_URL}/machine-learning/{LAYOUT} /\n"
CONFIG = """\
#gpu-bootstrap
[source]
packages = "{url}/nvidia"
[driver]
branch = "none"
[cuda]
toolkit = "10.2"
[cudnn]
deb = [
    {{ url = "{url}/machine-learning/{layout}/{runtime}" }},
    {{ url = "{url}/machine-learning/{layout}/{dev}" }},
]
"""
ALTERNATIVE = """\
update-alternatives --install /usr/include/cudnn.h libcudnn /usr/include/x86_64-linux-gnu/cudnn_v7.h 40 \\
  --slave /usr/lib/x86_64-linux-gnu/libcudnn.so libcudnn_so /usr/lib/x86_64-linux-gnu/libcudnn.so.7"""
QUESTIONS = {"PATH": 'printf %s "$PATH"', "LD_LIBRARY_PATH": 'printf %s "$LD_LIBRARY_PATH"', "nvcc": "command -v nvcc"}


class NoArchive:
    """Nothing of the distribution's is installed, so that the machine has no other source."""

    @staticmethod
    def deb822(_):
        return ""

    @staticmethod
    def proxy_arguments():
        return []


def library(work, soname, source="int stands_in(void) { return 0; }"):
    path = os.path.join(work, soname)
    subprocess.run(["gcc", "-x", "c", "-", "-shared", "-fPIC", "-Os", "-s", "-nostdlib", f"-Wl,-soname,{soname}", "-o", path],
                   input=source, text=True, check=True)
    with open(path, "rb") as out:
        return out.read()


def toolkit(work):
    target = f"{HOME}/targets/x86_64-linux/lib"
    fields = {"Depends": "cuda-nvcc-10-2 (>= 10.2.89), cuda-cudart-dev-10-2 (>= 10.2.89)"}
    nvcc = "#!/bin/sh\necho 'Cuda compilation tools, release 10.2, V10.2.89'\n"
    return [
        debs.Package("cuda-toolkit-10-2", CUDA, "amd64", fields=fields, entries=[
            debs.file(f"{HOME}/version.txt", "CUDA Version 10.2.89\n")]),
        debs.Package("cuda-nvcc-10-2", CUDA, "amd64", entries=[debs.file(f"{HOME}/bin/nvcc", nvcc, mode=0o755)]),
        debs.Package("cuda-cudart-10-2", CUDA, "amd64", control={"triggers": "activate-noawait ldconfig\n"}, entries=[
            debs.file(f"{target}/libcudart.so.10.2.89", library(work, "libcudart.so.10.2")),
            debs.symlink(f"{target}/libcudart.so.10.2", "libcudart.so.10.2.89"),
            debs.symlink(f"{HOME}/lib64", "targets/x86_64-linux/lib")]),
        debs.Package("cuda-cudart-dev-10-2", CUDA, "amd64", fields={"Depends": "cuda-cudart-10-2 (>= 10.2.89)"}, entries=[
            debs.symlink(f"{target}/libcudart.so", "libcudart.so.10.2"),
            debs.file(f"{HOME}/targets/x86_64-linux/include/cuda_runtime.h", "/* stands in */\n"),
            debs.symlink(f"{HOME}/include", "targets/x86_64-linux/include")]),
        # A driver that a stray metapackage would bring.
        debs.Package("cuda-drivers", "520.61.05-1", "amd64"),
        debs.Package("cuda-10-2", CUDA, "amd64", fields={"Depends": "cuda-toolkit-10-2, cuda-drivers (>= 440.33)"}),
    ]


def cudnn(work):
    answer = "unsigned long cudnnGetVersion(void) { return 7605; }"
    return [
        debs.Package("libcudnn7", CUDNN, "amd64", control={"triggers": "activate-noawait ldconfig\n"}, entries=[
            debs.file(f"{LIBRARIES}/libcudnn.so.7.6.5", library(work, "libcudnn.so.7", answer)),
            debs.symlink(f"{LIBRARIES}/libcudnn.so.7", "libcudnn.so.7.6.5")]),
        debs.Package("libcudnn7-dev", CUDNN, "amd64", fields={"Depends": f"libcudnn7 (= {CUDNN})"},
                     scripts={"postinst": ALTERNATIVE}, entries=[
                         debs.file("usr/include/x86_64-linux-gnu/cudnn_v7.h", "#define CUDNN_MAJOR 7\n"),
                         debs.file(f"{LIBRARIES}/libcudnn_static_v7.a", "!<arch>\n")]),
    ]


def repository(place, packages, key):
    shutil.rmtree(place, ignore_errors=True)
    flat = os.path.join(place, LAYOUT)
    os.makedirs(flat)
    for package in packages:
        package.build(flat)
    publish(flat, key, f"{place}.json")
    return flat


def signed_sums(flat, key):
    """{file name: SHA-256} as the repository's index has them, after its signature has been verified: where nobody publishes
    a sum, this is where it comes from."""
    keyring = f"{flat}/../../keyring.gpg"
    if os.path.exists(keyring):
        os.unlink(keyring)
    key.gpg("--output", keyring, "--export")
    subprocess.run(["gpgv", "--quiet", "--keyring", keyring, f"{flat}/Release.gpg", f"{flat}/Release"], check=True,
                   stderr=subprocess.DEVNULL)
    index = subprocess.run(["sha256sum", f"{flat}/Packages"], check=True, capture_output=True, text=True).stdout.split()[0]
    with open(f"{flat}/Release", encoding="utf-8") as source:
        check.true(re.search(rf"^ {index} +\d+ Packages$", source.read(), re.M), "the Release file vouches for Packages")
    with open(f"{flat}/Packages", encoding="utf-8") as source:
        paragraphs = source.read().split("\n\n")
    return {re.search(r"^Filename: \./(.*)$", text, re.M)[1]: re.search(r"^SHA256: (.*)$", text, re.M)[1]
            for text in paragraphs if text.strip()}


def catalog(new, old):
    """The new key for CUDA's repository, the old one for the sums of the machine-learning repository, as the built-in catalog has
    NVIDIA's."""
    index = (f'[[key]]\nid = "learning"\nfingerprint = "{old.fingerprint}"\narmour = """\n{old.armoured}"""\nretired = true\n\n'
             f'[[file-index]]\nid = "machine-learning"\nkey = "learning"\nurls = ["{FILES_URL}/machine-learning/{LAYOUT}/"]\n')
    return f'{new.catalog("ubuntu1804")}\n{index}'


def sums_are_the_indexs(machine, sums):
    """The receipt says where each sum came from; the same sums by gpgv and sha256sum."""
    receipt = machine.read("/var/lib/gpu-bootstrap/receipt.json")
    for file, wanted in sums.items():
        check.true(f"sha256 {wanted} of {file} is from the index of" in receipt, f"the receipt names the sum of {file}")


def state(machine):
    """What there is in the end, as text: packages, files of ours and of the packages, variables, libraries."""
    format_ = "${db:Status-Abbrev} ${Package} ${Version}\\n"
    lines = ["# packages"]
    for line in machine.run("dpkg-query", "-W", "-f", format_).stdout.splitlines():
        if re.search(r" (cuda|libcudnn|nvidia)", line):
            lines.append(" ".join(line.split()))
    lines.append("# files")
    places = ["/usr/local", "/etc/apt", "/etc/profile.d", "/etc/ld.so.conf.d", "/usr/share/keyrings", "/etc/modprobe.d"]
    found = machine.run("find", *places, "!", "-type", "d", "-newer", "/var/lib/e2e-began", "-printf", "%y %m %p -> %l\\n").stdout
    kept = [line.removesuffix(" -> ") for line in found.splitlines() if "/usr/local/sbin" not in line]
    names = r"/usr/include/(cudnn\.h|x86_64-linux-gnu/cudnn_v7\.h)|/usr/lib/x86_64-linux-gnu/libcudnn\S*"
    found = machine.run("find", "/usr/include", "/usr/lib/x86_64-linux-gnu", "/usr/local/cuda-10.2", "!", "-type", "d", "-printf",
                        "%y %m %p -> %l\\n").stdout
    kept += [line.removesuffix(" -> ") for line in found.splitlines()
             if re.search(names, line) or "/usr/local/cuda-10.2/" in line]
    lines += sorted(set(kept), key=lambda line: line.split()[2])
    for shell, arguments in (("root", ["bash", "-lc"]), ("user", ["su", "-l", "user", "-c"])):
        for name, question in QUESTIONS.items():
            lines.append(f"# {name} of {shell}: {machine.run(*arguments, question).stdout.strip()}")
    cache = machine.run("ldconfig", "-p").stdout
    lines += [f"# linker: {line.strip()}" for line in cache.splitlines() if "cud" in line]
    return "\n".join(lines) + "\n"


def run(work, binary, say, update=False):
    """The scene `old-stack`."""
    base = bionic.root(work)
    place = os.path.join(work, "old-stack")
    os.makedirs(place, exist_ok=True)
    new, old = Key(os.path.join(work, "gpg-new")), Key(os.path.join(work, "gpg-old"))
    measure = os.path.join(work, "measure")
    subprocess.run(["gcc", "-O2", "-static", "-o", measure, os.path.join(PROJECT, "tests/e2e/rig/measure.c")], check=True)
    machine = None
    try:
        nvidia, learning = os.path.join(place, "nvidia"), os.path.join(place, "machine-learning")
        repository(nvidia, toolkit(place), new)
        flat = repository(learning, cudnn(place), old)
        sums = signed_sums(flat, old)
        runtime, dev = sorted(sums, key=len)
        machine = Instance("old-stack", base, NoArchive, work, {"nvidia": nvidia, "machine-learning": learning})
        machine.write("/run/e2e/catalog/repositories.toml", catalog(new, old))
        with open(RETIRED, encoding="utf-8") as source:
            machine.write("/etc/apt/trusted.gpg.d/nvidia-7fa2af80.asc", source.read())
        machine.write("/etc/apt/preferences.d/cuda-repository-pin-600", PIN)
        machine.write("/etc/apt/sources.list.d/cuda.list", CUDA_LIST)
        machine.write("/etc/apt/sources.list.d/nvidia-machine-learning.list", MACHINE_LEARNING_LIST)
        machine.write("/var/lib/dpkg/available", "")  # an image has it, and this dpkg does not hold packages without it
        machine.write("/var/lib/e2e-began", "")
        with open(machine.user_data, "w", encoding="utf-8") as out:
            out.write(CONFIG.format(url=FILES_URL, layout=LAYOUT, runtime=runtime, dev=dev))
        agent = Agent(machine, binary, measure, ["--catalog", "/run/e2e/catalog"])
        say(f"old-stack: dpkg {machine.run('dpkg-query', '-W', '-f', '${Version}', 'dpkg').stdout}, "
            f"apt {machine.run('dpkg-query', '-W', '-f', '${Version}', 'apt').stdout}; "
            f"{machine.run('apt-get', 'update', check=False).stderr.count('NO_PUBKEY')} NO_PUBKEY before the run")
        done = agent.run()
        for line in done.stderr.splitlines() + done.stdout.splitlines():
            if "set aside" in line:
                say(f"old-stack: {line.strip()}")
        sums_are_the_indexs(machine, sums)
        other_bytes_are_refused(machine, agent, flat, runtime)
        agent.run()  # nothing to do
        got = state(machine)
    finally:
        if machine:
            machine.close()
        new.close()
        old.close()
    if update:
        with open(GOLDEN, "w", encoding="utf-8") as out:
            out.write(got)
    with open(GOLDEN, encoding="utf-8") as source:
        wanted = source.read()
    check.equal("".join(difflib.unified_diff(wanted.splitlines(True), got.splitlines(True), "golden", "machine")), "",
                "the machine in the end")


def other_bytes_are_refused(machine, agent, flat, runtime):
    """A file with other bytes than the signed index says is not installed."""
    path = os.path.join(flat, runtime)
    with open(path, "rb") as source:
        right = source.read()
    middle = len(right) // 2
    with open(path, "wb") as out:
        out.write(right[:middle] + bytes([right[middle] ^ 1]) + right[middle + 1:])
    machine.run("rm", f"/{LIBRARIES}/libcudnn.so.7.6.5")
    agent.run(expect=1)
    check.equal(agent.result()["error"]["code"], "checksum-mismatch", "the error's code")
    with open(path, "wb") as out:
        out.write(right)
