"""Log to Weights & Biases without a network; `wandb sync` sends it later."""

import tempfile

import wandb
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

model = make_model()
optimizer = SNOpt(model)
losses = []
with wandb.init(project="snopt", mode="offline", dir=tempfile.mkdtemp()) as run:
    for x, y in make_batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        block = {"nfe_forward": model[1].nfe_forward, "nfe_backward": model[1].nfe_backward}
        run.log({"loss": losses[-1], **block, **optimizer.diagnostics()})
