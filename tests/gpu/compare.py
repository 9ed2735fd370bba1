"""Compares every field of device-query's JSON document with every source that has it.

usage: compare.py RESULTS [--without-torch] [--without-noexec]

RESULTS is the directory that check.sh filled. Prints one row per field and source (ours, theirs, equal?), then the
fields that were compared with nothing, and one last line `compared=N equal=N missing=N`. Exits 0 only if all that
was compared is equal and nothing is missing. Standard library only.
"""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

# Fields that no other source has, and why that is no gap. Everything else must be compared.
EXEMPT = [
    (r"format$", "our document's own version"),
    (r"expected_gpus$", "an argument of ours"),
    (r"compute_mode$", "an argument of ours"),
    (r"libraries\[\d+\]\.planned_version$", "what our plan recorded; our own check holds it against `version`"),
    (r"processes\b", "our own account of our processes"),
    (r"checks\b", "our judgement; `result` is compared with the exit code"),
    (r"compute\[\d+\]\.elements$", "how much our own kernel computes"),
    (r"compute\[\d+\]\.(context|compile|compute)_ms$", "times by our own clock"),
]
# Where one of ours and torch's may differ: copies vary from run to run.
BANDWIDTH = 0.10
# Sensors move between two readings.
DEGREES, MILLIWATTS, MEBIBYTE = 8, 60000, (1 << 20) - 1
# Bits of the clock event reasons that do not come and go with idling: hardware, heat, power brake.
SERIOUS = 0xE8
REASONS = {
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}


def leaves(value, at=""):
    """Every plain value below `value` by its place; a field's place is that of its value."""
    if isinstance(value, dict):
        if set(value) == {"value", "unit", "source"}:
            yield from leaves(value["value"], at)
        else:
            for key, inner in value.items():
                yield from leaves(inner, at + "." + key if at else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, "%s[%d]" % (at, index))
    else:
        yield at, value


class Table:
    """The rows, and which fields have one."""

    def __init__(self, document):
        self.ours = dict(leaves(document))
        self.rows = []

    def row(self, field, source, ours, theirs, equal):
        self.rows.append((field, source, ours, theirs, equal))

    def same(self, field, source, theirs, near=None, relative=None):
        """Ours must be `theirs`: exactly, within `near`, or within the part `relative` of it."""
        if field not in self.ours:
            self.row(field, source, "no such field", theirs, False)
            return
        ours = self.ours[field]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (ours, theirs))
        if numbers and near is not None:
            equal = abs(ours - theirs) <= near
        elif numbers and relative is not None:
            equal = abs(ours - theirs) <= relative * abs(theirs)
        else:
            equal = ours == theirs
        self.row(field, source, ours, theirs, equal)

    def missing(self):
        """Our fields without a row, less those that have none for a reason."""
        compared = {row[0] for row in self.rows}
        return [f for f in self.ours if f not in compared and not any(re.match(p, f) for p, _ in EXEMPT)]

    def finish(self):
        for field, source, ours, theirs, equal in self.rows:
            print("%-5s %-62s %-34s %-28s %s" % ("yes" if equal else "NO", field, source, ours, theirs))
        missing = self.missing()
        for field in missing:
            print("NONE  %-62s compared with nothing; it is %s" % (field, self.ours[field]))
        equal = sum(row[4] for row in self.rows)
        print("compared=%d equal=%d missing=%d" % (len(self.rows), equal, len(missing)))
        return 0 if equal == len(self.rows) and not missing else 1


def smi_text(gpu, *paths):
    """The text at the first of `paths` that is there; None for N/A."""
    for path in paths:
        text = gpu.findtext(path)
        if text is not None:
            text = text.strip()
            return None if text in ("N/A", "[N/A]", "Unknown Error", "Not Supported", "") else text
    return None


