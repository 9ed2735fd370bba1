"""Whether two roots are in the same state: every path, dpkg's database, the order of what dpkg did.

Nothing is left out by default.  What may differ stands in ALLOWED, each with its reason.
"""
import dataclasses
import hashlib
import os
import re
import stat

ASPECTS = ("kind", "mode", "owner", "links", "size", "time", "content", "attributes")

# (pattern of the whole path, aspects or "presence", reason).  Content of logs is compared apart, without times.
ALLOWED = [
    (r"/var/log/(dpkg|alternatives|fontconfig|bootstrap)\.log", ("content", "size"), "times of day; see EVENT_LOGS"),
    (r"/var/log/apt/(history|term)\.log", ("content", "size"), "times of day, the command line; see history()"),
    (r"/var/log/apt/eipp\.log\.xz", ("content", "size"), "apt's record of its planner's input, with its options"),
    (r"/var/cache/apt/(src)?pkgcache\.bin", ("content", "size", "presence"), "apt's cache, written when it likes"),
    (r"/var/cache/apt/archives/[^/]+\.deb", ("presence",), "plain apt keeps what it downloaded"),
    (r"/var/cache/ldconfig/aux-cache", ("content",), "inode numbers and change times of libraries"),
    (r"/var/cache/fontconfig/[^/]+\.cache-\d+", ("content",), "the time at which its directory of fonts was made"),
    (r"/etc/machine-id", ("content",), "made at random by a package's script"),
    (r"/var/cache/fontconfig/[0-9a-f-]{36}-[^/]+\.cache-7", ("presence",), "before Debian 12: named by a random identifier"),
    (r"/usr/(local/)?share/fonts(/.+)?/\.uuid", ("content",), "before Debian 12: that random identifier"),
    (r"/var/lib/apt/listchanges(-old)?\.db", ("content",), "a Berkeley DB: its identifier is made of time and process"),
]
# Files of the agent's own: its record of what it was installing.
ALLOWED_OF_AGENT = [
    (r"/var/lib/gpu-bootstrap(/in-flight\.json|/lock)?", ("presence",), "the agent's record of packages in flight"),
    (r"/var/lib/gpu-bootstrap/no-archives(/partial)?", ("presence",), "what the agent shows apt as an empty cache"),
    (r"/var/cache/apt/archives(/partial)?", ("time",), "plain apt downloads into it, the agent does not"),
    (r"/var/cache/apt/archives/partial", ("owner",), "apt gives it to its own user when it downloads"),
    (r"/var/lib/dpkg/lock(-frontend)?", ("time",), "empty files that the agent locks, too"),
]
# After a run that was killed and done again.
ALLOWED_AFTER_KILL = [
    (r"/var/log/.*", ("content", "size", "presence"), "two runs instead of one"),
    (r"/var/lib/dpkg/(status|statoverride|diversions)-old", ("content", "size", "presence"), "the state before the last change"),
    (r"/usr/lib/eq/overridden-by-script", ("mode", "owner"), "dpkg reads the list of overrides when it starts: what a "
     "package's own script adds holds from the next time on"),
    (r"/var/lib/dpkg/triggers/.*", ("presence",), "empty lists that dpkg leaves or not"),
    (r"/var/cache/debconf/.*-old", ("content", "size", "presence"), "the state before the last change"),
    (r"/tmp/apt-dpkg-install-.*", ("presence",), "apt's list of packages, left by the apt that was killed"),
    (r"/var/cache/apt/archives/partial/.*", ("presence",), "apt's downloads, left by the apt that was killed"),
    (r"/var/lib/apt/lists/.*", ("presence",), "an update that was killed"),
    (r"/var/lib/eq/trigger(ed|-configured)", ("content", "size", "presence"), "a package that was configured before the kill is "
     "told by a trigger of what came after it; left alone, it is configured when all is there (install-kills looks at both)"),
    (r"/etc/alternatives/.+", ("time",), "update-alternatives makes all links of a group anew where a package that is "
     "configured again has more of them to register than at its first time"),
    (r"/var/lib/sgml-base/supercatalog\.old", ("content", "size"), "a copy of the state before the last change"),
]
# apt appends its automatic marks in the order in which it made them.
UNORDERED_AFTER_KILL = ("/var/lib/apt/extended_states",)
EVENT_LOGS = ("/var/log/dpkg.log", "/var/log/alternatives.log")


@dataclasses.dataclass
class Window:
    """When the run took place, in seconds since the epoch: a file that was made then counts as made by it."""
    began: float
    ended: float

    def holds(self, nanoseconds):
        # the kernel stamps files with the time of its last tick
        return self.began - 0.05 <= nanoseconds / 1e9 <= self.ended + 0.05


