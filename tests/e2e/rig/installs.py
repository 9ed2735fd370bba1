"""Installing the same packages in disposable roots by apt and by the agent: what equality, kills and benchmark share."""
import hashlib
import json
import os
import shutil

import archive
import debs
import mirror
import special_packages
from signed_repo import Key

NEEDED = {"mmdebstrap": "mmdebstrap", "gpg": "gnupg", "gpgconf": "gnupg", "curl": "curl", "unshare": "util-linux",
          "dpkg-deb": "dpkg", "xz": "xz-utils", "zstd": "zstd", "bzip2": "bzip2"}
AGENT = "install-packages"
# Hooks of apt's that look at packages before dpkg does, as on a machine that somebody uses; and CA certificates.
BASE_PACKAGES = "apt-utils,needrestart,apt-listchanges,ca-certificates"
# What the agent gives apt, too: nobody is there to answer a question about a changed file.
APT_INSTALL = ("apt-get install --yes --no-remove -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold")
# The agent's answers to the questions that apt and its hooks ask people: the same questions get the same answers.
UNATTENDED = {"DEBCONF_NONINTERACTIVE_SEEN": "true", "DEBCONF_NOWARNINGS": "yes", "NEEDRESTART_MODE": "l",
              "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}
# Real packages with alternatives, debconf, triggers, and scripts of their own; some 25 MB.
REAL_PACKAGES = ["gawk", "nano", "file", "logrotate", "xml-core", "fontconfig", "libmagic-dev", "wamerican"]
WHOLE = ["nvidia-cuda-toolkit"]


class Lab:
    """One Debian release: its archive, a signing key, a base root, and a mirror of what the tests install."""

    def __init__(self, work, suite):
        self.work = os.path.join(work, suite)
        os.makedirs(self.work, exist_ok=True)
        self.suite = suite
        self.archive = archive.Archive(self.work, suite)
        self.key = Key(os.path.join(work, "gpg"))
        self.servers = []

    def close(self):
        for server in self.servers:
            server.terminate()
            server.wait()
        self.archive.close()
        self.key.close()

    # -- what is made once ---------------------------------------------------------------------------------------

    def root(self, packages=BASE_PACKAGES):
        # apt gives this directory to its own user when it downloads; mmdebstrap left it to a user of this machine's.
        owner = 'chroot "$1" chown _apt:root /var/cache/apt/archives/partial'
        return self.archive.root(f"root-{digest(packages)}", packages, [f"--customize-hook={owner}"])

    def components(self):
        # the last one is where firmware and drivers went in Debian 12
        return "main contrib non-free" + ("" if self.suite == "bullseye" else " non-free-firmware")

    def special(self):
        """The purpose-made packages: what `special_packages.make` answers."""
        sources = "".join(open(module.__file__, encoding="utf-8").read() for module in (debs, special_packages))
        place = os.path.join(self.work, "special")
        stamp = os.path.join(place, "made.json")
        if os.path.exists(stamp):
            with open(stamp, encoding="utf-8") as known:
                made_from, made = json.load(known)
            if made_from == digest(sources):
                return made
        shutil.rmtree(place, ignore_errors=True)
        # Debian's dpkg reads zstd since Debian 12
        made = special_packages.make(f"{place}/new", f"{place}/old", zstd=self.suite != "bullseye")
        with open(stamp, "w", encoding="utf-8") as out:
            json.dump([digest(sources), made], out)
        return made

    def mirror(self, name, real, base, made=(), whole_indexes=False, repack=None):
        """A mirror with the closure of the packages `real` for a machine like `base`, and the package files `made`.

        `whole_indexes`: as large as the archive's own, not only what is installed.  `repack`: a compression of debs.py."""
        site = mirror.Mirror(os.path.join(self.work, f"mirror-{name}"), self.key)
        found = self.archive.closure(real, f"{base}/var/lib/dpkg/status", self.components()) if real else []
        paths = {}
        for _, url, digest_of_file in found:
            path = self.archive.fetch(url, digest_of_file)
            paths[os.path.relpath(path, self.archive.cache).partition("/")[2]] = path
        for (release, component), index in self.archive.lists().items() if real else []:
            with open(index, "rb") as source:
                text = source.read()
            if not whole_indexes:
                wanted = [paragraph for paragraph in text.split(b"\n\n") if filename(paragraph) in paths]
                text = b"\n\n".join(wanted) + b"\n" if wanted else b""
            if text.strip():
                site.add_index(release, component, text)
        for file_name, path in paths.items():
            if repack:
                site.replace(file_name, self.repacked(path, repack))
            else:
                site.add_file(file_name, path)
        for deb in made:
            architectures = ["i386"] if deb.endswith("_i386.deb") else ["amd64"]
            site.add_package(deb, self.suite, "main", architectures)
        site.publish()
        return site

    def repacked(self, path, kind):
        target = os.path.join(self.work, f"repacked-{kind}", os.path.basename(path))
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            debs.repack(path, target, kind)
        return target

    def serve(self, site, *options):
        """The port at which a mirror is offered, as /mirror."""
        server, port = archive.serve(self.work, "--serve", f"mirror={site.folder}", *options)
        self.servers.append(server)
        return port

    # -- roots ---------------------------------------------------------------------------------------------------

    def prepare(self, base, site, url):
        """`base` gets the mirror as its only source."""
        with open(f"{base}/etc/apt/sources.list.d/mirror.sources", "w", encoding="utf-8") as out:
            out.write(site.sources(url))
        target = base + mirror.KEYRING
        if os.path.exists(target):
            os.unlink(target)
        self.key.gpg("--output", target, "--export")


def filename(paragraph):
    """Filename of a paragraph of an index; None if it has none."""
    start = paragraph.find(b"\nFilename: ")
    return None if start < 0 else paragraph[start + 11:].split(b"\n", 1)[0].decode()


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tools(work, *programs):
    """A directory with copies of programs, which a sandbox has as /mnt."""
    place = os.path.join(work, "tools")
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    for program in programs:
        shutil.copy2(program, place)
    return place


def plain_apt(root, packages, recommends=False):
    """The command of a person who installs `packages`."""
    more = "" if recommends else " --no-install-recommends"
    return ["chroot", root, "sh", "-c", f'apt-get update && exec {APT_INSTALL}{more} "$@"', "sh", *packages]


def agent(root, method, packages, recommends=False, update=True):
    """The same by the agent, which is the same process from `exec` on."""
    more = " --recommends" if recommends else ""
    before = "apt-get update && " if update else ""
    return ["chroot", root, "sh", "-c", f'{before}exec /mnt/{AGENT} --root / --method {method}{more} "$@"', "sh", *packages]


def report(sandbox):
    """What the agent printed as JSON, its last such line; `install` is the rung that it took, `why` the reason."""
    for _, line in reversed(sandbox.lines):
        if line.startswith("{"):
            return json.loads(line)
    raise AssertionError(f"the agent printed no JSON line:\n{sandbox.output()}")
