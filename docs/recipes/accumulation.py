"""Gradient accumulation: four small batches make one step."""

from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

ACCUMULATE = 4
model = make_model()
optimizer = SNOpt(model)

losses = []
for number, (x, y) in enumerate(make_batches(80, size=8), start=1):
    loss = cross_entropy(model(x), y)
    (loss / ACCUMULATE).backward()  # gradients and curvature add up
    if number % ACCUMULATE == 0:
        optimizer.step()
        optimizer.zero_grad()  # after the step, not before every backward pass
    losses.append(loss.item())
