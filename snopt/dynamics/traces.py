"""The learned scalars of a whole model, for its log."""

from __future__ import annotations

from torch import nn

from snopt.dynamics.adaptive import AdamNODE
from snopt.dynamics.momentum import GHBNODE, HBNODE


def traces(model: nn.Module) -> dict[str, float]:
    """Current γ, ξ, β₁ and β₂ of every system inside ``model``.

    Args:
        model: any module; reads from the device, so not for every step.

    Returns:
        Values by the system's module name and the scalar's, ``"block.field.gamma"``.
    """
    return {
        f"{name}.{key}" if name else key: value
        for name, module in model.named_modules()
        if isinstance(module, HBNODE | GHBNODE | AdamNODE)
        for key, value in module.traces().items()
    }
