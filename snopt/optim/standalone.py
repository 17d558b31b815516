"""The preconditioner alone, in front of any other torch optimizer."""

from __future__ import annotations

from typing import Any

import torch

from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.optimizer import Model, SNOpt

_FOLLOWING = {"lr", "momentum", "weight_decay"}
"""Settings that the other optimizer has, too."""

_UPDATE = {"warmup_steps", "kl_clip", "trust", "backtrack", "fallback", "averaging"}
"""Settings of SNOpt's own update, which the other optimizer's replaces."""


class SNOptPreconditioner:
    """The preconditioner in front of any other torch optimizer.

    Call :meth:`step` between ``backward()`` and the other optimizer's ``step()``. It replaces the
    gradients of preconditioned layers with preconditioned ones and leaves all others alone.

    Args:
        model: as for :class:`SNOpt`.
        **settings: of :class:`SNOpt` and its rule, except those of the step itself.

    Raises:
        TypeError: a setting belongs to the step, which the other optimizer makes (lr, momentum,
            weight_decay, warmup_steps, kl_clip, trust, backtrack, fallback, averaging).
    """

    def __init__(self, model: Model, **settings: Any) -> None:
        if theirs := sorted(_FOLLOWING & {*settings}):
            raise TypeError(f"{', '.join(theirs)}: set it on the optimizer that follows")
        if foreign := sorted(_UPDATE & {*settings}):
            raise TypeError(
                f"{', '.join(foreign)}: part of SNOpt's own step, which the optimizer that follows "
                "replaces; leave it out, or take SNOpt instead of both"
            )
        self._optimizer = SNOpt(model, lr=1.0, **settings)
        dampings = [group.get("damping") for group in self._optimizer.param_groups]
        if any(isinstance(damping, LevenbergMarquardt) for damping in dampings):
            raise TypeError("Levenberg-Marquardt damping needs SNOpt.step(closure)")
        self.factors = self._optimizer.factors
        self.coverage = self._optimizer.coverage
        self.diagnostics = self._optimizer.diagnostics
        self.curvature_pass = self._optimizer.curvature_pass
        self.close = self._optimizer.close
        self.state_dict = self._optimizer.state_dict
        self.load_state_dict = self._optimizer.load_state_dict

    @torch.no_grad()
    def step(self) -> None:
        """Replace the gradients of preconditioned layers with preconditioned ones."""
        method = self._optimizer.method
        if self._optimizer.members.idle:
            return
        step = self._optimizer.directions()
        found = list(step.parameters.items())
        for name, matrix in step.layers.items():
            found += method.layers[name].split(matrix)
        for p, direction in found:
            if p.grad is not None:
                p.grad = direction.to(p.dtype).contiguous()
        method.prepare_next()
