"""What a field holds when its block is called: parameters, buffers and plain tensor attributes.

A backward solve evaluates the field again, maybe after these have been replaced: by the context of
the next solve, or by the end of ``torch.func.functional_call``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """References to the tensors of every module of a field, as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self.places: list[tuple[dict[str, Any], dict[str, Tensor]]] = [
            (place, {k: v for k, v in place.items() if isinstance(v, Tensor)})
            for m in module.modules()
            for place in (m._parameters, m._buffers, vars(m))
            if place
        ]

    def others(self, field: Any, t: Tensor, y: Tensor, known: tuple[Tensor, ...]) -> list[Tensor]:
        """Tensors beside ``known`` that require gradients and that the slope depends on."""
        seen = {id(x) for x in known}
        found = {
            id(x): x
            for _, held in self.places
            for x in held.values()
            if x.requires_grad and id(x) not in seen
        }
        if not found:
            return []
        candidates = list(found.values())
        with torch.enable_grad():
            slope = field(t, y.detach())
        if not slope.requires_grad:
            return []
        # Most often something that an earlier evaluation has left behind: that one is not used.
        used = torch.autograd.grad(slope.sum(), candidates, allow_unused=True, retain_graph=True)
        return [x for x, g in zip(candidates, used, strict=True) if g is not None]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the field holds what it held then."""
        now = []
        for place, held in self.places:
            for name, tensor in held.items():
                if place.get(name) is not tensor:
                    now.append((place, name, place.get(name)))
                    place[name] = tensor
        try:
            yield
        finally:
            for place, name, value in now:
                place[name] = value
