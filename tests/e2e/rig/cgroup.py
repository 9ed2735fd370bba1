"""A control group of our own, to measure everything that a command starts, whatever becomes a child of whom.

Reads version 1 (cpuacct, memory, cpu) and version 2 (one hierarchy); which is there is the machine's choice.
"""
import os
import threading
import time

V1 = "/sys/fs/cgroup/{}"
POLL_SECONDS = 0.05


class Cgroup:
    def __init__(self, name):
        self.version = 1 if os.path.isdir(V1.format("memory")) else 2
        controllers = ("cpuacct", "memory", "cpu") if self.version == 1 else ("",)
        self.folders = {kind: os.path.join(V1.format(kind), name) for kind in controllers}
        if self.version == 2:
            self.enable(os.path.dirname(self.folders[""]))
        for folder in self.folders.values():
            os.makedirs(folder, exist_ok=True)
        self.started_cpu = self.cpu_seconds()
        self.peak_bytes, self.stop = 0, threading.Event()
        self.poller = threading.Thread(target=self.poll, daemon=True)
        self.poller.start()

    @staticmethod
    def enable(parent):
        with open(os.path.join(parent, "cgroup.subtree_control"), "w", encoding="utf-8") as out:
            out.write("+memory +cpu")

    def wrap(self, command):
        """`command`, started as a member."""
        joins = "; ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self.folders.values())
        return ["sh", "-c", f'{joins}; exec "$@"', "sh", *command]

    def read(self, kind, name):
        folder = self.folders[kind if self.version == 1 else ""]
        with open(os.path.join(folder, name), encoding="utf-8") as source:
            return source.read()

    def limit_cpus(self, cpus):
        """No more than `cpus` processors' time, in periods of 100 ms."""
        quota = int(cpus * 100_000)
        name, text = ("cpu.cfs_quota_us", str(quota)) if self.version == 1 else ("cpu.max", f"{quota} 100000")
        with open(os.path.join(self.folders["cpu" if self.version == 1 else ""], name), "w", encoding="utf-8") as out:
            out.write(text)

    def cpu_seconds(self):
        """Of all members so far, those that have ended included."""
        if self.version == 1:
            return int(self.read("cpuacct", "cpuacct.usage")) / 1e9
        return numbers(self.read("", "cpu.stat"))["usage_usec"] / 1e6

    def memory_bytes(self):
        """What can't be dropped like a page of a file: anonymous memory, and files that live in memory only."""
        found = numbers(self.read("memory", "memory.stat"))
        if self.version == 1:
            return found["total_rss"] + found["total_shmem"]
        return found["anon"] + found["shmem"]

    def poll(self):
        while not self.stop.wait(POLL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self.memory_bytes())

    def close(self):
        """(processor seconds, peak of memory in bytes); the group is gone afterwards."""
        self.stop.set()
        self.poller.join()
        used = self.cpu_seconds() - self.started_cpu
        for folder in self.folders.values():
            for _ in range(100):  # the last member is still being buried
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.02)
        return used, self.peak_bytes


def numbers(text):
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}
