"""Python packages of the tests, pinned, in virtual environments below cargo's target directory, made on first use."""
import fcntl
import os
import shutil
import subprocess
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
# The same environment and packages as tests/support/moto.rs has.
MOTO = ("moto", ("moto[server]==5.2.5", "boto3==1.44.5"))
TEMPLATES = ("templates", ("cfn-lint==1.58.0", "jsonschema==4.26.0"))
HCL = ("hcl", ("python-hcl2==8.1.4",))


def folder():
    return os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(PROJECT, "target"), "tmp")


def python(name, packages):
    """The environment's Python.  Processes that want the same one at the same time wait for each other."""
    place = os.path.join(folder(), name)
    os.makedirs(folder(), exist_ok=True)
    with open(f"{place}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program, stamp = os.path.join(place, "bin", "python"), os.path.join(place, "packages")
        if read(stamp) != "".join(packages):
            base = shutil.which("python3")  # not ours, which may be an environment's itself
            subprocess.run([base, "-m", "venv", "--clear", place], check=True)
            install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, *packages], check=True)
            with open(stamp, "w", encoding="utf-8") as out:
                out.write("".join(packages))
    return program


def become(environment):
    """This program again, by the environment's Python, unless that is who runs it."""
    program = python(*environment)
    if os.path.realpath(sys.prefix) != os.path.realpath(os.path.join(folder(), environment[0])):
        os.execv(program, [program, "-B", os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def read(path):
    try:
        with open(path, encoding="utf-8") as source:
            return source.read()
    except FileNotFoundError:
        return ""
