"""A layer seen as a matrix: what every kind has in common.

A kind says how a layer's input and output cotangent turn into rows, so that the layer's gradient
is the sum of outer products of cotangent rows and input rows, and how that gradient reads as a
matrix: the weight-sharing format of K-FAC-expand (Eschenhagen et al. 2023).

Matrices have a leading dimension of groups (1 for all but grouped convolutions): gradients are
(groups, out, in), second moments (groups, d, d). A bias is the last column of ``in``.

Source: Martens and Grosse 2015.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snopt.layers.precision import without_autocast

_PATCH_ELEMENTS = 1 << 24
"""Patches are formed for as many samples at a time as fit into this many numbers."""


_STRIP = 128
"""Columns below which a product is not worth splitting."""


WIDEST = 512
"""Factors that ``basis="gradient"`` keeps whole: work grows with the third power of the width."""

Sizes = tuple[tuple[int, ...], ...]
"""Of the matrices in a direct sum of Kronecker products."""

Products = list[Tensor]
"""Sums of outer products, (groups * samples, out, in), and of a bias' cotangents, (.., out)."""


def parts_of(width: int) -> list[int]:
    """As few parts as can be that are at most :data:`WIDEST` wide, as equal as can be."""
    count = max(1, -(-width // WIDEST))
    size, more = divmod(width, count)
    return [size + (i < more) for i in range(count)]


class Layer(ABC):
    """One module with a weight and perhaps a bias, seen as a matrix.

    Args:
        name: the module's name in the model.
        module: the module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.weight: nn.Parameter = module.weight  # type: ignore[assignment]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, if there is one and it is not frozen."""
        bias = self.module._parameters.get("bias")
        return bias if bias is not None and bias.requires_grad else None

    @property
    def trains(self) -> bool:
        """Whether the weight is not frozen; the curvature of a frozen layer is not measured."""
        return self.weight.requires_grad

    @property
    def groups(self) -> int:
        """Blocks of the weight that do not mix."""
        return int(getattr(self.module, "groups", 1))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, and the bias if there is one."""
        bias = self.bias
        return [self.weight] if bias is None else [self.weight, bias]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, out, in) of the gradient matrix, the bias column counted."""
        matrix = self.matrix(self.weight.detach())
        return matrix.shape[0], matrix.shape[1], matrix.shape[2] + (self.bias is not None)

    @property
    def factor_sizes(self) -> tuple[Sizes, Sizes]:
        """How ``basis="gradient"`` splits ``out`` and ``in``: terms that are products of sizes."""
        _, out, width = self.shape
        return tuple((n,) for n in parts_of(out)), self.input_factor_sizes(width)

    def input_factor_sizes(self, width: int) -> Sizes:
        """How it splits ``in``, which is ``width`` wide."""
        return tuple((n,) for n in parts_of(width))

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """A weight-shaped tensor as (groups, out, in)."""

    @abstractmethod
    def weight_of(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`."""

    @abstractmethod
    def input_rows(self, z: Tensor) -> Tensor:
        """Inputs as rows, (groups, rows, in) without the bias."""

    @abstractmethod
    def cotangent_rows(self, g: Tensor) -> Tensor:
        """Output cotangents as rows, (groups, rows, out), in the order of the input rows."""

    @abstractmethod
    def unbatched(self, z: Tensor) -> bool:
        """Whether an input lacks the sample dimension."""

    def gradient(self) -> Tensor | None:
        """The gradient as (groups, out, in), bias last; ``None`` before the first backward pass."""
        if self.weight.grad is None:
            return None
        return self.joined(self.weight.grad, None if self.bias is None else self.bias.grad)

    def value(self) -> Tensor:
        """The parameters, shaped like :meth:`gradient`."""
        return self.joined(self.weight.detach(), None if self.bias is None else self.bias.detach())

    def joined(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Tensors shaped like the parameters as one like :meth:`gradient`; ``None`` for zeros."""
        matrix = self.matrix(weight)
        if self.bias is None:
            return matrix
        bias = torch.zeros_like(self.bias) if bias is None else bias
        return torch.cat([matrix, bias.reshape(matrix.shape[0], -1, 1)], dim=2)

    def split(self, matrix: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """A matrix shaped like :meth:`gradient` as tensors shaped like the parameters."""
        if self.bias is None:
            return [(self.weight, self.weight_of(matrix))]
        return [
            (self.weight, self.weight_of(matrix[:, :, :-1])),
            (self.bias, matrix[:, :, -1].reshape(self.bias.shape)),
        ]

    def moments(
        self,
        z: Tensor,
        g: Tensor,
        samples: int | None,
        with_inputs: bool = True,
        weights: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor, int, int]:
        """Sums of outer products over the rows of the first ``samples`` samples.

        Args:
            z: the layer's input.
            g: the cotangent of its output.
            samples: how many samples to use; all by default.
            with_inputs: whether the input side is wanted.
            weights: of the samples, (N,), where they differ.

        Returns:
            The input moment (groups, in, in) or ``None``, the cotangent moment (groups, out, out),
            the rows used and the samples used.
        """
        if self.unbatched(z):
            z, g = z.unsqueeze(0), g.unsqueeze(0)
        used = z.shape[0] if samples is None else min(samples, z.shape[0])
        z, g = z.detach()[:used], g.detach()[:used]
        dtype = torch.promote_types(torch.float32, self.weight.dtype)
        cotangents = self.cotangent_rows(g).to(dtype)
        rows = cotangents.shape[1]
        with without_autocast(z.device):
            if weights is None:
                inputs = self.input_moment(z, dtype, rows) if with_inputs else None
            else:
                roots = weights[:used].to(dtype).sqrt().repeat_interleave(rows // used)[:, None]
                cotangents = cotangents * roots
                inputs = self._weighted_input_moment(z, roots) if with_inputs else None
            return inputs, cotangents.mT @ cotangents, rows, used

    def per_sample_outer_products(
        self, uses: Sequence[tuple[Tensor, Tensor]], onto: Products | None = None
    ) -> Products:
        """Each sample's sums of outer products over its rows: its share of the gradient.

        Args:
            uses: inputs (N, ...) and output cotangents of the same samples, all of one shape;
                cotangents of several backward passes are (N, passes, ...).
            onto: earlier sums, which these are added to in place.

        Returns:
            What :meth:`per_sample_gradients` reads; every pass of a sample counts as a sample.
        """
        inputs, cotangents = zip(*uses, strict=True)
        x = self._by_sample(inputs, self.input_rows)
        leading = 1 + cotangents[0].ndim - inputs[0].ndim
        c = self._by_sample(cotangents, self.cotangent_rows, leading)
        sums = [] if self.bias is None else [c.sum(dim=1)]
        shape = (len(c), c.shape[2], x.shape[2])
        # A sample's passes stand side by side, so that one product has them all.
        passes = cotangents[0].shape[1:leading].numel()
        c = _split(c, 0, (len(x), passes)).transpose(1, 2).flatten(2)
        if onto is None:
            with without_autocast(x.device):
                return [(c.mT @ x).view(shape), *sums]
        onto[0].view(len(x), c.shape[2], x.shape[2]).baddbmm_(c.mT, x)
        for old, new in zip(onto[1:], sums, strict=True):
            old.add_(new)
        return onto

    def per_sample_gradients(self, products: Products) -> Tensor:
        """Each sample's share of the gradient: (samples, groups, out, in), a bias last."""
        found, *bias = (_split(sums, 0, (self.groups, -1)) for sums in products)
        if bias:
            found = torch.cat([found, bias[0].unsqueeze(3)], dim=3)
        return found.transpose(0, 1)

    def _by_sample(
        self, uses: Sequence[Tensor], rows: Callable[[Tensor], Tensor], leading: int = 1
    ) -> Tensor:
        """Rows of several uses, sample by sample: (groups * samples, rows, d).

        ``leading`` dimensions of a use are those of samples, and of passes.
        """
        dtype = torch.promote_types(torch.float32, self.weight.dtype)
        samples = uses[0].shape[:leading].numel()
        stacked = torch.stack(list(uses)) if len(uses) > 1 else uses[0].unsqueeze(0)
        merged = rows(stacked.flatten(0, leading))
        split = _split(merged.to(dtype), 1, (len(uses), samples, -1))
        # With one row for each sample and use nothing is copied: the product takes the strides.
        return split.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def input_moment(self, z: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
        """Sum of outer products of the input rows, bias included: (groups, in, in).

        Raises:
            ValueError: there are not as many rows as cotangents have.
        """
        groups, _, width = self.shape
        moment = torch.zeros(groups, width, width, dtype=dtype, device=z.device)
        numbers = max(1, rows // max(1, z.shape[0])) * width * groups
        seen = 0
        for part in z.split(max(1, _PATCH_ELEMENTS // numbers)):
            x = self.input_rows(part).to(dtype)
            seen += x.shape[1]
            if self.bias is not None:
                x = F.pad(x, (0, 1), value=1.0)
            _add_upper(moment, x)
        if seen != rows:
            raise ValueError(
                f"layer {self.name!r} has {rows} outputs for {seen} patches of its input, as with "
                "output_size=...: give the layer output_padding instead, or choose basis='gradient'"
            )
        return moment.triu() + moment.triu(1).mT

    def _weighted_input_moment(self, z: Tensor, roots: Tensor) -> Tensor:
        """:meth:`input_moment` of rows times ``roots``, (rows, 1)."""
        x = self.input_rows(z).to(roots.dtype)
        if self.bias is not None:
            x = F.pad(x, (0, 1), value=1.0)
        x = x * roots
        return x.mT @ x


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """A layer's input, given by its place or by its name."""
    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    return given


def _split(matrix: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    found: Tensor = matrix.unflatten(dim, sizes)
    return found


def _add_upper(moment: Tensor, x: Tensor) -> None:
    """Add x^T x to the upper triangle; what lies below is left undefined.

    A wide product is done by strips of columns, so that most of the lower half is never computed.
    """
    width = x.shape[2]
    strip = max(_STRIP, -(-width // 4))
    for start in range(0, width, strip):
        end = min(start + strip, width)
        moment[:, start:end, start:].baddbmm_(x[:, :, start:end].mT, x[:, :, start:])
