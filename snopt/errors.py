"""Exceptions that a caller can react to."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor


class SolverError(RuntimeError):
    """A solve that could not be finished; training code may skip the step or stop.

    Attributes:
        reason: ``"step underflow"``, ``"too many steps"``, ``"non-finite state"``,
            ``"non-finite input"`` or ``"solver failure"``.
        time: the time t that the solve had reached.
        dt: the step it was about to take there, or ``None`` before the first step.
        nfe: evaluations of the field in this solve until then.
    """

    ADVICE: ClassVar[dict[str, str]] = {
        "step underflow": "the field is too stiff or discontinuous for the tolerance: loosen rtol "
        "and atol, use a smooth activation (tanh, softplus), solve in float64, or set "
        "options={'min_step': ...}",
        "too many steps": "raise options={'max_steps': ...}, loosen rtol and atol, use a smoother "
        "activation, regularise the field, or solve over a shorter time",
        "non-finite state": "lower the learning rate, clip the gradient, or use a bounded "
        "activation (tanh) in the field",
        "non-finite input": "the field is not to blame: look at the data and at the layers in "
        "front of the block",
        "solver failure": "check the solver's options",
    }

    def __init__(
        self, reason: str, time: float, dt: float | None, nfe: int, detail: str = ""
    ) -> None:
        self.reason, self.time, self.dt, self.nfe, self.detail = reason, time, dt, nfe, detail
        step = "before the first step" if dt is None else f"with a step of {dt:.3g}"
        advice = self.ADVICE.get(reason, self.ADVICE["solver failure"])
        tail = f" ({detail})" if detail else ""
        super().__init__(
            f"{reason} at t = {time:.6g} {step}, after {nfe} field evaluations{tail}; "
            f"try: {advice}."
        )

    def blaming(self, y0: Tensor) -> SolverError:
        """This failure, put down to the initial state where that was not finite."""
        bad = ~torch.isfinite(y0.detach())
        if not bool(bad.any()):
            return self
        what = "NaN" if bool(torch.isnan(y0).any()) else "infinity"
        detail = f"the initial state holds {what}, in {int(bad.sum())} of {y0.numel()} numbers"
        return SolverError("non-finite input", self.time, self.dt, self.nfe, detail)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.time, self.dt, self.nfe, self.detail)


class FactorizationError(RuntimeError):
    """A curvature factor without an eigendecomposition in float32 and float64."""
