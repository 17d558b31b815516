"""torch.compile of the whole model. State dicts have the same keys as without it."""

import torch
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

# backend="eager" starts at once and gains nothing; leave it out where there is a C++ compiler.
model = torch.compile(make_model(), backend="eager")
optimizer = SNOpt(model)

losses = []
for x, y in make_batches():
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
