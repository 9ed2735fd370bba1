"""Machines on which the whole main job takes three seconds: layers over the copy of this machine that `gpu-bootstrap
rehearse` makes, with its metadata service, package repository and driver.  apt and dpkg are this machine's own.

The part that makes them runs inside a rehearsal; `inside` starts it there.  All machines of one rehearsal see the same
repository, signed by the same key, so what they come to can be compared."""
import base64
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time

import tree

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
HANDED_OVER = "/tmp/project"  # where this file lies inside
MODULES_NEEDED = ("cargo", "host", "kills", "rehearsed", "tree")
AGENT = "/usr/local/bin/gpu-bootstrap"
CATALOG = "/run/gpu-bootstrap-rehearsal/catalog"
FILES = {}  # what lies on every machine from the beginning: {path: text}
PLACE = "/tmp/machines"  # a file system in memory: dpkg's many fsyncs cost nothing there
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
               "NO_COLOR": "1"}
MODULES, DRIVER = "/sys/module", "/proc/driver"
DPKG_LOG = "/var/log/dpkg.log"
FINISHED = 0
NOTHING_TO_RESUME = 7
PATIENCE_SECONDS = 600

# What may differ from a machine whose run was left alone, besides tree.VOLATILE.
AFTER_A_CRASH = [
    (r"/var/lib/dpkg/(statoverride|diversions)-old$", "dpkg's copy of the state before the last change"),
    (r"/var/lib/apt/extended_states\.[A-Za-z0-9]{6}$", "apt's unfinished file, left by the apt that was killed"),
    (r"/var/lib/dpkg/triggers/", "empty lists that dpkg leaves or not"),
    (r"/var/lib/gpu-bootstrap/cache$", "the empty directory, where fetching ahead failed: it is made when it is wanted again"),
    (r"/var/lib/gpu-bootstrap/spool(/lock)?$", "made where a report waited longer than a moment, as on a busy machine; what waits is not allowed"),
    (r"/var/lib/gpu-bootstrap/choice\.json$", "compared apart: the sentences are those of the run that wrote it"),
]


def inside(binary, script, *arguments):
    """Runs a script beside the rig inside a rehearsal of `binary`, with its output as ours; its exit status."""
    return start_inside(binary, script, *arguments).wait()


