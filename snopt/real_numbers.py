"""Parameters as rows of real numbers: complex ones as pairs, sparse gradients filled up."""

from __future__ import annotations

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which is how torch's optimizers take them."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def as_complex(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`as_real`, for a tensor that is to be real or complex as ``like``."""
    return torch.complex(*x.unbind(-1)) if like.is_complex() else x


def count(p: Tensor) -> int:
    """How many real numbers a parameter has."""
    return 2 * p.numel() if p.is_complex() else p.numel()


def flattened(x: Tensor, leading: int = 0) -> Tensor:
    """Real numbers of a parameter or its gradient, one behind the other, without a graph.

    Args:
        x: the tensor, or several of them stacked.
        leading: dimensions of the stack, which stay.
    """
    return as_real(x.detach().to_dense()).reshape(*x.shape[:leading], -1)


def shaped(row: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`flattened`: a tensor of the parameter's shape and dtype."""
    return as_complex(row.view(as_real(like).shape), like).to(like.dtype)
