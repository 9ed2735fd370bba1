"""A disposable instance: own mount, pid, uts, ipc and network namespaces over a read-only base root.

Inside, 169.254.169.254:80 is the metadata service and 10.0.0.1:8080 an HTTP server with the package archive and the
files of the test; there is no other network."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import archive
import pci

RIG = os.path.dirname(os.path.abspath(__file__))
METADATA, FILES, PORT = "169.254.169.254", "10.0.0.1", 8080
FILES_URL = f"http://{FILES}:{PORT}"
ENVIRONMENT = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
               "LANG=C.UTF-8", "TERM=dumb"]


class Instance:
    """`up` on construction; `close` ends everything and deletes what the instance wrote."""

    def __init__(self, name, base, packages, work, prefixes=(), rate=None, keep=False, items=None, volume=None):
        """`items`: what the metadata service says besides, or instead of, what it always says; see metadata.py.  `volume`: a
        block device that is mounted as its root; `base` is then not used."""
        self.name, self.packages, self.keep, self.items, self.volume = name, packages, keep, items or {}, volume
        self.folder = os.path.join(work, "instances", name)
        self.processes = []
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in ("fs/upper", "fs/work", "root", "sysfs"):
            os.makedirs(os.path.join(self.folder, part))
        pci.make(os.path.join(self.folder, "pci"))
        try:
            self.start(base)
            self.serve(prefixes, rate)
        except BaseException:
            self.close()
            raise

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, base):
        log = open(os.path.join(self.folder, "init.log"), "wb")  # noqa: SIM115 (the child keeps it)
        self.outer = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child", "--propagation", "private",
             "bash", os.path.join(RIG, "enter.sh"), self.volume or base, self.folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(self.outer)
        log.close()
        self.pid = self.wait(self.child_pid, "process 1")
        self.wait(lambda: os.path.exists(f"/proc/{self.pid}/root/run/instance-is-up"), "the instance")
        for command in (["link", "set", "lo", "up"], ["address", "add", f"{METADATA}/32", "dev", "lo"],
                        ["address", "add", f"{FILES}/32", "dev", "lo"], ["address", "add", "10.0.0.23/32", "dev", "lo"]):
            subprocess.run(["nsenter", "--target", str(self.pid), "--net", "ip", *command], check=True)
        self.write("/etc/apt/sources.list.d/debian.sources", self.packages.deb822(FILES_URL))
        self.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        self.write("/etc/hosts", "127.0.0.1 localhost\n10.0.0.23 ip-10-0-0-23\n")

    def serve(self, prefixes, rate):
        netns = f"/proc/{self.pid}/ns/net"
        arguments = self.packages.proxy_arguments() + ["--log", os.path.join(self.folder, "http.jsonl")]
        for prefix, folder in dict(prefixes).items():
            arguments += ["--serve", f"{prefix}={folder}"]
        if rate:
            arguments += ["--rate", str(rate)]
        server, _ = archive.serve(self.folder, *arguments, netns=netns, bind=FILES, port=PORT)
        self.processes.append(server)
        ready, items = (os.path.join(self.folder, f"metadata.{name}") for name in ("ready", "items"))
        with open(items, "w", encoding="utf-8") as out:
            json.dump(self.items, out)
        self.processes.append(subprocess.Popen(
            [sys.executable, os.path.join(RIG, "metadata.py"), "--netns", netns, "--bind", METADATA, "--port", "80",
             "--user-data", self.user_data, "--log", os.path.join(self.folder, "metadata.jsonl"), "--ready", ready,
             "--items", items],
            stdin=subprocess.DEVNULL))
        self.wait(lambda: os.path.exists(ready), "the metadata service")

    def child_pid(self):
        if self.outer.poll() is not None:
            with open(os.path.join(self.folder, "init.log"), encoding="utf-8") as log:
                raise RuntimeError(f"the instance did not start: {log.read()}")
        with open(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children", encoding="utf-8") as children:
            found = children.read().split()
        return int(found[0]) if found else None

    @staticmethod
    def wait(ready, what, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = ready()
            if answer:
                return answer
            time.sleep(0.02)
        raise RuntimeError(f"{what} did not come up within {seconds} s")

    def close(self):
        if getattr(self, "pid", None):
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- doors ---------------------------------------------------------------------------------------------------

    @property
    def user_data(self):
        """The file that the metadata service serves as user-data."""
        return os.path.join(self.folder, "user-data")

    def path(self, path):
        """Where a path of the instance can be reached from outside (its links are not followed)."""
        return f"/proc/{self.pid}/root{path}"

    def read(self, path):
        with open(self.path(path), encoding="utf-8") as source:
            return source.read()

    def dpkg_log(self):
        """What dpkg has done so far; empty on a machine where it has done nothing yet."""
        try:
            return self.read("/var/log/dpkg.log")
        except FileNotFoundError:
            return ""

    def write(self, path, text, mode=0o644):
        target = self.path(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(target):
            os.unlink(target)
        with open(target, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(target, mode)

    def copy(self, source, path, mode=0o755):
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        shutil.copyfile(source, self.path(path))
        os.chmod(self.path(path), mode)

    def command(self, *arguments):
        """The command line that runs `arguments` inside."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd",
                *ENVIRONMENT, *arguments]

    def run(self, *arguments, check=True, seconds=1800):
        """Runs a program inside; its CompletedProcess, with text output."""
        done = subprocess.run(self.command(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=seconds, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done
