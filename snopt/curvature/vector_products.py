"""Products with R = S^T J and its transpose, without R: two derivatives of one graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snopt.curvature.residuals import Residuals
from snopt.ode.gradients import linear_in_cotangents
from snopt.real_numbers import count, flattened, shaped


class VectorProducts:
    """R x and R^T u for the outputs of one forward pass.

    Args:
        outputs: (N, L, C), with their graph.
        seen: knows S.
        parameters: by which J differentiates.

    Raises:
        ValueError: the graph cannot be differentiated twice.
    """

    def __init__(
        self, outputs: Tensor, seen: Residuals, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.outputs, self.seen, self.parameters = outputs, seen, parameters
        self.sizes = [count(p) for p in parameters]
        # J x is the derivative of J^T u, which is linear in u, along x.
        self._u = torch.zeros_like(outputs, requires_grad=True)
        try:
            with torch.enable_grad(), linear_in_cotangents():
                self._back = torch.autograd.grad(
                    outputs, parameters, self._u, create_graph=True, allow_unused=True
                )
            self.forth(torch.zeros(sum(self.sizes), dtype=outputs.dtype, device=outputs.device))
        except RuntimeError as error:
            raise ValueError(
                "without the Jacobian in memory, rule='gauss_newton' with rows='outputs' needs "
                "derivatives that can be differentiated again, and gradient='checkpoint' has none: "
                "choose gradient='direct' or 'adjoint', a larger memory= or smaller batches"
            ) from error

    def back(self, u: Tensor) -> Tensor:
        """R^T u, flat, for u of shape (N, L, C)."""
        cotangents = self.seen.cotangents(u).to(self.outputs.dtype)
        found = torch.autograd.grad(
            self.outputs, self.parameters, cotangents, retain_graph=True, allow_unused=True
        )
        return flat(found, self.parameters)

    def forth(self, x: Tensor) -> Tensor:
        """R x of shape (N, L, C) for a flat x."""
        pairs = [
            (g, shaped(part, p))
            for g, part, p in zip(self._back, x.split(self.sizes), self.parameters, strict=True)
            if g is not None and g.requires_grad
        ]
        (moved,) = torch.autograd.grad(
            [g for g, _ in pairs], self._u, [part for _, part in pairs], retain_graph=True
        )
        return self.seen.projections(moved.to(self.seen.scale.dtype))


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """The real numbers of tensors one behind the other, zeros for those that are missing."""
    pairs = zip(tensors, like, strict=True)
    return torch.cat([flattened(torch.zeros_like(p) if x is None else x) for x, p in pairs])
