"""Convolution patches: as rows, and their second moment without forming them.

The rows of a convolution are the patches of its padded input, one a sample and position. Their
second moment has a block for every pair of kernel offsets, and blocks of equal displacement sum
nearly the same products: they differ at the rim only. :func:`patch_moment` sums every product once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDE, _MANY = 64, 32
"""Channels, strides folded in, and samples above which sharing products pays (measured on CPUs)."""


def pad(z: Tensor, module: Any) -> Tensor:
    """The input of a convolution with the module's padding around it."""
    sides: list[int] = []  # as F.pad wants them: last dimension first, left before right
    for i, (size, dilation) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        if module.padding == "same":
            total = dilation * (size - 1)
            left, right = total // 2, total - total // 2
        elif module.padding == "valid":
            left = right = 0
        else:
            left = right = module.padding[i]
        sides = [left, right, *sides]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(z, sides, mode=mode)


def spread(x: Tensor, dim: int, stride: int) -> Tensor:
    """Insert ``stride - 1`` zeros between neighbours along ``dim``."""
    if stride == 1:
        return x
    shape = list(x.shape)
    shape[dim] = (x.shape[dim] - 1) * stride + 1
    out = x.new_zeros(shape)
    out[(slice(None),) * dim + (slice(None, None, stride),)] = x
    return out


def patches(x: Tensor, kernel: Any, stride: Any, dilation: Any) -> Tensor:
    """A view (samples, channels, *positions, *kernel) of a padded input."""
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
    return x


def as_rows(windows: Tensor, groups: int) -> Tensor:
    """Patches as (groups, samples * positions, channels / groups * kernel)."""
    spatial = (windows.ndim - 2) // 2
    grouped: Tensor = windows.unflatten(1, (groups, -1))
    positions = list(range(3, 3 + spatial))
    kernel = list(range(3 + spatial, 3 + 2 * spatial))
    return grouped.permute(1, 0, *positions, 2, *kernel).flatten(1, 1 + spatial).flatten(2)


def shares_products(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether :func:`patch_moment` can be used, and is the cheaper way."""
    overlapping = False
    for size, step, gap in zip(kernel, stride, dilation, strict=True):
        if size % step or (step > 1 and gap > 1):
            return False
        overlapping = overlapping or size > step
    large = x.shape[1] * math.prod(stride) >= _WIDE and x.shape[0] >= _MANY
    return overlapping and large and groups == 1 and x.device.type == "cpu"


def patch_moment(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Sum over samples and positions of the outer product of a patch with itself.

    A stride is folded into the channels first: patches of size k and stride s are patches of size
    k / s and stride 1 of an input with s times the channels. Kernel sizes must be multiples of the
    strides, and where a dimension is dilated its stride must be 1.

    Args:
        x: padded input, (samples, channels, *space), float.
        kernel: sizes of the kernel, by dimension.
        stride: strides, by dimension.
        dilation: dilations, by dimension.

    Returns:
        (channels * kernel, channels * kernel), in the order of a flattened convolution weight.
    """
    spatial, channels = len(kernel), x.shape[1]
    sizes = [size // step for size, step in zip(kernel, stride, strict=True)]
    positions = [
        (length - gap * (size - 1) - 1) // step + 1
        for length, size, step, gap in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    grid = [p + gap * (n - 1) for p, n, gap in zip(positions, sizes, dilation, strict=True)]
    lines = _folded(x, grid, stride)
    width = lines.shape[-1]
    offsets = list(itertools.product(*(range(size) for size in sizes)))
    moment = x.new_empty(len(offsets), width, len(offsets), width)
    for shift in _displacements(sizes):
        pairs = [
            (offset, other)
            for offset in offsets
            if (other := tuple(o + d for o, d in zip(offset, shift, strict=True))) in offsets
        ]
        starts = [sorted({pair[0][i] * gap for pair in pairs}) for i, gap in enumerate(dilation)]
        steps = [d * gap for d, gap in zip(shift, dilation, strict=True)]
        cells = _cell_products(lines, starts, positions, steps)
        for offset, other in pairs:
            begin = [o * gap for o, gap in zip(offset, dilation, strict=True)]
            inside = [
                product
                for corner, product in cells
                if all(b <= c < b + p for c, b, p in zip(corner, begin, positions, strict=True))
            ]
            block = torch.stack(inside).sum(dim=0) if len(inside) > 1 else inside[0]
            i, j = offsets.index(offset), offsets.index(other)
            moment[i, :, j] = block
            moment[j, :, i] = block.T
    # (*sizes, *stride, channels) twice -> (channels, *(sizes, stride)) twice
    side = [*sizes, *stride, channels]
    order = [2 * spatial, *(i for d in range(spatial) for i in (d, spatial + d))]
    both = moment.reshape(*side, *side).permute(*order, *(len(side) + i for i in order))
    return both.reshape(width * len(offsets), width * len(offsets))


def _folded(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> Tensor:
    """(samples, channels, *space) as (*grid, samples, *stride * channels), contiguous."""
    spatial = len(grid)
    pads: list[int] = []
    for length, count, step in zip(x.shape[2:], grid, stride, strict=True):
        pads = [0, count * step - length, *pads]
    x = F.pad(x, pads)  # a negative pad crops what no patch covers
    for dim, step in enumerate(stride):
        x = x.unflatten(2 + 2 * dim, (-1, step))
    positions = [2 + 2 * d for d in range(spatial)]
    phases = [3 + 2 * d for d in range(spatial)]
    return x.permute(*positions, 0, *phases, 1).flatten(spatial + 1).contiguous()


def _displacements(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Differences of two kernel offsets, one of each pair of opposites."""
    for shift in itertools.product(*(range(1 - size, size) for size in sizes)):
        if shift >= (0,) * len(sizes):
            yield shift


def _cell_products(
    lines: Tensor,
    starts: Sequence[Sequence[int]],
    positions: Sequence[int],
    shift: Sequence[int],
) -> list[tuple[tuple[int, ...], Tensor]]:
    """Sums of u(p) u(p + shift)^T over cells of p, so that every window is a union of cells.

    Args:
        lines: u, (*grid, samples, width).
        starts: first positions of the windows, by dimension.
        positions: length of the windows, by dimension.
        shift: displacement, by dimension.

    Returns:
        The first corner of every cell, and its sum (width, width).
    """
    width = lines.shape[-1]
    axes = []
    for begins, length in zip(starts, positions, strict=True):
        cuts = sorted({cut for begin in begins for cut in (begin, begin + length)})
        axes.append(list(itertools.pairwise(cuts)))
    found = []
    for cell in itertools.product(*axes):
        product = lines.new_zeros(width, width)
        *outer, (low, high) = cell
        for point in itertools.product(*(range(a, b) for a, b in outer)):
            there = tuple(p + d for p, d in zip(point, shift, strict=False))
            left = lines[point][low:high].flatten(0, 1)
            right = lines[there][low + shift[-1] : high + shift[-1]].flatten(0, 1)
            product.addmm_(left.T, right)
        found.append((tuple(a for a, _ in cell), product))
    return found
