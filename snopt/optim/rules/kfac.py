"""The factored inverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from snopt.curvature.kronecker import Basis, damped_inverse
from snopt.optim.damping import Damping
from snopt.optim.rule import State
from snopt.optim.rules.eigenbasis import EigenbasisRule
from snopt.optim.settings import DAMPING, DECAY, LIMIT, setting


@dataclass(frozen=True, kw_only=True)
class Kfac(EigenbasisRule):
    """K-FAC: the factored inverse with pi-damping.

    Steps shrink as the loss is scaled up: use a mean, not a sum.

    Args:
        momentum: decay of a running sum of directions, in [0, 1).
        damping: added to the curvature: a number >= 0, a function of the step, or a
            :class:`~snopt.LevenbergMarquardt`.

    The other settings are those of :class:`~snopt.optim.scaling.Scaling` and
    :class:`~snopt.optim.rules.Rule`.

    Source: Martens and Grosse 2015, section 6.3 (damping), 7 (momentum).
    """

    name: ClassVar[str] = "kfac"
    scales_with_loss: ClassVar[bool] = True
    keeps: ClassVar[frozenset[str]] = frozenset({"inverse", "damping"})

    momentum: float = setting(0.9, DECAY, group=True)
    damping: Damping = setting(1e-3, DAMPING, group=True)
    kl_clip: float | None = setting(1e-3, LIMIT, group=True)

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis) -> None:
        state.clear()

    @override
    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        if state.get("damping") != settings["damping"]:
            state.update(
                inverse=damped_inverse(basis, settings["damping"]), damping=settings["damping"]
            )
        inverse: Tensor = state["inverse"]
        return grad * inverse

    @override
    def diagonal(self, state: State, basis: Basis) -> Tensor | None:
        return basis.eigenvalues
