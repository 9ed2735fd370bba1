"""Assertions that name what they saw, and the questions that both scenarios put to a machine."""
import json
import os
import re

import tree

CUDA_SOURCE = """\
#include <cuda_runtime.h>
__global__ void scale(float *values, float factor) { values[blockIdx.x * blockDim.x + threadIdx.x] *= factor; }
"""
# The machine code of a cubin: an ELF file of machine type EM_CUDA.
EM_CUDA = 190
SHELLS = [["bash", "-lc"], ["su", "-l", "user", "-c"]]
LIMITS_HOLD = True
PACKAGE_MANAGERS = re.compile(r"^(apt|dpkg|aptitude|debconf)")


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, expected {wanted!r}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def compiles(machine, wanted_nvcc):
    """Login shells of root and of a user find nvcc, and it compiles a kernel for the T4."""
    for shell in SHELLS:
        found = machine.run(*shell, "command -v nvcc").stdout.strip()
        equal(found, wanted_nvcc, f"nvcc in `{' '.join(shell)}`")
    machine.write("/tmp/scale.cu", CUDA_SOURCE)
    machine.run("bash", "-lc", "cd /tmp && nvcc -cubin -arch=sm_75 -o scale.cubin scale.cu")
    with open(machine.path("/tmp/scale.cubin"), "rb") as source:
        header = source.read(20)
    equal((header[:4], int.from_bytes(header[18:20], "little")), (b"\x7fELF", EM_CUDA), "head of the cubin")
    version = machine.run("bash", "-lc", "nvcc --version").stdout
    return re.search(r"release ([\d.]+)", version)[1]


def linker_knows(machine, *sonames):
    known = machine.run("ldconfig", "-p").stdout
    for soname in sonames:
        true(f"{soname} " in known, f"the dynamic linker does not know {soname}")


def no_empty_elements(machine):
    """An empty element of a search path is the current directory: nobody wants that in root's PATH."""
    for name in ("PATH", "LD_LIBRARY_PATH"):
        value = machine.run("bash", "-lc", f"printf %s \"${name}\"").stdout
        true("" not in value.split(":"), f"{name} of a login shell has an empty element: {value!r}")


def second_run(agent, trees, expect, open_steps=()):
    """Nothing changes, no package manager starts, and the plan says why.  Returns the measured figures.

    `open_steps` are those whose actions are truly not satisfied on this host."""
    machine = agent.machine
    root = machine.path("").rstrip("/")
    for step, action, state, why in agent.plan():
        true(why.strip(), f"the plan gives no reason for {step}: {action}")
        if step not in open_steps:
            equal(state, "satisfied", f"{step}: {action} ({why})")
    agent.run(expect=expect)  # the first run after an installation may still finish what it recorded
    before, log = trees.snapshot(root), machine.dpkg_log()
    figures = agent.measured()
    programs, code = agent.programs()
    equal((figures["exit"], code), (expect, expect), "exit codes of runs without work")
    # A run that ends with a verdict is one more attempt of the step that failed, and the receipt says so.
    records = "result|receipt" if expect else "result"
    changed = tree.differences(before, trees.snapshot(root), untouched=True,
                               besides=[rf"/var/lib/gpu-bootstrap/(({records})\.json|lock)$"])
    equal(changed, [], "files changed by runs without work")
    equal(machine.dpkg_log(), log, "dpkg's log after runs without work")
    managers = [program for program in programs if PACKAGE_MANAGERS.match(os.path.basename(program))]
    equal(managers, [], "package managers started by a run without work")
    figures["programs"] = programs
    return figures


def within_limits(figures, milliseconds=100, kilobytes=15_000):
    """Processor time is what fails a run on a busy machine's terms, too; the wall time is printed beside it."""
    if not LIMITS_HOLD:
        return
    true(figures["cpu_ms"] < milliseconds, f"a run without work takes {figures['cpu_ms']} ms of processor time")
    true(figures["resident_kb"] < kilobytes, f"a run without work needs {figures['resident_kb']} kB")


def packages_in_log(machine, offset):
    """Packages that dpkg.log names after `offset` characters, those that only ran a trigger left out."""
    named = set()
    for line in machine.dpkg_log()[offset:].splitlines():
        words = line.split()
        if len(words) > 3 and words[2] in ("install", "upgrade", "remove", "purge", "configure"):
            named.add(words[3].split(":")[0])
    return named


def downloaded(machine):
    """(packages, bytes) that the instance fetched from the archive and from the test's own repository."""
    names, total = set(), 0
    with open(os.path.join(machine.folder, "http.jsonl"), encoding="utf-8") as log:
        for line in map(json.loads, log):
            if line["path"].endswith(".deb") and line["method"] == "GET" and line["status"] in (200, 206):
                names.add(line["path"])
                total += line["bytes"]
    return len(names), total
