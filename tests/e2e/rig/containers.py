"""Scenes of `tests/e2e/containers`: a machine with a simulated driver and real container runtimes, and what runs in containers."""
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time

import cri_names as cri
import fake_driver
import sandbox

RIG = os.path.dirname(os.path.abspath(__file__))

VERSION = "580.95.05"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
GPUS = 2
SPEC = "etc/cdi/gpu-bootstrap-nvidia.json"
CONFIG = """\
[driver]
branch = "none"
[cuda]
toolkit = "none"
[cudnn]
version = "none"
[containers]
runtime = ["docker", "containerd"]
toolkit = "none"
"""
# What somebody has configured before: all of it has to be there afterwards.
DAEMON = {"debug": False, "log-driver": "none", "features": {"buildkit": True}}
THEIRS = """\
version = 2
# by hand: this comment stays

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "example.com/pause:1" # mine
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""
# Counts the GPUs that libcuda sees, and says where that came from.
COUNT = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) { printf("no libcuda: %s\n", dlerror()); return 3; }
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*count)(int *) = (int (*)(int *))dlsym(cuda, "cuDeviceGetCount");
    int gpus = -1;
    if (init(0) || count(&gpus)) { puts("libcuda fails"); return 4; }
    printf("libcuda sees %d GPUs\n", gpus);
    return 0;
}
"""
# Whether a release's containerd (by way of the CRI, as Kubernetes asks) and Docker know CDI: 1.6 and 20.10 do not.
SUITES = {"bookworm": False, "trixie": True}
RUNTIMES = "containerd,runc,docker.io,ca-certificates,gpgv"
# A daemon of Docker that needs nothing of the machine's network.
DOCKERD = "dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs --data-root=/var/lib/docker"


