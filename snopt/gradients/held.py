"""What surrounds a field's evaluations: found at the block's call, and given back on the way back.

A backward solve evaluates the field again, maybe after its context was replaced: by that of the
next solve, or by the end of ``torch.func.functional_call``. Such evaluations must see what the
first ones saw, and leave no trace: random numbers and statistics of normalisation belong to the
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _NormBase

_OF_TORCH = {*vars(nn.Module())} - {"training"}
"""Attributes of every module that are no context of a field."""

_INSPECTED: WeakSet[nn.Module] = WeakSet()
"""Fields whose slopes were seen to depend on nothing but what they hold."""


class Held:
    """References to what every module of a field holds: parameters, buffers, modules, attributes.

    Args:
        module: the field.
        device: where it is evaluated.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device
        self._places: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for m in module.modules():
            own = vars(m)
            self._places.append((own, {name: own[name] for name in own.keys() - _OF_TORCH}))
            for place in cast("list[dict[str, Any]]", [m._parameters, m._buffers, m._modules]):
                if place:
                    self._places.append((place, place.copy()))
        self._versions = self._written()

    def settle(self) -> None:
        """After the forward solve: what it changed itself (counters, caches) is no context."""
        for place, held in self._places:
            for name in [k for k, v in held.items() if place.get(k) is not v]:
                del held[name]
        after = self._written()
        self._versions = {k: v for k, v in self._versions.items() if after.get(k) == v}

    def others(self, known: Iterable[Tensor]) -> list[Tensor]:
        """Tensors beside ``known`` that the field holds and that require gradients."""
        seen = {id(x) for x in known}
        found: dict[int, Tensor] = {}
        for _, held in self._places:
            for value in held.values():
                for x in _tensors(value):
                    if x.requires_grad and id(x) not in seen:
                        found[id(x)] = x
        return list(found.values())

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the field holds what it held then; nothing that happens inside is seen later.

        Raises:
            RuntimeError: a tensor that it held was changed in place since.
        """
        self._check_versions()
        replaced: list[tuple[dict[str, Any], str, Any, bool]] = []
        for place, held in self._places:
            for name, value in held.items():
                if place.get(name) is not value:
                    replaced.append((place, name, place.get(name), name in place))
                    place[name] = value
        try:
            with untraced(self.module, self.device):
                yield
        finally:
            for place, name, value, there in reversed(replaced):
                if there:
                    place[name] = value
                else:
                    del place[name]

    def _written(self) -> dict[int, tuple[str, Tensor, int]]:
        """How often tensors that are no parameters have been written to, by ``id``."""
        return {
            id(x): (name, x, x._version)
            for _, held in self._places
            for name, x in held.items()
            if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and not x.is_inference()
        }

    def _check_versions(self) -> None:
        for name, x, version in self._versions.values():
            if x._version != version:
                raise RuntimeError(
                    f"{name!r} of field {type(self.module).__name__} was changed in place between "
                    "the solve and its backward pass, which needs the old value: assign a new "
                    f"tensor (field.{name} = ...), put it into the state, or use gradient='direct'"
                )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [x for x in value if isinstance(x, Tensor)]
    return [x for x in value.values() if isinstance(x, Tensor)] if isinstance(value, dict) else []


@contextmanager
def untraced(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, evaluations draw random numbers and count batches that nobody sees later."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    buffers = [(m._buffers, dict(m._buffers)) for m in norms if m.training]
    for place, kept in buffers:
        place.update({name: x if x is None else x.clone() for name, x in kept.items()})
    state = generators(device)
    try:
        yield
    finally:
        set_generators(device, state)
        for place, kept in buffers:
            place.update(kept)


def generators(device: torch.device) -> list[Tensor]:
    """The states of the random generators that an evaluation on ``device`` may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_generators(device: torch.device, states: list[Tensor]) -> None:
    """Set what :func:`generators` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def drawn(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether random numbers were drawn between two states."""
    return not all(map(torch.equal, before, after))


def inspect(
    module: nn.Module, slope: Tensor, known: Iterable[Tensor], again: Callable[[], Tensor]
) -> None:
    """Refuse a field, once, whose slopes depend on tensors that it does not hold.

    Args:
        module: the field.
        slope: what it returned, with its graph.
        known: every tensor whose gradient will be found.
        again: evaluates it once more at the same place.

    Raises:
        ValueError: a gradient would be lost.
    """
    if module in _INSPECTED:
        return
    strangers = _leaves(slope, known)
    # A leaf that the field makes for itself, to differentiate in it, is another each time.
    lost = strangers & _leaves(again(), known) if strangers else set()
    if lost:
        shapes = ", ".join(str(tuple(x.shape)) for x in lost)
        raise ValueError(
            f"the slope of field {type(module).__name__} depends on tensors that require gradients "
            f"and are no attributes of it (of shape {shapes}; a closure, a global, a module in a "
            "list?), so that their gradients would be lost: register them (nn.ModuleList, "
            "nn.Parameter), set them on the field before the call, put them into the state, or use "
            "gradient='direct'"
        )
    _INSPECTED.add(module)


def _leaves(output: Tensor, known: Iterable[Tensor]) -> set[Tensor]:
    """Leaves of a graph, apart from those behind ``known``."""
    ends = {get_gradient_edge(x).node for x in known if x.requires_grad}
    found: set[Tensor] = set()
    todo: list[Any] = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in ends:
            continue
        ends.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found
