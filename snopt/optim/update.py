"""From directions to new parameters: trust region, momentum, weight decay, learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.method import Core
from snopt.optim.preconditioner import Preconditioner
from snopt.optim.rules import Rule


def apply_directions(
    groups: list[dict[str, Any]],
    state: MutableMapping[Tensor, Any],
    directions: Mapping[Tensor, Tensor],
    warmup: float,
    whole: bool = False,
) -> None:
    """Move every parameter that has a direction, in place.

    Args:
        groups: torch parameter groups.
        state: the optimizer's state by parameter; holds the momentum buffers.
        directions: directions by parameter.
        warmup: factor on every learning rate.
        whole: whether directions hold the decay of weights and momentum already.
    """
    trust = trust_factor(groups, directions, warmup)
    for group in groups:
        parameters = [p for p in group["params"] if p in directions]
        if not parameters:
            continue
        moves = [directions[p] for p in parameters]
        if trust != 1.0:
            moves = list(torch._foreach_mul(moves, trust))
        if group["momentum"] > 0 and not whole:
            moves = _with_momentum(parameters, moves, state, group["momentum"])
        rate = group["lr"] * warmup
        if group["weight_decay"] > 0 and not whole:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, moves, alpha=-rate)


def _with_momentum(
    parameters: list[Tensor],
    moves: list[Tensor],
    state: MutableMapping[Tensor, Any],
    momentum: float,
) -> list[Tensor]:
    buffers = []
    for p, move in zip(parameters, moves, strict=True):
        entry = state[p]
        follow(entry, move, "momentum")
        if "momentum" in entry:
            entry["momentum"].mul_(momentum).add_(move)
        else:
            entry["momentum"] = move.clone()
        buffers.append(entry["momentum"])
    return buffers


def directions_of(
    core: Core,
    found: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
    state: MutableMapping[Tensor, Any],
    rules: Mapping[str, Rule],
) -> dict[Tensor, Tensor]:
    """The direction of every parameter that has a gradient.

    Args:
        core: knows the layers.
        found: directions of layers, by name.
        groups: torch parameter groups, settings as numbers.
        state: the optimizer's state by parameter; holds that of plain updates.
        rules: of plain updates, by a group's ``"plain"``.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    directions: dict[Tensor, Tensor] = {}
    for name, matrix in found.items():
        for p, direction in core.layers[name].split(matrix):
            if p.grad is not None:
                directions[p] = direction.to(p.dtype)
    for group in groups:
        rule = rules[group["plain"]]
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if p.grad is not None and p not in directions:
                grad = core.scaled(plain_gradient(p, name))
                own = state[p].setdefault("plain", {})
                follow(own, grad)
                direction = rule.plain(own, grad, group)
                directions[p] = torch.view_as_complex(direction) if p.is_complex() else direction
    return directions


def follow(entry: dict[str, Any], like: Tensor, *names: str) -> None:
    """Have what is kept of a parameter follow it to another device or precision.

    Args:
        entry: what is kept, changed in place.
        like: a tensor that has moved already.
        names: of the tensors in question; all of them by default.
    """
    for name in names or tuple(entry):
        kept = entry.get(name)
        if isinstance(kept, Tensor) and (kept.device != like.device or kept.dtype != like.dtype):
            entry[name] = kept.to(like)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which is how torch's optimizers take them."""
    return torch.view_as_real(x) if x.is_complex() else x


def plain_gradient(p: Tensor, name: str) -> Tensor:
    """The gradient of a parameter, as real numbers.

    Raises:
        RuntimeError: it is sparse; the message says what to write instead.
    """
    assert p.grad is not None
    if p.grad.layout != torch.strided:
        raise RuntimeError(
            f"parameter {name!r} has a sparse gradient, which SNOpt does not take: make its "
            "nn.Embedding with sparse=False, or leave its module out of the groups and train it "
            "with torch.optim.SparseAdam"
        )
    return as_real(p.grad)


