"""What tests that kill a run at random moments share: who holds dpkg's lock, and how far dpkg had come."""
import fcntl
import os
import struct

FLOCK = "hhqqi4x"  # struct flock of <fcntl.h>
PHASES = {"install": "2 unpack", "upgrade": "2 unpack", "configure": "3 configure", "trigproc": "4 triggers"}


def is_locked(path):
    """Whether some process holds a POSIX lock on the file; asks, and takes nothing."""
    with open(path, "rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK


def phase(lines):
    """How far dpkg had come, from the lines that it wrote to its log: a number to sort by, and a word."""
    words = [line.split(" ", 2)[2] for line in lines if line.count(" ") > 2]
    if not words:
        return "1 before dpkg"
    actions = [word.split()[0] for word in words if word.split()[0] in PHASES]
    return PHASES[actions[-1] if actions else "install"]
