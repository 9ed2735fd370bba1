"""The real CUDA 11.8 toolkit of Debian's non-free packages, laid out and packaged as NVIDIA does it.

Debian spreads the toolkit over /usr; NVIDIA's packages put it under /usr/local/cuda-11.8.  NVIDIA's repository
is not needed to test against its layout: the files are the same, so they are moved and packaged anew, with what
makes those packages interesting to an installer: a tree of dependencies below one metapackage,
/usr/local/cuda as an alternative that a maintainer script registers, ldconfig triggers, conffiles, and single
files of hundreds of megabytes.
"""
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile

SERIES = "11-8"
HOME = "usr/local/cuda-11.8"
TARGET = f"{HOME}/targets/x86_64-linux"
VERSION = "11.8.89-1"
# An earlier version of one small library: a machine is moved to it by hand, and must be moved back.
OTHER_PACKAGE, OTHER_VERSION = f"cuda-nvtx-{SERIES}", "11.8.86-1"
EPOCH = "1664000000"

# The smallest part that compiles, with one file of 279 MB (libcufft).
SMALL = {"nvidia-cuda-toolkit", "nvidia-cuda-dev", "libnvvm4", "libcudart11.0", "libcufft10", "libcufftw10", "libnvtoolsext1"}
# Headers lie before libraries in a package's data; the small set needs the headers of this one only, not 2.7 GB of archives.
HEADERS_ONLY_WHEN_SMALL = {"nvidia-cuda-dev"}

NVCC_PROFILE = """\
TOP              = $(_HERE_)/..

NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice

LD_LIBRARY_PATH += $(TOP)/lib:
PATH            += $(TOP)/nvvm/bin:$(_HERE_):

INCLUDES        +=  "-I$(TOP)/$(_TARGET_DIR_)/include" $(_SPACE_)

LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/$(_TARGET_DIR_)/lib$(_TARGET_SIZE_)/stubs" "-L$(TOP)/$(_TARGET_DIR_)/lib$(_TARGET_SIZE_)"

CUDAFE_FLAGS    +=
PTXAS_FLAGS     +=
"""

LIBRARY_FAMILIES = [  # (start of the file name after "lib", package without "-11-8")
    ("cublas", "libcublas"), ("nvblas", "libcublas"), ("cufft", "libcufft"), ("curand", "libcurand"),
    ("cusolver", "libcusolver"), ("lapack_static", "libcusolver"), ("metis_static", "libcusolver"),
    ("cusparse", "libcusparse"), ("npp", "libnpp"), ("nvjpeg", "libnvjpeg"), ("nvrtc", "cuda-nvrtc"),
    ("nvptxcompiler", "cuda-nvrtc"), ("cupti", "cuda-cupti"), ("checkpoint", "cuda-cupti"),
    ("nvperf", "cuda-cupti"), ("pcsampling", "cuda-cupti"), ("nvToolsExt", "cuda-nvtx"),
    ("accinj64", "cuda-nvprof"), ("cuinj64", "cuda-nvprof"), ("cudart", "cuda-cudart"),
]
HEADER_PACKAGES = {"libthrust-dev": "cuda-cccl", "libcub-dev": "cuda-cccl", "libcu++-dev": "cuda-cccl",
                   "libcupti-dev": "cuda-cupti-dev", "libnvidia-ml-dev": "cuda-nvml-dev"}
COMPILER_TOOLS = {"__nvcc_device_query", "bin2c", "cudafe++", "fatbinary", "nvlink", "ptxas"}


def is_input(name, url, small):
    """Whether a package of Debian's is part of the toolkit (of its small set)."""
    if small:
        return name in SMALL
    return "/nvidia-cuda-toolkit/" in url or name in HEADER_PACKAGES


def place(origin, path):
    """(package without series, new path) of a file of Debian's package `origin`; None for what has no place."""
    name = path.rsplit("/", 1)[-1]
    tools = "usr/lib/nvidia-cuda-toolkit/"
    if path.startswith(tools):
        inner = path.removeprefix(tools)
        if inner == "bin/cicc":
            return "cuda-nvcc", f"{HOME}/nvvm/bin/cicc"
        if inner.startswith("libdevice/"):
            return "cuda-nvcc", f"{HOME}/nvvm/{inner}"
        if inner.startswith("compute-sanitizer/"):
            return "cuda-sanitizer", f"{HOME}/{inner}"
        if inner == "bin/nvprof":
            return "cuda-nvprof", f"{HOME}/bin/nvprof"
        if inner == "bin/nvcc" or inner.startswith("bin/crt/"):
            return "cuda-nvcc", f"{HOME}/{inner}"
        return None
    if path.startswith("usr/bin/"):
        if name in ("nvcc", "nvprof"):  # Debian's wrappers
            return None
        if name == "compute-sanitizer" or name.startswith("TreeLauncher"):
            return "cuda-sanitizer", f"{HOME}/compute-sanitizer/{name}"
        return ("cuda-nvcc" if name in COMPILER_TOOLS else "cuda-binary-utils"), f"{HOME}/bin/{name}"
    if path == "usr/include/nvvm.h":
        return "cuda-nvcc", f"{HOME}/nvvm/include/nvvm.h"
    if path.startswith("usr/include/"):
        return HEADER_PACKAGES.get(origin, "cuda-cudart-dev"), f"{TARGET}/{path.removeprefix('usr/')}"
    libraries = "usr/lib/x86_64-linux-gnu/"
    if path.startswith(libraries):
        return place_library(path.removeprefix(libraries))
    return None


