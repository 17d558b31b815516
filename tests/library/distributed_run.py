"""Started by torchrun from a test: trains data-parallel and writes what came of it (rank 0)."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from snopt import SNOpt
from tests.library.problems import squares
from tests.library.test_distributed import batch, build


def train(settings: str) -> dict[str, Any]:
    """Five steps on this process's share of each batch: the parameters, factors and state after."""
    rank, world = dist.get_rank(), dist.get_world_size()
    options = json.loads(settings)
    kind, grouped = options.pop("kind"), options.pop("grouped", False)
    network = nn.parallel.DistributedDataParallel(build(kind))
    groups = [{"params": network.module[1].field, "lr": 0.01}, {"params": network}]
    optimizer = SNOpt(groups if grouped else network, lr=0.02, **options)
    for step in range(5):
        x, y = (part.chunk(world)[rank] for part in batch(step))
        optimizer.zero_grad()
        outputs = network(x)
        optimizer.curvature_pass(outputs, "gaussian")
        squares(y)(outputs).backward()
        optimizer.step()
    return {
        "parameters": [p.detach() for p in network.module.parameters()],
        "factors": optimizer.factors(),
        "state": optimizer.state_dict(),
    }


def main(target: str, settings: str) -> None:
    dist.init_process_group("gloo")
    result = train(settings)
    if dist.get_rank() == 0:
        torch.save(result, target)
    # The wrapped network goes before the group it talks through; both processes leave together.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    # A thread of gloo's that asks for the interpreter while it shuts down aborts the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
