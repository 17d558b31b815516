"""Vectors to backpropagate for each kind of curvature: columns of a loss Hessian's square root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from snopt.curvature.capture import Capture
from snopt.ode.block import ODEBlock

CURVATURES = ("empirical", "fisher", "ggn")


def loss_hessian_sqrt_columns(
    outputs: Tensor, likelihood: str, curvature: str, seed: int
) -> Iterator[Tensor]:
    """Cotangents c_i of the mean loss, with E sum_i (N c_i)(N c_i)^T the loss Hessian per sample.

    ``fisher`` gives one column, the gradient for an outcome drawn from the predictive distribution:
    an unbiased estimate. ``ggn`` gives as many as there are outputs: the exact factorisation.

    Args:
        outputs: logits (N, K), means (N, ...) of a Gaussian with unit variance, or logits (N, ...)
            of independent yes-or-no outcomes.
        likelihood: ``"categorical"``, ``"gaussian"`` or ``"binary"``.
        curvature: ``"fisher"`` or ``"ggn"``.
        seed: of the draw.

    Yields:
        Tensors shaped like ``outputs``.
    """
    samples = outputs.shape[0]
    generator = torch.Generator(device=outputs.device).manual_seed(seed)
    if likelihood == "categorical":
        if outputs.ndim != 2:
            raise ValueError(f"logits must have shape (N, K), got {tuple(outputs.shape)}")
        probabilities = outputs.softmax(dim=1)
        if curvature == "fisher":
            drawn = torch.multinomial(probabilities, 1, generator=generator)
            yield (probabilities.scatter_add(1, drawn, -torch.ones_like(outputs))) / samples
            return
        roots = probabilities.sqrt()
        for k in range(outputs.shape[1]):
            # Column k of diag(sqrt p) - p sqrt(p)^T, whose outer products sum to diag(p) - p p^T.
            column = -probabilities * roots[:, k : k + 1]
            column[:, k] += roots[:, k]
            yield column / samples
        return
    variances = torch.ones_like(outputs)
    if likelihood == "binary":
        probabilities = outputs.sigmoid()
        if curvature == "fisher":
            yield (probabilities - torch.bernoulli(probabilities, generator=generator)) / samples
            return
        variances = probabilities * (1 - probabilities)
    if curvature == "fisher":
        noise = torch.randn(
            outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device
        )
        yield noise / samples
        return
    flat = variances.sqrt().reshape(samples, -1)
    for k in range(flat.shape[1]):
        column = torch.zeros_like(flat)
        column[:, k] = flat[:, k] / samples
        yield column.reshape(outputs.shape)


def gather(
    capture: Capture,
    blocks: Mapping[str, ODEBlock],
    parameters: Sequence[Tensor],
    outputs: Tensor,
    columns: Iterable[Tensor],
) -> None:
    """One backward pass for every column, watched by an armed capture; gradients are left alone.

    Args:
        capture: what watches, armed.
        blocks: the model's ODE blocks by name.
        parameters: the model's parameters.
        outputs: the model's outputs, with their graph.
        columns: cotangents of the outputs whose outer products sum to the loss Hessian.
    """
    wanted = [p for p in parameters if p.requires_grad] + capture.starts
    with ExitStack() as stack:
        for block in blocks.values():
            stack.enter_context(block.measuring())
        for i, column in enumerate(columns):
            with capture.column(len(outputs), first=i == 0):
                torch.autograd.grad(outputs, wanted, column, retain_graph=True, allow_unused=True)
