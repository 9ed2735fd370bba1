"""Runs inside the instance: starts a program on a terminal of its own, and presses Ctrl-C when dpkg has begun.

    press_ctrl_c.py LOG PATTERN PROGRAM [ARGUMENT...]

Ctrl-C is typed when a line of the file LOG matches PATTERN.  Exits with the program's exit code, 97 if the program
ended before there was anything to interrupt, 98 if it had not ended a minute after Ctrl-C."""
import os
import pty
import re
import select
import sys
import time


def reached(log, pattern):
    try:
        with open(log, encoding="utf-8") as source:
            return any(re.search(pattern, line) for line in source)
    except FileNotFoundError:
        return False


def drain(terminal):
    """Reads what the program printed, so that it never waits for a reader."""
    ready, _, _ = select.select([terminal], [], [], 0.05)
    if ready:
        try:
            sys.stdout.buffer.write(os.read(terminal, 65536))
        except OSError:  # the other side is closed
            time.sleep(0.05)


def main():
    log, pattern, *command = sys.argv[1:]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    pressed = None
    while True:
        drain(terminal)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            sys.exit(os.waitstatus_to_exitcode(status) if pressed else 97)
        if pressed is None and reached(log, pattern):
            os.write(terminal, b"\x03")
            pressed = time.monotonic()
        if pressed is not None and time.monotonic() - pressed > 60:
            os.kill(child, 9)
            sys.exit(98)


main()