def place_library(path):
    if path.startswith("stubs/"):
        return "cuda-driver-dev", f"{TARGET}/lib/{path}"
    if "/" in path:
        return None
    if path.startswith("libnvvm.so"):
        return "cuda-nvcc", f"{HOME}/nvvm/lib64/{path}"
    family = next((package for start, package in LIBRARY_FAMILIES if path.startswith("lib" + start)), None)
    if family is None:
        return "cuda-cudart-dev", f"{TARGET}/lib/{path}"
    development = path.endswith(".a") or (path.endswith(".so") and family != "cuda-cupti")
    return (f"{family}-dev" if development else family), f"{TARGET}/lib/{path}"


def unpack(origin, deb, trees, headers_only):
    """Moves the files of one Debian package to their new places below trees/PACKAGE/."""
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with tarfile.open(fileobj=reader.stdout, mode="r|") as data:
        for member in data:
            path = member.name.removeprefix("./")
            if headers_only and path.startswith("usr/lib/"):
                break
            where = place(origin, path)
            if where is None or not (member.isfile() or member.issym()):
                continue
            target = os.path.join(trees, where[0], where[1])
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if member.issym():
                os.symlink(member.linkname, target)
                continue
            with data.extractfile(member) as source, open(target, "xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            os.chmod(target, member.mode)
            os.utime(target, (member.mtime, member.mtime))
    reader.stdout.close()
    if reader.wait() != 0 and not headers_only:
        raise RuntimeError(f"{deb} could not be read to its end")


def put(root, path, text, mode=0o644):
    target = os.path.join(root, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as out:
        out.write(text)
    os.chmod(target, mode)
    os.utime(target, (int(EPOCH), int(EPOCH)))


def link(root, path, to):
    target = os.path.join(root, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.symlink(to, target)


def build(tree, control, output, version):
    """Writes control files (md5sums included) and builds the package."""
    sums, size = [], 0
    for folder, _, files in sorted(os.walk(tree)):
        for name in sorted(files):
            full = os.path.join(folder, name)
            relative = os.path.relpath(full, tree)
            if relative.startswith("DEBIAN/") or os.path.islink(full):
                continue
            with open(full, "rb") as source:
                sums.append(f"{hashlib.file_digest(source, 'md5').hexdigest()}  {relative}\n")
            size += os.stat(full).st_size
    put(tree, "DEBIAN/md5sums", "".join(sums))
    put(tree, "DEBIAN/control", control.format(version=version, size=max(1, size // 1024)))
    name = re.search(r"^Package: (.*)$", control, re.M)[1]
    architecture = re.search(r"^Architecture: (.*)$", control, re.M)[1]
    for folder, _, _ in os.walk(tree):
        os.utime(folder, (int(EPOCH), int(EPOCH)))
    target = os.path.join(output, f"{name}_{version}_{architecture}.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z0", "--build", tree, target], check=True,
                   stdout=subprocess.DEVNULL, env=dict(os.environ, SOURCE_DATE_EPOCH=EPOCH))
    return target


def control(package, depends, description, architecture="amd64", section="multiverse/devel"):
    depends = f"Depends: {', '.join(depends)}\n" if depends else ""
    return (f"Package: {package}\nVersion: {{version}}\nArchitecture: {architecture}\n"
            f"Maintainer: end-to-end tests <root@localhost>\nInstalled-Size: {{size}}\n{depends}"
            f"Section: {section}\nPriority: optional\nDescription: {description}\n"
            " Repacked from the distribution's own CUDA packages for a test.\n")


CONFIG_POSTINST = f"""#!/bin/sh
set -e
if [ "$1" = configure ]; then
    update-alternatives --install /usr/local/cuda cuda /{HOME} 118
    update-alternatives --install /usr/local/cuda-11 cuda-11 /{HOME} 118
fi
"""
CONFIG_PRERM = f"""#!/bin/sh
set -e
if [ "$1" = remove ]; then
    update-alternatives --remove cuda /{HOME}
    update-alternatives --remove cuda-11 /{HOME}
fi
"""


def dependencies(family, families):
    if family == "cuda-nvcc":
        # NVIDIA's depends on build-essential; CUDA 11.8 itself refuses compilers newer than gcc 11.
        return ["g++-11", f"cuda-cudart-dev-{SERIES} (>= 11.8.86)"]
    needed = [f"cuda-toolkit-{SERIES}-config-common"] if not family.endswith("-dev") else []
    base = family.removesuffix("-dev")
    if base != family and base in families:
        needed.append(f"{base}-{SERIES} (>= 11.8.86)")
    return needed


def finish_compiler(tree):
    put(tree, f"{HOME}/bin/nvcc.profile", NVCC_PROFILE)
    for tool in ("gcc", "g++"):  # nvcc takes the compiler that stands beside it first
        link(tree, f"{HOME}/bin/{tool}", f"/usr/bin/{tool}-11")
    link(tree, f"{HOME}/include", "targets/x86_64-linux/include")
    link(tree, f"{HOME}/lib64", "targets/x86_64-linux/lib")


def make(debs, output, work, small):
    """Repacks `debs` ({Debian package: file}) into packages below `output`.  Returns the path of the spare one."""
    trees = os.path.join(work, "trees")
    for folder in (trees, output):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
    for origin, deb in sorted(debs.items()):
        unpack(origin, deb, trees, small and origin in HEADERS_ONLY_WHEN_SMALL)
    families = sorted(os.listdir(trees))
    finish_compiler(os.path.join(trees, "cuda-nvcc"))
    for family in families:
        package_family(os.path.join(trees, family), family, families, output)
    configuration_packages(trees, output)
    metapackage(trees, [f"{family}-{SERIES}" for family in families], output)
    spare = spare_version(trees, work)
    shutil.rmtree(trees)
    return spare


def package_family(tree, family, families, output):
    if any(name.endswith(".so") or ".so." in name for _, _, names in os.walk(tree) for name in names):
        put(tree, "DEBIAN/triggers", "activate-noawait ldconfig\n")
    text = control(f"{family}-{SERIES}", dependencies(family, families), f"CUDA 11.8, {family}")
    build(tree, text, output, VERSION)


def configuration_packages(trees, output):
    one = os.path.join(trees, "config")
    put(one, "DEBIAN/postinst", CONFIG_POSTINST, 0o755)
    put(one, "DEBIAN/prerm", CONFIG_PRERM, 0o755)
    put(one, "DEBIAN/conffiles", "/etc/ld.so.conf.d/988_cuda-11.conf\n")
    put(one, "DEBIAN/triggers", "activate-noawait ldconfig\n")
    put(one, "etc/ld.so.conf.d/988_cuda-11.conf", "/usr/local/cuda-11/targets/x86_64-linux/lib\n")
    name = f"cuda-toolkit-{SERIES}-config-common"
    two = os.path.join(trees, "config-all")
    put(two, "DEBIAN/conffiles", "/etc/ld.so.conf.d/000_cuda.conf\n")
    put(two, "DEBIAN/triggers", "activate-noawait ldconfig\n")
    put(two, "etc/ld.so.conf.d/000_cuda.conf", "/usr/local/cuda/targets/x86_64-linux/lib\n")
    build(one, control(name, ["cuda-toolkit-config-common"], "CUDA 11.8, configuration", "all"), output, VERSION)
    build(two, control("cuda-toolkit-config-common", [], "CUDA, configuration", "all"), output, VERSION)


def metapackage(trees, packages, output):
    tree = os.path.join(trees, "meta")
    put(tree, f"usr/share/doc/cuda-toolkit-{SERIES}/README", "CUDA 11.8, repacked for a test.\n")
    # NVIDIA's metapackage allows later patch releases of its parts.
    depends = [f"{name} (>= 11.8.86)" for name in packages] + [f"cuda-toolkit-{SERIES}-config-common"]
    build(tree, control(f"cuda-toolkit-{SERIES}", depends, "CUDA 11.8, metapackage"), output, "11.8.0-1")


def spare_version(trees, work):
    """The earlier version of OTHER_PACKAGE, kept out of the repository."""
    tree = os.path.join(trees, "spare")
    put(tree, f"{TARGET}/lib/libnvToolsExt.so.1.0.0", "an earlier version\n")
    link(tree, f"{TARGET}/lib/libnvToolsExt.so.1", "libnvToolsExt.so.1.0.0")
    put(tree, "DEBIAN/triggers", "activate-noawait ldconfig\n")
    folder = os.path.join(work, "spare")
    os.makedirs(folder, exist_ok=True)
    return build(tree, control(OTHER_PACKAGE, [], "CUDA 11.8, an earlier version"), folder, OTHER_VERSION)


def cached(debs, output, work, small):
    """make(), unless the same script has already made it from the same packages.  Answers the spare package's path."""
    with open(__file__, "rb") as script:
        origin = {"script": hashlib.file_digest(script, "sha256").hexdigest(), "small": small,
                  "debs": sorted(os.path.basename(deb) for deb in debs.values())}
    stamp = os.path.join(work, "made-from.json")
    spare = os.path.join(work, "spare", f"{OTHER_PACKAGE}_{OTHER_VERSION}_amd64.deb")
    if os.path.exists(stamp):
        with open(stamp, encoding="utf-8") as known:
            if json.load(known) == origin:
                return spare
        os.unlink(stamp)
    os.makedirs(work, exist_ok=True)
    made = make(debs, output, work, small)
    assert made == spare, (made, spare)
    with open(stamp, "w", encoding="utf-8") as known:
        json.dump(origin, known)
    return spare