def start_inside(binary, script, *arguments, modules=(), files=()):
    """The same without waiting, with further modules of the rig and files of the project: the process that ends with the
    script's exit status.

    It is handed over as an argument: this repository may lie on a file system that the rehearsal does not copy."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as packed:
        for name in (f"tests/e2e/{script}", *(f"tests/e2e/rig/{module}.py" for module in (*MODULES_NEEDED, *modules)),
                     "docs/status.md", *files):
            packed.add(os.path.join(PROJECT, name), name)
    unpack = f'mkdir {HANDED_OVER}; echo "$0" | base64 -d | tar -xJ -C {HANDED_OVER}; exec "$@"'
    command = [sys.executable, "-B", f"{HANDED_OVER}/tests/e2e/{script}", "--inside", *arguments]
    packed = base64.b64encode(archive.getvalue()).decode()
    return subprocess.Popen([binary, "rehearse", "--", "sh", "-ec", unpack, packed, *command], stdin=subprocess.DEVNULL)


def network_of(process, seconds=60):
    """The path of the network namespace of a rehearsal that was started."""
    own, until = os.readlink("/proc/self/ns/net"), time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        waiting = [process.pid]
        while waiting:
            pid = waiting.pop()
            try:
                if os.readlink(f"/proc/{pid}/ns/net") != own:
                    return f"/proc/{pid}/ns/net"
            except (FileNotFoundError, ProcessLookupError):
                continue
            waiting += children(pid)
        time.sleep(0.02)
    raise SystemExit("the rehearsal made no network of its own")


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


class Machine:
    """A machine on which nothing has happened yet; `close` forgets it.

    What it writes lies in `upper`, all of it can be seen below `root`.  The simulated kernel is one for all machines, so
    only one of them may be at work at a time."""

    def __init__(self, name):
        self.folder = os.path.join(PLACE, name)
        self.root, self.upper = (os.path.join(self.folder, part) for part in ("root", "upper"))
        for part in ("root", "upper", "work"):
            os.makedirs(os.path.join(self.folder, part))
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={self.upper},workdir={self.folder}/work", self.root)
        for part in ("proc", "sys", "dev"):
            mount("--rbind", f"/{part}", f"{self.root}/{part}")
        for part, mode in (("run", "0755"), ("tmp", "1777"), ("var/tmp", "1777")):
            mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", f"{self.root}/{part}")
        subprocess.run(["cp", "--archive", "/run/.", f"{self.root}/run/"], check=True)
        for path, text in FILES.items():
            os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
            with open(self.path(path), "w", encoding="utf-8") as target:
                target.write(text)
        self.unload()

    def close(self):
        subprocess.run(["umount", "--recursive", "--lazy", self.root], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def boot(self):
        """What lies in memory is gone, as after the death of everything."""
        self.unload()
        shutil.rmtree(self.path("/run/gpu-bootstrap"), ignore_errors=True)
        for name in os.listdir(self.path("/tmp")):
            entry = self.path(f"/tmp/{name}")
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)

    @staticmethod
    def unload():
        """The simulated kernel without a driver."""
        for module in os.listdir(MODULES):
            if module.startswith("nvidia"):
                shutil.rmtree(f"{MODULES}/{module}")
        for entry in os.listdir(DRIVER) if os.path.isdir(DRIVER) else []:
            shutil.rmtree(f"{DRIVER}/{entry}")

    def path(self, path):
        return self.root + path

    def read(self, path):
        """A file's text; empty where there is none."""
        try:
            with open(self.path(path), encoding="utf-8", errors="replace") as source:
                return source.read()
        except FileNotFoundError:
            return ""

    # -- runs ----------------------------------------------------------------------------------------------------

    def command(self, *flags):
        return ["chroot", self.root, AGENT, "run", "--catalog", CATALOG, *flags]

    def run(self, *flags, **environment):
        """A run to its end: (exit status, negative for a signal; what it printed)."""
        done = subprocess.run(self.command(*flags), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              env={**ENVIRONMENT, **environment}, timeout=PATIENCE_SECONDS, check=False)
        return done.returncode, done.stdout + done.stderr

    def resume(self, **environment):
        """`run --resume`, or `run` where the first one came to nothing."""
        status, output = self.run("--resume", **environment)
        return self.run(**environment) if status == NOTHING_TO_RESUME else (status, output)

    def start(self):
        """A run in a process namespace of its own, whose process 1 stays when the run has ended."""
        return Running(self)

    # -- what came of it -------------------------------------------------------------------------------------------

    def state(self, trees):
        """{path: description} of everything that was touched."""
        found = {}
        for folder, folders, files in os.walk(self.upper):
            for name in folders + files:
                path = os.path.join(folder, name).removeprefix(self.upper)
                found[path] = self.describe(trees, path)
        return found

    def describe(self, trees, path):
        """None where there is nothing (any more)."""
        try:
            return trees.describe(self.root, path, os.lstat(self.path(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def result(self):
        """What receipt and result say, without times."""
        receipt, result = (json.loads(self.read(f"/var/lib/gpu-bootstrap/{name}.json") or "{}") for name in ("receipt", "result"))
        steps = [{key: step.get(key) for key in ("id", "digest", "state", "code")} for step in receipt.get("steps", [])]
        evidence = [(step["id"], step["state"], step["evidence"]) for step in result.get("steps", [])]
        choice = json.loads(self.read("/var/lib/gpu-bootstrap/choice.json") or "{}")
        choice.pop("reasons", None)
        return {"receipt": [receipt.get(key) for key in ("schema", "instance_id", "plan_digest", "outcome", "reboots")],
                "steps": steps, "result": [result.get(key) for key in ("state", "outcome", "exit_code", "error")],
                "evidence": evidence, "choice": choice}


class Running:
    """A run that can be killed, alone or with everything that it started."""

    def __init__(self, machine):
        self.machine = machine
        script = 'status=$1; shift; "$@" & wait $!; echo $? >"$status"; exec sleep infinity'
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", machine.path("/tmp/status"),
             *machine.command()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/")
        self.began = time.monotonic()

    def agent(self):
        """The agent's process; None when it has ended or not begun."""
        for first in children(self.process.pid):
            for child in children(first):
                try:
                    with open(f"/proc/{child}/comm", encoding="utf-8") as source:
                        if source.read().strip() == os.path.basename(AGENT):
                            return child
                except FileNotFoundError:
                    pass
        return None

    def is_over(self):
        """Whether the run has come to its end."""
        return os.path.exists(self.machine.path("/tmp/status"))

    def kill_agent(self):
        """The agent alone; False if there was none to kill."""
        agent = self.agent()
        if agent is None:
            return False
        os.kill(agent, signal.SIGKILL)
        while self.agent() == agent and not is_dead(agent):  # on a busy machine dying takes its time
            time.sleep(0.001)
        return True

    def kill_all(self):
        """Process 1, and with it everything."""
        self.process.kill()
        self.process.wait()


def is_dead(pid):
    """Whether the process has let go of everything: it is gone, or waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as source:
            return source.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as source:
            return [int(word) for word in source.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def lower():
    """What tells whether this machine's own packages are still the same: it shows through all layers."""
    return [(path, os.stat(path).st_mtime_ns) for path in ("/var/lib/dpkg/status", "/var/lib/dpkg/updates", "/etc/ld.so.cache")]


class Reference:
    """A machine whose run was left alone, and the comparison of others with it."""

    def __init__(self, name, **environment):
        self.lower = lower()
        self.trees, self.machine = tree.Trees(), Machine(name)
        began = time.monotonic()
        status, output = self.machine.run(**environment)
        self.seconds = time.monotonic() - began
        if status != FINISHED:
            raise SystemExit(f"the run that is left alone exited {status}:\n{output}")
        self.state, self.result = self.machine.state(self.trees), self.machine.result()

    def differences(self, machine, besides=()):
        """Sentences about what differs and may not; `besides` are further patterns of paths that may."""
        found = machine.state(tree.Trees())
        paths = found.keys() | self.state.keys()
        wanted = {path: self.state[path] if path in self.state else self.machine.describe(self.trees, path) for path in paths}
        found = {path: found[path] if path in found else machine.describe(self.trees, path) for path in paths}
        there = [{path: about for path, about in side.items() if about is not None} for side in (wanted, found)]
        wrong = tree.differences(*there, besides=[*besides, *(pattern for pattern, _ in AFTER_A_CRASH)])
        result = machine.result()
        for key, value in self.result.items():
            if isinstance(value, list) and len(value) == len(result[key]):
                wrong += [f"{key}: {old!r} became {new!r}" for old, new in zip(value, result[key]) if old != new]
            elif value != result[key]:
                wrong.append(f"{key}: {value!r} became {result[key]!r}")
        return wrong

    def wrong_after(self, machine, besides=()):
        """Sentences about what is wrong with a machine once the next run has gone on from here; that run must reach the
        reference's state, and the one after it must find nothing to do."""
        status, output = machine.resume()
        if lower() != self.lower:
            raise SystemExit("packages were installed on this machine itself meanwhile, and nothing can be compared: start again")
        if status != FINISHED:
            return [f"the next run exited {status}: {output[-2000:]}"]
        wrong = self.differences(machine, besides)
        log = machine.read(DPKG_LOG)
        status, output = machine.run()
        if status != FINISHED or machine.read(DPKG_LOG) != log:
            wrong.append(f"the run after that was not idle: it exited {status}: {output[-1000:]}")
        return wrong


def errors_in(output):
    """The stable codes of the errors that a run printed."""
    return re.findall(r"\[([a-z0-9-]+)\]$", output, re.M)
