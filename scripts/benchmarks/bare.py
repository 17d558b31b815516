"""The field's own work: what a step would cost if solving cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarks.workloads import Workload, ode_blocks
from snopt import ODEBlock


def field_call(workload: Workload, model: nn.Module) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model's first field with the arguments of its first call on the workload's batch."""
    field = ode_blocks(model)[0].field
    seen: list[tuple[Any, ...]] = []
    handle = field.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        with torch.no_grad():
            workload.loss(model)
    finally:
        handle.remove()
    return field, seen[0]


def solves(workload: Workload, model: nn.Module) -> Callable[[], None]:
    """All solves of one step with their gradients, from the states they really start at.

    What is left out is the rest of the network, which no solver can save.
    """
    recorded: list[tuple[ODEBlock, tuple[Any, ...]]] = []
    handles = [
        block.register_forward_pre_hook(lambda block, inputs: recorded.append((block, inputs)))
        for block in ode_blocks(model)
    ]
    with torch.no_grad():
        workload.loss(model)
    for handle in handles:
        handle.remove()

    def work() -> None:
        model.zero_grad()
        for block, (state, *times) in recorded:
            ends = _tensors(block(_leaves(state), *times))
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])

    return work


def bare_work(
    field: nn.Module, inputs: tuple[Any, ...], nfe: tuple[int, int], gradient: str
) -> Callable[[], None]:
    """The evaluations that a step makes, one after the other, with nothing around them.

    ``adjoint`` and ``checkpoint`` evaluate the field forwards without a graph and backwards with a
    vector-Jacobian product each; ``direct`` makes one with each forward evaluation.

    Args:
        field: the model's field.
        inputs: time and state of a call.
        nfe: evaluations forward and backward.
        gradient: how the block computes its gradient.
    """
    plain, differentiated = (0, nfe[0]) if gradient == "direct" else nfe
    parameters = tuple(p for p in field.parameters() if p.requires_grad)
    time, state = inputs[0], inputs[1]

    def differentiate() -> None:
        with torch.enable_grad():
            leaves = _leaves(state)
            # A part of the state that stays as it is has a slope without a graph.
            slopes = [slope for slope in _tensors(field(time, leaves)) if slope.requires_grad]
            wanted = (*_tensors(leaves), *parameters)
            cotangents = [torch.ones_like(s) for s in slopes]
            torch.autograd.grad(slopes, wanted, cotangents, allow_unused=True)

    def work() -> None:
        with torch.no_grad():
            for _ in range(plain):
                field(time, state)
        for _ in range(differentiated):
            differentiate()

    return work


def _leaves(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().requires_grad_(True)
    return tuple(part.detach().requires_grad_(True) for part in state)


def _tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)
