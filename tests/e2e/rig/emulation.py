"""A user namespace in which the kernel starts arm64's programs by qemu-user."""
import os
import shutil
import subprocess

from archive import Archive

# The head of an ELF program of this machine type, and which of its bits count (qemu-binfmt-conf.sh of QEMU).
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# The release of Debian whose QEMU is taken.  Before 8.1, a program that executes /proc/self/exe gets the emulator instead.
SUITE = "trixie"


def emulator(work):
    """QEMU's program, static, out of Debian's package; nothing is installed."""
    place = os.path.join(work, "emulator")
    program = os.path.join(place, "usr/bin/qemu-aarch64")
    if os.path.exists(program):
        return program
    packages = Archive(work, SUITE)
    try:
        chosen = [(url, digest) for name, url, digest in packages.closure(["qemu-user"], components="main")
                  if name.startswith("qemu-user_")]
        deb = packages.fetch(*chosen[0])
    finally:
        packages.close()
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place + ".new", exist_ok=True)
    # It has one program for each architecture.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "--extract", "--directory", place + ".new", "./usr/bin/qemu-aarch64"], stdin=tar.stdout, check=True)
        tar.stdout.read()
    os.rename(place + ".new", place)
    os.unlink(deb)
    return program


class Emulation:
    """The namespace lives, with one shell, while the object does; this machine's own binfmt_misc stays as it is (Linux 6.7)."""

    def __init__(self, program):
        # The shell waits until its users are mapped: all of them, by root outside.  F: the kernel opens the emulator now, so
        # that it need not lie in any root.  O: and each program for it, so that one that only has a descriptor can be executed.
        script = ("read -r _ && mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc && "
                  f"printf '%s' ':arm64:M::{MAGIC}:{MASK}:{program}:FO' >/proc/sys/fs/binfmt_misc/register && "
                  "echo ready && exec cat")
        self.shell = subprocess.Popen(["unshare", "--user", "--mount", "sh", "-c", script], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        while os.stat(f"/proc/{self.shell.pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
            if self.shell.poll() is not None:
                raise AssertionError("no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{self.shell.pid}/{name}", "w", encoding="ascii") as out:
                out.write("0 0 4294967295")
        self.shell.stdin.write("go\n")
        self.shell.stdin.flush()
        if self.shell.stdout.readline() != "ready\n":
            raise AssertionError("the kernel does not take a binfmt_misc of a user namespace")

    def enter(self, *command, **options):
        """Runs a command in it."""
        return subprocess.run(["nsenter", f"--target={self.shell.pid}", "--user", "--mount", "--preserve-credentials",
                               *command], check=False, text=True, capture_output=True, stdin=subprocess.DEVNULL, **options)

    def alone(self, *command, **options):
        """Runs it in its own mounts, processes and network, too."""
        return self.enter("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", *command, **options)

    def close(self):
        self.shell.stdin.close()
        self.shell.wait()
