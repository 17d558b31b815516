"""Gradients of single samples, gathered while an ordinary backward pass runs.

Every use of a layer adds an outer product to each sample's gradient. Forward hooks keep a use's
input, tensor hooks on its output the cotangent, wherever the backward pass goes through: outside
ODE blocks, inside backpropagated solves, and in the repeated steps of checkpointed ones. The
products of many uses are formed together, in one batched matrix product.

The layer's own gradient is the sum of these rows. So where a backward pass is known to be for rows,
autograd is spared the product, the sum over samples and the addition that it would make for every
use, which is most of what the rows cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snopt.capture import Listener, Stopwatch, audible
from snopt.layers import KINDS, Layer, Products, input_of

_WAITING = 1 << 20
"""Numbers in the rows of uses that wait for their products; more would not stay in a cache."""


class Rows:
    """One row for each sample and layer: the gradient of the sample's share of the loss.

    Args:
        layers: the layers by name.

    Attributes:
        sparing: whether passes that begin now leave the layers' gradients to :meth:`finish`.
        expected: whether the backward pass that comes is for rows.
        stopwatch: time spent so far.
        unbatched: layers that were used on an input that all samples share; they have no rows.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.sparing = self.expected = False
        self.stopwatch = Stopwatch()
        self.unbatched: set[str] = set()
        self._uses = {name: _Uses(layer, self) for name, layer in layers.items()}

    def clear(self) -> None:
        """Forget what was gathered."""
        self.expected = False
        for uses in self._uses.values():
            uses.clear()

    def finish(self) -> None:
        """At the end of a backward pass: give the layers the gradients that autograd left out."""
        for uses in self._uses.values():
            uses.add_up()
            if True in uses.sums:
                layer = uses.layer
                total = [x.unflatten(0, (layer.groups, -1)).sum(dim=1) for x in uses.sums[True]]
                for p, gradient in layer.split(layer.by_sample(total)[0]):
                    gradient = gradient.to(p.dtype)
                    p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)

    def collect(self) -> dict[str, Tensor]:
        """Sums over uses of cotangent times input, and forget them.

        Returns:
            By layer name, shape (samples, groups, out, in), a bias last in ``in``. Layers that took
            no part are left out.
        """
        found = {}
        for name, uses in self._uses.items():
            uses.add_up()
            parts = [uses.layer.by_sample(products) for products in uses.sums.values()]
            if parts:
                found[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        self.clear()
        return found


class _Uses:
    """One layer's uses.

    Attributes:
        sums: their products, by whether autograd was spared the layer's gradient.
    """

    def __init__(self, layer: Layer, rows: Rows) -> None:
        self.layer, self.rows = layer, rows
        self._unbatched = layer.unbatched
        _, out, width = layer.shape
        self._numbers = (out + width) / out
        # A subclass may make something else of its weight: its gradient is autograd's.
        base = next(kind for kind in KINDS if isinstance(layer.module, kind))
        self._known = type(layer.module).forward is base.forward
        self._spared: list[nn.Parameter] = []
        self.clear()
        layer.module.register_forward_pre_hook(Listener(self._enter), with_kwargs=True)
        layer.module.register_forward_hook(
            Listener(self._leave), with_kwargs=True, always_call=True
        )

    def clear(self) -> None:
        self.sums: dict[bool, Products] = {}
        self._waiting: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        self._size = 0.0
        self._samples = 0

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not (self._known and self.rows.sparing and module.training and torch.is_grad_enabled()):
            return
        if self.layer.trains and not self._unbatched(input_of(args, kwargs)):
            self._spared = self.layer.parameters
            for p in self._spared:
                p.requires_grad = False

    def _leave(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor | None,
    ) -> Tensor | None:
        spared = bool(self._spared)
        for p in self._spared:
            p.requires_grad = True
        self._spared = []
        if output is None or not module.training or not self.layer.trains:
            return None  # no output: the layer raised an error
        z = input_of(args, kwargs).detach()
        if not (spared or output.requires_grad):
            return None
        if self._unbatched(z):
            self.rows.unbatched.add(self.layer.name)
            return None
        # Spared on an input that nothing trains, the output is a leaf, which must stay as it is.
        heard = audible(output) if output.requires_grad else output.requires_grad_(True).clone()
        version = z._version

        def record(cotangents: tuple[Tensor, ...]) -> None:
            if spared and not self.rows.expected:
                raise RuntimeError(
                    "rule='gauss_newton' needs optimizer.curvature_pass(outputs) between the "
                    "forward pass and backward(); for other backward passes between zero_grad() "
                    "and step(), use model.eval() or a copy of the model"
                )
            if z._version != version:
                raise RuntimeError(
                    f"the input of layer {self.layer.name!r} was changed in place after its use; "
                    "its gradient needs the old one"
                )
            g = cotangents[0].detach()
            self._waiting[spared].append((z, g))
            self._size += g.numel() * self._numbers
            if self._size > _WAITING:
                self.add_up()

        # On the node rather than the tensor, which an activation may change in place.
        heard.grad_fn.register_prehook(record)  # type: ignore[union-attr]
        return heard

    def add_up(self) -> None:
        """Form the products of the uses that wait."""
        self._size = 0.0
        for spared, uses in self._waiting.items():
            if not uses:
                continue
            self._waiting[spared] = []
            with self.rows.stopwatch.running(uses[0][0].device):
                alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
                for z, g in uses:
                    alike.setdefault(z.shape, []).append((z, g))
                for shape, some in alike.items():
                    self._samples = self._samples or shape[0]
                    if shape[0] != self._samples:
                        raise ValueError(
                            f"layer {self.layer.name!r} was used on inputs whose first dimensions "
                            f"are {self._samples} and {shape[0]}: rows need samples first, the "
                            "same ones in every use"
                        )
                    self.sums[spared] = self.layer.products(some, self.sums.get(spared))
