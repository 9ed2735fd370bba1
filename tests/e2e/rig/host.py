"""This machine, which runs the tests: its programs, and that only one test uses a directory."""
import fcntl
import os
import shutil
import signal
import subprocess
import sys


def name():
    return os.path.basename(sys.argv[0])


def needs_root():
    if os.geteuid() != 0:
        sys.exit(f"{name()}: needs root, to make namespaces and root file systems; run it with sudo")


def only_one(work):
    """Two runs below one WORK would delete each other's machines.  The lock is held until what this returns is closed.
    From here on SIGTERM ends the test as Ctrl-C does, so that what it started ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.makedirs(work, exist_ok=True)
    lock = open(os.path.join(work, "lock"), "w", encoding="utf-8")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{name()}: another run uses {work}; set WORK to another directory")
    return lock


def install_missing(needed, say, pip=False):
    """`needed`: {program: Debian package that has it}."""
    missing = sorted({package for program, package in needed.items() if not shutil.which(program)})
    if pip and subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        missing.append("python3-pip")
    if missing:
        install(missing, say)


def install(packages, say):
    say(f"installing {' '.join(packages)}")
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    subprocess.run(["apt-get", "-qq", "--yes", "--no-install-recommends", "install", *packages], check=True,
                   env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"), stdout=subprocess.DEVNULL)
