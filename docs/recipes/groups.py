"""A learning rate and a weight decay of their own for the ODE's field."""

from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

model = make_model()
field = {"params": model[1].field, "lr": 0.003, "weight_decay": 0.01}
# Groups are made of modules. A later group leaves out what an earlier one has.
optimizer = SNOpt([field, {"params": model}], lr=0.03)

losses = []
for step, (x, y) in enumerate(make_batches()):
    if step == 10:
        optimizer.param_groups[0]["lr"] = 0.01  # takes effect at the next step
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
