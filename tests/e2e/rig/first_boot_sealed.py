"""The scene `sealed`: an instance gets its driver, leaves its traces, is sealed and copied; another one starts from the copy,
with another address and another GPU."""
import email.mime.multipart
import email.mime.text
import hashlib
import os

import check
import fake_driver
import fake_gpu
import first_boot
import traces
import vm_image
from first_boot import DUTIES, OF_EACH_BOOT, STACK, duties, is_set_up, say

# Once for each instance: a line for each time that it ran.
RAN = "/srv/ran"
SCRIPT = f"#!/bin/sh\ncat /proc/sys/kernel/random/boot_id >>{RAN}\n"
DATABASE = "/var/lib/dpkg/status"


def user_data():
    message = email.mime.multipart.MIMEMultipart()
    for kind, name, text in (("x-gpu-bootstrap", "gpu.toml", f"#gpu-bootstrap\n{STACK}"), ("x-shellscript", "once.sh", SCRIPT)):
        part = email.mime.text.MIMEText(text, kind, "us-ascii")
        part.add_header("Content-Disposition", "attachment", filename=name)
        message.attach(part)
    return message.as_string()


def sealed(rig):
    one = rig.instance(4, "g4dn.xlarge", fake_gpu.T4)
    two = rig.instance(5, "g5.xlarge", fake_gpu.A10G)
    rig.site.configure(user_data())
    try:
        disk = rig.disk("sealed", "baked")
        left = bake(rig, disk, one)
        with vm_image.mounted(disk.flatten(), "rw", disk.begin) as root:
            can_fail(root, left)
            check.equal(traces.places(traces.find(root, left)), {}, "what is left of the first instance")
            check.equal(size(root, "/var/log/dpkg.log"), 0, "bytes of dpkg's log in a sealed image")
            database = digest(root, DATABASE)
            # Its driver would see by itself which GPU it is.
            fake_driver.gpu_is(root, f"{fake_gpu.A10G[1]:04x}")
        clone(rig, disk, two, left)
        again(rig, disk, two)
        with vm_image.mounted(disk.flatten(), "ro", disk.begin) as root:
            check.equal(traces.places(traces.find(root, left)), {}, "what the second instance has of the first")
            check.equal((size(root, "/var/log/dpkg.log"), digest(root, DATABASE)), (0, database), "dpkg's log and database")
            boots = fake_driver.read(root + RAN).split()
            check.equal((len(boots), len(set(boots))), (2, 2), "runs of the script, in one boot of the first and two of the second")
        disk.remove()
    finally:
        rig.site.configure(first_boot.USER_DATA)


def bake(rig, disk, one):
    """The first instance, from its first boot until it is sealed and off: its traces, each of which was found before."""
    with rig.boot(disk, "sealed-bake", one, image="baked") as boot:
        boot.wait()
        boot.trust_console()
        boot.wait_for_rsa()
        is_set_up(boot, boot.ask(), alone=False)
        result = boot.result()
        check.equal((result["outcome"], result["exit_code"]), ("converged", 0), f"the run ({result['error']})")
        boot.sudo(f"systemctl start gpu-bootstrap-user-data.service\ntest $(wc -l <{RAN}) = 1\n")
        boot.sudo(f"echo '{rig.builder.public.strip()}' >>/home/admin/.ssh/authorized_keys\n{traces.LEAVE}\nsync\n")
        left = traces.of(one, boot.sudo("cat /etc/ssh/ssh_host_*_key.pub"), boot.sudo(traces.PRIVATE),
                         boot.sudo("cat /etc/machine-id"), rig.builder.public)
        left["a word of its own"] = traces.WORD.encode()
        found = disk.look(lambda root: traces.find(root, left))
        check.equal([what for what, paths in found.items() if not paths], [], "what the search does not find while it is there")
        say(f"sealed: the run installed in {result['seconds']:.0f} s; {sum(map(len, found.values()))} traces of {len(left)} kinds")
        told = rig.client.run(one.key, "sudo gpu-bootstrap seal --shell-history && sudo systemctl --no-block poweroff",
                              seconds=first_boot.vm.PATIENCE_SECONDS)
        check.true("sealed   stop this machine now" in told.stdout, f"seal: {told}")
        boot.machine.wait_until_off()
    return left


def can_fail(root, left):
    """The search finds what is planted: in a file's content, and in a name."""
    for what, path, content in (("key pair", "/usr/share/e2e", b"x" + left["key pair"] + b"x"),
                                ("name", f"/usr/share/{left['name'].decode()}.conf", b"")):
        with open(root + path, "wb") as out:
            out.write(content)
        try:
            check.equal(traces.places(traces.find(root, {what: left[what]})), {what: [path]}, "what is found of what was planted")
        finally:
            os.unlink(root + path)


def clone(rig, disk, two, left):
    """The first boot of another instance from the copy."""
    with rig.boot(disk, "sealed-clone", two, image="baked") as boot:
        boot.wait()
        boot.trust_console()
        boot.wait_for_rsa()
        fingerprints = boot.trust_console()
        found = boot.ask()
        check.equal(duties(found), {**dict.fromkeys(DUTIES, "changed"), "grow-root": "unchanged"}, "the duties")
        is_set_up(boot, found, fingerprints, alone=False)
        boot.refuses(rig.builder, "a user's of the first instance")
        result = boot.result()
        check.equal((result["outcome"], result["exit_code"]), ("converged", 0), f"the run ({result['error']})")
        changed = {step["id"] for step in result["steps"] if step["changed"]}
        check.true(changed <= OF_EACH_BOOT, f"steps of the image that did something: {changed}")
        check.true(len(result["steps"]) > len(OF_EACH_BOOT), f"steps: {result['steps']}")
        check.true(any("A10G" in choice for choice in result["choices"]), f"the GPU: {result['choices']}")
        check.equal(boot.machine.requested(), [], "what apt was asked for")
        boot.sudo(f"systemctl start gpu-bootstrap-user-data.service\ntest $(wc -l <{RAN}) = 2\n")
        say(f"sealed: the clone's run took {result['seconds']:.2f} s; it did {sorted(changed)} of {len(result['steps'])} steps")
        boot.off()


def again(rig, disk, two):
    """Its second boot: nothing of an instance's is done again."""
    with rig.boot(disk, "sealed-again", two, image="baked") as boot:
        boot.wait()
        found = boot.ask()
        check.equal((found["early"]["instance"], duties(found)), ("same", {}), "what the early part did")
        result = boot.result()
        check.equal((result["outcome"], result["instance_id"]), ("converged", two.id), f"the run ({result['error']})")
        boot.sudo("systemctl start gpu-bootstrap-user-data.service")
        boot.off()


def size(root, path):
    try:
        return os.path.getsize(root + path)
    except FileNotFoundError:
        return 0


def digest(root, path):
    return hashlib.sha256(fake_driver.read(root + path)).hexdigest()
