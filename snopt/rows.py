"""Gradients of single samples, gathered while an ordinary backward pass runs.

Every use of a layer adds an outer product to each sample's gradient. Forward hooks keep a use's
input, tensor hooks on its output the cotangent, wherever the backward pass goes through: outside
ODE blocks, inside backpropagated solves, and in the repeated steps of checkpointed ones. The
products of many uses are formed together, in one batched matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from snopt.capture import Listener, Stopwatch
from snopt.layers import Layer

_WAITING = 1 << 22
"""Numbers in the rows of uses that wait for their products; more would not stay in a cache."""


class Rows:
    """One row for each sample and layer: the gradient of the sample's share of the loss.

    Args:
        layers: the layers by name.

    Attributes:
        stopwatch: time spent so far.
        unbatched: layers that were used on an input that all samples share; they have no rows.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = dict(layers)
        self.unbatched: set[str] = set()
        self._uses: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._waiting: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self.stopwatch = Stopwatch()
        for layer in self.layers.values():
            layer.module.register_forward_hook(Listener(partial(self._watch, layer)))

    def clear(self) -> None:
        """Forget what was gathered."""
        self._uses, self._waiting, self._sums = {}, {}, {}

    def collect(self) -> dict[str, Tensor]:
        """Sums over uses of cotangent times input, and forget them.

        Returns:
            By layer name, shape (samples, groups, out, in), a bias last in ``in``. Layers that took
            no part are left out.
        """
        for name in list(self._uses):
            self._add_up(name)
        found = self._sums
        self.clear()
        return found

    def _watch(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        if not (module.training and output.requires_grad):
            return
        z: Tensor = args[0].detach()
        if layer.unbatched(z):
            self.unbatched.add(layer.name)
        else:
            output.register_hook(partial(self._record, layer, z))

    def _record(self, layer: Layer, z: Tensor, g: Tensor) -> None:
        name = layer.name
        self._uses.setdefault(name, []).append((z, g.detach()))
        _, out, width = layer.shape
        numbers = g.numel() // out * (out + width)
        self._waiting[name] = self._waiting.get(name, 0) + numbers
        if self._waiting[name] > _WAITING:
            self._add_up(name)

    def _add_up(self, name: str) -> None:
        layer, uses = self.layers[name], self._uses.pop(name)
        self._waiting[name] = 0
        with self.stopwatch.running(uses[0][0].device):
            if len({z.shape[0] for z, _ in uses}) > 1:
                sizes = sorted({z.shape[0] for z, _ in uses})
                raise ValueError(
                    f"layer {name!r} was used on inputs whose first dimensions are {sizes}: rows "
                    "need samples first, the same ones in every use"
                )
            total = layer.products(uses)
            if name in self._sums:
                total += self._sums[name]
            self._sums[name] = total
