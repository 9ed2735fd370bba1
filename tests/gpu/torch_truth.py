"""What torch says of every device, and how fast it copies, as one JSON document on standard output.

usage: torch_truth.py BANDWIDTH_JSON

The copies are those of `device-query --bandwidth`, done its way: the same sizes, one to warm up, each timed by the
device's events, from the CPUs that BANDWIDTH_JSON names for the GPU. Needs torch with CUDA.
"""

import json
import os
import sys

# As the agent orders devices.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
import torch  # noqa: E402  the environment must stand before

HOST_BYTES, HOST_COPIES = 256 << 20, 8
PEER_BYTES, PEER_COPIES = 64 << 20, 5

# Our name of a value: torch's. What an older torch lacks is left out.
PROPERTIES = {
    "compute_capability_major": "major",
    "compute_capability_minor": "minor",
    "multiprocessor_count": "multi_processor_count",
    "integrated": "is_integrated",
    "max_threads_per_multiprocessor": "max_threads_per_multi_processor",
    "max_threads_per_block": "max_threads_per_block",
    "registers_per_multiprocessor": "regs_per_multiprocessor",
    "shared_memory_per_block": "shared_memory_per_block",
    "shared_memory_per_block_optin": "shared_memory_per_block_optin",
    "shared_memory_per_multiprocessor": "shared_memory_per_multiprocessor",
    "warp_size": "warp_size",
    "l2_cache_size": "L2_cache_size",
    "clock_rate": "clock_rate",
    "memory_clock_rate": "memory_clock_rate",
    "memory_bus_width": "memory_bus_width",
    "pci_bus_id": "pci_bus_id",
    "pci_device_id": "pci_device_id",
    "pci_domain_id": "pci_domain_id",
}


def describe(index):
    """Name, memory in bytes, UUID where this torch has it, and the attributes of PROPERTIES."""
    p = torch.cuda.get_device_properties(index)
    attributes = {ours: int(getattr(p, theirs)) for ours, theirs in PROPERTIES.items() if hasattr(p, theirs)}
    device = {"name": p.name, "total_memory": p.total_memory, "attributes": attributes}
    if hasattr(p, "uuid"):
        uuid = str(p.uuid)
        device["uuid"] = uuid if uuid.startswith("GPU-") else "GPU-" + uuid
    return device


def rates(index, copy, size, copies):
    """Best and median of `copies` copies of `size` bytes, in GB/s (10^9 bytes)."""
    with torch.cuda.device(index):
        copy()
        torch.cuda.synchronize()
        found = []
        for _ in range(copies):
            before = torch.cuda.Event(enable_timing=True)
            after = torch.cuda.Event(enable_timing=True)
            before.record()
            copy()
            after.record()
            torch.cuda.synchronize()
            found.append(size / before.elapsed_time(after) / 1e6)
    found.sort()
    return {"best": found[-1], "median": (found[(copies - 1) // 2] + found[copies // 2]) / 2}


def with_host(index):
    """Copies to, from and on one device; on it, reads and writes are both counted."""
    host = torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    here = torch.empty(HOST_BYTES, dtype=torch.uint8, device="cuda:%d" % index)
    there = torch.empty_like(here)
    return {
        "host_to_device": rates(index, lambda: here.copy_(host, non_blocking=True), HOST_BYTES, HOST_COPIES),
        "device_to_host": rates(index, lambda: host.copy_(here, non_blocking=True), HOST_BYTES, HOST_COPIES),
        "device_to_device": rates(index, lambda: there.copy_(here, non_blocking=True), 2 * HOST_BYTES, HOST_COPIES),
    }


def between(start, end):
    """Copies from one device to another."""
    here = torch.empty(PEER_BYTES, dtype=torch.uint8, device="cuda:%d" % start)
    there = torch.empty(PEER_BYTES, dtype=torch.uint8, device="cuda:%d" % end)
    return rates(start, lambda: there.copy_(here, non_blocking=True), PEER_BYTES, PEER_COPIES)


def cpus(node):
    """The CPUs of a list such as 0-3,8."""
    found = set()
    for part in node["cpus"].split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def near(document, index):
    """Moves this process to the CPUs that the agent used for the device."""
    node = document["compute"][index]["numa_node"]["value"]
    wanted = cpus(node) & ALLOWED if node else ALLOWED
    os.sched_setaffinity(0, wanted or ALLOWED)


ALLOWED = os.sched_getaffinity(0)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.load(file)
    count = torch.cuda.device_count()
    bandwidth = []
    for index in range(count):
        near(document, index)
        bandwidth.append(with_host(index))
    os.sched_setaffinity(0, ALLOWED)
    measured = document["peer_bandwidth"]["value"]
    peers = measured and [
        [between(a, b) if measured[a][b] else None for b in range(count)] for a in range(count)
    ]
    devices = [describe(index) for index in range(count)]
    json.dump({"devices": devices, "bandwidth": bandwidth, "peer_bandwidth": peers}, sys.stdout)


main()
