"""Residuals and roots of loss Hessians, told by outputs, targets and the gradient between them.

A loss of outputs f has the gradient c = S v there and the (generalised Gauss-Newton) Hessian S S^T,
S being block-diagonal: one block for each number of a Gaussian or a yes-or-no outcome, one for each
choice between classes. With J the outputs' Jacobian and R = S^T J, the loss' gradient is R^T v and
its Gauss-Newton matrix R^T R.

What entries weigh is read off the gradient, so that means, sums, masks and weights need no setting.
For a Gaussian the weight of an entry is c / (f - y): constant for squared errors, and for robust
losses (Huber, smooth L1, soft L1) what iteratively reweighted least squares gives the entry.

Source: Schraudolph 2002 (generalised Gauss-Newton); Holland and Welsch 1977 (reweighting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

_WORDS = {
    "gaussian": "a loss that grows with the error of each output, such as mse_loss or huber_loss",
    "categorical": "nn.functional.cross_entropy(outputs, labels) without label smoothing",
    "binary": "nn.functional.binary_cross_entropy_with_logits(outputs, targets)",
}


@dataclass(frozen=True)
class Residuals:
    """v and S of one batch, N samples of L blocks of C numbers.

    Attributes:
        values: v, shape (N, L, C).
        scale: S = diag(scale) but for choices between classes, shape (N, L, C).
        probabilities: of classes, (N, L, C): S = diag(scale) - p scale^T.
        losses: (N,), their mean being about the loss; how they spread is what counts.
        targets: what outputs are compared with, given or inferred, to know the batch again.
    """

    values: Tensor
    scale: Tensor
    losses: Tensor
    targets: Tensor
    probabilities: Tensor | None = None

    @cached_property
    def counted(self) -> Tensor:
        """Which outputs count, (N, L * C): rows of R and entries of v are zero for the others."""
        return self.scale.flatten(1) != 0

    def cotangents(self, u: Tensor) -> Tensor:
        """S u for u of shape (..., N, L, C): cotangents of the outputs."""
        scaled = self.scale * u
        if self.probabilities is None:
            return scaled
        return scaled - self.probabilities * scaled.sum(dim=-1, keepdim=True)

    def projections(self, x: Tensor) -> Tensor:
        """S^T x for changes x of the outputs, of shape (..., N, L, C)."""
        if self.probabilities is None:
            return self.scale * x
        return self.scale * (x - (self.probabilities * x).sum(dim=-1, keepdim=True))


def blocks_of(outputs: Tensor, likelihood: str, batch_dim: int) -> Tensor:
    """Outputs as (N, L, C), a view of them where that can be.

    Args:
        outputs: (N, ...), or with the samples elsewhere.
        likelihood: ``"categorical"``: dimension 1 is that of the classes.
        batch_dim: the outputs' dimension of samples.

    Raises:
        ValueError: there is no such dimension, or there are no classes.
    """
    if not -outputs.ndim <= batch_dim < outputs.ndim:
        raise ValueError(
            f"batch_dim={batch_dim}: outputs of shape {tuple(outputs.shape)} have no such "
            "dimension; pass outputs with one entry for each sample"
        )
    if likelihood != "categorical":
        first = outputs.movedim(batch_dim, 0)
        return first.reshape(len(first), -1, 1)
    if batch_dim or outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"logits of classes must have shape (N, K) or (N, K, ...) with K > 1, got "
            f"{tuple(outputs.shape)} with batch_dim={batch_dim}; for logits of yes-or-no outcomes "
            "pass likelihood='binary'"
        )
    return outputs.movedim(1, -1).reshape(len(outputs), -1, outputs.shape[1])


def targets_of(targets: Tensor, outputs: Tensor, likelihood: str, batch_dim: int) -> Tensor:
    """Targets in the order of :func:`blocks_of`: (N, L, 1), or class indices (N, L).

    Raises:
        ValueError: their shape or type does not fit the outputs.
    """
    targets = targets.detach().to(outputs.device)
    if likelihood == "categorical":
        wanted = (*outputs.shape[:1], *outputs.shape[2:])
        if targets.shape != wanted or targets.is_floating_point():
            raise ValueError(
                f"targets of a categorical likelihood are class indices of shape {wanted}, got "
                f"{targets.dtype} of shape {tuple(targets.shape)}"
            )
        return targets.reshape(len(outputs), -1).long()
    if _sizes(targets) != _sizes(outputs):
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, outputs {tuple(outputs.shape)}; pass the "
            "targets that the loss compares these outputs with"
        )
    return blocks_of(targets.reshape(outputs.shape), likelihood, batch_dim)


def _sizes(x: Tensor) -> list[int]:
    return [size for size in x.shape if size != 1]


def residuals(
    outputs: Tensor, cotangents: Tensor, likelihood: str, targets: Tensor | None, loss: float
) -> Residuals | None:
    """What a batch's loss is made of.

    Args:
        outputs: (N, L, C) as from :func:`blocks_of`, without a graph.
        cotangents: the loss' gradient there.
        likelihood: one of :data:`snopt.curvature.likelihoods.LIKELIHOODS`.
        targets: for a Gaussian and yes-or-no outcomes shaped like the outputs, class indices (N, L)
            for classes. Without, losses are squared errors of one weight, labels hard ones.
        loss: the value of the loss.

    Returns:
        ``None`` where the loss or its gradient is not finite.

    Raises:
        ValueError: the gradient is not that of the likelihood.
    """
    if not (math.isfinite(loss) and bool(torch.isfinite(cotangents).all())):
        return None
    dtype = torch.promote_types(torch.float32, outputs.dtype)
    eps: float = torch.finfo(cotangents.dtype).eps
    outputs, c = outputs.to(dtype), cotangents.to(dtype)
    if likelihood == "categorical":
        return _categorical(outputs, c, targets, max(1e-4, math.sqrt(eps)))
    if likelihood == "binary":
        # Without targets: what pulls upwards is a one.
        y = (c < 0).to(dtype) if targets is None else targets.to(dtype)
        p, q = outputs.sigmoid(), (-outputs).sigmoid()
        factors = _weights(c, (1 - y) * p - y * q, (1 - y) * p + y * q, eps, likelihood)
        weights = factors * p * q
        losses = functional.binary_cross_entropy_with_logits(outputs, y, reduction="none")
        losses = _by_sample(factors * losses.nan_to_num(0.0))
    elif targets is None:
        square = float(c.double().square().sum())
        weights = (c != 0).to(dtype) * (square / (2 * loss) if loss > 0 else 0.0)
        y = outputs - (c / weights).nan_to_num(0.0, 0.0, 0.0)
        losses = _by_sample(weights * (outputs - y).square() / 2)
    else:
        y = targets.to(dtype)
        weights = _weights(c, outputs - y, outputs.abs() + y.abs(), eps, likelihood)
        losses = _by_sample(weights * (outputs - y).nan_to_num(0.0).square() / 2)
    values = torch.where(weights > 0, c / weights.sqrt().clamp_min(_tiny(dtype)), 0.0)
    return Residuals(values, weights.sqrt(), losses, y)


def _categorical(outputs: Tensor, c: Tensor, labels: Tensor | None, tolerance: float) -> Residuals:
    p = outputs.softmax(dim=-1)
    if labels is None:
        least, label = c.min(dim=-1)
        label = torch.where(least < 0, label, outputs.argmax(dim=-1))
    else:
        label = labels.clamp_min(0)
    label = label.unsqueeze(-1)
    others, pulls = p.scatter(-1, label, 0.0), c.scatter(-1, label, 0.0)
    missed = others.sum(dim=-1, keepdim=True)
    weights = (pulls.sum(dim=-1, keepdim=True) / missed).nan_to_num(0.0, 0.0, 0.0)
    left = (pulls - weights * others).abs().amax(dim=-1, keepdim=True)
    if bool(((left > tolerance * weights + _tiny(c.dtype)) | (weights < 0)).any()):
        raise _another("categorical")
    roots = p.sqrt()
    values = c / (weights.sqrt() * roots).clamp_min(_tiny(c.dtype)) * (weights > 0)
    losses = -weights * outputs.log_softmax(dim=-1).gather(-1, label)
    return Residuals(values, weights.sqrt() * roots, _by_sample(losses), label, p)


def _weights(c: Tensor, error: Tensor, size: Tensor, eps: float, likelihood: str) -> Tensor:
    """What every number weighs: c / error, zero where c is; bounded where the error is rounding."""
    error, size = error.nan_to_num(0.0), size.nan_to_num(0.0)  # targets that a mask leaves out
    sure = (error.abs() > 64 * eps * size) & (c != 0)
    ratio = torch.where(c == 0, 0.0, c / torch.where(error == 0, 1.0, error))
    if bool((ratio[sure] < 0).any()):
        raise _another(likelihood)
    largest = float(ratio[sure].max()) if bool(sure.any()) else 0.0
    return ratio.clamp(0.0, largest)


def _another(likelihood: str) -> ValueError:
    return ValueError(
        f"the gradient at the outputs is not that of a {likelihood} likelihood: rows='outputs' "
        f"needs {_WORDS[likelihood]}, and outputs and targets as they are in the loss; choose "
        "another likelihood of curvature_pass() or another rule"
    )


def _by_sample(losses: Tensor) -> Tensor:
    return losses.flatten(1).sum(dim=1) * len(losses)


def _tiny(dtype: torch.dtype) -> float:
    tiny: float = torch.finfo(dtype).tiny
    return math.sqrt(tiny)
