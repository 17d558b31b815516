"""Gauss-Newton steps from per-sample gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from snopt.optim.least_squares import LeastSquares
from snopt.optim.method import Method, ModelView
from snopt.optim.rule import Rule, State
from snopt.optim.rules.adam import adam_direction
from snopt.optim.settings import DECAY, LIMIT, POSITIVE, Decays, Flag, Number, setting

FALLBACK_RATE = 0.01
"""Adam's learning rate over that of Gauss-Newton steps, for parameters without a layer."""


_ABOVE_ZERO = Number("a number > 0", least=sys.float_info.min, largest=math.inf)


@dataclass(frozen=True, kw_only=True)
class GaussNewton(Rule):
    """No factors, but a solve with per-sample gradients (:mod:`snopt.optim.least_squares`).

    Needs :meth:`~snopt.SNOpt.curvature_pass` in the loop, and no other backward passes in training
    mode between ``zero_grad()`` and ``step()``. Weight decay is part of the solve and fades with
    the loss.

    Args:
        momentum: how much of the last step the solve stays near, in [0, 1).
        damping: added to the matrix of the solve: a number >= 0 or a function of the step.
        backtrack: standard errors by which the next batch's mean loss may exceed the last one's;
            beyond, the last step is halved instead of taking another
            (:mod:`snopt.optim.backtracking`). Infinity: steps always stand.
        betas, eps, nesterov: Adam's, for parameters without a layer; they take a hundredth of the
            learning rate.

    Source: see :mod:`snopt.optim.least_squares`.
    """

    name: ClassVar[str] = "gauss_newton"

    momentum: float = setting(0.9, DECAY, group=True)
    damping: float = setting(1e-2, Number(follows_steps=True), group=True)
    trust: float | None = setting(0.2, LIMIT, group=True)
    backtrack: float = setting(2.0, _ABOVE_ZERO)
    betas: tuple[float, float] = setting((0.9, 0.95), Decays(), group=True)
    eps: float = setting(1e-8, POSITIVE, group=True)
    nesterov: bool = setting(False, Flag(), group=True)

    @override
    def method(self, parts: ModelView) -> Method:
        return LeastSquares(parts, self.backtrack)

    @override
    def fallback(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        return FALLBACK_RATE * adam_direction(state, grad, settings)
