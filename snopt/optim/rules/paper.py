"""The published update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from snopt.curvature.kronecker import Basis, rotate_square, rotation
from snopt.optim.damping import Damping
from snopt.optim.rule import State
from snopt.optim.rules.eigenbasis import EigenbasisRule
from snopt.optim.settings import DAMPING, DECAY, setting


@dataclass(frozen=True, kw_only=True)
class Paper(EigenbasisRule):
    """The published update: Ghat / (M + damping), where M is a running average of N Ghat^2.

    Steps shrink as the loss is scaled up: use a mean, not a sum.

    Args:
        momentum: decay of a running sum of directions, in [0, 1).
        damping: added to the curvature: a number >= 0, a function of the step, or a
            :class:`~snopt.LevenbergMarquardt`.
        alpha: decay of the second moment M, in [0, 1).

    With ``carry_over`` second moments are rotated into a new basis instead of starting from its
    eigenvalues. The other settings are those of :class:`~snopt.optim.scaling.Scaling` and
    :class:`~snopt.optim.rules.Rule`.

    Source: Liu, Chen and Theodorou 2021, algorithm 1; George et al. 2018 (the second moment).
    """

    name: ClassVar[str] = "paper"
    scales_with_loss: ClassVar[bool] = True
    follows: ClassVar[tuple[str, ...]] = ("gradient",)
    counts: ClassVar[bool] = True
    keeps: ClassVar[frozenset[str]] = frozenset({"second"})

    momentum: float = setting(0.0, DECAY, group=True)
    damping: Damping = setting(0.05, DAMPING, group=True)
    alpha: float = setting(0.75, DECAY, group=True)

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis) -> None:
        if old is not None and self.carry_over:
            state["second"] = rotate_square(state["second"], rotation(old, new))
        else:
            state["second"] = new.eigenvalues

    @override
    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        alpha = settings["alpha"]
        second: Tensor = state["second"].mul_(alpha)
        second.addcmul_(grad, grad, value=(1 - alpha) * samples)
        damping: float = settings["damping"]
        return grad / (second + damping)

    @override
    def diagonal(self, state: State, basis: Basis) -> Tensor | None:
        second: Tensor = state["second"]
        return second
