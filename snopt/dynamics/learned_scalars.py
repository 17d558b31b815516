"""The learned scalars of a whole model, for its log."""

from __future__ import annotations

from torch import nn

from snopt.dynamics.scalar import LearnedScalar


def learned_scalars(model: nn.Module) -> dict[str, float]:
    """Current value of every learned scalar inside ``model``: γ, ξ, β₁, β₂, or another system's.

    Args:
        model: any module; reads from the device, so not for every step.

    Returns:
        Values by the scalar's module name, ``"block.field.gamma"``.
    """
    return {
        name: module().item()
        for name, module in model.named_modules()
        if isinstance(module, LearnedScalar)
    }
