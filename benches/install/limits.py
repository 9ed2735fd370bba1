"""What this machine needs for the unavoidable part of an installation: decoding, hashing, writing.

Measured with the tools at hand, on the same package files as the runs beside it; nothing of the agent's takes part.
"""
import concurrent.futures
import hashlib
import os
import resource
import shutil
import subprocess
import tarfile
import time

import debs

BLOCK = 1 << 20
FILE_BYTES = 64 << 20


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def own_cpu():
    return time.process_time()


def unpacked_bytes(deb):
    """Bytes of the regular files in a package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as reader:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as data:
            return sum(member.size for member in data if member.isfile())


def decode(packages):
    """(wall, processor seconds) of decoding every data member, one after the other, with all threads (`xz -T0 -d`)."""
    began, cpu = time.monotonic(), children_cpu()
    for deb in packages:
        ending, offset, size = debs.data_member(deb)
        if ending:
            debs.pipe(deb, offset, size, debs.UNPACK[ending], subprocess.DEVNULL)
    return time.monotonic() - began, children_cpu() - cpu


def digest(packages):
    """(wall, processor seconds) of SHA-256 over every package, on one core."""
    began, cpu = time.monotonic(), own_cpu()
    for deb in packages:
        with open(deb, "rb") as source:
            hashlib.file_digest(source, "sha256")
    return time.monotonic() - began, own_cpu() - cpu


def write_file(path, count):
    """Processor seconds of writing zeros to a file (of this thread)."""
    block, began = bytes(BLOCK), time.thread_time()
    with open(path, "wb", buffering=0) as out:
        while count > 0:
            count -= out.write(block[:min(BLOCK, count)])
    return time.thread_time() - began


def write(folder, count, threads):
    """(wall until synced, processor seconds) of writing `count` bytes in files of 64 MiB."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    subprocess.run(["sync", "--file-system", folder], check=True)
    sizes = [min(FILE_BYTES, count - start) for start in range(0, count, FILE_BYTES)]
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        cpu = sum(pool.map(lambda job: write_file(os.path.join(folder, str(job[0])), job[1]), enumerate(sizes)))
    subprocess.run(["sync", "--file-system", folder], check=True)
    wall = time.monotonic() - began
    shutil.rmtree(folder)
    return wall, cpu


def measure(packages, folder, cores):
    """All parts in seconds, as one record; `folder` is on the file system of the roots."""
    sizes = [unpacked_bytes(deb) for deb in packages]
    unpacked = sum(sizes)
    decode_wall, decode_cpu = decode(packages)
    hash_wall, hash_cpu = digest(packages)
    write_wall, write_cpu = write(os.path.join(folder, "limit"), unpacked, os.cpu_count())
    return {"record": "limit", "cores": cores, "packages": len(packages),
            "download_bytes": sum(map(os.path.getsize, packages)), "unpacked_bytes": unpacked, "unpacked_sizes": sizes,
            "decode_wall": decode_wall, "decode_cpu": decode_cpu, "hash_wall": hash_wall, "hash_cpu": hash_cpu,
            "write_wall": write_wall, "write_cpu": write_cpu}


def seconds(record, rate, connections):
    """The limit in seconds: what all cores together need for the work, or the disk for the bytes, or the link (of
    `connections` connections at `rate` bytes a second each; 0: no limit) for the download, whichever is longest."""
    work = (record["decode_cpu"] + record["hash_cpu"] + record["write_cpu"]) / record["cores"]
    link = record["download_bytes"] / (rate * connections) if rate else 0.0
    return max(work, record["write_wall"], link)
