"""How well a step's quadratic model predicted the loss, for a controller of the damping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from snopt.curvature.capture import Capture
from snopt.curvature.processes import Processes
from snopt.layers.base import Layer
from snopt.layers.precision import without_autocast
from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.learned import Learned
from snopt.optim.scaling import Scaling
from snopt.real_numbers import as_real


class Judged(Protocol):
    """What is to be known of a method with a diagonal curvature in eigenbases."""

    capture: Capture
    processes: Processes
    layers: dict[str, Layer]
    learned: dict[str, Learned]
    rule: Scaling


def judge(
    controller: LevenbergMarquardt,
    method: Judged,
    moves: Mapping[Tensor, Tensor],
    loss: float,
    closure: Callable[[], Any],
) -> None:
    """Let a controller compare the loss after a step with the one predicted.

    Args:
        controller: of the damping.
        method: what gave the directions.
        moves: what the step added to the parameters.
        loss: before the step.
        closure: computes the loss and its gradient, which is not captured.
    """
    predicted = predicted_change(method, moves, controller.value)
    with method.capture.paused(), torch.enable_grad():
        again = closure()
    change = method.processes.mean(float(again) - loss, next(iter(moves)).device)
    controller.observe(change, predicted)


def predicted_change(method: Judged, moves: Mapping[Tensor, Tensor], damping: float) -> float:
    """The quadratic model's change of the loss: g.d + (1/2) d.(C + damping) d.

    C is the rule's diagonal curvature in each layer's eigenbasis, zero for plain parameters.
    """
    total = 0.0
    for p, move in moves.items():
        if p.grad is not None:
            product = (as_real(p.grad) * as_real(move)).sum()
            total += float(product + damping / 2 * as_real(move).square().sum())
    for name, layer in method.layers.items():
        learned = method.learned[name]
        basis = learned.basis
        if basis is None or layer.weight not in moves:
            continue
        curvature = method.rule.diagonal(learned.state, basis)
        if curvature is not None:
            bias = None if layer.bias is None else moves.get(layer.bias)
            matrix = layer.joined(moves[layer.weight], bias)
            with without_autocast(matrix.device):
                moved = basis.to(matrix.to(curvature.dtype))
            total += float((curvature * moved.square()).sum()) / 2
    return total