def smi_number(gpu, *paths):
    """The number at the start of a text such as `41 C`, or in one such as `16x`."""
    text = smi_text(gpu, *paths)
    found = re.match(r"[\d.]+", text or "")
    return float(found.group()) if found else None


def switch(text, on="Enabled"):
    return None if text is None else int(text == on)


def total(numbers):
    known = [n for n in numbers if n is not None]
    return int(sum(known)) if known else None


def ecc(gpu, when, kind):
    """All errors of a kind: by place on newer GPUs, as a total of single or double bit ones on older."""
    bits = {"correctable": "single_bit", "uncorrectable": "double_bit"}[kind]
    old = smi_number(gpu, "ecc_errors/%s/%s/total" % (when, bits))
    if old is not None:
        return int(old)
    group = gpu.find("ecc_errors/" + when)
    places = [] if group is None else [e.tag for e in group if re.match(r"(sram|dram)_%s" % kind, e.tag)]
    return total(smi_number(gpu, "ecc_errors/%s/%s" % (when, tag)) for tag in places)


def clock_reasons(gpu):
    for group, prefix in [("clocks_event_reasons", "clocks_event_reason_"),
                          ("clocks_throttle_reasons", "clocks_throttle_reason_")]:
        if gpu.find(group) is not None:
            return sum(bit for name, bit in REASONS.items()
                       if smi_text(gpu, "%s/%s%s" % (group, prefix, name)) == "Active")
    return None


def remapped(gpu):
    """Row remapping as ours has it; None where the GPU has none."""
    corrected = smi_number(gpu, "remapped_rows/remapped_row_corr")
    if corrected is None:
        return None
    return {
        "corrected": int(corrected),
        "uncorrected": int(smi_number(gpu, "remapped_rows/remapped_row_unc")),
        "pending": switch(smi_text(gpu, "remapped_rows/remapped_row_pending"), "Yes"),
        "failed": switch(smi_text(gpu, "remapped_rows/remapped_row_failure"), "Yes"),
    }


def fabric(gpu):
    """The fabric's state and status as NVML numbers them; None where there is none."""
    state = smi_text(gpu, "fabric/state")
    if state is None:
        return None
    states = {"Not Started": 1, "In Progress": 2, "Completed": 3}
    status = smi_text(gpu, "fabric/status")
    return {"state": states.get(state, state), "status": 0 if status in (None, "Success") else status}


def recovery(gpu):
    actions = {"None": 0, "Reset": 1, "Reboot": 2, "Drain P2P": 3, "Drain and Reset": 4}
    text = smi_text(gpu, "gpu_recovery_action")
    return actions.get(text, text)