def observe(root, window, unordered=()):
    """{path: {aspect: value}} of everything below `root`, itself included.  Of the files `unordered` (databases of
    paragraphs), the order of paragraphs does not count."""
    found, pending = {"/": describe(root, os.lstat(root), window)}, ["/"]
    while pending:
        place = pending.pop()
        for entry in os.scandir(root + place):
            path = os.path.join(place, entry.name)
            info = entry.stat(follow_symlinks=False)
            found[path] = describe(root + path, info, window)
            if stat.S_ISDIR(info.st_mode):
                pending.append(path)
    for path in unordered:
        if path in found:
            with open(root + path, "rb") as source:
                paragraphs = sorted(source.read().strip().split(b"\n\n"))
            found[path]["content"] = hashlib.sha256(b"\n\n".join(paragraphs)).hexdigest()
    return found


def describe(path, info, window):
    regular, directory = stat.S_ISREG(info.st_mode), stat.S_ISDIR(info.st_mode)
    if regular:
        with open(path, "rb") as source:
            content = hashlib.file_digest(source, "sha256").hexdigest()
    elif stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    else:
        content = str(info.st_rdev)
    return {
        "kind": stat.S_IFMT(info.st_mode),
        "mode": stat.S_IMODE(info.st_mode),
        "owner": (info.st_uid, info.st_gid),
        "links": info.st_nlink,
        "size": 0 if directory else info.st_size,  # a directory's size is a matter of the file system
        "time": "of the run" if window.holds(info.st_mtime_ns) else info.st_mtime_ns,
        "content": content,
        "attributes": {name: os.getxattr(path, name, follow_symlinks=False)
                       for name in sorted(os.listxattr(path, follow_symlinks=False))},
    }


def differences(before, after, allowed=None):
    """Sentences about what differs and may not; `before` and `after` are two `observe`."""
    rules = [(re.compile(pattern), aspects) for pattern, aspects, _ in (ALLOWED if allowed is None else allowed)]

    def may(path, aspect):
        return any(aspect in aspects and pattern.fullmatch(path) for pattern, aspects in rules)

    sentences = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            if not may(path, "presence"):
                sentences.append(f"{path} is only in the {'second' if old is None else 'first'}")
            continue
        for aspect in ASPECTS:
            if old[aspect] != new[aspect] and not may(path, aspect):
                sentences.append(f"{path}: {aspect} {old[aspect]!r} and {new[aspect]!r}")
    return hide_consequences(sentences, before, after, may)


def hide_consequences(sentences, before, after, may):
    """A directory's count of links and time follow from what is in it; where only allowed entries differ, so may they."""
    touched = {os.path.dirname(path) for path in before.keys() ^ after.keys() if may(path, "presence")}
    excused = {f"{path}: {aspect}" for path in touched for aspect in ("links", "time")}
    return [sentence for sentence in sentences if not any(sentence.startswith(f"{start} ") for start in excused)]


# -- what has an order -----------------------------------------------------------------------------------------------


def events(root, log):
    """Lines of a log without the times in front."""
    try:
        with open(root + log, encoding="utf-8", errors="surrogateescape") as source:
            lines = source.read().splitlines()
    except FileNotFoundError:
        return []
    return [re.sub(r"^(update-alternatives )?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d:? ", r"\1", line) for line in lines]


def history(root):
    """What apt's own log says about the last installation: who was installed, upgraded, and how it ended."""
    try:
        with open(f"{root}/var/log/apt/history.log", encoding="utf-8") as source:
            last = source.read().strip().split("\n\n")[-1]
    except FileNotFoundError:
        return []
    return [line for line in last.splitlines() if not line.startswith(("Start-Date:", "End-Date:", "Commandline:"))]


def order(first, second):
    """Sentences about the order of events that differs between two roots."""
    sentences = []
    for log in EVENT_LOGS:
        one, two = events(first, log), events(second, log)
        for number, (left, right) in enumerate(zip(one, two)):
            if left != right:
                sentences.append(f"{log}: event {number} is {left!r} and {right!r}")
                break
        else:
            if len(one) != len(two):
                longer = max(one, two, key=len)
                rest = longer[min(len(one), len(two))]
                sentences.append(f"{log}: {len(one)} and {len(two)} events; first of the rest: {rest!r}")
    if history(first) != history(second):
        sentences.append(f"/var/log/apt/history.log: {history(first)!r} and {history(second)!r}")
    return sentences


def leftovers(root):
    """Sentences about what a run that has ended may not leave in any root."""
    sentences = []
    for folder, _, names in os.walk(root):
        sentences += [f"{os.path.join(folder, name).removeprefix(root)} was left behind" for name in names
                      if name.endswith((".dpkg-new", ".dpkg-tmp"))]
    updates = os.listdir(f"{root}/var/lib/dpkg/updates")
    return sentences + [f"dpkg's journal was not merged: {name}" for name in updates]
