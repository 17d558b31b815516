"""Adam in the eigenbasis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from snopt.curvature.kronecker import Basis, rotate_mean, rotate_square, rotation
from snopt.optim.rule import State
from snopt.optim.rules.eigenbasis import EigenbasisRule
from snopt.optim.scaling import BASES
from snopt.optim.settings import POSITIVE, Choice, Count, Decays, Flag, Number, setting

ROUNDING = 8.0
"""An entry below so many precisions of a gradient's largest is zero up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Adam(EigenbasisRule):
    """Adam in the eigenbasis of a layer, as in SOAP.

    Args:
        betas: decays of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        nesterov: look ahead with the first moment, as NAdam does.
        cautious: entries that would move against the gradient of their own batch stay where they
            are. If k of the n entries of a layer that have a gradient are left, these move n / k
            times as far. Signs are compared in the eigenbasis, or directly for parameters without
            a layer. Weight decay then applies only to entries of a weight that the step brings
            closer to zero.
        normalize: the gradient is divided by its norm to this power, in [0, 1]. When a training set
            is fitted to the end, the norm falls as the loss does. With 1/2, steps descend the root
            of the loss, and the moments lag half as far behind.

    With ``carry_over`` (the default here) moments are rotated into a new basis instead of starting
    from zero. The other settings are those of :class:`~snopt.optim.scaling.Scaling` and
    :class:`~snopt.optim.rules.Rule`.

    Source: Vyas et al. 2024 (SOAP); Kingma and Ba 2015; Dozat 2016 (``nesterov``);
    Liang et al. 2024, Cautious optimizers, and Chen et al. 2025, Cautious weight decay
    (``cautious``).
    """

    name: ClassVar[str] = "adam"
    weight_decay: ClassVar[float] = 0.1
    follows: ClassVar[tuple[str, ...]] = ("curvature", "gradient", "both")
    keeps: ClassVar[frozenset[str]] = frozenset({"mean", "square", "count"})

    betas: tuple[float, float] = setting((0.9, 0.95), Decays(), group=True)
    eps: float = setting(1e-8, POSITIVE, group=True)
    nesterov: bool = setting(False, Flag(), group=True)
    normalize: float = setting(0.0, Number("a number in [0, 1]", largest=1.0))
    cautious: bool = setting(True, Flag())
    basis: str = setting("gradient", Choice(BASES))
    refresh_every: int = setting(2, Count(1))
    carry_over: bool = setting(True, Flag())
    warmup_steps: int = setting(10, Count(0))
    averaging: float | None = setting(20.0, Number(optional=True))

    @property
    @override
    def cautious_decay(self) -> bool:
        return self.cautious

    @property
    @override
    def gradient_power(self) -> float:
        return self.normalize

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis) -> None:
        if not state:
            return
        if old is not None and self.carry_over:
            turn = rotation(old, new)
            state["mean"] = rotate_mean(state["mean"], turn)
            state["square"] = rotate_square(state["square"], turn)
        else:
            state.clear()

    @override
    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        return self.fallback(state, grad, settings)

    @override
    def fallback(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        found = adam_direction(state, grad, settings)
        return cautious(found, grad) if self.cautious else found


def adam_direction(state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Adam's direction, which the learning rate multiplies.

    Args:
        state: mean, square and count, empty at first; updated in place.
        grad: the gradient.
        settings: betas, eps and nesterov.
    """
    if not state:
        state.update(mean=torch.zeros_like(grad), square=torch.zeros_like(grad), count=0)
    beta1, beta2 = settings["betas"]
    state["count"] += 1
    mean: Tensor = state["mean"].lerp_(grad, 1 - beta1)
    square: Tensor = state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    count = state["count"]
    scale = (1 - beta2**count) ** 0.5
    bottom = square.sqrt().div_(scale).add_(settings["eps"])
    if not settings["nesterov"]:
        return (mean / bottom).div_(1 - beta1**count)
    # The mean as it will be after a next gradient like this one (Dozat 2016).
    ahead: Tensor = mean * (beta1 / (1 - beta1 ** (count + 1)))
    return ahead.add_(grad, alpha=(1 - beta1) / (1 - beta1**count)).div_(bottom)


def cautious(direction: Tensor, grad: Tensor) -> Tensor:
    """A direction without the entries that would go against the gradient.

    Where the gradient is zero up to rounding, its sign is chance: these entries stay, and are none
    of the n. So is what a rotation leaves of a gradient of low rank.

    Args:
        direction: what the learning rate multiplies; its sign is the gradient's where it descends.
        grad: the gradient, of the same shape.

    Returns:
        The direction; what is kept is multiplied by n over how many are kept, of n entries.
    """
    if not grad.numel():
        return direction
    size = grad.abs()
    known = size > ROUNDING * torch.finfo(grad.dtype).eps * size.amax()
    kept = known & (direction * grad > 0)
    # Counts are exact whatever the precision; the quotient has the direction's, float32 at least.
    exact = torch.promote_types(direction.dtype, torch.float32)
    return direction * kept * (known.sum().to(exact) / kept.sum().clamp_min_(1).to(exact))
