"""libcudnn8 as a .deb, made from the real cuDNN in its wheel on the Python package index."""
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile

PROJECT, WHEEL_VERSION = "nvidia-cudnn-cu11", "8.9.6.50"
WHEEL = "nvidia_cudnn_cu11-8.9.6.50-py3-none-manylinux1_x86_64.whl"
WHEEL_SHA256 = "319a8f7ca3d65139f1b69998595c7076ae0e4271a325e5dfde50a3ca31f55584"
PACKAGE, VERSION = "libcudnn8", "8.9.6.50-1+cuda11.8"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
EPOCH = "1698000000"

CONTROL = f"""Package: {PACKAGE}
Version: {VERSION}
Architecture: amd64
Maintainer: end-to-end tests <root@localhost>
Installed-Size: {{size}}
Depends: libc6, zlib1g
Section: multiverse/libs
Priority: optional
Description: cuDNN runtime libraries
 Made from the wheel of the Python package index for a test.
"""


def download(folder):
    """The wheel, through pip and whatever index it is configured with; its digest is pinned."""
    os.makedirs(folder, exist_ok=True)
    wheel = os.path.join(folder, WHEEL)
    if not os.path.exists(wheel):
        wanted = os.path.join(folder, "requirements.txt")
        with open(wanted, "w", encoding="utf-8") as out:
            out.write(f"{PROJECT}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps",
                        "--require-hashes", "--no-cache-dir", "--only-binary", ":all:",
                        "--platform", "manylinux1_x86_64", "--dest", folder, "--requirement", wanted], check=True)
    return wheel


def reported_version(wheel):
    """What cudnnGetVersion() must answer, from the header that the wheel carries."""
    with zipfile.ZipFile(wheel) as files:
        header = files.read("nvidia/cudnn/include/cudnn_version.h").decode()
    major, minor, patch = (int(re.search(rf"#define CUDNN_{part} (\d+)", header)[1]) for part in ("MAJOR", "MINOR", "PATCHLEVEL"))
    return major * 1000 + minor * 100 + patch


def make(wheel, output):
    """Builds the package from the wheel; (path, sha256)."""
    deb = os.path.join(output, f"{PACKAGE}_{VERSION}_amd64.deb")
    tree = os.path.join(output, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    folder = os.path.join(tree, LIBRARIES)
    os.makedirs(folder)
    os.makedirs(os.path.join(tree, "DEBIAN"))
    size = 0
    with zipfile.ZipFile(wheel) as files:
        for entry in files.infolist():
            name = entry.filename.rsplit("/", 1)[-1]
            if "/lib/" not in entry.filename or ".so" not in name:
                continue
            stem = name[: name.index(".so")]
            real = f"{stem}.so.{WHEEL_VERSION.rsplit('.', 1)[0]}"
            with files.open(entry) as source, open(os.path.join(folder, real), "xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            os.chmod(os.path.join(folder, real), 0o644)
            os.symlink(real, os.path.join(folder, f"{stem}.so.8"))
            size += entry.file_size
    with open(os.path.join(tree, "DEBIAN/control"), "w", encoding="utf-8") as out:
        out.write(CONTROL.format(size=size // 1024))
    with open(os.path.join(tree, "DEBIAN/triggers"), "w", encoding="utf-8") as out:
        out.write("activate-noawait ldconfig\n")
    write_sums(tree)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z0", "--build", tree, deb], check=True,
                   stdout=subprocess.DEVNULL, env=dict(os.environ, SOURCE_DATE_EPOCH=EPOCH))
    shutil.rmtree(tree)
    return deb, sha256(deb)


def write_sums(tree):
    with open(os.path.join(tree, "DEBIAN/md5sums"), "w", encoding="utf-8") as out:
        for name in sorted(os.listdir(os.path.join(tree, LIBRARIES))):
            path = os.path.join(tree, LIBRARIES, name)
            if not os.path.islink(path):
                with open(path, "rb") as source:
                    out.write(f"{hashlib.file_digest(source, 'md5').hexdigest()}  {LIBRARIES}/{name}\n")


def sha256(path):
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def cached(wheels, output):
    """make(), unless the same script has made it before; (path, sha256)."""
    stamp = os.path.join(output, "made-from")
    deb = os.path.join(output, f"{PACKAGE}_{VERSION}_amd64.deb")
    origin = sha256(__file__)
    if os.path.exists(stamp) and os.path.exists(deb):
        with open(stamp, encoding="utf-8") as known:
            if known.read() == origin:
                return deb, sha256(deb)
    os.makedirs(output, exist_ok=True)
    made = make(download(wheels), output)
    with open(stamp, "w", encoding="utf-8") as known:
        known.write(origin)
    return made
