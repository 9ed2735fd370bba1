"""A flat, signed apt repository laid out like NVIDIA's: DISTRO/ARCH/{Release,Release.gpg,InRelease,Packages,Packages.gz,*.deb}."""
import email.utils
import gzip
import hashlib
import json
import os
import subprocess

USER = "end-to-end tests of a package repository"


class Key:
    """The repository's own signing key, made once per working directory."""

    def __init__(self, home):
        self.home = home
        os.makedirs(home, mode=0o700, exist_ok=True)
        if USER not in self.gpg("--list-secret-keys"):
            self.gpg("--passphrase", "", "--quick-generate-key", USER, "rsa3072", "sign", "never")

    def gpg(self, *arguments, stdin=None):
        command = ["gpg", "--homedir", self.home, "--batch", "--yes", "--quiet", *arguments]
        return subprocess.run(command, check=True, input=stdin, capture_output=True, text=True).stdout

    @property
    def fingerprint(self):
        lines = self.gpg("--with-colons", "--list-keys").splitlines()
        return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))

    @property
    def armoured(self):
        return self.gpg("--armor", "--export", USER)

    def catalog(self, distro, *lines):
        """Text of a repositories.toml (what --catalog takes) that names this key for the distribution's repository; `lines`
        say in TOML what else is different there."""
        more = "\n".join(lines)
        return (f'schema = 1\n\n[[key]]\nid = "test"\nfingerprint = "{self.fingerprint}"\narmour = """\n{self.armoured}"""\n\n'
                f'[[repository]]\ndistro = "{distro}"\nkey = "test"\n{more}\n')

    def close(self):
        """Ends the agent that gpg started for this home."""
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)


def digests(path):
    found = {}
    for name in ("md5", "sha1", "sha256"):
        with open(path, "rb") as source:
            found[name] = hashlib.file_digest(source, name).hexdigest()
    return found


def stanza(deb, known):
    """The entry of one package in Packages; `known` remembers digests of unchanged files."""
    stat = os.stat(deb)
    identity = f"{os.path.basename(deb)} {stat.st_size} {stat.st_mtime_ns}"
    if identity not in known:
        fields = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
        sums = digests(deb)
        known[identity] = (fields.rstrip("\n") + f"\nFilename: ./{os.path.basename(deb)}\nSize: {stat.st_size}\n"
                           f"MD5sum: {sums['md5']}\nSHA1: {sums['sha1']}\nSHA256: {sums['sha256']}\n")
    return known[identity]


def publish(folder, key, memory):
    """Writes the index of the packages in `folder` and signs it.  `memory` is a file that spares hashing twice."""
    known = {}
    if os.path.exists(memory):
        with open(memory, encoding="utf-8") as source:
            known = json.load(source)
    debs = sorted(name for name in os.listdir(folder) if name.endswith(".deb"))
    packages = "\n".join(stanza(os.path.join(folder, name), known) for name in debs).encode()
    with open(memory, "w", encoding="utf-8") as out:
        json.dump(known, out)
    files = {"Packages": packages, "Packages.gz": gzip.compress(packages, mtime=0)}
    release = ("Origin: NVIDIA\nLabel: NVIDIA CUDA\nArchitecture: x86_64\n"
               f"Date: {email.utils.formatdate(usegmt=True)}\n")
    for title, name in (("MD5Sum", "md5"), ("SHA1", "sha1"), ("SHA256", "sha256")):
        release += f"{title}:\n"
        for file, content in files.items():
            release += f" {hashlib.new(name, content).hexdigest()} {len(content):16} {file}\n"
    for file, content in {**files, "Release": release.encode()}.items():
        with open(os.path.join(folder, file), "wb") as out:
            out.write(content)
    with open(os.path.join(folder, "InRelease"), "w", encoding="utf-8") as out:
        out.write(key.gpg("--digest-algo", "SHA512", "--clearsign", stdin=release))
    with open(os.path.join(folder, "Release.gpg"), "w", encoding="utf-8") as out:
        out.write(key.gpg("--digest-algo", "SHA512", "--armor", "--detach-sign", stdin=release))
    return len(debs)
