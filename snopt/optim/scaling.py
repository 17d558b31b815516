"""Scaling gradients entry by entry in a layer's eigenbasis: what these rules have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from snopt.curvature.kronecker import Basis
from snopt.curvature.loss_hessian import CURVATURES
from snopt.optim.rule import Rule, State
from snopt.optim.settings import Choice, Count, Flag, setting

BASES = ("curvature", "gradient", "both")


@dataclass(frozen=True, kw_only=True)
class Scaling(Rule):
    """A rule that scales gradients entry by entry, in the eigenbasis of a layer's curvature.

    Args:
        refresh_every: steps between two refreshes of the basis, >= 1.
        basis: ``"curvature"``: eigenbases of the factors that the backward solve gathers;
            ``"gradient"``: of running averages of G G^T and G^T G; ``"both"``: of their mean.
        curvature: ``"empirical"``: from gradients of the loss; ``"fisher"``: from outcomes drawn
            from the model's predictive distribution; ``"ggn"``: the generalised Gauss-Newton
            matrix. The last two need :meth:`~snopt.SNOpt.curvature_pass` in the loop.
        curvature_samples: how many samples of a batch, the first ones, enter the factors; ``None``
            for all.
        sampling: ``"steps"``: quadrature on the solver's own steps; ``"grid"``: on ``grid_points``
            equally spaced times, as in the paper.
        grid_points: nodes of ``sampling="grid"``, both ends included.
        carry_over: whether a layer's running averages are rotated into a new basis.
        stagger: refresh one layer at a time, spread over the period, so that no single step is
            slow.

    Attributes:
        follows: values of ``basis`` for which a refresh starts from the last basis
            (:func:`snopt.curvature.kronecker.followed`). Needed if directions depend on which
            vectors span a space of equal eigenvalues.
        counts: whether directions depend on the number of samples in every step, not only through
            the factors.
        keeps: names of the entries of a layer's state.
    """

    follows: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False
    keeps: ClassVar[frozenset[str]]

    refresh_every: int = setting(100, Count(1))
    basis: str = setting("curvature", Choice(BASES))
    curvature: str = setting("empirical", Choice(tuple(CURVATURES)))
    curvature_samples: int | None = setting(None, Count(1, optional=True))
    sampling: str = setting("steps", Choice(("steps", "grid")))
    grid_points: int = setting(100, Count(2))
    carry_over: bool = setting(False, Flag())
    stagger: bool = setting(False, Flag())

    @abstractmethod
    def refresh(self, state: State, old: Basis | None, new: Basis) -> None:
        """Adapt a layer's state to a new basis.

        Args:
            state: the layer's state, empty at first.
            old: the basis it was in.
            new: the basis it shall be in.
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
            settings: of the layer's parameter group: the rule's, as plain numbers.
            samples: N, the samples behind the gradient.
        """

    def diagonal(self, state: State, basis: Basis) -> Tensor | None:
        """The rule's diagonal curvature in the eigenbasis, if it has one."""
        return None
