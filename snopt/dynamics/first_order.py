"""NODE and ANODE: the state is one tensor and moves along the inner field."""

from __future__ import annotations

from torch import Tensor, nn


class NODE(nn.Module):
    """h' = f(t, h).

    The adjoint is a' = -Jᵀ a with J = ∂f/∂h. The flow is a homeomorphism, so it cannot pull one
    class out of the middle of another, and evaluations climb when it tries.

    Args:
        inner: f(t, h), same shape out as in.

    Source: Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018.
    """

    parts = 1
    """Tensors in the state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        """Time derivative at (t, h), of h's shape."""
        derivative: Tensor = self.inner(t, state)
        return derivative

    def traces(self) -> dict[str, float]:
        """Learned scalars worth logging; none here."""
        return {}


class ANODE(NODE):
    """h' = f(t, h) on a state widened by channels that start at zero (:class:`Augment`).

    The equations and the adjoint are NODE's on the wider state; the extra room is what lets
    trajectories pass each other.

    Source: Dupont, Doucet and Teh, "Augmented Neural ODEs", NeurIPS 2019.
    """
