"""A virtual machine with a GPU on its PCI bus: a copy of QEMU in which the device `pci-testdev` has a GPU's identifiers.

QEMU lets nobody choose the identifiers of a device (but for vfio-pci, which needs a real one).  `pci-testdev` does nothing
and no driver claims it, so it stands for a GPU well until something talks to it.  QEMU's code sets the device's identity in
one place: vendor and device are loaded as one constant, and the revision's byte and the class's word are stored near by.
All three are patched; what is not found exactly once is an error, never a guess.
"""
import dataclasses
import os
import re
import struct

QEMU = "/usr/bin/qemu-system-x86_64"
# A copy does not find what belongs to the program.
MODULES, SHARES = "/usr/lib/x86_64-linux-gnu/qemu", ["/usr/share/qemu", "/usr/share/seabios"]
OF_TESTDEV = (0x1B36, 0x0005)
# vendor, device, class, revision
T4 = (0x10DE, 0x1EB8, 0x0302, 0xA1)
A10G = (0x10DE, 0x2237, 0x0302, 0xA1)
OTHERS = 0x00FF  # the class of pci-testdev
LOAD = re.compile(rb"\x8b[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]")  # mov CONSTANT(%rip),%r32
REVISION = re.compile(rb"\xc6[\x80-\x87]\xd4\x00\x00\x00(.)", re.S)  # movb $REVISION,0xd4(%r64)
CLASS = re.compile(rb"[\xb8-\xbf]" + re.escape(struct.pack("<I", OTHERS)))  # mov $CLASS,%r32
NEAR = (32, 96)
# Where the guest sees it.
ADDRESS = "0000:00:1e.0"


@dataclasses.dataclass
class FakeGpu:
    """What vm.Machine needs: the program, its devices, its environment; where the guest sees the GPU."""
    command: list
    devices: list
    environment: dict
    address: str


def make(target, gpu=T4):
    """Writes the patched copy as `target`."""
    with open(QEMU, "rb") as source:
        program = bytearray(source.read())
    patch(program, OF_TESTDEV, gpu)
    with open(target, "wb") as out:
        out.write(program)
    os.chmod(target, 0o755)
    return FakeGpu([target, *(part for share in SHARES for part in ("-L", share))],
                   ["-device", "pci-testdev,membar=256M,addr=1e.0"], {"QEMU_MODULE_DIR": MODULES}, ADDRESS)


def sections(program):
    """{name: (address, offset, size)} of an ELF file."""
    table, = struct.unpack_from("<Q", program, 0x28)
    size, count, names = struct.unpack_from("<HHH", program, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", program, table + index * size) for index in range(count)]
    start = headers[names][4]

    def name(offset):
        return program[start + offset:program.index(b"\0", start + offset)].decode()
    return {name(header[0]): header[3:6] for header in headers}


def patch(program, old, new):
    load, constant = identity(program, old)
    vendor, device, kind, revision = new
    program[constant:constant + 4] = struct.pack("<HH", vendor, device)
    begin = load - NEAR[0]
    near = bytes(program[begin:load + NEAR[1]])
    revisions, classes = list(REVISION.finditer(near)), list(CLASS.finditer(near))
    if len(revisions) != 1 or len(classes) != 1:
        raise SystemExit(f"{QEMU}: {len(revisions)} revisions and {len(classes)} classes near the identity, expected 1 each")
    program[begin + revisions[0].start(1)] = revision
    at = begin + classes[0].start() + 1
    program[at:at + 2] = struct.pack("<H", kind)


def identity(program, old):
    """(offset of the instruction that loads the constant, offset of the constant)"""
    known = sections(program)
    (data_address, data, data_size), (code_address, code, code_size) = known[".rodata"], known[".text"]
    wanted = struct.pack("<HH", *old)
    constants = {data_address + found.start(): data + found.start()
                 for found in re.finditer(re.escape(wanted), program[data:data + data_size]) if found.start() % 4 == 0}
    loads = []
    for found in LOAD.finditer(program, code, code + code_size):
        after = code_address + found.start() - code + 6
        target = after + struct.unpack_from("<i", program, found.start() + 2)[0]
        if target in constants:
            loads.append((found.start(), constants[target]))
    if len(loads) != 1:
        raise SystemExit(f"{QEMU}: the identity {old[0]:04x}:{old[1]:04x} is loaded in {len(loads)} places, expected 1")
    return loads[0]
