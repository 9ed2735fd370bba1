"""The PCI bus and DMI tables of a g4dn.xlarge, as files to be mounted over /sys/bus/pci, /proc/bus/pci and
/sys/class/dmi/id: one Tesla T4, and the look-alikes that must not count as a GPU (Nitro's console VGA)."""
import os
import shutil
import struct

INSTANCE_TYPE = "g4dn.xlarge"

# address, vendor, device, class, revision, subsystem vendor and device, driver, BARs as (flags, size)
DEVICES = [
    ("0000:00:00.0", 0x8086, 0x1237, 0x060000, 0x00, 0, 0, "", []),
    ("0000:00:01.0", 0x8086, 0x7000, 0x060100, 0x00, 0, 0, "", []),
    ("0000:00:01.3", 0x8086, 0x7113, 0x000000, 0x08, 0, 0, "", []),
    ("0000:00:03.0", 0x1D0F, 0x1111, 0x030000, 0x00, 0, 0, "", [(0xC, 1 << 22)]),
    ("0000:00:04.0", 0x1D0F, 0x8061, 0x010802, 0x00, 0x1D0F, 0, "nvme", [(0x0, 1 << 14)]),
    ("0000:00:05.0", 0x1D0F, 0xEC20, 0x020000, 0x00, 0x1D0F, 0xEC20, "ena", [(0x0, 1 << 13), (0, 1 << 14), (0xC, 1 << 20)]),
    ("0000:00:1e.0", 0x10DE, 0x1EB8, 0x030200, 0xA1, 0x10DE, 0x12A2, "", [(0x0, 1 << 24), (0xC, 1 << 28), (0xC, 1 << 25)]),
    ("0000:00:1f.0", 0x1D0F, 0xCD01, 0x010802, 0x00, 0x1D0F, 0xCD01, "nvme", [(0x0, 1 << 14)]),
]
UUID = "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"
DMI = {
    "sys_vendor": "Amazon EC2", "product_name": INSTANCE_TYPE, "product_uuid": UUID, "product_serial": UUID,
    "board_vendor": "Amazon EC2", "board_asset_tag": "i-0123456789abcdef0", "bios_vendor": "Amazon EC2",
    "bios_version": "1.0", "chassis_vendor": "Amazon EC2", "chassis_asset_tag": "Amazon EC2",
}
READABLE_BY_ROOT_ONLY = {"product_uuid", "product_serial"}


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        out.write(content if isinstance(content, bytes) else content.encode())


def configuration_space(vendor, device, kind, revision, subvendor, subdevice, bars):
    space = bytearray(256)
    struct.pack_into("<HHHH", space, 0, vendor, device, 0x0506 if bars else 0x0003, 0)
    space[8], space[9], space[10], space[11] = revision, kind & 255, kind >> 8 & 255, kind >> 16
    offset = 0x10
    for start, _, flags in bars:
        struct.pack_into("<I", space, offset, (start & 0xFFFFFFF0) | flags)
        offset += 4
        if flags & 4:
            struct.pack_into("<I", space, offset, start >> 32)
            offset += 4
    struct.pack_into("<HH", space, 0x2C, subvendor, subdevice)
    space[0x3D] = 1 if bars else 0
    return bytes(space)


class Addresses:
    """Hands out naturally aligned bus addresses below and above 4 GiB."""

    def __init__(self):
        self.low, self.high = 0xC0000000, 0x20000000000

    def take(self, flags, size):
        name = "high" if flags & 4 else "low"
        start = (getattr(self, name) + size - 1) & ~(size - 1)
        setattr(self, name, start + size)
        return start, size, flags


def make(out):
    """Writes OUT/sys-bus-pci, OUT/proc-bus-pci and OUT/dmi-id."""
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("devices", "drivers", "slots"):
        os.makedirs(f"{out}/sys-bus-pci/{folder}")
    addresses, lines = Addresses(), []
    for address, *numbers, driver, bars in DEVICES:
        placed = [addresses.take(flags, size) for flags, size in bars]
        lines.append(device_files(out, address, numbers, driver, placed))
    write(f"{out}/proc-bus-pci/devices", "\n".join(lines) + "\n")
    for name, value in DMI.items():
        write(f"{out}/dmi-id/{name}", value + "\n")
        os.chmod(f"{out}/dmi-id/{name}", 0o400 if name in READABLE_BY_ROOT_ONLY else 0o444)


def device_files(out, address, numbers, driver, bars):
    """One device below sys-bus-pci and proc-bus-pci; its line of /proc/bus/pci/devices."""
    vendor, device, kind, revision, subvendor, subdevice = numbers
    space = configuration_space(*numbers, bars)
    folder = f"{out}/sys-bus-pci/devices/{address}"
    irq = 10 if bars else 0
    starts, sizes, resources, index = [0] * 7, [0] * 7, ["0x%016x 0x%016x 0x%016x" % (0, 0, 0)] * 13, 0
    for start, size, flags in bars:
        kind_of_memory = 0x40200 | (0x2000 if flags & 8 else 0) | (0x100000 if flags & 4 else 0)
        resources[index] = "0x%016x 0x%016x 0x%016x" % (start, start + size - 1, kind_of_memory)
        starts[index], sizes[index] = start | flags, size
        index += 2 if flags & 4 else 1
    alias = (f"pci:v{vendor:08X}d{device:08X}sv{subvendor:08X}sd{subdevice:08X}"
             f"bc{kind >> 16:02X}sc{kind >> 8 & 255:02X}i{kind & 255:02X}")
    event = (f"DRIVER={driver}\n" if driver else "") + (
        f"PCI_CLASS={kind:X}\nPCI_ID={vendor:04X}:{device:04X}\n"
        f"PCI_SUBSYS_ID={subvendor:04X}:{subdevice:04X}\nPCI_SLOT_NAME={address}\n")
    for name, value in {
            "vendor": f"0x{vendor:04x}\n", "device": f"0x{device:04x}\n", "class": f"0x{kind:06x}\n",
            "revision": f"0x{revision:02x}\n", "subsystem_vendor": f"0x{subvendor:04x}\n",
            "subsystem_device": f"0x{subdevice:04x}\n", "irq": f"{irq}\n", "enable": "1\n", "numa_node": "0\n",
            "local_cpulist": "0-1\n", "config": space, "modalias": alias + "\n", "uevent": event,
            "resource": "\n".join(resources) + "\n"}.items():
        write(f"{folder}/{name}", value)
    if driver:
        os.makedirs(f"{out}/sys-bus-pci/drivers/{driver}", exist_ok=True)
        os.symlink(f"../../drivers/{driver}", f"{folder}/driver")
    _, bus, slot_function = address.split(":")
    slot, function = slot_function.split(".")
    write(f"{out}/proc-bus-pci/{bus}/{slot}.{function}", space)
    number = int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
    return (f"{number:04x}\t{vendor:04x}{device:04x}\t{irq:x}" + "".join("\t%16x" % value for value in starts + sizes)
            + f"\t{driver}")
