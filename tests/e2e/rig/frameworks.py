"""Real frameworks from their locks: Keras with TensorFlow, JAX and PyTorch back ends on a Debian 12 root, by the step itself, which
trains on this machine's CPU; then TensorFlow's set once more from a directory of the same wheels, without any network.

`attempt(work)` returns a list of (name, passed, words); `run(work)` raises where one failed.  The bus shows a T4, so that there is a plan; `device = "cpu"` takes the locks
without GPU.  6 GB below `work` at most: PyTorch on PyPI brings CUDA's libraries even where none is used."""
import json
import os
import re
import shutil
import subprocess
import time

import archive
import cargo
import sandbox

PACKAGES = "apt,dpkg,ca-certificates,python3-venv,util-linux,gpgv"
ENVIRONMENT = "/opt/gpu-bootstrap/ml"
CONFIG = """\
[driver]
branch = "none"
[cuda]
toolkit = "none"
[cudnn]
version = "none"
[frameworks]
device = "cpu"
path = "{path}"
python = {python}
wheels = "{wheels}"
"""
DEVICE = {"vendor": "0x10de", "device": "0x1eb8", "class": "0x030200"}
LOSS = re.compile(r"([^;]+) on CPU \(cpu\): loss ([\d.]+) to ([\d.]+)")


class Evidence:
    """What a root's last run says of its trainings."""

    def __init__(self, root):
        self.root = root

    def path(self, inside):
        return os.path.join(self.root, inside.lstrip("/"))

    def evidence(self):
        with open(self.path("/var/lib/gpu-bootstrap/receipt.json"), encoding="utf-8") as source:
            steps = json.load(source)["steps"]
        return next(" ".join(s["evidence"]) for s in steps if s["id"] == "training")


