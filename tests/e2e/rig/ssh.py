"""An ssh client outside a virtual machine: key pairs, what the console says of the machine's own keys, logins."""
import os
import re
import socket
import subprocess
import time

from network import listen_in
from vm import PATIENCE_SECONDS, wait_until

NEEDED = {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "ssh-keyscan": "openssh-client", "nsenter": "util-linux"}
# Of the namespace of vm.Site, where nothing else listens.
PORT = 2222
# An emulated processor takes a second or two for the handshake; more when this machine has other work.
SECONDS = 120


class Key:
    """A pair made by ssh-keygen: `path` of the private one, `public` as EC2 gives it."""

    def __init__(self, path, comment):
        self.path = path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for old in (path, f"{path}.pub"):
            if os.path.exists(old):
                os.unlink(old)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
        with open(f"{path}.pub", encoding="utf-8") as source:
            self.public = source.read()


def between(console, name):
    """The last block of the console between the lines that cloud-init prints, without its prefix; [] if there is none."""
    found = re.findall(rf"-----BEGIN SSH HOST KEY {name}-----\n(.*?)(?:ec2: )?-----END SSH HOST KEY {name}-----", console, re.S)
    return [line.removeprefix("ec2: ") for line in found[-1].splitlines()] if found else []


class Client:
    """Logs in to the machine that has the port of the namespace `netns`."""

    def __init__(self, netns, folder):
        self.netns, self.known = netns, os.path.join(folder, "known_hosts")

    def answers(self):
        """The greeting of sshd, or None."""
        try:
            with listen_in(self.netns, lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5)) as connection:
                return connection.recv(64).startswith(b"SSH-")
        except OSError:
            return None

    def wait(self, machine, seconds=PATIENCE_SECONDS):
        wait_until(lambda: self.answers() or machine.process.poll() is not None, "sshd", seconds, machine.console)

    def trust(self, lines):
        """From here on only a machine with one of these host keys is the right one: lines of the console, or of a file."""
        with open(self.known, "w", encoding="utf-8") as out:
            out.writelines(f"[127.0.0.1]:{PORT} {' '.join(line.split()[:2])}\n" for line in lines)

    def run(self, key, command, user="admin", text="", options=(), seconds=3 * SECONDS):
        """What a command says on the machine, which must be one that is trusted; status 255 is ssh's own failure.  Where
        nobody listens it tries again, for sshd is told to read the RSA key, and while it does, connections are refused.
        Of `options` and those that stand here, ssh takes the first of a name."""
        call = ["nsenter", f"--net={self.netns}", "ssh", "-F", "none", "-p", str(PORT), "-i", key.path,
                *[f"-o{option}" for option in (
                    *options, "BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={self.known}",
                    "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes", "UpdateHostKeys=no",
                    f"ConnectTimeout={SECONDS}", "LogLevel=ERROR")],
                f"{user}@127.0.0.1", command]
        environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        for _ in range(20):
            done = subprocess.run(call, input=text, capture_output=True, text=True, timeout=seconds, check=False,
                                  env=environment)
            if done.returncode != 255 or "kex_exchange_identification" not in done.stderr:
                break
            time.sleep(0.5)
        return done

    def offers(self, kind):
        """Whether sshd has a host key of this kind to offer."""
        call = ["nsenter", f"--net={self.netns}", "ssh-keyscan", "-T", str(SECONDS), "-t", kind, "-p", str(PORT), "127.0.0.1"]
        said = subprocess.run(call, capture_output=True, text=True, check=False).stdout
        return any(f" ssh-{kind} " in line for line in said.splitlines() if not line.startswith("#"))
