"""From steps to new parameters: trust region, momentum, weight decay, learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snopt.optim.method import Method, Step
from snopt.optim.rule import Rule
from snopt.real_numbers import as_real


@dataclass(frozen=True)
class Moves:
    """What is subtracted from parameters.

    Attributes:
        directions: by parameter; learning rates multiply them.
        steps: by parameter; learning rates are in them.
        complete: whether decay of weights and momentum are in them, too.
    """

    directions: dict[Tensor, Tensor]
    steps: dict[Tensor, Tensor]
    complete: bool

    @property
    def moved(self) -> set[Tensor]:
        """The parameters that have a move."""
        return {*self.directions, *self.steps}

    def parts(self, group: Mapping[str, Any], warmup: float) -> Iterator[_Part]:
        """The group's parameters that move, what is subtracted, and the factor on it."""
        for moves, rate in ((self.directions, group["lr"] * warmup), (self.steps, warmup)):
            parameters = [p for p in group["params"] if p in moves]
            if parameters:
                yield parameters, [moves[p] for p in parameters], rate


_Part = tuple[list[Tensor], list[Tensor], float]


def apply(
    groups: list[dict[str, Any]],
    state: MutableMapping[Tensor, Any],
    moves: Moves,
    warmup: float,
    cautious_decay: bool = False,
) -> None:
    """Move every parameter that has a move, in place.

    Args:
        groups: torch parameter groups, settings as numbers.
        state: the optimizer's state by parameter; holds the momentum buffers.
        moves: of the parameters.
        warmup: factor on every learning rate.
        cautious_decay: whether only those entries decay that their step brings closer to zero.
    """
    trust = trust_factor(groups, moves, warmup)
    for group in groups:
        for parameters, parts, rate in moves.parts(group, warmup):
            if trust != 1.0:
                parts = list(torch._foreach_mul(parts, trust))
            momentum = group.get("momentum", 0.0)
            if momentum > 0 and not moves.complete:
                parts = _with_momentum(parameters, parts, state, momentum)
            if group["weight_decay"] > 0 and not moves.complete:
                _decay(parameters, rate * group["weight_decay"], parts if cautious_decay else None)
            torch._foreach_add_(parameters, parts, alpha=-rate)


def _decay(parameters: list[Tensor], share: float, steps: list[Tensor] | None) -> None:
    """Take a share of every entry off it; with steps, of those alone that these make smaller.

    Source: Loshchilov and Hutter 2019; Chen et al. 2025, Cautious weight decay (with steps).
    """
    if steps is None:
        torch._foreach_mul_(parameters, 1 - share)
        return
    weights = [as_real(p) for p in parameters]
    taken = torch._foreach_mul(weights, [as_real(step) for step in steps])
    torch._foreach_sign_(taken)
    torch._foreach_clamp_min_(taken, 0.0)
    torch._foreach_mul_(taken, weights)
    torch._foreach_sub_(weights, taken, alpha=share)


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


def moves_of(
    method: Method,
    step: Step,
    groups: list[dict[str, Any]],
    state: MutableMapping[Tensor, Any],
    rules: Mapping[str, Rule],
) -> Moves:
    """The move of every parameter that has a gradient.

    Args:
        method: knows the layers.
        step: of the layers.
        groups: torch parameter groups, settings as numbers.
        state: the optimizer's state by parameter; holds that of fallback updates.
        rules: of fallback updates, by a group's ``"fallback"``.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    layers: dict[Tensor, Tensor] = {p: x.to(p.dtype) for p, x in step.parameters.items()}
    for name, matrix in step.layers.items():
        for p, part in method.layers[name].split(matrix):
            if p.grad is not None:
                layers[p] = part.to(p.dtype)
    directions = {} if step.complete else layers
    for group in groups:
        rule = rules[group["fallback"]]
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if p.grad is not None and p not in layers:
                grad = method.scaled(plain_gradient(p, name))
                own = state[p].setdefault("plain", {})
                follow(own, grad)
                direction = rule.fallback(own, grad, group)
                directions[p] = torch.view_as_complex(direction) if p.is_complex() else direction
    return Moves(directions, layers if step.complete else {}, step.complete)


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


def trust_factor(groups: list[dict[str, Any]], moves: Moves, warmup: float) -> float:
    """How much of the moves is taken: 1, or less where a bound of a group says so.

    ``kl_clip`` bounds sum lr^2 d.g over the groups that have one: min(1, sqrt(kl_clip / sum)).
    ``trust`` bounds the norm of a group's update by that multiple of its parameters' norm.

    Source: Ba, Grosse and Martens, Distributed second-order optimization, 2017, section 5
    (``kl_clip``); You, Gitman and Ginsburg 2017 (norms of updates beside those of parameters).
    """
    factor = 1.0
    bounds = [group["kl_clip"] for group in groups if group["kl_clip"] is not None]
    total = 0.0
    for group in groups:
        if group["kl_clip"] is None and group["trust"] is None:
            continue
        found = list(moves.parts(group, warmup))
        if group["kl_clip"] is not None:
            total += sum(_along_gradient(*part) for part in found)
        if group["trust"] is not None and found:
            update = math.hypot(*(rate * norm(parts) for _, parts, rate in found))
            largest = group["trust"] * norm([p for parameters, _, _ in found for p in parameters])
            factor = min(factor, largest / update) if update > largest > 0 else factor
    return min(factor, (min(bounds) / total) ** 0.5) if bounds and total > 0 else factor


def _along_gradient(parameters: list[Tensor], parts: list[Tensor], rate: float) -> float:
    products = [
        (as_real(part) * as_real(p.grad)).sum()
        for p, part in zip(parameters, parts, strict=True)
        if p.grad is not None
    ]
    return rate**2 * float(sum(products))


def norm(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all numbers together."""
    lengths = torch._foreach_norm(tensors)
    device = lengths[0].device  # a model may live on several
    return float(torch.stack([x.to(device) for x in lengths]).norm())


def gradient_scale(parameters: Iterable[Tensor], power: float) -> float:
    """One over the whole gradient's norm to a power; 1 where that is no number above zero."""
    grads = [p.grad for p in parameters if p.grad is not None] if power else []
    grads = [grad for grad in grads if grad.layout == torch.strided]  # others are refused later
    length = norm(grads) if grads else 0.0
    return length**-power if 0 < length < math.inf else 1.0


def norm_ratio(directions: Mapping[Tensor, Tensor]) -> dict[str, float]:
    """Norms of the gradient and of the direction, and their ratio."""
    grads = [p.grad for p in directions if p.grad is not None]
    if not grads:
        return {}
    gradient, direction = norm(grads), norm([*directions.values()])
    return {
        "gradient_norm": gradient,
        "direction_norm": direction,
        "direction_over_gradient": direction / max(gradient, 1e-30),
    }
