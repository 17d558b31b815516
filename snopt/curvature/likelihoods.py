"""The losses of single samples, told by a batch's outputs and the gradient that reaches them.

Every likelihood fixes the direction of the gradient of a sample's loss in its outputs, so that what
a backward pass brings there shows both whether the loss is the one meant and the positive factor
that it carries: 1 for the mean over samples of the sum over outputs, 2 for ``F.mse_loss`` of one
output, N for sums over a batch. Numbers whose gradient is exactly zero (masked, or an ignored
label) have no part in the loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

LIKELIHOODS = ("categorical", "gaussian", "binary")

_UNTOLD = 5
"""Passes in which squared errors that nobody told are looked at."""

_MEANT = {
    "categorical": "nn.functional.cross_entropy(outputs, labels), the mean cross-entropy over the "
    "batch or a positive multiple of it, without class weights or smoothing",
    "gaussian": "nn.functional.mse_loss(outputs, targets), or another positive multiple of the "
    "squared error",
    "binary": "nn.functional.binary_cross_entropy_with_logits(outputs, targets) or a positive "
    "multiple of it, without weights of classes",
}


def sample_losses(
    outputs: Tensor,
    cotangents: Tensor,
    likelihood: str,
    targets: Tensor | None = None,
    loss: float | None = None,
) -> Tensor:
    """Each sample's loss, the loss of the batch being their mean.

    Args:
        outputs: logits (N, K) of classes, means (N, ...), or logits (N, ...) of independent
            yes-or-no outcomes.
        cotangents: N times the gradient of the batch's loss, shaped like ``outputs``.
        likelihood: ``"categorical"``: cross-entropy, whose gradient p - e_y names the class y;
            ``"gaussian"``: half the squared error, whose gradient is the error;
            ``"binary"``: cross-entropy of sigmoids, whose gradient is sigmoid - y.
        targets: class indices (N,), or what the outputs are compared with, of as many numbers.
        loss: the value of the batch's loss.

    Returns:
        Shape (N,), at least float32, never negative; NaN where nothing is finite. A small loss is
        as exact as the other classes' probabilities, which the gradient has: 1 - p_y rounds away.
        A Gaussian without targets and loss is taken to have the factor 1.

    Raises:
        ValueError: the gradient is not that of the likelihood, or the losses' mean not the loss.
    """
    tolerance = _tolerance(cotangents.dtype)
    dtype = torch.promote_types(torch.float32, outputs.dtype)
    outputs, cotangents = outputs.to(dtype), cotangents.to(dtype)
    if not bool(torch.isfinite(cotangents).all()):
        return cotangents.new_full((len(cotangents),), torch.nan)
    if targets is not None:
        targets = _fitting(targets, outputs, likelihood)
    if likelihood == "gaussian" and targets is None:
        half = cotangents.reshape(len(cotangents), -1).square().sum(dim=1) / 2
        mean = float(half.mean())
        return half if not loss or mean == 0 else half * (loss / mean)
    losses = _KNOWN[likelihood](outputs, cotangents, targets, tolerance)
    mean = float(losses.mean())
    if loss is not None and abs(mean - loss) > 10 * tolerance * (abs(loss) + tolerance):
        raise ValueError(
            f"the loss is {loss:.6g}, but what the gradient at the outputs belongs to is "
            f"{mean:.6g}: pass the loss that backward() is called on; where it holds a penalty on "
            "weights, use weight_decay= instead, for rule='gauss_newton' takes samples' losses only"
        )
    return losses


def _categorical(
    outputs: Tensor, cotangents: Tensor, labels: Tensor | None, tolerance: float
) -> Tensor:
    if outputs.ndim != 2:
        raise ValueError(f"logits must have shape (N, K), got {tuple(outputs.shape)}")
    if outputs.shape[1] == 1:
        raise ValueError(
            "logits of one class have nothing to choose from: pass likelihood='binary' for "
            "binary_cross_entropy_with_logits, or 'gaussian' for squared errors"
        )
    logs = outputs.log_softmax(dim=1)
    if labels is None:
        least, label = cotangents.min(dim=1)
        # Where the label is sure, its gradient rounds to zero like those of hopeless classes.
        label = torch.where(least < 0, label, logs.argmax(dim=1))
    else:
        label = labels.clamp_min(0)
    label = label.unsqueeze(1)
    others = logs.exp().scatter(1, label, 0.0)
    error = others.scatter(1, label, -others.sum(dim=1, keepdim=True))
    counted = (cotangents != 0).any(dim=1, keepdim=True)
    # At the label the error is a difference of nearly equal numbers; the others tell the factor.
    factor = _factor(cotangents.scatter(1, label, 0.0), others * counted, tolerance)
    _compare(cotangents, factor, error * counted, tolerance, "categorical")
    missed = (cotangents / factor).clamp_min(0.0).scatter(1, label, 0.0).sum(dim=1)
    small = -torch.log1p(-missed.clamp_max(0.5))
    losses = torch.where(missed < 0.5, small, -logs.gather(1, label).squeeze(1))
    return factor * losses * counted.squeeze(1)


def _gaussian(
    outputs: Tensor, cotangents: Tensor, targets: Tensor | None, tolerance: float
) -> Tensor:
    assert targets is not None
    error = (outputs - targets) * (cotangents != 0)
    factor = _factor(cotangents, error, tolerance)
    rounding = 8 * torch.finfo(outputs.dtype).eps * float(outputs.abs().max())
    _compare(cotangents, factor, error, tolerance, "gaussian", rounding)
    return cotangents.reshape(len(cotangents), -1).square().sum(dim=1) / (2 * factor)


def _binary(
    outputs: Tensor, cotangents: Tensor, targets: Tensor | None, tolerance: float
) -> Tensor:
    if targets is None:
        targets = (cotangents < 0).to(outputs.dtype)
    counted = cotangents != 0
    error = (1 - targets) * outputs.sigmoid() - targets * (-outputs).sigmoid()
    factor = _factor(cotangents, error * counted, tolerance)
    _compare(cotangents, factor, error * counted, tolerance, "binary")
    losses = targets * functional.softplus(-outputs) + (1 - targets) * functional.softplus(outputs)
    return factor * (losses * counted).reshape(len(cotangents), -1).sum(dim=1)


_KNOWN: dict[str, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "categorical": _categorical,
    "gaussian": _gaussian,
    "binary": _binary,
}


def _factor(cotangents: Tensor, error: Tensor, tolerance: float) -> float:
    """The factor that is nearest, 1 where it is 1 but for rounding, or where nothing is left."""
    largest = float(error.abs().max()) if error.numel() else 0.0
    if largest < torch.finfo(torch.float32).tiny ** 0.5:
        return 1.0
    c, e = cotangents.double() / largest, error.double() / largest
    factor = float((c * e).sum() / e.square().sum())
    power = round(math.log2(factor)) if 256 <= factor < math.inf else 0
    sums = (len(error), 2 * len(error))
    if power and abs(factor / 2**power - 1) < tolerance and round(factor) not in sums:
        raise ValueError(
            f"the loss is {factor:.6g} times the one meant, as a GradScaler makes it: pass "
            "SNOpt(..., grad_scaler=scaler)"
        )
    return 1.0 if abs(factor - 1) <= tolerance else factor


def _compare(
    cotangents: Tensor,
    factor: float,
    error: Tensor,
    tolerance: float,
    likelihood: str,
    rounding: float = 0.0,
) -> None:
    size = float(error.abs().max()) if likelihood == "gaussian" else 1.0
    left = float((cotangents - factor * error).abs().max())
    if not (factor > 0 and left <= factor * (tolerance * size + rounding)):
        raise ValueError(
            f"the gradient at the outputs is not that of a {likelihood} likelihood; "
            f"rule='gauss_newton' needs {_MEANT[likelihood]}, and outputs and targets as they are "
            "in the loss; choose another likelihood of curvature_pass() or another rule"
        )


def _fitting(targets: Tensor, outputs: Tensor, likelihood: str) -> Tensor:
    """Targets shaped and typed as they are compared with the outputs."""
    targets = targets.detach().to(outputs.device)
    if likelihood == "categorical":
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            raise ValueError(
                f"targets of a categorical likelihood are class indices of shape "
                f"({len(outputs)},), got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        return targets.long()
    if targets.numel() != outputs.numel() or len(targets) != len(outputs):
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, outputs {tuple(outputs.shape)}; pass the "
            "targets that the loss compares these outputs with"
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


def _tolerance(dtype: torch.dtype) -> float:
    """How far a gradient of outputs of this type may be from what it should be."""
    eps: float = torch.finfo(dtype).eps
    return max(1e-4, math.sqrt(eps))


class SquaredErrors:
    """Whether losses taken for squared errors, of targets that nobody gave, may be that.

    The factor that a loss' value tells is the same at all steps, or the same times N, or over the
    outputs of a sample; and where a batch comes twice in a row with other outputs, the gradient
    changes by the factor times these.
    """

    def __init__(self) -> None:
        self._known: tuple[float, int, int] | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._passes = 0

    def check(
        self, outputs: Tensor, cotangents: Tensor, loss: float | None, inputs: Tensor | None
    ) -> None:
        """Look at one step's outputs and N times its gradient there.

        Args:
            outputs: shape (N, ...).
            cotangents: N times the gradient of the loss.
            loss: its value, where it was told.
            inputs: of the model's first layer, to know a batch again.

        Raises:
            ValueError: the loss is no multiple of the squared error.
        """
        if loss is None:
            if self._known is None:
                self._known = (1.0, 0, 0)
                logger.warning(
                    "likelihood='gaussian' without targets= or loss=: the loss is taken to be the "
                    "mean over samples of half the squared error summed over outputs, unchecked; "
                    "pass curvature_pass(outputs, 'gaussian', targets=y) for F.mse_loss and others"
                )
            self._passes += 1
            if self._passes <= _UNTOLD and inputs is not None:
                self._compare_with_last(outputs, cotangents, inputs)
            return
        half = float(cotangents.double().square().sum()) / (2 * len(cotangents))
        if not (loss > 0 and half > 0):
            return
        factor, samples, size = half / loss, len(cotangents), cotangents[0].numel()
        past, count, width = self._known or (0.0, 0, 0)
        if not count:
            past, count, width = factor, samples, size
        self._known = (past, count, width)
        scales = ((1.0, count / samples), (1.0, size / width))  # sums, means
        ratios = (factor / past * n * k for n in scales[0] for k in scales[1])
        if min(abs(x - 1) for x in ratios) > 0.01:
            raise ValueError(
                f"the loss is no multiple of the squared error: its factor was {past:.4g} and is "
                f"{factor:.4g}; likelihood='gaussian' needs {_MEANT['gaussian']}; pass targets= "
                "too, or choose another rule"
            )

    def _compare_with_last(self, outputs: Tensor, cotangents: Tensor, inputs: Tensor) -> None:
        """Tell the factor by a batch that came twice: gradients change by it times the outputs."""
        last, self._last = self._last, (outputs, cotangents, inputs)
        if last is not None:  # the model may have moved since
            last = last[0].to(outputs), last[1].to(cotangents), last[2].to(inputs)
        if self._passes == _UNTOLD:
            self._last = None
        if last is None or not torch.equal(inputs, last[2]) or outputs.shape != last[0].shape:
            return
        moved = (outputs - last[0]).double()
        changed = (cotangents - last[1]).double()
        size = float(moved.norm())
        # Rounding must not speak for it.
        if size <= 1e-3 * float(outputs.double().norm()) or moved.numel() < 4:
            return
        factor = float((changed * moved).sum()) / size**2
        if abs(factor - 1) > 0.01 or float((changed - factor * moved).norm()) > 0.01 * size:
            raise ValueError(
                "likelihood='gaussian' without targets= or loss= needs the mean over samples of "
                "half the squared error summed over outputs; this loss is another one (about "
                f"{factor:.4g} times that, if it is a squared error): pass targets=y or loss=loss "
                "to curvature_pass()"
            )
