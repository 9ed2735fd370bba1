"""This machine as the benchmark sees it: its counters, a simulated disk, a certificate."""
import collections
import os
import platform
import resource
import subprocess

BLKIO = "/sys/fs/cgroup/blkio"
DISK_BYTES = 24 << 30
MEBIBYTE = 1 << 20
# (bytes a second, operations a second): what an EBS volume of that type has by default
DISKS = {"gp3": (125 * MEBIBYTE, 3000)}

Certificate = collections.namedtuple("Certificate", "authority chain key")


class Counters:
    """What the machine, the server, this program and the disk of `root` have done from now on."""

    def __init__(self, root, server_pid):
        device = os.stat(root).st_dev
        self.disk, self.server_pid = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat", server_pid
        self.start = self.now()

    def now(self):
        return {"busy": busy_seconds(), "server": process_seconds(self.server_pid), "harness": harness_seconds(),
                "written": written_bytes(self.disk)}

    def until_now(self):
        now = self.now()
        return {key: now[key] - self.start[key] for key in now}


def busy_seconds():
    """Of all processors, idle and waiting for disks left out; time that a hypervisor took counts as busy."""
    with open("/proc/stat", encoding="utf-8") as source:
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in source.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as source:
        fields = source.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def harness_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def written_bytes(path):
    """Bytes that reached a block device, of everybody; 0 where the file system has none."""
    try:
        with open(path, encoding="utf-8") as source:
            return int(source.read().split()[6]) * 512
    except FileNotFoundError:
        return 0


def installed(root):
    with open(f"{root}/var/lib/dpkg/status", encoding="utf-8") as source:
        return source.read().count("\nStatus: install ok installed\n")


def describe(args, words):
    """The record that says where and how the runs took place."""
    with open("/proc/cpuinfo", encoding="utf-8") as source:
        model = next((line.partition(":")[2].strip() for line in source if line.startswith("model name")), "unknown")
    versions = subprocess.run(["dpkg-query", "--show", "dpkg", "apt", "liblzma5", "aria2"], capture_output=True, text=True,
                              check=False).stdout.split()
    return {"record": "machine", "model": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "programs": versions,
            "arguments": words, "rates": args.rates}


class SimulatedDisk:
    """A file system on a loop device that can be throttled.  Version 1 control groups only: there, the limit of the
    root group applies to what the kernel writes back for anybody."""

    def __init__(self, folder, kind):
        if not os.path.isdir(BLKIO):
            raise SystemExit("bench: --disk needs version 1 of the blkio control group; boot with "
                             "systemd.unified_cgroup_hierarchy=0, or use a machine that has such a disk")
        self.rate, self.operations = DISKS[kind]
        self.mount, image = os.path.join(folder, "mount"), os.path.join(folder, "image")
        os.makedirs(self.mount, exist_ok=True)
        if not os.path.exists(image):
            subprocess.run(["fallocate", "--length", str(DISK_BYTES), image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        # direct: what is written to the loop device is not cached a second time
        self.device = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", image], check=True,
                                     capture_output=True, text=True).stdout.strip()
        subprocess.run(["mount", self.device, self.mount], check=True)
        number = os.stat(self.device).st_rdev
        self.number = f"{os.major(number)}:{os.minor(number)}"

    def throttle(self):
        self.limit(self.rate, self.operations)

    def free(self):
        self.limit(0, 0)

    def limit(self, rate, operations):
        for way in ("read", "write"):
            for unit, value in (("bps", rate), ("iops", operations)):
                with open(f"{BLKIO}/blkio.throttle.{way}_{unit}_device", "w", encoding="utf-8") as out:
                    out.write(f"{self.number} {value}\n")

    def close(self):
        self.free()
        subprocess.run(["umount", self.mount], check=False)
        subprocess.run(["losetup", "--detach", self.device], check=False)


def certificate(folder):
    """A certificate for 127.0.0.1, and the authority that signed it, made once."""
    made = Certificate(*(os.path.join(folder, name) for name in ("authority.crt", "server.crt", "server.key")))
    if os.path.exists(made.chain):
        return made
    os.makedirs(folder, mode=0o700, exist_ok=True)
    secret, request, names = (os.path.join(folder, name) for name in ("authority.key", "server.csr", "names"))
    with open(names, "w", encoding="utf-8") as out:
        out.write("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (["req", "-x509", *new_key, "-days", "3650", "-subj", "/CN=benchmark authority", "-keyout", secret, "-out",
                     made.authority],
                    ["req", *new_key, "-subj", "/CN=benchmark", "-keyout", made.key, "-out", request],
                    ["x509", "-req", "-in", request, "-CA", made.authority, "-CAkey", secret, "-CAcreateserial", "-days", "3650",
                     "-extfile", names, "-out", made.chain]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return made


def trust(root, made):
    """Adds the authority to what `root` trusts."""
    target = f"{root}/usr/local/share/ca-certificates/benchmark.crt"
    subprocess.run(["install", "-D", "--mode=644", made.authority, target], check=True)
    subprocess.run(["chroot", root, "update-ca-certificates"], check=True, capture_output=True)
