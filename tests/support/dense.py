"""One Gauss-Newton step by dense algebra, its rows from one backward pass for each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snopt import SNOpt

DAMPING, RATE = 0.03, 0.5


def stepping(model: nn.Module, **settings: float) -> SNOpt:
    """Without momentum, and every step whole: what :func:`dense_step` computes."""
    chosen = {"momentum": 0.0, "damping": DAMPING, "trust": 1e9, "backtrack": float("inf")}
    return SNOpt(model, RATE, rule="gauss_newton", **{**chosen, **settings})


def dense_step(
    model: nn.Module, samples: int, loss: Callable[[int], Tensor], factor: float = 1.0
) -> dict[str, Tensor]:
    """The parameters after one step.

    Args:
        model: before the step.
        samples: N.
        loss: the loss of one sample, the batch's being their mean.
        factor: of the gradient, if it was clipped.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows, values = [], []
    for k in range(samples):
        value = loss(k)
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(grads, named.values(), strict=True)
        ]
        rows.append(torch.cat(flat))
        values.append(value.detach())
    roots = (2 * torch.stack(values)).sqrt()
    matrix = torch.stack(rows) / (roots * samples**0.5)[:, None]
    target = roots / samples**0.5
    near = min(1.0, float(target.norm()))
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    d = torch.linalg.solve(
        matrix.T @ matrix + max(near, 0.1) * DAMPING * eye, factor * matrix.T @ target
    )
    parts = d.split([p.numel() for p in named.values()])
    return {
        name: p.detach() - RATE * part.view_as(p)
        for (name, p), part in zip(named.items(), parts, strict=True)
    }


def same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Compare a model's parameters with those expected."""
    for name, value in expected.items():
        torch.testing.assert_close(
            model.get_parameter(name).detach(), value, rtol=1e-7, atol=1e-9, msg=name
        )
