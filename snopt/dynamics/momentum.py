"""SONODE, HBNODE and GHBNODE: a position h and a velocity or momentum m, as a tuple (h, m)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snopt.dynamics.scalar import LearnedScalar

Pair = tuple[Tensor, Tensor]

GAMMA = 0.04742587317756678
"""sigmoid(-3), the released code's initial damping."""


class SONODE(nn.Module):
    """h' = m, m' = f(t, [h, m]): a second-order equation whose force sees position and velocity.

    The adjoint of the pair, a_h' = -J_hᵀ a_m and a_m' = -a_h - J_mᵀ a_m, satisfies the second-order
    adjoint equation a_m'' = J_hᵀ a_m - d/dt(J_mᵀ a_m). A positive coefficient on h or m at the
    start grows exponentially over long intervals.

    Args:
        inner: f(t, z) with z = [h, m] joined along ``dim``; returns h's shape.
        dim: the dimension of features or channels.

    Source: Norcliffe et al., "On Second Order Behaviour in Augmented Neural ODEs", NeurIPS 2020.
    """

    parts = 2

    def __init__(self, inner: nn.Module, *, dim: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Time derivatives of (h, m)."""
        h, m = state
        return m, self.inner(t, torch.cat([h, m], dim=self.dim))

    def traces(self) -> dict[str, float]:
        """Learned scalars worth logging; none here."""
        return {}


class HBNODE(nn.Module):
    """h' = m, m' = -γ m + f(t, h): the heavy ball h'' + γ h' = f with learned damping.

    The adjoint is a_h' = -Jᵀ a_m, a_m' = -a_h + γ a_m. Backwards in time a_m is again a heavy ball
    with the same γ: a_m'' - γ a_m' = Jᵀ a_m. (a_h obeys no such law, nor does it need to.)

    In the released code h' = -m and m' = s f - γ m with s = 1, so h'' + γ h' = -f. Its m is the
    negative of this one, and its f of this f.

    Args:
        inner: f(t, h); it does not see m.
        gamma: initial damping, inside (0, ``timescale``).
        timescale: bound ε of γ = ε sigmoid(w).
        learn_gamma: whether w is a parameter.

    Source: Xia et al., "Heavy Ball Neural Ordinary Differential Equations", NeurIPS 2021.
    """

    parts = 2

    def __init__(
        self,
        inner: nn.Module,
        *,
        gamma: float = GAMMA,
        timescale: float = 1.0,
        learn_gamma: bool = True,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.gamma = LearnedScalar(gamma, upper=timescale, learned=learn_gamma)

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Time derivatives of (h, m)."""
        h, m = state
        return m, self.inner(t, h) - self.gamma() * m

    def traces(self) -> dict[str, float]:
        """The damping γ."""
        return {"gamma": self.gamma().item()}


class GHBNODE(nn.Module):
    """h' = σ(m), m' = -γ m + f(t, h) - ξ h: a bounded velocity and a restoring force.

    Both keep the state from blowing up where HBNODE overshoots. The adjoint is
    a_h' = -(J - ξ I)ᵀ a_m, a_m' = -σ'(m) ∘ a_h + γ a_m; because of σ' it is *not* a heavy ball,
    except for σ = identity.

    In the released code h' = σ(-m), m' = f - γ m + ξ h: its m and its f are the negatives of these.
    There ξ is softplus of a learned number (MNIST 2.127 at the start, plane vibration 0.693,
    Walker2d 1.313), or fixed (Silverbox 0.693, CIFAR-10 1.5, point cloud 2), and σ is tanh,
    hardtanh on [-5, 5] (Silverbox) or the identity (point cloud).

    Args:
        inner: f(t, h); it does not see m.
        gamma: initial damping, inside (0, ``timescale``).
        timescale: bound ε of γ = ε sigmoid(w).
        xi: initial restoring force, positive.
        learn_xi: whether ξ is learned.
        activation: σ, applied elementwise; odd functions keep the sign conventions equivalent.

    Source: Xia et al. 2021, the generalised form of :class:`HBNODE`.
    """

    parts = 2

    def __init__(
        self,
        inner: nn.Module,
        *,
        gamma: float = GAMMA,
        timescale: float = 1.0,
        xi: float = 1.0,
        learn_xi: bool = True,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.gamma = LearnedScalar(gamma, upper=timescale)
        self.xi = LearnedScalar(xi, learned=learn_xi)
        self.activation = activation

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Time derivatives of (h, m)."""
        h, m = state
        return self.activation(m), self.inner(t, h) - self.gamma() * m - self.xi() * h

    def traces(self) -> dict[str, float]:
        """The damping γ and the restoring force ξ."""
        return {"gamma": self.gamma().item(), "xi": self.xi().item()}
