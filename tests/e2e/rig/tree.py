"""What lies on a machine's disk, as a value that can be compared."""
import hashlib
import os
import re
import stat

OUTSIDE = {"/proc", "/sys", "/dev", "/run", "/tmp"}

# What differs between two machines in the same state, and after any healing; each with its reason.
VOLATILE = [
    (r"/var/log/", "logs"),
    (r"/var/lib/gpu-bootstrap/(result|receipt|last-installation)\.json$", "times of the last run"),
    (r"/var/lib/gpu-bootstrap/lists-unsynced$", "a note of each update, until an installation has synced its lists"),
    (r"/var/lib/gpu-bootstrap/lock$", "the process id of the last run"),
    (r"/var/lib/dpkg/status-old$", "dpkg's copy of the state before the last change"),
    (r"/var/lib/dpkg/(lock|lock-frontend|triggers/Lock)$", "empty lock files"),
    (r"/var/cache/apt/(pkgcache|srcpkgcache)\.bin$", "apt's cache, written when it likes"),
    (r"/var/cache/apt/archives/", "downloaded packages and apt's lock"),
    (r"/var/lib/apt/lists/", "refreshed by every apt-get update"),
    (r"/var/lib/apt/periodic/", "times of the last update"),
    (r"/var/cache/ldconfig/aux-cache$", "inode numbers and times of libraries"),
    (r"/var/cache/debconf/.*-old$", "debconf's copy of the state before the last change"),
    (r"/(root|home/user)/\.bash_history$", "shell history"),
]
# Databases of paragraphs whose order depends on the order of operations.
UNORDERED = {"/var/lib/dpkg/status", "/var/lib/apt/extended_states", "/var/cache/debconf/config.dat",
             "/var/cache/debconf/templates.dat", "/var/lib/dpkg/available"}


class Trees:
    """Takes snapshots; a file's digest is computed again only when the kernel's change time moved."""

    def __init__(self):
        self.known = {}

    def snapshot(self, root):
        """{path: (kind, mode, owner, content, hard links, change time)} of everything below `root`."""
        found = {}
        pending = ["/"]
        while pending:
            folder = pending.pop()
            for entry in os.scandir(root + folder):
                path = os.path.join(folder, entry.name)
                if path in OUTSIDE:
                    continue
                info = entry.stat(follow_symlinks=False)
                found[path] = self.describe(root, path, info)
                if stat.S_ISDIR(info.st_mode):
                    pending.append(path)
        return found

    def describe(self, root, path, info):
        kind = stat.S_IFMT(info.st_mode)
        content = ""
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(root + path)
        elif stat.S_ISREG(info.st_mode):
            content = self.digest(root, path, info)
        links = 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink
        return kind, stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid), content, links, info.st_ctime_ns

    def digest(self, root, path, info):
        key = (root, path, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        if key not in self.known:
            with open(root + path, "rb") as source:
                if path in UNORDERED:
                    paragraphs = sorted(part.strip(b"\n") for part in source.read().split(b"\n\n"))
                    self.known[key] = hashlib.sha256(b"\n\n".join(paragraphs).strip()).hexdigest()
                else:
                    self.known[key] = hashlib.file_digest(source, "sha256").hexdigest()
        return self.known[key]


def differences(before, after, untouched=False, besides=()):
    """Sentences about what differs.  With `untouched`, a file that was written again with the same content differs, too.
    `besides` are patterns of paths to leave out, more than VOLATILE."""
    skip = [pattern for pattern, _ in VOLATILE if not untouched] + list(besides)
    sentences = []
    for path in sorted(before.keys() | after.keys()):
        if any(re.match(pattern, path) for pattern in skip):
            continue
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            sentences.append(f"{path} {'appeared' if old is None else 'is gone'}")
            continue
        for index, what in enumerate(("kind", "mode", "owner", "content", "hard links")):
            if old[index] != new[index]:
                sentences.append(f"{path}: {what} {old[index]!r} became {new[index]!r}")
        if untouched and old[0] != stat.S_IFDIR and old[5] != new[5] and old[:5] == new[:5]:
            sentences.append(f"{path} was written again")
    return sentences
