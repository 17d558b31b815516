"""Update rules in the eigenbasis of a layer's curvature, and on plain parameters.

A rule turns a gradient into a direction of descent before momentum, weight decay and learning rate.
Its state is a dictionary of tensors (and a count), so that it can be saved as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from snopt.curvature.kronecker import Basis, damped_inverse, rotate_mean, rotate_square, rotation

State = dict[str, Any]

RATE_BESIDE = 0.01
"""Adam's learning rate over that of Gauss-Newton steps, for parameters without a layer."""


class Rule(ABC):
    """One way to scale a gradient.

    Attributes:
        defaults: settings that differ between rules; an argument of the optimizer overrides them.
        follows: bases whose refresh begins from the last one
            (:func:`snopt.curvature.kronecker.followed`). Needed where a direction depends on which
            vectors span a space of equal eigenvalues.
        counts: whether directions depend on N in every step, not only through the factors.
        keeps: names of the entries of a layer's state.
    """

    defaults: ClassVar[dict[str, Any]]
    follows: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False
    keeps: ClassVar[frozenset[str]]

    @abstractmethod
    def refresh(self, state: State, old: Basis | None, new: Basis, carry_over: bool) -> None:
        """Adapt a layer's state to a new basis.

        Args:
            state: the layer's state, empty at first.
            old: the basis it was in.
            new: the basis it shall be in.
            carry_over: rotate what was learned into the new basis instead of dropping it.
        """

    @abstractmethod
    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        """The direction for a layer's gradient, both in the eigenbasis.

        Args:
            state: the layer's state, updated in place.
            grad: gradient in the eigenbasis, (groups, out, in).
            basis: the layer's basis.
            settings: damping, alpha, betas, eps of the parameter group.
            samples: N, the samples behind the gradient.
        """

    def plain(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        """The direction for a parameter that is not preconditioned: the gradient, as in SGD."""
        return grad

    def curvature(self, state: State, basis: Basis) -> Tensor | None:
        """The rule's diagonal curvature in the eigenbasis, if it has one."""
        return None


class Paper(Rule):
    """Ghat / (M + damping), M a running average of N Ghat^2 (Liu et al. 2021)."""

    follows: ClassVar[tuple[str, ...]] = ("gradient",)
    counts: ClassVar[bool] = True
    keeps: ClassVar[frozenset[str]] = frozenset({"second"})
    defaults: ClassVar[dict[str, Any]] = {
        "damping": 0.05,
        "momentum": 0.0,
        "refresh_every": 100,
        "carry_over": False,
        "warmup_steps": 0,
        "kl_clip": None,
        "trust": None,
    }

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis, carry_over: bool) -> None:
        if old is not None and carry_over:
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
    def curvature(self, state: State, basis: Basis) -> Tensor | None:
        second: Tensor = state["second"]
        return second


class Adam(Rule):
    """Adam's two moments kept in the eigenbasis, as SOAP does with gradient statistics."""

    follows: ClassVar[tuple[str, ...]] = ("curvature", "gradient", "both")
    keeps: ClassVar[frozenset[str]] = frozenset({"mean", "square", "count"})
    defaults: ClassVar[dict[str, Any]] = {
        "damping": 0.0,
        "momentum": 0.0,
        "refresh_every": 20,
        "carry_over": True,
        "warmup_steps": 10,
        "kl_clip": None,
        "trust": None,
    }

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis, carry_over: bool) -> None:
        if not state:
            return
        if old is not None and carry_over:
            turn = rotation(old, new)
            state["mean"] = rotate_mean(state["mean"], turn)
            state["square"] = rotate_square(state["square"], turn)
        else:
            state.clear()

    @override
    def direction(
        self, state: State, grad: Tensor, basis: Basis, settings: Mapping[str, Any], samples: float
    ) -> Tensor:
        return self.plain(state, grad, settings)

    @override
    def plain(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
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


class AdamBeside(Adam):
    """Adam at :data:`RATE_BESIDE` of the rate, for what Gauss-Newton steps leave out.

    Those are steps of whole layers (:mod:`snopt.optim.gauss_newton`), which no eigenbasis scales.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "damping": 1e-2,
        "momentum": 0.9,
        "warmup_steps": 0,
        "trust": 0.2,
        "backtrack": 2.0,
    }

    @override
    def plain(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        return RATE_BESIDE * super().plain(state, grad, settings)


class Kfac(Rule):
    """The plain factored inverse with pi-damping (Martens and Grosse 2015)."""

    keeps: ClassVar[frozenset[str]] = frozenset({"inverse", "damping"})
    defaults: ClassVar[dict[str, Any]] = {
        "damping": 1e-3,
        "momentum": 0.9,
        "refresh_every": 100,
        "carry_over": False,
        "warmup_steps": 0,
        "kl_clip": 1e-3,
        "trust": None,
    }

    @override
    def refresh(self, state: State, old: Basis | None, new: Basis, carry_over: bool) -> None:
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
    def curvature(self, state: State, basis: Basis) -> Tensor | None:
        return basis.eigenvalues


RULES: dict[str, type[Rule]] = {
    "paper": Paper,
    "adam": Adam,
    "kfac": Kfac,
    "gauss_newton": AdamBeside,
}
