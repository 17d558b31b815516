"""Adam, then L-BFGS: how physics-informed networks and small Neural ODEs are often fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS


class AdamLBFGS(LBFGS):
    """Adam's steps first, those of L-BFGS with a strong Wolfe line search after.

    Meant for full batches. State and groups are of one optimizer, so that runs resume in either
    part; schedules of the learning rate move Adam's alone.

    Args:
        params: of the model.
        lr: Adam's learning rate.
        adam_steps: before L-BFGS takes over, >= 0.
        betas: Adam's decays.
        eps: Adam's, added to the root of the second moment.
        max_iter: iterations of a step of L-BFGS.
        history_size: pairs of changes that it remembers.

    Raises:
        ValueError: ``adam_steps`` is negative.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        *,
        adam_steps: int = 300,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_iter: int = 5,
        history_size: int = 10,
    ) -> None:
        if adam_steps < 0:
            raise ValueError(f"adam_steps={adam_steps}: must be at least 0.")
        super().__init__(
            params,
            lr,
            max_iter=max_iter,
            history_size=history_size,
            line_search_fn="strong_wolfe",
        )
        self.param_groups[0].update(adam_steps=adam_steps, betas=tuple(betas), eps=eps)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]  # none without one
        """One update.

        Args:
            closure: clears gradients, computes the loss and its gradient, returns the loss.

        Returns:
            The loss before the step.
        """
        (group,) = self.param_groups
        made = self.state[group["params"][0]].get("adam", 0)
        if made < group["adam_steps"]:
            with torch.enable_grad():
                loss = closure()
            self.state[group["params"][0]]["adam"] = made + 1
            for p in (p for p in group["params"] if p.grad is not None):
                self._adam(p, p.grad, made + 1, group)
            return loss
        rate, group["lr"] = group["lr"], 1.0
        try:
            return super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            group["lr"] = rate

    def _adam(self, p: nn.Parameter, grad: Tensor, count: int, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[p], group["betas"]
        mean = state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(grad, 1 - first)
        square = state.setdefault("exp_avg_sq", torch.zeros_like(p))
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (square / (1 - second**count)).sqrt_().add_(group["eps"])
        p.addcdiv_(mean, root, value=-group["lr"] / (1 - first**count))
