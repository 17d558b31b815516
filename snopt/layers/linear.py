"""Linear layers."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from snopt.layers.base import Layer


class LinearLayer(Layer):
    """``nn.Linear`` with any leading dimensions; those after the first are locations."""

    @override
    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    @override
    def weight_of(self, matrix: Tensor) -> Tensor:
        return matrix.squeeze(0)

    @override
    def input_rows(self, z: Tensor) -> Tensor:
        return z.reshape(1, -1, z.shape[-1])

    @override
    def cotangent_rows(self, g: Tensor) -> Tensor:
        return g.reshape(1, -1, g.shape[-1])

    @override
    def unbatched(self, z: Tensor) -> bool:
        return z.ndim == 1
