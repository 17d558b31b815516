"""What surrounds a field's evaluations: found at the block's call, and given back on the way back.

A backward solve evaluates the field again, maybe after its context was replaced: by that of the
next solve, or by the end of ``torch.func.functional_call``. Such evaluations must see what the
first ones saw, and leave no trace: random numbers and statistics of normalisation belong to the
forward pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from operator import is_
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

_OF_TORCH = {*vars(nn.Module())} - {"training"}
"""Attributes of every module that are no context of a field."""

_NO_TENSORS = {bool, int, float, str, set, type(None), OrderedDict, nn.Parameter}
"""Types of most of what modules hold; parameters are known without being looked for."""

_INSPECTED: WeakSet[nn.Module] = WeakSet()
"""Fields whose slopes were seen to depend on nothing but what they hold."""

Place = dict[str, Any]
"""Where a module holds things: its attributes, parameters, buffers or modules."""


class Held:
    """References to what every module of a field holds: parameters, buffers, modules, attributes.

    Args:
        module: the field.
        device: where it is evaluated.

    Attributes:
        calm: whether the forward solve was seen to draw no random numbers.
    """

    calm = False

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device
        self._modules = list(module.modules())
        self._places: list[tuple[Place, Place]] = []
        for m in self._modules:
            own = vars(m)
            for place in (own, own["_parameters"], own["_buffers"], own["_modules"]):
                if place:
                    self._places.append(
                        (place, dict(place.items()))
                    )  # a scripted module has no copy()
        self._loose = [
            (name, x)
            for _, held in self._places
            for name, x in held.items()
            if type(x) not in _NO_TENSORS and name not in _OF_TORCH
        ]
        self._versions = [
            (name, x, x._version)
            for name, x in self._loose
            if isinstance(x, Tensor) and not x.is_inference()
        ]

    def current(self, module: nn.Module, device: torch.device) -> bool:
        """Whether this is what a field holds now, so that it serves another solve as well.

        One with tensors besides parameters does not: it would keep them alive.
        """
        single = not any(isinstance(x, Tensor | Collection) for _, x in self._loose)
        same = module is self.module and device == self.device
        return same and single and not self._changed()

    def settled(self) -> Held:
        """After the forward solve: what it changed itself (counters, caches) is no context."""
        changed = self._changed()
        written = any(x._version != version for _, x, version in self._versions)
        if not changed and not written:
            return self
        found = copy(self)
        dropped = {id(held[name]) for _, held, names in changed for name in names}
        away = {id(held): names for _, held, names in changed}
        found._places = [
            (place, {k: v for k, v in held.items() if k not in away.get(id(held), ())})
            for place, held in self._places
        ]
        found._loose = [(name, x) for name, x in self._loose if id(x) not in dropped]
        found._versions = [
            (name, x, version)
            for name, x, version in self._versions
            if x._version == version and id(x) not in dropped
        ]
        return found

    def others(self, known: Iterable[Tensor]) -> list[Tensor]:
        """Tensors beside ``known`` that the field holds and that require gradients.

        Args:
            known: the parameters that do.
        """
        seen = {id(x) for x in known}
        found = {
            id(x): x
            for _, value in self._loose
            for x in tensors_in(value)
            if x.requires_grad and id(x) not in seen
        }
        return list(found.values())

    def cut_off(self, others: Iterable[Tensor]) -> tuple[Held, tuple[Tensor, ...]]:
        """The same with leaves in place of tensors that were computed, and ``others`` likewise.

        One of them may have been made from another, or from a parameter of the field. What flows on
        from there is autograd's: a way back that followed it would count it twice.
        """
        others = list(others)
        leaves = {id(x): x.detach().requires_grad_(True) for x in others if not x.is_leaf}
        if not leaves:
            return self, tuple(others)
        found = copy(self)
        found._places = [
            (place, {name: _replaced(x, leaves) for name, x in held.items()})
            for place, held in self._places
        ]
        return found, tuple(leaves.get(id(x), x) for x in others)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the field holds what it held then; nothing that happens inside is seen later.

        Raises:
            RuntimeError: a tensor that it held was changed in place since.
        """
        self._check_versions()
        replaced: list[tuple[Place, str, Any, bool]] = []
        for place, held, names in self._changed():
            for name in names:
                replaced.append((place, name, place.get(name), name in place))
                place[name] = held[name]
        try:
            with self._untraced(), parametrized_apart(cached=False):
                yield
        finally:
            for place, name, value, there in reversed(replaced):
                if there:
                    place[name] = value
                else:
                    del place[name]

    @contextmanager
    def _untraced(self) -> Iterator[None]:
        """Inside, evaluations draw random numbers and count batches that nobody sees later."""
        norms = [m for m in self._modules if isinstance(m, _NormBase) and m.track_running_stats]
        buffers = [(m._buffers, dict(m._buffers)) for m in norms if m.training]
        for place, kept in buffers:
            place.update({name: x if x is None else x.clone() for name, x in kept.items()})
        state = None if self.calm else self.generators()
        try:
            yield
        finally:
            if state is not None:
                self.set_generators(state)
            for place, kept in buffers:
                place.update(kept)

    def generators(self) -> list[Tensor]:
        """The states of the random generators that an evaluation may draw from."""
        states = [torch.get_rng_state(), *(own.get_state() for own in self._own_generators)]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def set_generators(self, states: list[Tensor]) -> None:
        """Set what :meth:`generators` returned."""
        torch.set_rng_state(states[0])
        for own, state in zip(self._own_generators, states[1:], strict=False):
            own.set_state(state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[-1], self.device)

    @property
    def _own_generators(self) -> list[torch.Generator]:
        """Those that the field holds."""
        return [x for _, x in self._loose if isinstance(x, torch.Generator)]

    def _changed(self) -> list[tuple[Place, Place, list[str]]]:
        """Where something else is held now, and the names of what was."""
        found = []
        for place, held in self._places:
            # The same things under the same names, as nearly always, are told apart at once.
            if len(place) == len(held) and all(map(is_, place.values(), held.values())):
                continue
            names = [k for k, v in held.items() if k not in _OF_TORCH and place.get(k) is not v]
            if names:
                found.append((place, held, names))
        return found

    def _check_versions(self) -> None:
        for name, x, version in self._versions:
            if x._version != version:
                raise RuntimeError(
                    f"{name!r} of field {type(self.module).__name__} was changed in place between "
                    "the solve and its backward pass, which needs the old value: assign a new "
                    f"tensor (field.{name} = ...), put it into the state, or use gradient='direct'"
                )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that an attribute of a module is, or holds in a list, tuple or dict."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [x for x in value if isinstance(x, Tensor)]
    return [x for x in value.values() if isinstance(x, Tensor)] if isinstance(value, dict) else []


