# Every process adds up every other's numbers, as training does with gradients. Started by torchrun, one process for each GPU:
# src/action/collective_check.rs.
import json
import os
import sys
import time

import torch
import torch.distributed as dist

gpu = sys.argv[1] == "gpu"
rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
if gpu:
    torch.cuda.set_device(local)
device = torch.device("cuda", local) if gpu else torch.device("cpu")
backend = "nccl" if gpu else "gloo"
dist.init_process_group(backend)

# 64 MB of small whole numbers: their sum has no rounding, so it is right or wrong.
count, rounds = (1 << 24 if gpu else 1 << 20), 20
pattern = (torch.arange(count, device=device) % 251).float()
wanted = pattern * world + sum(range(world))


def wait():
    if gpu:
        torch.cuda.synchronize()


wrong = 0
for _ in range(3):
    data = pattern + rank
    dist.all_reduce(data)
    wrong += int((data != wanted).sum().item())
wait()
dist.barrier()
start = time.monotonic()
for _ in range(rounds):
    dist.all_reduce(data)
wait()
seconds = (time.monotonic() - start) / rounds

total = torch.tensor([float(wrong), seconds], dtype=torch.float64, device=device)
slowest = total.clone()
dist.all_reduce(total)
dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
if rank == 0:
    version = ".".join(map(str, torch.cuda.nccl.version())) if gpu else ""
    # Bus bandwidth as nccl-tests count it: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    moved = count * 4 * 2 * (world - 1) / world
    print(json.dumps({
        "backend": f"{backend} {version}".strip(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(local) if gpu else "CPU",
        "gpu": gpu,
        "processes": world,
        "wrong": int(total[0].item()),
        "bandwidth": moved / slowest[1].item() / 1e9,
    }), flush=True)
dist.destroy_process_group()