class Machine(Evidence):
    """A root with Python, and the agent beside it."""

    def __init__(self, work):
        super().__init__(os.path.join(work, "root"))
        self.work, self.tools = work, os.path.join(work, "tools")
        packages = archive.Archive(work)
        try:
            base = packages.root("frameworks-base", PACKAGES)
        finally:
            packages.close()
        sandbox.fresh(base, self.root)
        os.makedirs(self.tools, exist_ok=True)
        shutil.copy2(cargo.build("gpu-bootstrap", release=False), os.path.join(self.tools, "gpu-bootstrap"))
        for file, value in DEVICE.items():
            self.write(f"/srv/pci/devices/0000:00:1e.0/{file}", value)
        # The way out of this machine: its resolver, and whom it trusts.
        shutil.copy2("/etc/resolv.conf", self.path("/etc/resolv.conf"))
        shutil.copy2(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"), self.path("/etc/ssl/certs/e2e.crt"))

    def write(self, inside, text):
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as out:
            out.write(text)

    def configure(self, frameworks, wheels=""):
        self.write("/etc/gpu-bootstrap/e2e.toml", CONFIG.format(path=ENVIRONMENT, python=json.dumps(frameworks), wheels=wheels))

    def enter(self, command, network=True):
        """A command inside the root; (exit status, output, seconds)."""
        inside = ["bash", "-c", 'mount --bind "$ROOT/srv/pci" "$ROOT/sys/bus/pci" && exec chroot "$ROOT" "$@"', "enter", *command]
        if not network:
            inside = ["unshare", "--net", *inside]
        began = time.monotonic()
        proxies = {n: v for n, v in os.environ.items() if n.lower().endswith("_proxy")}
        environment = {"SSL_CERT_FILE": "/etc/ssl/certs/e2e.crt", "PIP_CERT": "/etc/ssl/certs/e2e.crt", **proxies}
        box = sandbox.Sandbox(self.root, inside, self.tools, environment=environment)
        status = box.wait()
        return status, box.output(), time.monotonic() - began

    def agent(self, network=True):
        return self.enter(["/mnt/gpu-bootstrap", "run", "--no-imds"], network)

    def remove_environment(self):
        shutil.rmtree(self.path(ENVIRONMENT), ignore_errors=True)

    def size(self):
        words = subprocess.run(["du", "-sm", self.path(ENVIRONMENT)], check=True, capture_output=True, text=True).stdout
        return int(words.split()[0])


def trained(machine, wanted):
    """Every name has learnt, by the step's own evidence."""
    evidence = machine.evidence()
    losses = {name.strip(): (float(before), float(after)) for name, before, after in LOSS.findall(evidence)}
    for name in wanted:
        fits = [pair for title, pair in losses.items() if title.startswith(name.split(" with ")[0]) and name.split(" with ")[-1] in title]
        if not fits or not all(after < before / 2 for before, after in fits):
            raise AssertionError(f"{name} is not among what learnt: {evidence}")
    return "; ".join(f"{name}: {before} to {after}" for name, (before, after) in losses.items())


def install(machine, frameworks, wanted, network=True, wheels=""):
    machine.configure(frameworks, wheels)
    status, output, seconds = machine.agent(network)
    if status != 0:
        raise AssertionError(output[-3000:])
    words = f"{seconds:.0f} s, {machine.size()} MB; {trained(machine, wanted)}"
    status, output, again = machine.agent(network)
    if status != 0 or "done     frameworks" in output:
        raise AssertionError(f"the second run: {output[-3000:]}")
    return f"{words}; again: {again:.0f} s"


def fetch_wheels(machine):
    """The wheels of the environment's own lock, as a laptop with a network would bring them."""
    lock = f"{ENVIRONMENT}/gpu-bootstrap-requirements.txt"
    pip = [f"{ENVIRONMENT}/bin/python", "-m", "pip", "download", "--quiet", "--no-cache-dir", "--no-deps", "--require-hashes",
           "--only-binary", ":all:", "--dest", "/srv/wheels", "--requirement", lock]
    status, output, _ = machine.enter(pip)
    if status != 0:
        raise AssertionError(output[-2000:])


SMALL = ["keras", "tensorflow", "jax", "tensorboard"]


def online(machine):
    return install(machine, SMALL, ["keras with tensorflow", "keras with jax", "jax"])


def offline(machine):
    fetch_wheels(machine)
    machine.remove_environment()
    return install(machine, SMALL, ["keras with tensorflow", "jax"], network=False, wheels="/srv/wheels")


def flipped_byte(machine):
    """A wheel of the directory with one other byte is refused by name, and the environment heals when it is back."""
    name = next(n for n in sorted(os.listdir(machine.path("/srv/wheels"))) if n.startswith("keras-"))
    with open(machine.path(f"/srv/wheels/{name}"), "r+b") as wheel:
        wheel.seek(1000)
        byte = wheel.read(1)
        wheel.seek(1000)
        wheel.write(bytes([byte[0] ^ 1]))
    shutil.rmtree(next(entry.path for entry in os.scandir(machine.path(f"{ENVIRONMENT}/lib/python3.11/site-packages"))
                       if entry.name.startswith("keras-") and entry.name.endswith(".dist-info")))
    status, output, _ = machine.agent(network=False)
    if status != 1 or "[checksum-mismatch]" not in output or "keras==" not in output:
        raise AssertionError(output[-2000:])
    with open(machine.path(f"/srv/wheels/{name}"), "r+b") as wheel:
        wheel.seek(1000)
        wheel.write(byte)
    status, output, _ = machine.agent(network=False)
    if status != 0:
        raise AssertionError(output[-2000:])
    return "refused by name; healed with the right one"


def pytorch(machine):
    machine.remove_environment()
    shutil.rmtree(machine.path("/srv/wheels"), ignore_errors=True)
    return install(machine, ["keras", "torch"], ["keras with torch", "torch"])


SCENES = {"online": online, "offline": offline, "flipped-byte": flipped_byte, "pytorch": pytorch}


def run(work):
    """All scenes; the results, or AssertionError with what failed."""
    results = attempt(work)
    if failed := [f"{name}: {words}" for name, passed, words in results if not passed]:
        raise AssertionError("\n".join(failed))
    return results


def attempt(work, only=()):
    """Each scene builds on the one before, but for pytorch."""
    results = []
    machine = Machine(work)
    try:
        for name, scene in SCENES.items():
            if only and name not in only:
                continue
            try:
                results.append((name, True, scene(machine)))
            except Exception as error:  # noqa: BLE001 (one result a scene)
                results.append((name, False, f"{type(error).__name__}: {error}"))
            print(f"frameworks: {name}: {'ok' if results[-1][1] else 'FAILED'}: {results[-1][2]}", flush=True)
    finally:
        shutil.rmtree(machine.root, ignore_errors=True)
    return results