def trust_factor(
    groups: list[dict[str, Any]], directions: Mapping[Tensor, Tensor], warmup: float
) -> float:
    """How much of the directions is taken: 1, or less where a bound of a group says so.

    ``kl_clip`` bounds sum lr^2 d.g over the groups that have one: min(1, sqrt(kl_clip / sum)).
    ``trust`` bounds the norm of a group's update by that multiple of its parameters' norm.

    Source: Ba, Grosse and Martens, Distributed second-order optimization, 2017, section 5
    (``kl_clip``); You, Gitman and Ginsburg 2017 (norms of updates beside those of parameters).
    """
    factor = 1.0
    bounds = [group["kl_clip"] for group in groups if group["kl_clip"] is not None]
    total = 0.0
    for group in groups:
        moved = [p for p in group["params"] if p in directions]
        rate = group["lr"] * warmup
        if group["kl_clip"] is not None:
            products = [
                (as_real(directions[p]) * as_real(p.grad)).sum()
                for p in moved
                if p.grad is not None
            ]
            total += rate**2 * float(sum(products))
        if group["trust"] is not None and moved:
            update = rate * norm([directions[p] for p in moved])
            largest = group["trust"] * norm(moved)
            factor = min(factor, largest / update) if update > largest > 0 else factor
    return min(factor, (min(bounds) / total) ** 0.5) if bounds and total > 0 else factor


def norm(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all numbers together."""
    return float(torch.stack(torch._foreach_norm(tensors)).norm())


def gradient_scale(parameters: Iterable[Tensor], power: float) -> float:
    """One over the whole gradient's norm to a power; 1 where that is no number above zero."""
    grads = [p.grad for p in parameters if p.grad is not None] if power else []
    length = norm(grads) if grads else 0.0
    return length**-power if 0 < length < math.inf else 1.0


def norm_ratio(directions: Mapping[Tensor, Tensor]) -> dict[str, float]:
    """Norms of the gradient and of the direction, and their ratio."""
    grads = [p.grad for p in directions if p.grad is not None]
    if not grads:
        return {}
    gradient = torch.stack([g.norm() for g in grads]).norm()
    direction = torch.stack([d.norm() for d in directions.values()]).norm()
    return {
        "gradient_norm": float(gradient),
        "direction_norm": float(direction),
        "direction_over_gradient": float(direction / gradient.clamp_min(1e-30)),
    }


def judge(
    controller: LevenbergMarquardt,
    core: Core,
    moves: Mapping[Tensor, Tensor],
    loss: float,
    closure: Callable[[], Any],
) -> None:
    """Let a controller compare the loss after a step with the one predicted.

    Args:
        controller: of the damping.
        core: what gave the directions.
        moves: what the step added to the parameters.
        loss: before the step.
        closure: computes the loss and its gradient, which is not captured.
    """
    assert isinstance(core, Preconditioner)  # the damping of other cores has no controller
    predicted = predicted_change(core, moves, controller.value)
    active, core.capture.active = core.capture.active, False
    with torch.enable_grad():
        again = closure()
    core.capture.active = active
    change = core.processes.mean(float(again) - loss, again.device)
    controller.observe(change, predicted)


def predicted_change(core: Preconditioner, moves: Mapping[Tensor, Tensor], damping: float) -> float:
    """The quadratic model's change of the loss: g.d + (1/2) d.(C + damping) d.

    C is the rule's diagonal curvature in each layer's eigenbasis, zero for plain parameters.
    """
    total = 0.0
    for p, move in moves.items():
        if p.grad is not None:
            product = (as_real(p.grad) * as_real(move)).sum()
            total += float(product + damping / 2 * as_real(move).square().sum())
    for name, layer in core.layers.items():
        basis = core.bases.get(name)
        if basis is None or layer.weight not in moves:
            continue
        curvature = core.rule.curvature(core.states[name], basis)
        if curvature is not None:
            matrix = layer.matrix(moves[layer.weight])
            if layer.bias is not None:
                moved = moves.get(layer.bias, torch.zeros_like(layer.bias))
                column = moved.reshape(matrix.shape[0], -1, 1)
                matrix = torch.cat([matrix, column], dim=2)
            total += float((curvature * basis.to(matrix.to(curvature.dtype)).square()).sum()) / 2
    return total
