"""What the main job must do, on whole machines: real packages, real apt and dpkg."""
import os
import time

import check
import damage
import tree
from instance import FILES_URL

DISTRO_CONFIG = """\
#gpu-bootstrap
[source]
packages = "distro"
"""
NVIDIA_CONFIG = f"""\
#gpu-bootstrap
[source]
packages = "{FILES_URL}/nvidia/"
[driver]
branch = "none"
[cuda]
toolkit = "11.8"
[cudnn]
version = "none"
"""
# On this host there is no GPU kernel module, so these two can never be satisfied.
# A link of a package's, which the step found there, is noted for `uninstall` when it is the agent who makes it again.
NOTED = r"/var/lib/gpu-bootstrap/added\.json$"
OPEN_WITHOUT_GPU = ("kernel-module", "device-query")
CUDNN_QUESTION = """\
import ctypes
print(ctypes.CDLL("libcudnn.so.8").cudnnGetVersion())
"""


def say(text):
    print(f"main-job: {text}", flush=True)


def put_user_data(machine, text):
    with open(machine.user_data, "w", encoding="utf-8") as out:
        out.write(text)


def timed(what, work):
    began = time.monotonic()
    answer = work()
    seconds = time.monotonic() - began
    say(f"{what}: {seconds:.1f} s")
    return answer, seconds


def describe(figures):
    return (f"{figures['wall_ms']:.0f} ms (median of {figures['runs']}), {figures['cpu_ms']:.0f} ms of processor time, "
            f"{figures['resident_kb'] / 1000:.1f} MB")


# -- the distribution's own packages ---------------------------------------------------------------------------------


def distro(rig, small):
    """[source] packages = "distro" on a Debian 12 with a simulated T4: installs all, and says truly what is missing.
    The small set leaves the toolkit out."""
    config = DISTRO_CONFIG + ('[cuda]\ntoolkit = "none"\n' if small else "")
    machine = rig.instance("distro", prefixes={"files": rig.files})
    machine.run("sh", "-c", "rm -f /etc/dpkg/dpkg.cfg.d/*")  # an image that keeps its documentation
    put_user_data(machine, config)
    agent, trees, facts = rig.agent(machine), tree.Trees(), {}
    try:
        _, facts["seconds"] = timed("distro: install", lambda: agent.run(expect=5))
        facts["packages"], facts["bytes"] = check.downloaded(machine)
        driver_is_not_loaded(agent)
        check.linker_knows(machine, "libcuda.so.1")
        if not small:
            facts["release"] = check.compiles(machine, "/usr/bin/nvcc")
        facts["second"] = check.second_run(agent, trees, expect=5, open_steps=OPEN_WITHOUT_GPU)
        say(f"distro: second run {describe(facts['second'])}; started {facts['second']['programs'] or 'no program'}")
        check.within_limits(facts["second"])
        if not small:
            facts["cudnn"] = cudnn(rig, machine, agent, trees, config)
    finally:
        machine.close()
    return facts


def driver_is_not_loaded(agent):
    result = agent.result()
    check.equal((result["outcome"], result["exit_code"]), ("failed", 5), "the verdict")
    check.equal(result["error"]["code"], "driver-not-loaded", f"the error's code ({result['error']})")
    say(f"distro: verdict: {result['error']['message']}")


def cudnn(rig, machine, agent, trees, config):
    """A .deb by URL and digest, added to a machine that is otherwise done; the library answers."""
    deb, digest, version = rig.cudnn()
    url = f"{FILES_URL}/files/{os.path.basename(deb)}"
    put_user_data(machine, f'{config}[cudnn]\ndeb = [{{ url = "{url}", sha256 = "{digest}" }}]\n')
    _, seconds = timed("cudnn: install", lambda: agent.run(expect=5))
    driver_is_not_loaded(agent)
    answer = machine.run("python3", "-B", "-c", CUDNN_QUESTION).stdout.strip()
    check.equal(answer, str(version), "cudnnGetVersion()")
    second = check.second_run(agent, trees, expect=5, open_steps=OPEN_WITHOUT_GPU)
    check.within_limits(second)
    say(f"cudnn: cudnnGetVersion() answers {answer}; second run {describe(second)}")
    return {"version": version, "seconds": seconds}


# -- NVIDIA's layout -------------------------------------------------------------------------------------------------


