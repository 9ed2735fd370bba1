"""The scenes on an image of Debian's with cloud-init, on which nothing of ours is: the user-data stub, and Packer's build."""
import hashlib
import os
import re
import subprocess

import check
import fake_driver
import fake_gpu
import first_boot
import packer as template
import traces
import vm
import vm_image
from first_boot import OF_EACH_BOOT, OTHER, STACK, say

# An emulated processor needs minutes for cloud-init's stages, and more when this machine has other work.
SECONDS = 2 * vm.PATIENCE_SECONDS
# The last of cloud-init's final stage, behind the stub: what a user's or a package's script may do.
STARTS = f"runcmd: [[systemctl, start, {OTHER}], [systemctl, start, gpu-bootstrap.service], [touch, /run/e2e-returned]]\n"
# From inside the run, its own unit: nobody could wait longer.
WAITS_FOR_ITSELF = "#!/bin/sh\nsystemctl start gpu-bootstrap.service || touch /run/e2e-ended\n"
COMPLAINTS = "grep -E 'WARN|ERROR|CRITICAL|Traceback' /var/log/cloud-init.log || true\n"
# Nobody waits for anybody.
QUIET_SECONDS = 120
QUIET = f"for i in $(seq {QUIET_SECONDS}); do systemctl list-jobs --no-legend >/run/e2e; [ -s /run/e2e ] || break; sleep 1; done\n"
AGENT = "/usr/local/bin/gpu-bootstrap"
# `seal` names it and leaves it, for the line is cloud-init's (manage_etc_hosts), which writes the file anew in each instance.
SAID = {"name": ["/etc/hosts"]}


