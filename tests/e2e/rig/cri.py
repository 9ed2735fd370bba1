#!/usr/bin/env python3
"""A container as a kubelet starts it: by containerd's CRI (runtime.v1), with CDI devices.  Usage: cri.py ROOT DEVICES SCRIPT

The few messages that this takes are written by hand, by the field numbers of Kubernetes' api.proto (cri-api, runtime/v1).
Prints what the container printed, and ends with its status."""
import sys
import time

import grpc
from cri_names import IMAGE, LOGS, SOCKET

NODE = 2  # NamespaceMode: the host's network, for which no CNI plugin is needed
EXITED = 2  # ContainerState


def varint(number):
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def read(data):
    """{field number: last value}."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        else:
            size = number()
            found[key >> 3], at = data[at:at + size], at + size
    return found


def main(root, devices, script):
    channel = grpc.insecure_channel(f"unix://{root}{SOCKET}", options=[("grpc.default_authority", "localhost")])

    def call(method, request):
        ask = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}", request_serializer=bytes, response_deserializer=bytes)
        return read(ask(request, timeout=60))
    uid = str(time.time_ns())  # containerd remembers pods of earlier calls
    try:
        pod = message((1, message((1, uid), (2, uid), (3, "default"))), (3, LOGS),
                      (8, message((2, message((1, message((1, NODE))))))))
        sandbox = call("RunPodSandbox", message((1, pod)))[1]
        config = message((1, message((1, "one"))), (2, message((1, IMAGE))), (3, "/bin/sh"), (4, "-c"), (4, script),
                         (11, "log"), *[(17, message((1, device))) for device in devices.split()])
        container = call("CreateContainer", message((1, sandbox), (2, config), (3, pod)))[1]
        call("StartContainer", message((1, container)))
        status = {}
        for _ in range(300):
            status = read(call("ContainerStatus", message((1, container)))[1])
            if status.get(3, 0) == EXITED:
                break
            time.sleep(0.1)
        with open(f"{root}{LOGS}/log", encoding="utf-8") as source:
            print("".join(line.split(" ", 3)[3] for line in source), end="")
        call("StopPodSandbox", message((1, sandbox)))
        return status.get(7, 0)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}")
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
