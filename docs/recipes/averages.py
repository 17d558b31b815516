"""Averaged weights: a copy of the model that holds them is validated, kept and saved."""

import copy

import torch
from problem import make_batches, make_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from snopt import SNOpt

model = nn.Sequential(nn.BatchNorm1d(4), make_model())
optimizer = SNOpt(model)
batches = make_batches()
x_valid, y_valid = (torch.cat(parts[-5:]) for parts in zip(*make_batches(25), strict=True))

losses, lowest, best, waited = [], float("inf"), None, 0
while waited < 3 and len(losses) < 400:  # early stopping
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    optimizer.eval()  # the averages are in the model ...
    averaged = copy.deepcopy(model)
    optimizer.train()  # ... and the weights are back for training
    update_bn((x for x, _ in batches), averaged)  # BatchNorm's statistics were those of the weights
    averaged.eval()
    with torch.no_grad():
        valid = cross_entropy(averaged(x_valid), y_valid).item()
    if valid < lowest:
        lowest, best, waited = valid, averaged, 0
    else:
        waited += 1

# `best` is the model to use: torch.save(best.state_dict(), ...). To resume training, save
# model.state_dict() and optimizer.state_dict() instead: the weights, and the averages beside them.
