"""NesterovNODE: the state moves as Nesterov's accelerated iterates do in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


class NesterovNODE(nn.Module):
    """h' = k(τ) m - (3 / (2 τ) - 1/2) h, m' = f(t, h) - m, with k(τ) = τ^(-3/2) exp(τ / 2).

    Nesterov's accelerated gradient has the limit h'' + (3 / τ) h' = F. It is singular at τ = 0, so
    that τ = t + ``start``. With h = k x and F = k f - (3 / (4 τ²) - 1/4) h it reads x' = m,
    m' = f(t, h) - m, the published differential-algebraic system. Here h takes the place of x,
    which makes it an ordinary one that is read like any other.

    The adjoint is a_h' = (3 / (2 τ) - 1/2) a_h - Jᵀ a_m, a_m' = -k(τ) a_h + a_m. As k grows like
    exp(τ / 2), so does h, even where f is zero: it is for short intervals.

    In the paper m' = -m - f: its f is the negative of this one. The released code solves over τ
    from 1 to 2, and hands the slopes of (x, m) to the solver for a state that it reads as (h, h'),
    which is another system.

    Args:
        inner: f(t, h); it does not see m, and its t is the solver's, not τ.
        start: τ where t = 0, positive.

    Source: Nguyen et al., "Improving Neural Ordinary Differential Equations with Nesterov's
    Accelerated Gradient Method", NeurIPS 2022; the limit is that of Su, Boyd and Candès, "A
    differential equation for modeling Nesterov's accelerated gradient method", 2014.
    """

    parts = 2

    def __init__(self, inner: nn.Module, *, start: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < start < math.inf:
            raise ValueError(f"start={start!r}; expected a time above 0, where 3 / t is finite")
        self.inner = inner
        self.start = start

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Time derivatives of (h, m)."""
        h, m = state
        tau = t.to(h.dtype) + self.start
        k = torch.exp(tau / 2) * tau**-1.5
        return k * m - (1.5 / tau - 0.5) * h, self.inner(t, h) - m

    def traces(self) -> dict[str, float]:
        """Learned scalars worth logging; none here."""
        return {}