class Machine:
    """A copy of a root with runtimes; containers run in namespaces beside it."""

    def __init__(self, archive, binary, say):
        self.archive, self.binary, self.say, self.passed = archive, binary, say, 0
        # Docker's command line is a package of its own since Debian 13.
        names = RUNTIMES if archive.suite == "bookworm" else RUNTIMES + ",docker-cli"
        base = archive.root(f"runtimes-{archive.suite}", names)
        image = archive.root(f"image-{archive.suite}", "libc-bin")
        self.root = os.path.join(archive.work, "machine")
        sandbox.fresh(base, self.root)
        self.image = os.path.join(self.root, "srv/image")
        shutil.copytree(image, self.image, symlinks=True, ignore=lambda d, _: ["dev"] if d == image else [])
        os.makedirs(os.path.join(self.image, "dev"), exist_ok=True)
        self.add_driver()
        self.add_program()
        self.pack_image()
        self.python = os.path.join(archive.work, "python")
        if not os.path.isdir(self.python):
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", self.python, "grpcio"], check=True)

    def path(self, inside):
        return os.path.join(self.root, inside.lstrip("/"))

    def write(self, inside, text):
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "wb") as out:
            out.write(text if isinstance(text, bytes) else text.encode())

    def read(self, inside):
        with open(self.path(inside), encoding="utf-8") as source:
            return source.read()

    def add_driver(self):
        """As a loaded module and its packages leave it: /proc, device nodes, libraries behind Debian's links."""
        build = os.path.join(self.archive.work, "build")
        os.makedirs(build, exist_ok=True)
        for soname in ("libcuda.so.1", "libnvidia-ml.so.1"):
            (entry, *_) = fake_driver.library(build, soname)
            name = f"{soname.removesuffix('.1')}.{VERSION}"
            self.write(f"{LIBRARIES}/nvidia/current/{name}", entry.content)
            os.symlink(f"nvidia/current/{name}", self.path(f"{LIBRARIES}/{soname}"))
        subprocess.run(["ldconfig", "-r", self.root], check=True)
        settings = f"gpus={GPUS}x1eb8\nlabel=(simulated)\nversion={VERSION}\ncuda=13.0\n"
        self.write("etc/simulated-driver", settings)
        self.write("srv/image/etc/simulated-driver", settings)
        self.write("proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Thu\n")
        self.write("proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
        self.write("proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n")
        for number in range(GPUS):
            address = f"0000:{0x10 + number:02x}:00.0"
            for name, text in (("vendor", "0x10de"), ("device", "0x1eb8"), ("class", "0x030200")):
                self.write(f"sys/bus/pci/devices/{address}/{name}", text + "\n")
            self.write(f"proc/driver/nvidia/gpus/{address}/information",
                       f"Model: \t\t Tesla T4\nGPU UUID: \t GPU-{number:08d}-aaaa-bbbb-cccc-dddddddddddd\n"
                       f"Bus Location: \t {address}\nDevice Minor: \t {number}\n")
        self.write("dev/kmsg", "6,1,1,-;Linux version\n")
        for name in [f"nvidia{number}" for number in range(GPUS)] + ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"]:
            os.mknod(self.path(f"dev/{name}"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    def add_program(self):
        source = os.path.join(self.archive.work, "count.c")
        with open(source, "w", encoding="utf-8") as out:
            out.write(COUNT)
        subprocess.run(["gcc", "-O1", "-o", os.path.join(self.image, "count"), source, "-ldl"], check=True)

    def pack_image(self):
        """The image's directory as `docker save` would pack it, under the name that the configuration has for pods."""
        folder = os.path.join(self.archive.work, "image")
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["tar", "-C", self.image, "-cf", os.path.join(folder, "layer.tar"), "."], check=True)
        with open(os.path.join(folder, "layer.tar"), "rb") as layer:
            digest = hashlib.file_digest(layer, "sha256").hexdigest()
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                  "config": {"Cmd": ["/bin/sleep", "1000"], "Env": ["PATH=/usr/bin:/bin"]}}
        manifest = [{"Config": "config.json", "RepoTags": [cri.IMAGE], "Layers": ["layer.tar"]}]
        for name, content in (("config.json", config), ("manifest.json", manifest)):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
                json.dump(content, out)
        subprocess.run(["tar", "-C", folder, "-cf", self.path("srv/image.tar"), "manifest.json", "config.json", "layer.tar"],
                       check=True)

    def agent(self, *words, status=0):
        result = subprocess.run([self.binary, *words, "--root", self.root], capture_output=True, text=True, check=False)
        if result.returncode != status:
            raise SystemExit(f"{words} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    def inside(self, script):
        """(status, output) of a shell script beside the daemons, in namespaces of its own."""
        result = subprocess.run(self.beside(script), capture_output=True, text=True, check=False, timeout=180,
                                env=sandbox.ENVIRONMENT)
        return result.returncode, result.stdout + result.stderr

    def beside(self, script):
        enter = ('mount --make-rprivate / && mount --bind "$1" "$1" && mount -t proc proc "$1/proc" && mount --rbind /sys "$1/sys" && '
                 'mount -t tmpfs tmpfs "$1/run" && mount -t tmpfs tmpfs "$1/tmp" && exec chroot "$1" sh -c "$2"')
        return ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", enter, "sh", self.root, script]

    def expect(self, what, got, *words, status=None):
        code, output = got
        if (status is not None and code != status) or not all(word in output for word in words):
            raise SystemExit(f"{self.archive.suite}: {what}: wanted {words}, got status {code}:\n{output}")
        self.passed += 1
        self.say(f"{self.archive.suite}: {what}")

    def cri(self, devices, command):
        """What containerd makes of a container that a kubelet asks for."""
        logs, ready = self.path(cri.LOGS), self.path("srv/ready")
        shutil.rmtree(logs, ignore_errors=True)
        for left in (ready, self.path(cri.SOCKET)):
            if os.path.exists(left):
                os.unlink(left)
        daemon = subprocess.Popen(self.beside(
            f"containerd --address {cri.SOCKET} --log-level warn >/srv/log 2>&1 & "
            f"for i in $(seq 100); do ctr -a {cri.SOCKET} version >/dev/null 2>&1 && break; sleep 0.2; done; "
            f"ctr -a {cri.SOCKET} -n k8s.io images import --snapshotter native /srv/image.tar >/dev/null && touch /srv/ready; wait"),
            env=sandbox.ENVIRONMENT)
        try:
            for _ in range(600):
                if os.path.exists(ready) or daemon.poll() is not None:
                    break
                time.sleep(0.1)
            result = subprocess.run([sys.executable, os.path.join(RIG, "cri.py"), self.root, " ".join(devices), command],
                                    capture_output=True, text=True, check=False, timeout=120,
                                    env={**os.environ, "PYTHONPATH": self.python})
        finally:
            daemon.kill()
            daemon.wait()
        return result.returncode, result.stdout + result.stderr + self.read("srv/log")

    def docker(self, options, command):
        return self.inside(f"{DOCKERD} >/tmp/log 2>&1 & "
                           "for i in $(seq 100); do docker version >/dev/null 2>&1 && break; sleep 0.2; done; "
                           "docker image inspect one >/dev/null 2>&1 || tar -C /srv/image -c . | docker import - one >/dev/null; "
                           f"docker run --rm --network none {options} one /bin/sh -c 'export PATH=/usr/bin:/bin; {command}'; "
                           "status=$?; grep -i -e level=error -e level=fatal -e unable /tmp/log; exit $status")


LOOK = "ls /dev/nvidia* /usr/lib/x86_64-linux-gnu/libcuda* 2>&1; /count"


def run(archive, binary, say):
    """Every scene on one release; how many checks passed."""
    machine = Machine(archive, binary, say)
    machine.write("etc/gpu-bootstrap/a.toml", CONFIG)
    machine.write("etc/docker/daemon.json", json.dumps(DAEMON))
    machine.write("etc/containerd/config.toml", THEIRS)
    machine.agent("run", "--no-imds")
    configured(machine)
    if SUITES[archive.suite]:
        with_containerd(machine)
        with_docker(machine)
    nvidia_runtime(machine)
    taken_back(machine)
    return machine.passed


def configured(machine):
    said = machine.agent("plan", "--no-imds")
    machine.expect("the second look finds nothing to do", (0, said if "needed" not in said else "work is needed: " + said),
                   "satisfied")
    _, dump = machine.inside("containerd config dump")
    machine.expect("containerd reads its configuration, and others' words in it", (0, dump), "example.com/pause:1",
                   "SystemdCgroup = false")
    theirs = machine.read("etc/containerd/config.toml")
    kept = all(line in theirs.splitlines() for line in THEIRS.splitlines())
    machine.expect("every line of others is there", (0 if kept else 1, theirs), status=0)
    daemon = json.loads(machine.read("etc/docker/daemon.json"))
    same = all(daemon[key] == value for key, value in DAEMON.items() if key != "features") and daemon["features"]["buildkit"]
    machine.expect("every setting of Docker's is there", (0 if same else 1, str(daemon)), "'cdi': True", status=0)
    if SUITES[machine.archive.suite]:
        machine.expect("dockerd accepts its configuration", machine.inside("dockerd --validate"), "configuration OK", status=0)


def with_containerd(machine):
    none = machine.cri([], LOOK)
    machine.expect("containerd: without a device there is none", none, "no libcuda", status=3)
    if "/dev/nvidia0" in none[1].replace("ls: cannot access '/dev/nvidia*'", ""):
        raise SystemExit(f"a container that asked for nothing got a GPU:\n{none[1]}")
    one = machine.cri(["nvidia.com/gpu=1"], LOOK)
    machine.expect("containerd: one GPU, its node and the libraries", one, "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm",
                   "libcuda.so.1", f"libcuda.so.{VERSION}", f"libcuda sees {GPUS} GPUs", status=0)
    if "/dev/nvidia0" in one[1]:
        raise SystemExit(f"a container that asked for GPU 1 got GPU 0, too:\n{one[1]}")
    machine.expect("containerd: all GPUs", machine.cri(["nvidia.com/gpu=all"], LOOK), "/dev/nvidia0", "/dev/nvidia1", status=0)
    uuid = "nvidia.com/gpu=GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
    machine.expect("containerd: a GPU by its UUID", machine.cri([uuid], LOOK), "/dev/nvidia0", status=0)
    machine.expect("containerd: a GPU that is not there is refused", machine.cri(["nvidia.com/gpu=7"], "true"), "unresolvable",
                   status=1)
    write = "touch /usr/lib/x86_64-linux-gnu/libcuda.so.1 2>&1"
    machine.expect("containerd: the driver's files are read-only", machine.cri(["nvidia.com/gpu=0"], write), "Read-only", status=1)
    # That containerd reads the specification at all is seen by one that is none.
    spec = machine.read(SPEC)
    broken = json.loads(spec)
    broken["devices"][0]["containerEdits"]["deviceNodes"] = [{"path": ""}]
    machine.write(SPEC, json.dumps(broken))
    machine.expect("containerd: a broken specification is refused", machine.cri(["nvidia.com/gpu=1"], "true"), "unresolvable",
                   status=1)
    machine.write(SPEC, spec)


def with_docker(machine):
    machine.expect("Docker: without a device there is none", machine.docker("", LOOK), "no libcuda", status=3)
    one = machine.docker("--device nvidia.com/gpu=1", LOOK)
    machine.expect("Docker: one GPU, its node and the libraries", one, "/dev/nvidia1", "libcuda.so.1", f"libcuda sees {GPUS} GPUs",
                   status=0)
    if "/dev/nvidia0" in one[1]:
        raise SystemExit(f"a container that asked for GPU 1 got GPU 0, too:\n{one[1]}")
    machine.expect("Docker: a GPU that is not there is refused", machine.docker("--device nvidia.com/gpu=7", "true"),
                   "unresolvable", status=125)


def nvidia_runtime(machine):
    """NVIDIA's toolkit is there (in its place a link to runc, of which it is a wrapper)."""
    runc = "usr/sbin/runc" if os.path.exists(machine.path("usr/sbin/runc")) else "usr/bin/runc"
    os.symlink("/" + runc, machine.path("usr/bin/nvidia-container-runtime"))
    machine.agent("run", "--no-imds")
    _, dump = machine.inside("containerd config dump")
    machine.expect("containerd knows NVIDIA's runtime", (0, dump), 'runtimes.nvidia]', "/usr/bin/nvidia-container-runtime",
                   "example.com/pause:1")
    if SUITES[machine.archive.suite]:
        machine.expect("Docker runs a container by NVIDIA's runtime",
                       machine.docker("--runtime nvidia --device nvidia.com/gpu=0", LOOK), f"libcuda sees {GPUS} GPUs", status=0)


def taken_back(machine):
    machine.agent("uninstall", "--yes")
    same = machine.read("etc/containerd/config.toml") == THEIRS and json.loads(machine.read("etc/docker/daemon.json")) == DAEMON
    gone = not os.path.exists(machine.path(SPEC))
    machine.expect("uninstall puts back what others had", (0 if same and gone else 1, ""), status=0)