def rendered(rig):
    """The stub, as an operator renders it."""
    config = os.path.join(rig.work, "stub.toml")
    vm_image.write(config, f"#gpu-bootstrap\n{STACK}")
    with open(rig.binary, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    url = f"{vm.FILES_URL}/agent/{os.path.basename(rig.binary)}"
    return subprocess.run([rig.binary, "user-data", "render", "--url", url, "--sha256", digest, "--config", config], check=True,
                          capture_output=True, text=True).stdout


def set_up(boot):
    """Until cloud-init has shown the host keys, which is nearly its last deed."""
    boot.machine.wait_for_line("-----END SSH HOST KEY KEYS-----", SECONDS)
    boot.trust_console()


def is_done(boot):
    """cloud-init ended without a complaint, and nothing waits, failed, or is in a ring."""
    said = boot.sudo("cloud-init status --wait --long")
    check.true(re.search(r"^status: done$", said, re.M), said)
    check.equal(boot.sudo(COMPLAINTS), "", "what cloud-init complains about")
    check.equal(boot.sudo(f"{QUIET}cat /run/e2e\n"), "", "jobs of systemd that do not end")
    questions = first_boot.QUESTIONS
    check.equal((boot.sudo(questions["failed"]), boot.sudo(questions["rings"])), ("", ""), "units that failed, and rings")


def stub(rig):
    one = rig.instance(6, gpu=fake_gpu.T4)
    disk = rig.disk("stub", "cloud-init")
    with vm_image.mounted(disk.flatten(), "rw", disk.begin) as place:
        vm_image.write(f"{place}/etc/cloud/cloud.cfg.d/02_e2e.cfg", STARTS)
        vm_image.write(place + fake_driver.HOOK, WAITS_FOR_ITSELF)
        os.chmod(place + fake_driver.HOOK, 0o755)
    rig.site.configure(rendered(rig))
    try:
        with rig.boot(disk, "stub", one, image="cloud-init") as boot:
            set_up(boot)
            is_done(boot)
            result = boot.result()
            check.equal((result["outcome"], result["exit_code"], result["instance_id"]), ("converged", 0, one.id),
                        f"the run ({result['error']})")
            check.true(any("T4" in choice for choice in result["choices"]), f"the GPU: {result['choices']}")
            # From inside cloud-final, and from a package's script inside the run.
            boot.sudo(f"test -e /run/e2e-returned -a -e /run/e2e-ended\nsystemctl is-active {OTHER} {fake_driver.SERVICE}\n")
            boot.sudo("journalctl --unit gpu-bootstrap | grep 'waited for it; it was ended'")
            check.equal(boot.sudo("systemctl show --property=ExecStart --value gpu-bootstrap").split()[1], f"path={AGENT}", "agent")
            boot.sudo("systemctl is-enabled gpu-bootstrap")
            say(f"stub: {boot.seconds():.0f} s from power on; the run {result['seconds']:.0f} s")
    finally:
        rig.site.configure(first_boot.USER_DATA)
    disk.remove()


def packer(rig):
    one = rig.instance(7, "c7i.2xlarge")
    two = rig.instance(8, "g5.xlarge", fake_gpu.A10G)
    disk = rig.disk("packer", "cloud-init")
    with vm_image.mounted(disk.flatten(), "rw", disk.begin) as place:
        # Of the image's owner: what there is here to install.  The template's own configuration comes on top.
        vm_image.write(f"{place}/etc/gpu-bootstrap/10-image.toml", STACK)
    os.unlink(rig.site.user_data)
    try:
        left = build(rig, disk, one)
        with vm_image.mounted(disk.flatten(), "rw", disk.begin) as root:
            check.equal(traces.places(traces.find(root, left)), SAID, "what is left of the instance that baked")
            fake_driver.gpu_is(root, f"{fake_gpu.A10G[1]:04x}")
        instance_of(rig, disk, one, two, left)
        with vm_image.mounted(disk.flatten(), "ro", disk.begin) as root:
            check.equal(traces.places(traces.find(root, left)), {}, "what the instance has of the one that baked")
    finally:
        rig.site.configure(first_boot.USER_DATA)
    disk.remove()


def instance_of(rig, disk, one, two, left):
    """The first boot of an instance of the image."""
    with rig.boot(disk, "packer-clone", two, image="cloud-init") as boot:
        set_up(boot)
        is_done(boot)
        check.equal(boot.sudo("hostname").strip(), two.name, "hostname")
        boot.refuses(one.key, "the baking instance's")
        public = [line.split()[1].encode() for line in boot.sudo("cat /etc/ssh/ssh_host_*_key.pub").splitlines()]
        check.equal(set(public) & set(left.values()), set(), "host keys of the instance that baked")
        result = boot.result()
        check.equal((result["outcome"], result["exit_code"], result["instance_id"]), ("converged", 0, two.id),
                    f"the run ({result['error']})")
        changed = {step["id"] for step in result["steps"] if step["changed"]}
        check.true(changed <= OF_EACH_BOOT, f"steps of the image that did something: {changed}")
        check.equal(boot.machine.requested(), [], "what apt was asked for")
        check.equal(boot.sudo("cat /var/log/dpkg.log"), "", "dpkg's log")
        say(f"packer: the clone's run took {result['seconds']:.2f} s; it did {sorted(changed)}")
        boot.off()


def build(rig, disk, one):
    """The template's provisioners, one after the other; what could be left of the machine."""
    steps = template.provisioners()
    with rig.boot(disk, "packer-bake", one, image="cloud-init") as boot:
        set_up(boot)
        left = traces.of(one, boot.sudo("cat /etc/ssh/ssh_host_*_key.pub"), boot.sudo(traces.PRIVATE),
                         boot.sudo("cat /etc/machine-id"))
        for number, (kind, settings) in enumerate(steps, 1):
            last = number == len(steps)
            if kind == "file":
                source = {"var.deb": rig.deb}.get(settings["source"], settings["source"]).replace(
                    "${path.root}", os.path.dirname(template.TEMPLATE))
                done, wanted = template.upload(rig.client, one.key, source, settings["destination"]), [0]
            else:
                check.equal(kind, "shell", "a provisioner")
                done = template.run(rig.client, one.key, settings["inline"], SECONDS,
                                    "sudo systemctl --no-block poweroff;" if last else "")
                wanted = settings.get("valid_exit_codes", [0])
            check.true(done.returncode in wanted, f"provisioner {number}, {settings}: {done.stdout[-2000:]} {done.stderr[-3000:]}")
            say(f"packer: provisioner {number} of {len(steps)}: exit code {done.returncode}")
        check.true(f"names {one.name} in line" in done.stdout + done.stderr, f"what seal says of /etc/hosts: {done}")
        boot.machine.wait_until_off()
    return left
