"""Debian packages byte by byte: made for a test with whatever dpkg allows, or packed anew with another compression.

dpkg-deb makes only packages of the usual shape; a test of an installer needs the unusual ones, too: every compression,
hard links, names that are no UTF-8, no md5sums, owners, times.
"""
import bz2
import dataclasses
import gzip
import hashlib
import io
import os
import random
import subprocess
import tarfile
import tempfile

EPOCH = 1_664_000_000
BLOCK = 1 << 20

# What a member's name ends in, and the program that packs it; the names on the left are this module's.
# xz of several threads writes blocks whose headers carry their sizes, one thread writes neither.
COMPRESSIONS = {
    "none": ("", None),
    "gzip": (".gz", None),
    "bzip2": (".bz2", None),
    "xz": (".xz", ["xz", "-6", "--threads=1"]),
    "xz-blocks": (".xz", ["xz", "-6", "--threads=2", "--block-size=1MiB"]),
    "xz-blocks-without-sizes": (".xz", ["xz", "-6", "--threads=1", "--block-size=1MiB"]),
    "zstd": (".zst", ["zstd", "-q", "-10", "--threads=1"]),
}
# A package without its big files, uncompressed: what remains of dpkg's work when somebody else has written those.
SMALL_FILES_ONLY, BIG = "small-files-only", 64 << 10
UNPACK = {"": ["cat"], ".gz": ["gzip", "-dc"], ".bz2": ["bzip2", "-dc"], ".xz": ["xz", "-dc", "--threads=0"],
          ".zst": ["zstd", "-q", "-dc"]}


