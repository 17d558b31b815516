"""Gauss-Newton steps by dense algebra, from Jacobians that torch.func makes of whole models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

DAMPING = 0.02


def jacobian(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor]:
    """Flat outputs and their Jacobian (M, P) in the parameters that are trained."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return forward(self.model).flatten()

    def outputs(values: dict[str, Tensor]) -> Tensor:
        named = {f"model.{name}": x for name, x in values.items()}
        found: Tensor = torch.func.functional_call(Called(), named, ())
        return found

    rows = torch.func.jacrev(outputs)(trained)
    count = len(next(iter(rows.values())))
    return outputs(trained).detach(), torch.cat([x.reshape(count, -1) for x in rows.values()], 1)


def dense_step(
    model: nn.Module,
    forward: Callable[[nn.Module], Tensor],
    loss: Callable[[Tensor], Tensor],
    hessian: Callable[[Tensor], Tensor] | None = None,
    extra: Tensor | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """What is subtracted from the flat parameters.

    Args:
        model: before the step.
        forward: the outputs of a model.
        loss: of the flat outputs.
        hessian: of the loss in the flat outputs, by default torch's own.
        extra: of the gradient beside the loss'.
        damping: that would be in force if the loss were one half or more.
    """
    f, rows = jacobian(model, forward)
    h = torch.func.jacrev(torch.func.grad(loss))(f) if hessian is None else hessian(f)
    gradient = rows.T @ torch.func.grad(loss)(f)
    if extra is not None:
        gradient = gradient + extra
    fade = min(1.0, (2 * float(loss(f))) ** 0.5)
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.linalg.solve(rows.T @ h @ rows + fade * damping * eye, gradient)


def flat(model: nn.Module) -> Tensor:
    """The parameters that are trained, one behind the other."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
