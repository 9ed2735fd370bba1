"""A signed package archive in a directory: indexes as large as the real ones, and the packages that a test needs.

The indexes are the real archive's own, so that reading them costs apt what it costs in the world.  Packages that were
packed anew stand in them with their new size and digest, which is why the whole is signed by a key of the test's own.
"""
import email.utils
import hashlib
import os
import re
import shutil
import subprocess

from signed_repo import stanza

KEYRING = "/usr/share/keyrings/end-to-end-tests.gpg"


class Mirror:
    """`folder` is what a web server offers: dists/ and pool/."""

    def __init__(self, folder, key):
        self.folder, self.key = folder, key
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(os.path.join(folder, "pool"))
        self.texts = {}  # (release, component, architecture) → index, bytes

    def add_index(self, release, component, text, architecture="amd64"):
        key = (release, component, architecture)
        self.texts[key] = self.texts.get(key, b"").rstrip(b"\n") + b"\n\n" + text if self.texts.get(key) else text

    def add_file(self, name, path):
        """`path` is offered as `name`, which begins with pool/."""
        target = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.path.abspath(path), target)

    def add_package(self, deb, release, component="main", architectures=("amd64",)):
        """A package that is in no index yet."""
        name = f"pool/{os.path.basename(deb)}"
        text = stanza(deb, {}).replace(f"Filename: ./{os.path.basename(deb)}", f"Filename: {name}")
        for architecture in architectures:
            self.add_index(release, component, text.encode(), architecture)
        self.add_file(name, deb)

    def replace(self, name, deb):
        """What the indexes call `name` is `deb`, with another size and digest."""
        with open(deb, "rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        size = os.stat(deb).st_size
        pattern = re.compile(rb"^Filename: " + re.escape(name.encode()) + rb"\n(?:(?:Size|MD5sum|SHA1|SHA256): .*\n)+", re.M)
        found = 0
        for key, text in self.texts.items():
            self.texts[key], count = pattern.subn(
                f"Filename: {name}\nSize: {size}\nSHA256: {digest}\n".encode(), text)
            found += count
        if found != 1:
            raise ValueError(f"{name} stands in the indexes {found} times")
        self.add_file(name, deb)

    def publish(self):
        """Writes and signs the indexes of all releases."""
        for release in sorted({release for release, _, _ in self.texts}):
            self.publish_release(release)

    def publish_release(self, release):
        place = os.path.join(self.folder, "dists", release)
        files, mine = {}, {key: text for key, text in self.texts.items() if key[0] == release}
        for (_, component, architecture), text in mine.items():
            name = f"{component}/binary-{architecture}/Packages"
            os.makedirs(os.path.join(place, os.path.dirname(name)), exist_ok=True)
            files[name], files[f"{name}.xz"] = text, subprocess.run(
                ["xz", "-6", "--threads=0", "-c"], input=text, check=True, capture_output=True).stdout
        head = (f"Origin: Debian\nLabel: Debian\nSuite: {release}\nCodename: {release}\n"
                f"Date: {email.utils.formatdate(usegmt=True)}\n"
                f"Architectures: {' '.join(sorted({key[2] for key in mine}))}\n"
                f"Components: {' '.join(sorted({key[1] for key in mine}))}\nSHA256:\n")
        for name, content in files.items():
            head += f" {hashlib.sha256(content).hexdigest()} {len(content):16} {name}\n"
            if name.endswith(".xz"):  # the plain one is named only: apt fetches the packed one
                with open(os.path.join(place, name), "wb") as out:
                    out.write(content)
        with open(os.path.join(place, "InRelease"), "w", encoding="utf-8") as out:
            out.write(self.key.gpg("--digest-algo", "SHA512", "--clearsign", stdin=head))

    def sources(self, url):
        """deb822, for /etc/apt/sources.list.d."""
        releases = sorted({key[0] for key in self.texts})
        components = sorted({key[1] for key in self.texts})
        return (f"Types: deb\nURIs: {url}\nSuites: {' '.join(releases)}\nComponents: {' '.join(components)}\n"
                f"Signed-By: {KEYRING}\n")