def nvidia(rig):
    """The real toolkit in a repository of NVIDIA's layout; then every way to damage it, the lock, and Ctrl-C."""
    facts = {}
    machine = nvidia_machine(rig, "nvidia")
    agent, trees = nvidia_agent(rig, machine), tree.Trees()
    try:
        _, facts["seconds"] = timed("nvidia: install, with a second run that is refused", lambda: two_at_once(agent))
        facts["packages"], facts["bytes"] = check.downloaded(machine)
        check.equal(agent.result()["outcome"], "converged", "the result")
        facts["release"] = check.compiles(machine, "/usr/local/cuda/bin/nvcc")
        check.no_empty_elements(machine)
        check.linker_knows(machine, "libcudart.so.11.0", "libcufft.so.10")
        machine.run("sh", "-c", "rm /tmp/scale.cu*")
        facts["second"] = check.second_run(agent, trees, expect=0)
        say(f"nvidia: second run {describe(facts['second'])}; started {facts['second']['programs'] or 'no program'}")
        check.within_limits(facts["second"])
        facts["damages"] = heal_all(agent, trees, damage.all_of(rig.spare))
        clean = trees.snapshot(machine.path("").rstrip("/"))
    finally:
        machine.close()
    interrupted(rig, clean)
    return facts


def nvidia_machine(rig, name, rate=None):
    machine = rig.instance(name, prefixes={"nvidia": rig.repository}, rate=rate)
    put_user_data(machine, NVIDIA_CONFIG)
    return machine


def nvidia_agent(rig, machine):
    """The agent with a catalog in which the repository is signed by the test's own key."""
    rig.write_catalog(machine, "/run/e2e/catalog")
    return rig.agent(machine, ["--catalog", "/run/e2e/catalog"])


def two_at_once(agent):
    """The first run installs; while it does, a second one says who holds the lock, and `status` shows the first."""
    machine = agent.machine
    log = len(machine.dpkg_log())
    first = agent.start()
    try:
        machine.wait(lambda: first.poll() is not None or len(machine.dpkg_log()) > log, "dpkg", 900)
        check.equal(first.poll(), None, "the first run's end before dpkg did anything; exit code")
        second = agent.run(expect=4)
        holder = machine.read("/var/lib/gpu-bootstrap/lock").split()[-1]
        check.true(f"pid {holder}" in second.stderr and "[locked]" in second.stderr,
                   f"the second run does not name pid {holder}: {second.stderr}")
        check.equal(agent.status()["state"], "running", "the state while the first run works")
    finally:
        output, _ = first.communicate()
        if first.returncode != 0:
            say(f"the first run exited {first.returncode}:\n{output}")
    check.equal(first.returncode, 0, "exit code of the first run")


def heal_all(agent, trees, kinds):
    """Every damage in turn; what went wrong is told of all of them at the end.  Returns how many there were."""
    wrong = []
    for kind in kinds:
        try:
            heal(agent, trees, kind)
        except AssertionError as error:
            say(f"NOT HEALED: {kind.name}: {error}")
            wrong.append(kind.name)
    check.equal(wrong, [], "damages that were not healed")
    return len(kinds)


def heal(agent, trees, kind):
    """Damage one thing; the next run heals exactly that."""
    machine = agent.machine
    root = machine.path("").rstrip("/")
    before = trees.snapshot(root)
    kind.do(machine)
    check.true(tree.differences(before, trees.snapshot(root)), f"{kind.name}: nothing was damaged")
    needed = [f"{step}: {why}" for step, _, state, why in agent.plan() if state != "satisfied"]
    check.true(needed, f"{kind.name}: the plan does not see it")
    log = len(machine.dpkg_log())
    began = time.monotonic()
    agent.run()
    seconds = time.monotonic() - began
    left = tree.differences(before, trees.snapshot(root), besides=[NOTED])
    check.equal(left, [], f"{kind.name}: left different")
    touched = check.packages_in_log(machine, log)
    check.true(touched <= kind.packages, f"{kind.name}: dpkg touched {sorted(touched)}, expected {sorted(kind.packages)}")
    say(f"healed in {seconds:.1f} s: {kind.name} ({'; '.join(needed)})")


def interrupted(rig, clean):
    """Ctrl-C while dpkg unpacks; --resume reaches the same end state as a run that was left alone."""
    machine = nvidia_machine(rig, "interrupted")
    agent, trees = nvidia_agent(rig, machine), tree.Trees()
    try:
        # dpkg is in the middle: some packages unpacked, most still to come
        done = agent.interrupted("/var/log/dpkg.log", r" status half-installed (cpp-11|gcc-11):")
        check.equal(done.returncode, 130, f"exit code after Ctrl-C\n{done.stdout}{done.stderr}")
        result = agent.result()
        check.equal((result["outcome"], result["error"]["code"]), ("interrupted", "interrupted"), "the result")
        receipt = machine.read("/var/lib/gpu-bootstrap/receipt.json")
        check.true('"interrupted"' in receipt, f"the receipt does not say so: {receipt}")
        timed("resume after Ctrl-C", lambda: agent.run("--resume"))
        check.compiles(machine, "/usr/local/cuda/bin/nvcc")
        machine.run("sh", "-c", "rm /tmp/scale.cu*")
        differs = tree.differences(clean, trees.snapshot(machine.path("").rstrip("/")), besides=[NOTED])
        check.equal(differs, [], "differences from the run that was left alone")
    finally:
        machine.close()
