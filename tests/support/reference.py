"""SNOpt in plain float64, for Linear layers inside one ODE block and a mean loss: docs/method.md
in few lines, without hooks into the solver, fallbacks or speed. It imports nothing of snopt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Factors = dict[str, tuple[Tensor, Tensor]]


def nodes(field: nn.Module, x0: Tensor, t_span: tuple[float, float], steps: int) -> list[Tensor]:
    """x at steps + 1 equally spaced times from t0 to t1: classical Runge-Kutta, differentiable."""
    h, xs = (t_span[1] - t_span[0]) / steps, [x0]
    for t in torch.linspace(*t_span, steps + 1, dtype=x0.dtype)[:-1]:
        x = xs[-1]
        k1 = field(t, x)
        k2 = field(t + h / 2, x + h / 2 * k1)
        k3 = field(t + h / 2, x + h / 2 * k2)
        k4 = field(t + h, x + h * k3)
        xs.append(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return xs


def layers(field: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in field.named_modules() if isinstance(m, nn.Linear)}


def factors(
    field: nn.Module,
    x0: Tensor,
    t_span: tuple[float, float],
    loss: Callable[[Tensor], Tensor],
    steps: int = 100,
) -> Factors:
    """A = (1/T) ∫ E[z zᵀ] dt and B = T ∫ E[g gᵀ] dt by Simpson's rule on a dense grid.

    ``x0`` is (N, m), ``loss`` maps x(t1) to the batch's mean loss, ``steps`` is even.
    """
    total = abs(t_span[1] - t_span[0])
    weights = torch.ones(steps + 1, dtype=x0.dtype)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    weights *= total / steps / 3

    xs = nodes(field, x0.detach().requires_grad_(), t_span, steps)
    adjoints = torch.autograd.grad(loss(xs[-1]), xs)  # ∂loss/∂x(t) at every node
    linear, n = layers(field), len(x0)
    found = {name: [torch.zeros(()), torch.zeros(())] for name in linear}
    times = torch.linspace(*t_span, steps + 1, dtype=x0.dtype)
    for t, x, adjoint, weight in zip(times, xs, adjoints, weights, strict=True):
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        hooks = [
            m.register_forward_hook(
                lambda m, z, h, name=name, to=seen: to.update({name: (z[0], h)})
            )
            for name, m in linear.items()
        ]
        derivative = field(t, x.detach().requires_grad_())
        [hook.remove() for hook in hooks]
        outputs = [h for _, h in seen.values()]
        cotangents = torch.autograd.grad(derivative, outputs, adjoint)
        for (name, (z, _)), cotangent in zip(seen.items(), cotangents, strict=True):
            if linear[name].bias is not None:
                z = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
            g = n * cotangent  # per sample: the loss is a mean
            found[name][0] = found[name][0] + weight / total * (z.T @ z).detach() / n
            found[name][1] = found[name][1] + weight * total * (g.T @ g) / n
    return {name: (a, b) for name, (a, b) in found.items()}


class ReferenceOptimizer:
    """The update, from ``.grad``; ``step(n, factors)`` refreshes if given factors."""

    def __init__(
        self, linear: dict[str, nn.Linear], lr: float, *, rule: str = "paper",
        momentum: float = 0.0, weight_decay: float = 0.0, damping: float = 0.05,
        alpha: float = 0.75, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
    ) -> None:  # fmt: skip
        self.linear, self.lr, self.rule, self.damping, self.alpha = linear, lr, rule, damping, alpha
        self.momentum, self.weight_decay, self.betas, self.eps = momentum, weight_decay, betas, eps
        self.state: dict[str, dict[str, Tensor]] = {name: {} for name in linear}
        self.count = 0

    def step(self, n: int, factors: Factors | None = None) -> None:
        self.count += 1
        for name, layer in self.linear.items():
            state, gradient = self.state[name], _joined(layer, grad=True)
            if factors is not None:
                self._refresh(state, *factors[name])
            g = state["ub"].T @ gradient @ state["ua"]
            direction = self._paper(state, g, n) if self.rule == "paper" else self._adam(state, g)
            direction = state["ub"] @ direction @ state["ua"].T
            old = state.get("buffer", torch.zeros_like(direction))
            state["buffer"] = self.momentum * old + direction
            weights = _joined(layer)
            weights = weights - self.lr * (state["buffer"] + self.weight_decay * weights)
            with torch.no_grad():
                layer.weight.copy_(weights[:, : layer.in_features])
                if layer.bias is not None:
                    layer.bias.copy_(weights[:, -1])

    def _refresh(self, state: dict[str, Tensor], a: Tensor, b: Tensor) -> None:
        if self.rule == "paper":
            (ea, ua), (eb, ub) = torch.linalg.eigh(a), torch.linalg.eigh(b)
            state.update(second=torch.outer(eb, ea), ua=ua, ub=ub)
            return
        ua, ub = turned(a, state.get("ua")), turned(b, state.get("ub"))
        if "first" in state:  # both moments rotated into the new basis
            ra, rb = ua.T @ state["ua"], ub.T @ state["ub"]
            state["first"] = rb @ state["first"] @ ra.T
            state["second"] = rb.square() @ state["second"] @ ra.square().T
        else:
            state["first"] = state["second"] = a.new_zeros(len(b), len(a))
        state["ua"], state["ub"] = ua, ub

    def _paper(self, state: dict[str, Tensor], g: Tensor, n: int) -> Tensor:
        state["second"] = self.alpha * state["second"] + (1 - self.alpha) * n * g.square()
        return g / (state["second"] + self.damping)

    def _adam(self, state: dict[str, Tensor], g: Tensor) -> Tensor:
        one, two = self.betas
        state["first"] = one * state["first"] + (1 - one) * g
        state["second"] = two * state["second"] + (1 - two) * g.square()
        first = state["first"] / (1 - one**self.count)
        second = state["second"] / (1 - two**self.count)
        return first / (second.sqrt() + self.eps)


def turned(factor: Tensor, u: Tensor | None) -> Tensor:
    """An orthogonal basis one step nearer to the factor's eigenvectors, by Gram and Schmidt."""
    eye, columns = torch.eye(len(factor), dtype=factor.dtype), []
    moved = (factor / factor.diagonal().max() + 3e-3 * eye) @ (eye if u is None else u)
    for column in moved.T:
        for _ in range(2):  # the second time for what rounding left
            for other in columns:
                column = column - (other @ column) * other
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1)


def _joined(layer: nn.Linear, grad: bool = False) -> Tensor:
    """The layer's weight with the bias as last column, or their gradients."""
    parts = [p.grad if grad else p.detach() for p in (layer.weight, layer.bias) if p is not None]
    return torch.cat([p if p.ndim == 2 else p[:, None] for p in parts], dim=1)
