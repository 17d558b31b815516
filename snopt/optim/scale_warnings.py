"""The scale of the loss: that of a ``GradScaler``, and warnings where it makes steps too short."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from snopt.layers.base import Layer
from snopt.optim.rule import Rule
from snopt.optim.update import norm

_STILL = 2e-4
"""A step that is a smaller part of the weights, in norm, hardly moves them."""

_LARGE = 3.0
"""A step along the gradient as many times as large as the weights would throw them away."""

_IN_A_ROW = 3
"""Refreshes that must show both before it is said."""


def loss_scale(grad_scaler: Any) -> Callable[[], float] | None:
    """What says by how much the loss is scaled; ``None`` without a scaler.

    Raises:
        TypeError: it is no ``GradScaler``.
    """
    if grad_scaler is None:
        return None
    found: Callable[[], float] | None = getattr(grad_scaler, "get_scale", None)
    if found is None:
        raise TypeError(
            f"grad_scaler={grad_scaler!r}: is not a GradScaler. Give the one that scales the loss: "
            "scaler = torch.amp.GradScaler(); SNOpt(model, grad_scaler=scaler)"
        )
    return found


class ScaleWarnings:
    """Warns, once each, of a model that stands still and of a ``GradScaler`` not handed over.

    A loss c times as large has c times the gradients, c^2 times the curvature, and steps as short
    as one c-th. Small gradients make small steps too, and so does a small learning rate: it is
    said only where the same rate would make a step along the gradient absurdly long.

    Args:
        rule: the rule.
        unscaled: whether curvature is taken of the loss itself where a ``GradScaler`` scales it.
    """

    def __init__(self, rule: Rule, unscaled: bool) -> None:
        self.rule, self._seen, self._told, self._unscaled = rule, 0, False, unscaled

    def scaler_steps(self) -> None:
        """A ``GradScaler`` takes the steps: warn once where curvature is of the scaled loss."""
        if self._unscaled or not self.rule.scales_with_loss:
            return
        self._unscaled = True
        warnings.warn(
            f"rule={self.rule.name!r} divides unscaled gradients by the curvature of the scaled "
            "loss, since it was not told of the GradScaler: pass SNOpt(..., grad_scaler=scaler)",
            stacklevel=4,
        )

    def observe(
        self,
        layers: Iterable[Layer],
        directions: Mapping[Tensor, Tensor],
        groups: Iterable[Mapping[str, Any]],
    ) -> None:
        """Look at the step of a refresh, and warn once.

        Args:
            layers: those that are preconditioned.
            directions: by parameter.
            groups: settings in force; the largest learning rate counts.
        """
        moved = [p for layer in layers for p in layer.parameters if p in directions]
        if self._told or not self.rule.scales_with_loss or not moved:
            return
        rate = max(group["lr"] for group in groups)
        weights = norm([p.detach() for p in moved])
        step = rate * norm([directions[p] for p in moved])
        gradient = rate * norm([p.grad for p in moved if p.grad is not None])
        still = 0 < step < _STILL * weights and gradient > _LARGE * weights
        self._seen = self._seen + 1 if still else 0
        if self._seen == _IN_A_ROW:
            self._told = True
            warnings.warn(
                f"steps of rule={self.rule.name!r} are {step / weights:.0e} of the weights "
                "although gradients are large: curvature grows with the square of the loss's "
                "scale. If the loss is a sum over samples or outputs, take the mean; else scale "
                "inputs and targets, or take rule='adam', which does not depend on the scale",
                stacklevel=3,
            )
