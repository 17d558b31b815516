"""Mixed precision: autocast, and a GradScaler where there is a GPU."""

import torch
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt

device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16
model = make_model().to(device)
scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
optimizer = SNOpt(model, grad_scaler=scaler)  # it unscales what it reads from the backward pass

losses = []
for x, y in make_batches():
    optimizer.zero_grad()
    with torch.autocast(device, dtype):
        loss = cross_entropy(model(x.to(device)), y.to(device))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
