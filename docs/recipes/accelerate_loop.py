"""Hugging Face Accelerate: pip install accelerate, then accelerate launch accelerate_loop.py."""

from accelerate import Accelerator
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

accelerator = Accelerator(cpu=True)  # leave cpu=True out for GPUs
model = make_model()
optimizer = SNOpt(model)
model, optimizer = accelerator.prepare(model, optimizer)

losses = []
for x, y in make_batches():
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    accelerator.backward(loss)
    optimizer.step()
    losses.append(loss.item())
