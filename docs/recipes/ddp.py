"""Two processes, each with half of every batch: torchrun --nproc-per-node=2 ddp.py."""

import torch
import torch.distributed as dist
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from snopt import SNOpt

dist.init_process_group("gloo")  # "nccl" with GPUs
rank, world = dist.get_rank(), dist.get_world_size()
model = DistributedDataParallel(make_model())
optimizer = SNOpt(model)  # or on the bare model, before it is wrapped

losses = []
for x, y in make_batches():
    optimizer.zero_grad()
    loss = cross_entropy(model(x[rank::world]), y[rank::world])
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# Gradients and curvature were combined over the processes, so all have the same weights.
mine = torch.cat([p.detach().flatten() for p in model.parameters()])
everyones = [torch.empty_like(mine) for _ in range(world)]
dist.all_gather(everyones, mine)
assert all(torch.equal(mine, theirs) for theirs in everyones)
dist.barrier()  # no process leaves while another still needs it
dist.destroy_process_group()
