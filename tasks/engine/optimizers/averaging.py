"""Optimizers that are judged at other weights than they train at, as schedule-free ones are.

They say so by methods ``train`` and ``eval``, which put either kind of weights into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def averaging(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Those of an optimizer and its parts that have weights of their own for evaluation."""
    parts = getattr(optimizer, "parts", [optimizer])  # of ByPart
    with_both = [part for part in parts if hasattr(part, "train") and hasattr(part, "eval")]
    return [part for part in with_both if getattr(part, "averages", True)]


def training_mode(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights in place that gradients are taken at; before the first step, and ever after.

    Some refuse to step without.
    """
    for part in averaging(optimizer):
        part.train()


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model has the weights to judge; the others are back to the bit after."""
    parts = averaging(optimizer)
    parameters = [p for part in parts for group in part.param_groups for p in group["params"]]
    trained = [p.detach().clone() for p in parameters]
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        training_mode(optimizer)
        with torch.no_grad():  # going back and forth rounds
            for parameter, value in zip(parameters, trained, strict=True):
                # Where nothing was lost nothing is written: SNOpt would take it for new weights.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)