def of_smi(gpu):
    """`nvml[].numbers` as nvidia-smi's XML has them: value, and how near ours must be."""
    link = "pci/pci_gpu_link_info/"
    modes = {"Default": 0, "Exclusive_Thread": 1, "Prohibited": 2, "Exclusive_Process": 3}
    power = ["gpu_power_readings/", "power_readings/"]

    def milliwatts(*names):
        watts = smi_number(gpu, *[p + n for p in power for n in names])
        return None if watts is None else round(watts * 1000)

    def whole(*paths):
        number = smi_number(gpu, *paths)
        return None if number is None else int(number)

    gsp = smi_text(gpu, "gsp_firmware_version")
    mode = smi_text(gpu, "compute_mode")
    reasons = clock_reasons(gpu)
    memory = whole("fb_memory_usage/total")
    return {
        # nvidia-smi shows whole MiB.
        "memory_total": (None if memory is None else memory << 20, MEBIBYTE),
        "persistence_mode": (switch(smi_text(gpu, "persistence_mode")), None),
        "compute_mode": (modes.get(mode, mode), None),
        # At rest the link falls back and may do so between two readings: any generation that it has.
        "pcie_generation": (whole(link + "pcie_gen/current_link_gen"), 5),
        "pcie_generation_max": (whole(link + "pcie_gen/max_link_gen"), None),
        "pcie_width": (whole(link + "link_widths/current_link_width"), None),
        "pcie_width_max": (whole(link + "link_widths/max_link_width"), None),
        "pcie_replays": (whole("pci/replay_counter"), None),
        "power_usage": (milliwatts("instant_power_draw", "power_draw", "average_power_draw"), MILLIWATTS),
        "power_limit": (milliwatts("enforced_power_limit", "current_power_limit"), None),
        "temperature": (whole("temperature/gpu_temp"), DEGREES),
        "ecc_mode": (switch(smi_text(gpu, "ecc_mode/current_ecc")), None),
        "ecc_mode_pending": (switch(smi_text(gpu, "ecc_mode/pending_ecc")), None),
        "mig_mode": (switch(smi_text(gpu, "mig_mode/current_mig")), None),
        "mig_mode_pending": (switch(smi_text(gpu, "mig_mode/pending_mig")), None),
        "mig_devices": (len(gpu.findall("mig_devices/mig_device")), None),
        "gsp_firmware": (int(gsp is not None), None),
        "retired_pages_single_bit": (whole("retired_pages/multiple_single_bit_retirement/retired_count"), None),
        "retired_pages_double_bit": (whole("retired_pages/double_bit_retirement/retired_count"), None),
        "retired_pages_pending": (switch(smi_text(gpu, "retired_pages/pending_retirement",
                                                  "retired_pages/pending_blacklist"), "Yes"), None),
        "compute_processes": (sum("C" in (p.findtext("type") or "")
                                  for p in gpu.findall("processes/process_info")), None),
        "recovery_action": (recovery(gpu), None),
        "ecc_uncorrected_volatile": (ecc(gpu, "volatile", "uncorrectable"), None),
        "ecc_uncorrected_aggregate": (ecc(gpu, "aggregate", "uncorrectable"), None),
        "ecc_corrected_volatile": (ecc(gpu, "volatile", "correctable"), None),
        "clock_event_reasons": (reasons, None),
    }


def links(text):
    """NVLinks by UUID from `nvidia-smi nvlink -s`: present and active."""
    found, uuid = {}, None
    for line in text.splitlines():
        gpu = re.search(r"UUID: (GPU-[0-9a-f-]+)", line)
        if gpu:
            uuid = gpu.group(1)
            found[uuid] = {"present": 0, "active": 0}
        elif re.match(r"\s*Link \d+:", line) and uuid:
            found[uuid]["present"] += 1
            found[uuid]["active"] += "GB/s" in line
    return found


def version_number(path):
    """The number by which a library calls its version, from its file's name (`libcudnn.so.9.1.0`)."""
    name = re.search(r"lib(cudart|cudnn|cublas|nccl)\.so\.([\d.]+)$", path)
    if not name:
        return None
    parts = [int(p) for p in name.group(2).split(".")] + [0, 0]
    if name.group(1) == "cudart":
        return parts[0] * 1000 + parts[1] * 10
    if name.group(1) == "cudnn" and parts[0] < 9:
        return parts[0] * 1000 + parts[1] * 100 + parts[2]
    return parts[0] * 10000 + parts[1] * 100 + parts[2]