def _replaced(value: Any, new: Mapping[int, Tensor]) -> Any:
    """A value with other tensors in it, by the id of the old ones."""
    if not any(id(x) in new for x in tensors_in(value)):
        return value
    if isinstance(value, Tensor):
        return new[id(value)]
    if isinstance(value, dict):
        found = copy(value)
        found.update({key: new.get(id(x), x) for key, x in value.items()})
        return found
    parts = [new.get(id(x), x) for x in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


@contextmanager
def parametrized_apart(*, cached: bool) -> Iterator[None]:
    """Inside, what ``parametrize.cached()`` keeps is not seen, and nothing is left there.

    A weight that is computed without a graph has no gradient to give to whoever asks next, and one
    with a graph can be differentiated once.

    Args:
        cached: whether weights that are computed inside are kept until the end.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    if not enabled:
        yield
        return
    parametrize._cache_enabled, parametrize._cache = int(cached), {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextmanager
def unheard(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, hooks on tensors are silent, and what retains its gradient keeps the one it has.

    A way back finds gradients part by part. Hooks are called with the whole ones, by autograd.
    """
    tensors = list(tensors)
    hooks = [(x._backward_hooks, dict(x._backward_hooks)) for x in tensors if x._backward_hooks]
    retained = [(x, x.grad) for x in tensors if x.retains_grad]
    for calls, _ in hooks:
        calls.clear()
    try:
        yield
    finally:
        for calls, kept in hooks:
            calls.update(kept)
        for x, grad in retained:
            x.grad = grad


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
    strangers = leaves(slope, known)
    # A leaf that the field makes for itself, to differentiate in it, is another each time.
    lost = strangers & leaves(again(), known) if strangers else set()
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


def leaves(output: Tensor, known: Iterable[Tensor]) -> set[Tensor]:
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
