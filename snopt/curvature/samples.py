"""Which dimension of a layer's input is the sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from snopt.layers.base import Layer
from snopt.layers.linear import LinearLayer

_FIRST, _LATER, _FLAT = 0, 1, 2


@dataclass(frozen=True)
class Samples:
    """The samples of one pass.

    Attributes:
        count: how many there are.
        dim: where they stand in the outputs; where layers see the same order, there too.
    """

    count: int
    dim: int = 0

    def first(
        self, layer: Layer, z: Tensor, g: Tensor, known: dict[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A layer's input and output cotangent as uses that have samples first.

        Inputs are (N, ...); for linear layers (T, N, ...), where that is what the sizes say; or
        their first two dimensions are flattened into one, in the order of the outputs.

        Args:
            layer: the layer.
            z: its input.
            g: the cotangent of its output.
            known: by number of dimensions, how inputs of this layer were read before; filled.

        Raises:
            ValueError: no dimension has as many entries as there are samples.
        """
        if known.get(z.ndim) == _FIRST and z.shape[0] == self.count:
            yield z, g
            return
        dim = max(1, self.dim)
        sizes, n = z.shape, self.count
        fits = {
            _FIRST: sizes[0] == n,
            _LATER: isinstance(layer, LinearLayer) and z.ndim > dim + 1 and sizes[dim] == n,
            _FLAT: sizes[0] > n and sizes[0] % n == 0,
        }
        order = (_LATER, _FIRST, _FLAT) if self.dim else (_FIRST, _LATER, _FLAT)
        layout = known.get(z.ndim, next((way for way in order if fits[way]), None))
        if layout is None or not fits[layout]:
            raise ValueError(
                f"layer {layer.name!r} saw inputs whose first dimension is {sizes[0]} while the "
                f"outputs' is {n} (shape {tuple(sizes)}); first dimensions are samples, the same "
                "ones in every use: put samples first everywhere, or where outputs have time "
                "first, pass curvature_pass(outputs, batch_dim=1)"
            )
        known[z.ndim] = layout
        if layout == _FIRST:
            yield z, g
        elif layout == _LATER:
            yield z.movedim(dim, 0), g.movedim(dim, 0)
        else:
            # (T * N, ...) holds one batch after the other, (N * T, ...) one sample.
            shape = (-1, n) if self.dim else (n, -1)
            parts = (x.unflatten(0, shape).unbind(1 - (shape[0] == -1)) for x in (z, g))
            yield from zip(*parts, strict=True)