def noise(size, seed):
    """Bytes that are always the same for one seed; half of them compress well."""
    source = random.Random(seed)
    parts = []
    while size > 0:
        piece = source.randbytes(min(size, 32 << 10))
        parts.append(piece)
        size -= len(piece)
        blank = min(size, 32 << 10)
        parts.append((b"%08d " % source.randrange(10 ** 8) * (blank // 9 + 1))[:blank])
        size -= blank
    return b"".join(parts)


# -- building --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Entry:
    """One member of data.tar.  `path` has no slash in front; bytes that are no UTF-8 stand as surrogates."""
    path: str
    kind: bytes = tarfile.REGTYPE
    content: bytes = b""
    link: str = ""
    mode: int = 0o644
    owner: tuple = (0, 0)  # uid, gid
    names: tuple = ("root", "root")  # what dpkg looks at first
    mtime: int = EPOCH


def file(path, content=b"", **more):
    return Entry(path, content=content if isinstance(content, bytes) else content.encode(), **more)


def folder(path, mode=0o755, **more):
    return Entry(path, tarfile.DIRTYPE, mode=mode, **more)


def symlink(path, target, **more):
    return Entry(path, tarfile.SYMTYPE, link=target, mode=0o777, **more)


def hard_link(path, target, **more):
    """`target`: the path of an entry that stands before this one."""
    return Entry(path, tarfile.LNKTYPE, link=f"./{target}", **more)


def fifo(path, **more):
    return Entry(path, tarfile.FIFOTYPE, **more)


@dataclasses.dataclass
class Package:
    name: str
    version: str = "1.0"
    architecture: str = "all"
    fields: dict = dataclasses.field(default_factory=dict)
    entries: list = dataclasses.field(default_factory=list)
    scripts: dict = dataclasses.field(default_factory=dict)  # name → body of a `sh -e` script
    control: dict = dataclasses.field(default_factory=dict)  # further files: templates, triggers, conffiles, …
    data: str = "xz"
    control_data: str = "xz"
    md5sums: bool = True
    tar: int = tarfile.GNU_FORMAT

    def build(self, output):
        """Writes the package below `output`; its path."""
        target = os.path.join(output, f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb")
        members = [("debian-binary", b"2.0\n"),
                   (f"control.tar{COMPRESSIONS[self.control_data][0]}", compress(self.control_tar(), self.control_data)),
                   (f"data.tar{COMPRESSIONS[self.data][0]}", compress(self.data_tar(), self.data))]
        with open(target, "wb") as out:
            write_ar(out, [(name, len(content), io.BytesIO(content)) for name, content in members])
        return target

    def data_tar(self):
        made, everything = {""}, [folder("")]
        for entry in self.entries:
            parents = entry.path.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = "/".join(parents[:depth])
                if parent not in made:
                    everything.append(folder(parent))
                    made.add(parent)
            made.add(entry.path)
            everything.append(entry)
        return tar(everything, self.tar)

    def control_tar(self):
        text = f"Package: {self.name}\nVersion: {self.version}\nArchitecture: {self.architecture}\n"
        fields = {"Maintainer": "end-to-end tests <root@localhost>", "Section": "misc", "Priority": "optional",
                  "Installed-Size": str(sum(len(entry.content) for entry in self.entries) // 1024), **self.fields,
                  "Description": "made for a test\n Has what the test of an installer needs."}
        text += "".join(f"{name}: {value}\n" for name, value in fields.items())
        entries = [folder(""), file("control", text)]
        if self.md5sums:
            entries.append(file("md5sums", self.sums().encode("utf-8", "surrogateescape")))
        entries += [file(name, f"#!/bin/sh\nset -e\n{body}\n", mode=0o755) for name, body in self.scripts.items()]
        entries += [file(name, content) for name, content in self.control.items()]
        return tar(entries, tarfile.GNU_FORMAT)

    def sums(self):
        conffiles = {line.strip().lstrip("/") for line in self.control.get("conffiles", "").splitlines()}
        by_path, lines = {}, ""
        for entry in self.entries:
            if entry.kind == tarfile.REGTYPE:
                by_path[entry.path] = hashlib.md5(entry.content).hexdigest()
            elif entry.kind == tarfile.LNKTYPE:
                by_path[entry.path] = by_path[entry.link.removeprefix("./")]
            if entry.path in by_path and entry.path not in conffiles:
                lines += f"{by_path[entry.path]}  {entry.path}\n"
        return lines


def tar(entries, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for entry in entries:
            info = tarfile.TarInfo(f"./{entry.path}")
            info.type, info.mode, info.mtime, info.linkname = entry.kind, entry.mode, entry.mtime, entry.link
            (info.uid, info.gid), (info.uname, info.gname) = entry.owner, entry.names
            info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


def compress(content, kind):
    _, program = COMPRESSIONS[kind]
    if kind == "none":
        return content
    if kind == "gzip":
        return gzip.compress(content, 9, mtime=0)
    if kind == "bzip2":
        return bz2.compress(content)
    return subprocess.run([*program, "-c"], input=content, check=True, capture_output=True).stdout


# -- the container ---------------------------------------------------------------------------------------------------


def write_ar(out, members):
    """`members`: (name, size, file object)."""
    out.write(b"!<arch>\n")
    for name, size, source in members:
        out.write(f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode())
        left = size
        while left and (block := source.read(min(BLOCK, left))):
            out.write(block)
            left -= len(block)
        if left:
            raise ValueError(f"{name} ended {left} bytes early")
        if size % 2:
            out.write(b"\n")


def members(path):
    """[(name, offset, size)] of a package's ar members."""
    found = []
    with open(path, "rb") as source:
        if source.read(8) != b"!<arch>\n":
            raise ValueError(f"{path} is no ar archive")
        while header := source.read(60):
            size = int(header[48:58])
            found.append((header[:16].decode().rstrip().rstrip("/"), source.tell(), size))
            source.seek(size + size % 2, os.SEEK_CUR)
    return found


def data_member(path):
    """(ending of data.tar's name, offset, size)"""
    return next((name.removeprefix("data.tar"), offset, size) for name, offset, size in members(path)
                if name.startswith("data.tar"))


def pipe(path, offset, size, command, output):
    """Runs `command` over a part of a file."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output) as process, open(path, "rb") as source:
        source.seek(offset)
        while size and (block := source.read(min(BLOCK, size))):
            process.stdin.write(block)
            size -= len(block)
        process.stdin.close()
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} failed on {path}")


def without_big_files(plain, out):
    """Copies a tar, but for regular files of BIG bytes or more and hard links (which may lead to them)."""
    with tarfile.open(fileobj=plain, mode="r|") as data, tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as kept:
        for member in data:
            if not member.islnk() and member.size < BIG:
                kept.addfile(member, data.extractfile(member) if member.isfile() else None)


def repack_data(plain, out, kind):
    """Writes the tar `plain` as `kind` to `out`."""
    if kind == SMALL_FILES_ONLY:
        return without_big_files(plain, out)
    program = COMPRESSIONS[kind][1] or {"none": ["cat"], "gzip": ["gzip", "-9"], "bzip2": ["bzip2"]}[kind]
    subprocess.run([*program, *([] if program == ["cat"] else ["-c"])], stdin=plain, stdout=out, check=True)


def repack(path, target, kind):
    """The package `path`, its data packed anew as `kind` (of COMPRESSIONS), as `target`.  Control stays as it is, so
    that dpkg can't tell the difference afterwards."""
    ending = "" if kind == SMALL_FILES_ONLY else COMPRESSIONS[kind][0]
    place = os.path.dirname(target)
    with tempfile.TemporaryFile(dir=place) as plain, tempfile.TemporaryFile(dir=place) as packed, open(path, "rb") as source:
        old, offset, size = data_member(path)
        pipe(path, offset, size, UNPACK[old], plain)
        plain.seek(0)
        repack_data(plain, packed, kind)
        packed.seek(0)
        parts = []
        for name, start, length in members(path):
            if name.startswith("data.tar"):
                parts.append((f"data.tar{ending}", os.fstat(packed.fileno()).st_size, packed))
            else:
                source.seek(start)
                parts.append((name, length, io.BytesIO(source.read(length))))
        with open(f"{target}.new", "wb") as out:
            write_ar(out, parts)
    os.replace(f"{target}.new", target)
