"""Gauss-Newton steps from per-sample gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from snopt.optim.damping import Damping
from snopt.optim.least_squares import LeastSquares
from snopt.optim.method import Method, ModelView
from snopt.optim.output_least_squares import OutputLeastSquares
from snopt.optim.rule import Rule, State
from snopt.optim.rules.adam import adam_direction
from snopt.optim.settings import (
    DAMPING,
    DECAY,
    LIMIT,
    POSITIVE,
    Choice,
    Count,
    Decays,
    Flag,
    Number,
    setting,
)

FALLBACK_RATE = 0.01
"""Adam's learning rate over that of Gauss-Newton steps, for parameters without a layer."""


_ABOVE_ZERO = Number("a number > 0", least=sys.float_info.min, largest=math.inf)


@dataclass(frozen=True, kw_only=True)
class GaussNewton(Rule):
    """Gauss-Newton steps: a least-squares solve with the gradients of residuals, without factors.

    Needs :meth:`~snopt.SNOpt.curvature_pass` in the loop. Weight decay is part of the solve and
    fades with the loss.

    ``rows="samples"`` (:mod:`snopt.optim.least_squares`) has one residual for each sample, the root
    of its loss, and needs no further backward pass. Between ``zero_grad()`` and ``step()`` there
    must be no other backward pass in training mode. ``rows="outputs"``
    (:mod:`snopt.optim.output_least_squares`) has one residual for each output of each sample: the
    Gauss-Newton method of regression. It needs the ``loss`` in ``curvature_pass``. All parameters
    take part, and it works with every gradient method of a block.

    Args:
        rows: ``"samples"`` or ``"outputs"``.
        memory: bytes of the Jacobian up to which ``rows="outputs"`` solves exactly. Beyond that it
            uses conjugate gradients with vector products, through ``gradient="direct"`` or, in
            O(1) memory in the number of solver steps, through adjoint solves.
        cg_iterations: largest number of iterations of conjugate gradients.
        momentum: fraction of the last step that the solve stays near, in [0, 1).
        damping: added to the matrix of the solve: a number >= 0, a function of the step or, with
            ``rows="outputs"``, a :class:`~snopt.LevenbergMarquardt`. The last also takes back a
            step that raised the loss. It learns this from ``step(closure)``, or from the next pass
            if that has the same targets (full batch).
        backtrack: standard errors by which the next batch's mean loss may exceed the last one's.
            If it is higher, the last step is halved instead of taking another
            (:mod:`snopt.optim.backtracking`). Infinity: steps are never halved.
        betas, eps, nesterov: Adam's, for parameters without a layer, whose learning rate is a
            hundredth of ``lr``.

    The other settings are those of :class:`~snopt.optim.rules.Rule`.

    Source: see :mod:`snopt.optim.least_squares`.
    """

    name: ClassVar[str] = "gauss_newton"

    momentum: float = setting(0.9, DECAY, group=True)
    damping: Damping = setting(1e-2, DAMPING, group=True)
    trust: float | None = setting(0.2, LIMIT, group=True)
    backtrack: float = setting(2.0, _ABOVE_ZERO)
    rows: str = setting("samples", Choice(("samples", "outputs")))
    memory: float = setting(2.0**30, POSITIVE)
    cg_iterations: int = setting(100, Count(1))
    betas: tuple[float, float] = setting((0.9, 0.95), Decays(), group=True)
    eps: float = setting(1e-8, POSITIVE, group=True)
    nesterov: bool = setting(False, Flag(), group=True)

    @override
    def method(self, parts: ModelView) -> Method:
        if self.rows == "outputs":
            return OutputLeastSquares(parts, self.backtrack, self.memory, self.cg_iterations)
        return LeastSquares(parts, self.backtrack)

    @override
    def fallback(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        return FALLBACK_RATE * adam_direction(state, grad, settings)