def version_text(name, number):
    """The same number as people write it."""
    if number is None:
        return None
    if name == "cudart":
        return "%d.%d" % (number // 1000, number % 1000 // 10)
    if name == "cudnn" and number < 10000:
        return "%d.%d.%d" % (number // 1000, number % 1000 // 100, number % 100)
    return "%d.%d.%d" % (number // 10000, number % 10000 // 100, number % 100)


class Results:
    """The directory that check.sh filled."""

    def __init__(self, directory):
        self.directory = directory

    def has(self, name):
        return os.path.exists(os.path.join(self.directory, name))

    def text(self, name):
        with open(os.path.join(self.directory, name), encoding="utf-8", errors="replace") as file:
            return file.read()

    def json(self, name):
        return json.loads(self.text(name))

    def lines(self, name):
        return self.text(name).splitlines()


def uuid_of(gpu):
    return smi_text(gpu, "uuid")


def compare_devices(table, document, truth, smi):
    """Every device by NVIDIA's own runtime, headers and driver, and by nvidia-smi."""
    table.row("devices", "truth: how many", len(document["devices"]), len(truth["devices"]),
              len(document["devices"]) == len(truth["devices"]))
    for i, (ours, theirs) in enumerate(zip(document["devices"], truth["devices"])):
        at = "devices[%d]." % i
        table.same(at + "index", "its place", i)
        table.same(at + "error", "a device that answers", None)
        table.same(at + "name", "truth: cudaDeviceProp", theirs["name"])
        table.same(at + "uuid", "truth: cudaDeviceProp", theirs["uuid"])
        pci = (ours["pci"]["value"] or "").lower()
        table.row(at + "pci", "truth: cudaDeviceGetPCIBusId", pci, theirs["pci"].lower(),
                  pci == theirs["pci"].lower())
        for name, value in theirs["properties"].items():
            place = at + (name if name == "total_memory" else "attributes." + name)
            table.same(place, "truth: cudaDeviceProp", value)
        for group, source in [("runtime_attributes", "cudaDeviceGetAttribute"),
                              ("driver_attributes", "cuDeviceGetAttribute")]:
            for name, said in theirs[group].items():
                field = ours["attributes"].get(name, {"source": "no such attribute"})
                table.same(at + "attributes." + name, "truth: " + source, said["value"])
                number = "cuDeviceGetAttribute(%d)" % said["number"]
                table.row(at + "attributes." + name, "its number in NVIDIA's header", field["source"], number,
                          field["source"] == number)
        gpu = smi.get(ours["uuid"]["value"])
        if gpu is not None:
            table.same(at + "name", "nvidia-smi", smi_text(gpu, "product_name"))
            table.same(at + "uuid", "nvidia-smi", uuid_of(gpu))
            bus = gpu.get("id", "").lower()[-len(pci):]
            table.row(at + "pci", "nvidia-smi", pci, bus, pci == bus)
            table.same(at + "attributes.ecc_enabled", "nvidia-smi",
                       switch(smi_text(gpu, "ecc_mode/current_ecc")) or 0)
    for a, row in enumerate(truth["can_access"]):
        for b, can in enumerate(row):
            place = "peer_access[%d][%d]" % (a, b)
            if len(truth["can_access"]) > 1:
                table.same(place, "truth: cudaDeviceCanAccessPeer", can)
    if len(truth["can_access"]) < 2:
        table.row("peer_access", "truth: one device", document["peer_access"]["value"], [],
                  document["peer_access"]["value"] == [])


def compare_nvml(table, document, smi, nvlinks):
    """Every GPU by nvidia-smi."""
    table.row("nvml", "nvidia-smi: how many", len(document["nvml"]), len(smi), len(document["nvml"]) == len(smi))
    for i, ours in enumerate(document["nvml"]):
        at = "nvml[%d]." % i
        gpu = smi.get(ours["uuid"]["value"])
        if gpu is None:
            table.row(at + "uuid", "nvidia-smi", ours["uuid"]["value"], "no such GPU", False)
            continue
        table.same(at + "index", "its place", i)
        table.same(at + "error", "a GPU that answers", None)
        table.same(at + "uuid", "nvidia-smi", uuid_of(gpu))
        table.same(at + "name", "nvidia-smi", smi_text(gpu, "product_name"))
        pci = (ours["pci"]["value"] or "").lower()
        table.row(at + "pci", "nvidia-smi", pci, gpu.get("id", "").lower(), pci == gpu.get("id", "").lower())
        for name, (theirs, near) in of_smi(gpu).items():
            place = at + "numbers." + name
            if name == "clock_event_reasons":
                value = table.ours.get(place)
                value = value if value is None else value & SERIOUS
                table.row(place, "nvidia-smi, serious bits", value, theirs, value == theirs)
            elif name in ("mig_devices", "gsp_firmware") and table.ours.get(place) is None:
                table.row(place, "nvidia-smi", None, theirs, theirs == 0)
            else:
                table.same(place, "nvidia-smi", theirs, near=near)
        for name, theirs in [("remapped_rows", remapped(gpu)), ("fabric", fabric(gpu))]:
            whole = ours[name]["value"]
            if name == "fabric" and theirs is None and whole and whole["state"] == 0:
                theirs = {"state": 0, "status": whole["status"]}
            for key, value in (theirs or {"": None}).items():
                table.same(at + name + ("." + key if key else ""), "nvidia-smi", value)
        link = nvlinks.get(ours["uuid"]["value"]) or {"present": 0, "active": 0}
        if link["present"] > 0:
            for key, value in link.items():
                table.same(at + "nvlink." + key, "nvidia-smi nvlink -s", value)
        elif ours["nvlink"]["value"] is None:
            table.same(at + "nvlink", "nvidia-smi nvlink -s: none", None)
        else:
            table.same(at + "nvlink.active", "nvidia-smi nvlink -s: none", 0)
            EXEMPT.append((re.escape(at) + r"nvlink\.present$", "nvidia-smi lists no links where none is up"))


def compare_torch(table, document, torch):
    """Every device and its copies by torch."""
    for i, theirs in enumerate(torch["devices"]):
        at = "devices[%d]." % i
        for key in ("name", "uuid", "total_memory"):
            if key in theirs:
                table.same(at + key, "torch", theirs[key])
        for name, value in theirs["attributes"].items():
            table.same(at + "attributes." + name, "torch", value)
    for i, theirs in enumerate(torch["bandwidth"]):
        for way, rate in theirs.items():
            for key, value in rate.items():
                place = "compute[%d].bandwidth.%s.%s" % (i, way, key)
                table.same(place, "torch, within 10 %", value, relative=BANDWIDTH)
    if torch["peer_bandwidth"] is None:
        table.same("peer_bandwidth", "torch: nothing to measure", None)
        return
    for a, row in enumerate(torch["peer_bandwidth"]):
        for b, rate in enumerate(row):
            for key, value in (rate or {"": None}).items():
                place = "peer_bandwidth[%d][%d]%s" % (a, b, "." + key if key else "")
                table.same(place, "torch, within 10 %", value, relative=BANDWIDTH)


def compare_compute(table, document, truth, smi, nodes):
    """What ran on each device."""
    for i, ours in enumerate(document["compute"]):
        at = "compute[%d]." % i
        table.same(at + "index", "its place", i)
        table.same(at + "error", "a device that computes", None)
        table.same(at + "mismatches", "the host's own arithmetic", 0)
        table.same(at + "first_mismatch", "the host's own arithmetic", None)
        count = truth["devices"][i]["properties"]["multiprocessor_count"] if i < len(truth["devices"]) else None
        table.same(at + "multiprocessors_ran", "truth: cudaDeviceProp", count)
        device = document["devices"][i]
        gpu = smi.get(device["uuid"]["value"])
        if gpu is not None:
            said = of_smi(gpu)
            table.same(at + "busy_processes", "nvidia-smi", said["compute_processes"][0] or None)
            # The fastest that this GPU and this machine can do together is what a loaded link does.
            table.same(at + "pcie_generation_loaded", "nvidia-smi: most", said["pcie_generation_max"][0])
            table.same(at + "pcie_width_loaded", "nvidia-smi", said["pcie_width"][0])
            table.same(at + "pcie_replays_after", "nvidia-smi", said["pcie_replays"][0])
        node = nodes.get((device["pci"]["value"] or "").lower())
        if node is None:
            table.same(at + "numa_node", "sysfs: none", None)
        else:
            table.same(at + "numa_node.node", "sysfs", node[0])
            table.same(at + "numa_node.cpus", "sysfs", node[1])


def compare_machine(table, document, results, truth, smi_root):
    """The driver, the libraries, the PCI bus, the kernel's log."""
    table.same("program", "--version", results.text("version.txt").strip())
    status = results.text("bandwidth.status").strip()
    table.same("result", "exit code", {"0": "PASS", "5": "FAIL"}.get(status, status))
    table.row("result", "a machine to be proven on", document["result"], "PASS", document["result"] == "PASS")
    proc = results.text("proc-version.txt")
    module = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", proc)
    table.same("driver.module_version", "/proc, read by us", module and module.group(1))
    table.same("driver.open_module", "/proc, read by us", "Open Kernel Module" in proc)
    table.same("driver.module_version", "nvidia-smi", smi_text(smi_root, "driver_version"))
    table.same("driver.nvml_version", "nvidia-smi", smi_text(smi_root, "driver_version"))
    table.same("driver.cuda_version", "truth: cudaDriverGetVersion", truth["driver_version"])
    cuda = re.match(r"(\d+)\.(\d+)", smi_text(smi_root, "cuda_version") or "")
    table.same("driver.cuda_version", "nvidia-smi", cuda and int(cuda.group(1)) * 1000 + int(cuda.group(2)) * 10)
    known = {line.split("\t")[0]: line.split("\t")[1:] for line in results.lines("libraries.txt") if "\t" in line}
    real = {path: words[0] for path, words in known.items()}
    runtime = [version_number(real.get(lib["path"], "")) for lib in document["libraries"] if lib["name"] == "cudart"]
    note = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"(\d+)\.(\d+)', results.text("toolkit.json"))
    note = int(note.group(1)) * 1000 + int(note.group(2)) * 10 if note else None
    table.same("driver.runtime_version", "its file's name, or the toolkit's note", runtime[0] if runtime else note)
    for i, library in enumerate(document["libraries"]):
        at = "libraries[%d]." % i
        path = real.get(library["path"])
        table.same(at + "error", "a library that answers", None)
        table.same(at + "name", "its file's name", re.sub(r"^lib|\.so.*$", "", os.path.basename(path or "")))
        table.row(at + "path", "is there", library["path"], path, bool(path))
        number = version_number(path or "")
        table.same(at + "version", "its file's name", number)
        table.same(at + "version_text", "its file's name", version_text(library["name"], number))
        owner, version = known.get(library["path"], ["", "", ""])[1:3]
        if owner:
            table.same(at + "package.name", "dpkg-query -S", owner)
            table.same(at + "package.version", "dpkg-query -W", version)
        else:
            table.same(at + "package", "dpkg-query -S", None)
    if not document["libraries"]:
        installed = [line for line in results.lines("installed.txt") if line]
        table.row("libraries", "the linker's list", [], installed, not installed)
    bus = sorted(results.lines("pci.txt"))
    ours = sorted(field["value"] for field in document["pci"])
    for i, field in enumerate(document["pci"]):
        table.row("pci[%d]" % i, "sysfs, read by us", field["value"], bus, ours == bus)
    product = results.text("product.txt").strip()
    known = document["instance_type"]["value"]
    table.row("instance_type", "DMI (none where it is no known type)", known, product,
              known == product or (known is None and not re.match(r"[a-z0-9-]+\.(\d*x?large|metal\S*)$", product)))
    compare_log(table, document, results)


def compare_log(table, document, results):
    """The kernel's log by another reader: address, number, and of a switch's report how bad."""
    if not results.has("dmesg.txt"):
        for name in ("xids", "sxids"):
            table.same(name, "dmesg: may not be read", None)
        return
    log = results.text("dmesg.txt")
    xids = {(pci, int(number)) for pci, number in re.findall(r"NVRM: Xid \((?:PCI:)?([^)]*)\)\D*(\d+)", log)}
    sxids = {(pci, int(number), bad == "Fatal")
             for pci, number, bad in re.findall(r"SXid \((?:PCI:)?([^)]*)\): (\d+), (Fatal|Non-fatal)", log)}
    for name, keys, said in [("xids", ("pci", "xid"), xids), ("sxids", ("pci", "sxid", "fatal"), sxids)]:
        mine = {tuple(report[key] for key in keys) for report in document[name] or []}
        for place in [p for p in table.ours if re.match(name + r"(\[|$)", p)]:
            table.row(place, "dmesg", table.ours[place], sorted(said), mine == said and document[name] is not None)


# What must not depend on who asks and when.
STABLE = re.compile(r"(result|driver|pci|devices|peer_access)\b|libraries\b(?!.*\.planned_version)")


def compare_runs(table, results, runs):
    """The same question asked in other ways."""
    mine = {f: v for f, v in table.ours.items() if STABLE.match(f)}
    for name, source in runs:
        theirs = {f: v for f, v in leaves(results.json(name)) if STABLE.match(f)}
        differ = sorted(f for f in set(mine) | set(theirs) if mine.get(f) != theirs.get(f))
        table.row("everything that stays", source, "%d fields" % len(mine), differ or "the same", not differ)


def compare_noexec(table, results):
    places = {p["launched_from"].rsplit("/", 2)[0] for p in results.json("noexec.json")["processes"]}
    table.row("launched_from", "no file in memory, /run noexec", sorted(places), ["/var/lib"], places == {"/var/lib"})


def compare_sample(table, results):
    """Our text and NVIDIA's own sample, line by line. The runtime's version may be another one: the sample has its
    own linked in."""
    def body(name):
        lines = results.text(name).split("CUDA Capable device(s)", 1)[-1].splitlines()
        lines = [re.sub(r"(Runtime Version\s+(= )?)[^,/]*(/ \S+)?", r"\1", line) for line in lines]
        return [line for line in lines if line.strip()]
    ours, theirs = body("query.txt"), body("sample.txt")
    table.row("text", "NVIDIA's deviceQuery: lines", len(ours), len(theirs), len(ours) == len(theirs))
    for mine, sample in zip(ours, theirs):
        table.row("text", "NVIDIA's deviceQuery", mine, sample, mine == sample)


def main(arguments):
    results = Results(arguments[0])
    document = results.json("bandwidth.json")
    truth = results.json("truth.json")
    smi_root = ElementTree.fromstring(results.text("smi.xml"))
    smi = {uuid_of(gpu): gpu for gpu in smi_root.findall("gpu")}
    nodes = {}
    for line in results.lines("numa.txt"):
        address, node, cpus = line.split("\t")
        nodes[address] = (int(node), cpus)
    table = Table(document)
    compare_machine(table, document, results, truth, smi_root)
    compare_devices(table, document, truth, smi)
    compare_nvml(table, document, smi, links(results.text("nvlink.txt")))
    compare_compute(table, document, truth, smi, nodes)
    if "--without-torch" in arguments:
        for field in table.ours:
            if re.match(r"compute\[\d+\]\.bandwidth|peer_bandwidth", field):
                EXEMPT.append((re.escape(field) + "$", "--without-torch"))
    else:
        compare_torch(table, document, results.json("torch.json"))
    compare_runs(table, results, [
        ("query.json", "without --bandwidth"),
        ("environment.json", "CUDA_VISIBLE_DEVICES=, LD_PRELOAD"),
        ("together-1.json", "two at once, one"),
        ("together-2.json", "two at once, the other"),
    ])
    if "--without-noexec" not in arguments:
        compare_noexec(table, results)
    if results.has("sample.txt"):
        compare_sample(table, results)
    return table.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
