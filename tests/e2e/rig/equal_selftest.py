"""Plants every kind of difference in a small root, and demands that the comparison finds it: a test that can fail."""
import os
import shutil
import socket
import stat
import subprocess
import tempfile

import equal

EPOCH = 1_600_000_000
DPKG = "var/lib/dpkg"


def make(root):
    """A root with one of everything, all as old as EPOCH."""
    for folder in ("usr/lib", "etc", "empty", f"{DPKG}/info", f"{DPKG}/updates", "var/lib/apt", "var/log/apt",
                   "var/cache/apt/archives"):
        os.makedirs(os.path.join(root, folder))
    for name, text in ((f"{DPKG}/status", "Package: a\nStatus: install ok installed\n\nPackage: b\n"),
                       (f"{DPKG}/diversions", ""), (f"{DPKG}/info/a.list", "/.\n/usr\n"), (f"{DPKG}/info/a.md5sums", "0  x\n"),
                       ("var/lib/apt/extended_states", "Package: b\nAuto-Installed: 1\n"),
                       ("usr/lib/one", "1" * 100), ("usr/lib/two", "2"), ("etc/conf", "x"), ("usr/lib/setuid", ""),
                       ("var/log/dpkg.log", "2026-01-01 10:00:00 install a\n2026-01-01 10:00:00 install b\n"),
                       ("var/log/alternatives.log", "update-alternatives 2026-01-01 10:00:00: run with --install x\n"),
                       ("var/log/apt/history.log", "\nStart-Date: 1\nCommandline: apt\nInstall: a, b\nEnd-Date: 1\n"),
                       ("usr/lib/naïve", "u")):
        with open(os.path.join(root, name), "w", encoding="utf-8") as out:
            out.write(text)
    os.chmod(os.path.join(root, "usr/lib/setuid"), 0o4755)
    os.link(os.path.join(root, "usr/lib/one"), os.path.join(root, "usr/lib/one-more"))
    os.symlink("one", os.path.join(root, "usr/lib/link"))
    os.mkfifo(os.path.join(root, "usr/lib/fifo"))
    os.mknod(os.path.join(root, "usr/lib/null"), 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    age(root)


def age(root):
    for folder, folders, names in os.walk(root, topdown=False):
        for name in folders + names:
            os.utime(os.path.join(folder, name), (EPOCH, EPOCH), follow_symlinks=False)
    os.utime(root, (EPOCH, EPOCH))


def replace(path, kind):
    os.unlink(path)
    kind(path)


def write(path, text, mode="w"):
    with open(path, mode, encoding="utf-8") as out:
        out.write(text)


def edit(path, old, new):
    with open(path, encoding="utf-8") as source:
        text = source.read()
    assert old in text, (path, old)
    write(path, text.replace(old, new))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


def swap_order(path):
    with open(path, encoding="utf-8") as source:
        lines = source.readlines()
    write(path, "".join(reversed(lines)))


# (name, what is done to the second root, a word that the sentence about it must have)
PLANTED = [
    ("file missing", lambda r: os.unlink(f"{r}/usr/lib/two"), "/usr/lib/two is only in the first"),
    ("file more", lambda r: write(f"{r}/usr/lib/three", ""), "/usr/lib/three is only in the second"),
    ("directory missing", lambda r: os.rmdir(f"{r}/empty"), "/empty is only in the first"),
    ("directory more", lambda r: os.mkdir(f"{r}/var/lib/stage"), "/var/lib/stage is only in the second"),
    ("link instead of file", lambda r: replace(f"{r}/usr/lib/two", lambda p: os.symlink("one", p)), "/usr/lib/two: kind"),
    ("directory instead of file", lambda r: replace(f"{r}/usr/lib/two", os.mkdir), "/usr/lib/two: kind"),
    ("socket instead of fifo", lambda r: replace(f"{r}/usr/lib/fifo", make_socket), "/usr/lib/fifo: kind"),
    ("mode", lambda r: os.chmod(f"{r}/usr/lib/two", 0o640), "/usr/lib/two: mode"),
    ("set-uid bit lost", lambda r: os.chmod(f"{r}/usr/lib/setuid", 0o755), "/usr/lib/setuid: mode"),
    ("mode of a directory", lambda r: os.chmod(f"{r}/empty", 0o700), "/empty: mode"),
    ("mode of the root", lambda r: os.chmod(r, 0o700), "/: mode"),
    ("owner", lambda r: os.chown(f"{r}/usr/lib/two", 5, 0), "/usr/lib/two: owner"),
    ("group", lambda r: os.chown(f"{r}/usr/lib/two", 0, 5), "/usr/lib/two: owner"),
    ("owner of a link", lambda r: os.lchown(f"{r}/usr/lib/link", 5, 5), "/usr/lib/link: owner"),
    ("a link count that is too high", lambda r: os.link(f"{r}/usr/lib/two", f"{r}/../elsewhere"), "/usr/lib/two: links"),
    ("hard link broken", lambda r: (os.unlink(f"{r}/usr/lib/one-more"),
                                    shutil.copy2(f"{r}/usr/lib/one", f"{r}/usr/lib/one-more")), "/usr/lib/one-more: links"),
    ("truncated", lambda r: os.truncate(f"{r}/usr/lib/one", 50), "/usr/lib/one: size"),
    ("content of the same size", lambda r: write(f"{r}/usr/lib/two", "3"), "/usr/lib/two: content"),
    ("content and time kept", lambda r: (write(f"{r}/usr/lib/two", "3"), os.utime(f"{r}/usr/lib/two", (EPOCH, EPOCH))),
     "/usr/lib/two: content"),
    ("time", lambda r: os.utime(f"{r}/usr/lib/two", (EPOCH + 1, EPOCH + 1)), "/usr/lib/two: time"),
    ("a part of a second", lambda r: os.utime(f"{r}/usr/lib/two", ns=(1, EPOCH * 10 ** 9 + 1)), "/usr/lib/two: time"),
    ("time of the run instead of the package's", lambda r: os.utime(f"{r}/usr/lib/two"), "/usr/lib/two: time"),
    ("time of a directory", lambda r: os.utime(f"{r}/empty", (1, 1)), "/empty: time"),
    ("time of a link", lambda r: os.utime(f"{r}/usr/lib/link", (1, 1), follow_symlinks=False), "/usr/lib/link: time"),
    ("target of a link", lambda r: replace(f"{r}/usr/lib/link", lambda p: os.symlink("two", p)), "/usr/lib/link: content"),
    ("device number", lambda r: replace(f"{r}/usr/lib/null", lambda p: os.mknod(p, 0o600 | stat.S_IFCHR, os.makedev(1, 5))),
     "/usr/lib/null: content"),
    ("extended attribute", lambda r: os.setxattr(f"{r}/usr/lib/two", "security.capability",
                                                 bytes.fromhex("0100000200040000000000000000000000000000")),
     "/usr/lib/two: attributes"),
    ("name that is not ASCII", lambda r: os.rename(f"{r}/usr/lib/naïve", f"{r}/usr/lib/nai\u0308ve"), "is only in the first"),
    ("dpkg's status", lambda r: edit(f"{r}/{DPKG}/status", "ok installed", "ok unpacked"), "/var/lib/dpkg/status: "),
    ("order in dpkg's status", lambda r: write(f"{r}/{DPKG}/status", "Package: b\n\nPackage: a\nStatus: install ok installed\n"),
     "/var/lib/dpkg/status: content"),
    ("a list of files", lambda r: edit(f"{r}/{DPKG}/info/a.list", "/usr\n", ""), "/var/lib/dpkg/info/a.list: "),
    ("md5sums missing", lambda r: os.unlink(f"{r}/{DPKG}/info/a.md5sums"), "a.md5sums is only in the first"),
    ("a diversion", lambda r: write(f"{r}/{DPKG}/diversions", "/a\n/b\n:\n"), "/var/lib/dpkg/diversions: size"),
    ("an automatic mark", lambda r: edit(f"{r}/var/lib/apt/extended_states", ": 1", ": 0"), "extended_states: content"),
    ("order of dpkg's events", lambda r: swap_order(f"{r}/var/log/dpkg.log"), "/var/log/dpkg.log: event 0"),
    ("an event more", lambda r: write(f"{r}/var/log/dpkg.log", "2026-01-01 10:00:01 trigproc b\n", "a"), "first of the rest"),
    ("an event missing", lambda r: edit(f"{r}/var/log/dpkg.log", "2026-01-01 10:00:00 install b\n", ""), "2 and 1 events"),
    ("other alternatives", lambda r: edit(f"{r}/var/log/alternatives.log", "install x", "install y"), "alternatives.log: event 0"),
    ("apt's history", lambda r: edit(f"{r}/var/log/apt/history.log", "a, b", "a"), "/var/log/apt/history.log"),
    ("a log missing", lambda r: os.unlink(f"{r}/var/log/apt/history.log"), "history.log is only in the first"),
    ("dpkg's half-made file", lambda r: write(f"{r}/usr/lib/two.dpkg-new", ""), "two.dpkg-new was left behind"),
    ("dpkg's journal", lambda r: write(f"{r}/{DPKG}/updates/0001", ""), "journal was not merged"),
    ("something in /tmp", lambda r: write(f"{r}/tmp-left", ""), "/tmp-left is only in the second"),
]
# What ALLOWED allows must not be reported, or nobody could trust a red result.
HARMLESS = [
    ("times in dpkg's log", lambda r: edit(f"{r}/var/log/dpkg.log", "10:00:00", "11:11:11")),
    ("a kept package", lambda r: write(f"{r}/var/cache/apt/archives/a.deb", "")),
    ("the command line", lambda r: edit(f"{r}/var/log/apt/history.log", "Commandline: apt", "Commandline: other")),
]


def seen(first, second, window):
    return (equal.differences(equal.observe(first, window), equal.observe(second, window)) + equal.order(first, second)
            + equal.leftovers(second))


def run():
    """How many planted differences were found; raises if one was not."""
    work = tempfile.mkdtemp(prefix="equal-")
    now = os.stat(work).st_mtime
    window = equal.Window(now - 60, now + 600)
    try:
        make(f"{work}/first")
        for name, plant in HARMLESS + [(name, plant) for name, plant, _ in PLANTED]:
            subprocess.run(["cp", "--archive", f"{work}/first", f"{work}/second"], check=True)
            untouched = seen(f"{work}/first", f"{work}/second", window)
            if untouched:
                raise AssertionError(f"two equal roots differ: {untouched}")
            plant(f"{work}/second")
            found = seen(f"{work}/first", f"{work}/second", window)
            wanted = next((word for other, _, word in PLANTED if other == name), None)
            if wanted is None and [line for line in found if ": time" not in line]:
                raise AssertionError(f"{name} may differ, but was reported: {found}")
            if wanted is not None and not any(wanted in sentence for sentence in found):
                raise AssertionError(f"planted and not found: {name} (expected {wanted!r}, got {found})")
            shutil.rmtree(f"{work}/second")
            if os.path.exists(f"{work}/elsewhere"):
                os.unlink(f"{work}/elsewhere")
    finally:
        shutil.rmtree(work)
    return len(PLANTED)
