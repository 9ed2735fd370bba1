"""Ubuntu 18.04 as a root of its own packages: what the old stack ran on.

The archive's key comes from its own package of keys, and of those only the one whose fingerprint is pinned here is taken.
"""
import os
import shutil
import subprocess
import urllib.request

SITE = "http://archive.ubuntu.com/ubuntu"
SUITE = "bionic"
# Ubuntu Archive Automatic Signing Key (2012)
FINGERPRINT = "790BC7277767219C42C86F933B4FE6ACC0B21F32"
KEYRING_DEB = f"{SITE}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2018.02.28_all.deb"
KEYRING = "usr/share/keyrings/ubuntu-archive-keyring.gpg"
PACKAGES = "apt,dpkg,ca-certificates,gpgv,gnupg,iproute2,procps,kmod,util-linux,mount,passwd,systemd,hostname"
RECIPE = f"1 {SUITE} {FINGERPRINT} {PACKAGES}"


def keyring(work):
    """A keyring with exactly the pinned key."""
    target = os.path.join(work, "ubuntu-archive.gpg")
    if os.path.exists(target):
        return target
    deb, tree, home = (os.path.join(work, name) for name in ("ubuntu-keyring.deb", "ubuntu-keyring", "ubuntu-gpg"))
    with urllib.request.urlopen(KEYRING_DEB, timeout=60) as answer, open(deb, "wb") as out:
        shutil.copyfileobj(answer, out)
    subprocess.run(["dpkg-deb", "--extract", deb, tree], check=True)
    os.makedirs(home, mode=0o700, exist_ok=True)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
    subprocess.run([*gpg, "--import", os.path.join(tree, KEYRING)], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*gpg, "--output", f"{target}.new", "--export", FINGERPRINT], check=True)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    if not os.path.getsize(f"{target}.new"):
        raise SystemExit(f"{KEYRING_DEB} has no key {FINGERPRINT}")
    os.rename(f"{target}.new", target)
    return target


def root(work):
    """Made once; it has no package sources yet."""
    place = os.path.join(work, "root-bionic")
    stamp = os.path.join(place, ".recipe")
    if os.path.exists(stamp):
        with open(stamp, encoding="utf-8") as known:
            if known.read() == RECIPE:
                return place
    for old in (place, f"{place}.new"):
        shutil.rmtree(old, ignore_errors=True)
    subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--architectures=amd64", "--quiet",
                    f"--keyring={keyring(work)}", '--aptopt=Acquire::Languages "none"', f"--include={PACKAGES}",
                    '--customize-hook=rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/apt.conf.d/99mmdebstrap',
                    '--customize-hook=rm -rf "$1"/var/lib/apt/lists && mkdir -p "$1"/var/lib/apt/lists/partial',
                    '--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash user',
                    SUITE, f"{place}.new", f"deb [signed-by={keyring(work)}] {SITE} {SUITE} main"], check=True)
    with open(os.path.join(f"{place}.new", ".recipe"), "w", encoding="utf-8") as out:
        out.write(RECIPE)
    os.rename(f"{place}.new", place)
    return place
