"""What may be left of one machine on a disk: its names, its keys, its words; and the search for them in every file."""
import os
import re

# Put where only `seal` takes it away.
WORD = "only-the-first-instance-knows"
# As its owner and its programs would leave it.  Where the machine has a unit's own answer (keys, journal), that counts, too.
LEAVE = f"""\
set -e
name=$(hostname) mac=$(cat /sys/class/net/e*/address)
for home in /root /home/*; do echo "curl -H 'token: {WORD}' https://example.com" >$home/.bash_history; done
logger --tag e2e {WORD}
for log in e2e.log e2e.log.1 apt/e2e.log; do echo "$name $mac {WORD}" >/var/log/$log; done
mkdir -p /var/lib/dhcp /var/crash /etc/apt/auth.conf.d
echo "lease {{ interface \\"eth0\\"; option host-name \\"$name\\"; hardware $mac; }}" >/var/lib/dhcp/dhclient.eth0.leases
echo "machine example.com login me password {WORD}" >/etc/apt/auth.conf.d/e2e.conf
for path in /tmp/e2e /var/tmp/e2e /var/crash/e2e.crash; do echo "$name {WORD}" >$path; done
"""
PRIVATE = "for key in /etc/ssh/ssh_host_*_key; do echo $key; cat $key; done"


def of(instance, public, private, machine_id, *more):
    """{what it is: bytes} of an instance: its host keys as files (several, one after the other), further keys of its users."""
    found = {"instance id": instance.id, "name": instance.name, "hardware address": instance.mac, "key pair": instance.key.public,
             "machine-id": machine_id.strip()}
    found |= {f"key of a user ({number})": key for number, key in enumerate(more)}
    for line in public.splitlines():
        found[f"public {line.split()[0]}"] = line
    for path, lines in re.findall(r"^(/\S+)\n-----BEGIN [^\n]+\n(.*?)-----END", private, re.M | re.S):
        # What comes first is the same in every key.
        found[f"private {os.path.basename(path)}"] = lines.split()[3]
    needles = {what: body(text).encode() for what, text in found.items()}
    return {**needles, "machine-id as the journal has it": bytes.fromhex(machine_id.strip())}


def body(text):
    """Of a public key only what makes it one."""
    return text.split()[1] if re.match(r"(ssh|ecdsa)-\S+ ", text) else text


def find(root, needles):
    """{what: [places]} of every trace in names, contents and links of a file system's files."""
    found = {what: [] for what in needles}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            shown = path[len(root):]
            texts = [os.fsencode(name)]
            if os.path.islink(path):
                texts.append(os.fsencode(os.readlink(path)))
            elif os.path.isfile(path):
                with open(path, "rb") as source:
                    texts.append(source.read())
            for what, needle in needles.items():
                if any(needle in text for text in texts):
                    found[what].append(shown)
    return found


def places(found):
    """Of what `find` returns, what was found at all."""
    return {what: paths for what, paths in found.items() if paths}
