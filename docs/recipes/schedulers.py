"""A torch learning-rate schedule: a warm-up over a tenth of the steps, then a cosine to zero."""

import torch
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

batches = make_batches()
model = make_model()
optimizer = SNOpt(model, lr=0.03, warmup_steps=0)  # the schedule has a warm-up of its own
warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches) - 2)
schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[2])

losses = []
for x, y in batches:
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
assert optimizer.param_groups[0]["lr"] < 1e-9
