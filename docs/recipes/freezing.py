"""Train the head first, then everything. Frozen layers cost nothing and can be unfrozen later."""

from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

model = make_model()
optimizer = SNOpt(model)  # the whole model, frozen parts too
body = model[:2].requires_grad_(False)
before = [p.clone() for p in body.parameters()]

losses = []
for step, (x, y) in enumerate(make_batches()):
    if step == 10:
        assert all((p == old).all() for p, old in zip(body.parameters(), before, strict=True))
        body.requires_grad_(True)  # the optimizer need not be told
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert not any((p == old).all() for p, old in zip(body.parameters(), before, strict=True))
