"""Convolutions and transposed convolutions, as linear layers over patches.

Source: Grosse and Martens 2016.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from snopt.layers.base import Layer, Sizes, parts_of
from snopt.layers.patches import as_rows, pad, patch_moment, patches, shares_products, spread


class _Convolution(Layer):
    """What ordinary and transposed convolutions share; output positions are locations."""

    module: Any

    @override
    def input_factor_sizes(self, width: int) -> Sizes:
        positions = prod(self.module.kernel_size)
        patch = tuple(
            (n, positions) for n in parts_of((width - (self.bias is not None)) // positions)
        )
        return patch if self.bias is None else (*patch, (1,))

    @abstractmethod
    def windows(self, z: Tensor) -> Tensor:
        """The input's patches, (samples, channels, *positions, *kernel)."""

    @override
    def input_rows(self, z: Tensor) -> Tensor:
        return as_rows(self.windows(z), self.groups)

    @override
    def cotangent_rows(self, g: Tensor) -> Tensor:
        # (samples, out, *positions) -> (groups, samples * positions, out / groups)
        grouped: Tensor = g.unflatten(1, (self.groups, -1)).flatten(3)
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    @override
    def unbatched(self, z: Tensor) -> bool:
        return z.ndim == self.weight.ndim - 1


class ConvLayer(_Convolution):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``."""

    @override
    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    @override
    def weight_of(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.weight.shape)

    @override
    def windows(self, z: Tensor) -> Tensor:
        m = self.module
        return patches(pad(z, m), m.kernel_size, m.stride, m.dilation)

    @override
    def input_moment(self, z: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
        m = self.module
        if not shares_products(z, m.kernel_size, m.stride, m.dilation, self.groups):
            return super().input_moment(z, dtype, rows)
        z = z.to(dtype)
        moment = patch_moment(pad(z, m), m.kernel_size, m.stride, m.dilation)
        if self.bias is None:
            return moment.unsqueeze(0)
        windows = self.windows(z)
        positions = range(2, 2 + len(m.stride))
        sums = windows.sum(dim=(0, *positions)).reshape(-1, 1)
        last = torch.cat([sums, sums.new_full((1, 1), rows)])
        return torch.cat([torch.cat([moment, sums.T]), last], dim=1).unsqueeze(0)


class ConvTransposeLayer(_Convolution):
    """The transposed convolutions, as ordinary ones over an input spread out by the stride."""

    @override
    def matrix(self, weight: Tensor) -> Tensor:
        # (in, out / groups, *kernel) -> (groups, out / groups, in / groups * kernel)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(2)

    @override
    def weight_of(self, matrix: Tensor) -> Tensor:
        kernel = self.weight.shape[2:]
        grouped = matrix.reshape(self.groups, self.weight.shape[1], -1, *kernel)
        return grouped.transpose(1, 2).reshape(self.weight.shape)

    @override
    def windows(self, z: Tensor) -> Tensor:
        m = self.module
        for dim, stride in enumerate(m.stride, start=2):
            z = spread(z, dim, stride)
        pads: list[int] = []
        for size, dilation, padding, extra in zip(
            m.kernel_size, m.dilation, m.padding, m.output_padding, strict=True
        ):
            edge = dilation * (size - 1) - padding
            pads = [edge, edge + extra, *pads]
        # A negative pad crops. Patches of a transposed convolution run against the kernel.
        found = patches(F.pad(z, pads), m.kernel_size, [1] * len(m.stride), m.dilation)
        return found.flip(list(range(-len(m.stride), 0)))
