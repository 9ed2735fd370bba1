"""Running a command beside a disposable root directory, killing it, and measuring what it cost."""
import os
import queue
import shutil
import subprocess
import threading
import time

RIG = os.path.dirname(os.path.abspath(__file__))
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C",
               "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive"}
# systemd's own default for /run
RUN_OPTIONS = "size=20%"


def fresh(base, root):
    """A new copy of `base`, on disk: not an overlay, where link() and rename() cost something else."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(os.path.dirname(root), exist_ok=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
    subprocess.run(["sync", "--file-system", root], check=True)


class Sandbox:
    """A command that runs beside `root`.  Times are of time.monotonic(), each line of output has one.

    `tools` is a directory that the command finds as /mnt inside the root; `binds` are pairs (directory, path in the root).
    `group` names a control group, which `Cgroup` then measures and limits."""

    def __init__(self, root, command, tools, binds=(), run_options=RUN_OPTIONS, linger=False, group=None, environment=None):
        self.group = group
        enter = [os.path.join(RIG, "in_root.sh"), root, run_options, tools, "1" if linger else "0",
                 *[f"{source}:{target}" for source, target in binds], "--", *command]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", *enter]
        self.wall_began = time.time()
        self.process = subprocess.Popen(group.wrap(unshare) if group else unshare, stdin=subprocess.DEVNULL, text=True,
                                        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env={**ENVIRONMENT, **(environment or {})})
        self.lines, self.began, self.ended, self.status = [], None, None, None
        self.news = queue.SimpleQueue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            now, line = time.monotonic(), line.rstrip("\n")
            if line == "in_root: begin":
                self.began = now
                self.news.put("begin")
            elif line.startswith("in_root: end "):
                self.ended, self.status = now, int(line.split()[-1])
                self.news.put("end")
            else:
                self.lines.append((now, line))
        self.news.put("closed")

    def wait_for(self, what, seconds=3600):
        """Blocks until `begin` or `end`; False when everything was over before."""
        end = time.monotonic() + seconds
        while (got := self.news.get(timeout=max(0.01, end - time.monotonic()))) != what:
            if got == "closed":
                return False
        return True

    def wait(self, seconds=3600):
        """Until all is over; the command's exit status (None if it was killed)."""
        try:
            self.process.wait(timeout=seconds)
        except BaseException:  # an interrupted test leaves nothing running
            self.process.kill()
            raise
        self.reader.join()
        self.wall_ended = time.time()
        return self.status

    def output(self):
        return "\n".join(line for _, line in self.lines)

    def main_pid(self):
        """The command's own process, None when it has ended."""
        for child in children(self.process.pid):
            return next(iter(children(child)), None)
        return None

    def kill(self):
        """Everything at once, as a power cut does it but for the page cache."""
        self.process.kill()  # process 1 of the pid namespace dies with its parent (--kill-child), the rest with it
        self.wait()


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as source:
            return [int(word) for word in source.read().split()]
    except FileNotFoundError:
        return []


