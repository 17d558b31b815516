"""AdamNODE: the state moves as Adam's iterates do in continuous time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from snopt.dynamics.scalar import LearnedScalar

Triple = tuple[Tensor, Tensor, Tensor]


class AdamNODE(nn.Module):
    """h' = -m / (sqrt(φ(v)) + ε), m' = β₁ (-f(t, h) - m), v' = β₂ (f(t, h)² - v).

    m follows -f and v follows f², so that h moves along f at a speed that hardly depends on f's
    size. With D(v) = 1 / (sqrt(φ(v)) + ε) the adjoint is
    a_h' = β₁ Jᵀ a_m - 2 β₂ Jᵀ (f ∘ a_v), a_m' = D ∘ a_h + β₁ a_m, a_v' = m ∘ D' ∘ a_h + β₂ a_v.
    It has the damping of the forward system, but a_v drives a_h as well, so the paper's statement
    that it is again an Adam ODE does not hold exactly.

    The released code is this form. It initialises (β₁, β₂) at (0.0067, 0.9933) for MNIST and
    Silverbox and at (0.9526, 0.9526) for CIFAR-10, with φ = softplus or sigmoid. Neither vanishes
    at v = 0, so the system is Adam's only for v well above that. φ = identity, which the code
    offers as "tanh", is NaN as soon as v < 0.

    Args:
        inner: f(t, h); it sees neither m nor v.
        beta1: initial rate of m, inside (0, 1).
        beta2: initial rate of v, inside (0, 1).
        phi: maps v to positive numbers.
        eps: added to the root.

    Source: Cho et al., "AdamNODEs: When Neural ODE Meets Adaptive Moment Estimation", 2022; the
    system of da Silva and Gazeau, "A general system of differential equations to model first-order
    adaptive algorithms", JMLR 2020, with g = -f.
    """

    parts = 3

    def __init__(
        self,
        inner: nn.Module,
        *,
        beta1: float = 0.0066928509242848554,  # sigmoid(-5)
        beta2: float = 0.9933071490757153,  # sigmoid(5)
        phi: Callable[[Tensor], Tensor] = softplus,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.beta1 = LearnedScalar(beta1, upper=1.0)
        self.beta2 = LearnedScalar(beta2, upper=1.0)
        self.phi = phi
        self.eps = eps

    def forward(self, t: Tensor, state: Triple) -> Triple:
        """Time derivatives of (h, m, v)."""
        h, m, v = state
        f = self.inner(t, h)
        speed = m / (torch.sqrt(self.phi(v)) + self.eps)
        return -speed, -self.beta1() * (f + m), self.beta2() * (f.square() - v)

    def traces(self) -> dict[str, float]:
        """The rates β₁ and β₂."""
        return {"beta1": self.beta1().item(), "beta2": self.beta2().item()}
