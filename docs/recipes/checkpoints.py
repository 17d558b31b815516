"""Save, load, and resume training as if it had not stopped."""

import tempfile
from pathlib import Path

import torch
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt


def train(model, optimizer, batches):
    """The losses of a few steps."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


batches = make_batches()
model = make_model()
optimizer = SNOpt(model)
train(model, optimizer, batches[:5])

file = Path(tempfile.mkdtemp()) / "checkpoint.pt"
# The optimizer's state includes the curvature. Its keys are names of parameters and layers.
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)

again = make_model()
resumed = SNOpt(again)
saved = torch.load(file, weights_only=True)
again.load_state_dict(saved["model"])
resumed.load_state_dict(saved["optimizer"])

losses = train(again, resumed, batches[5:])
assert losses == train(model, optimizer, batches[5:])  # bit for bit
