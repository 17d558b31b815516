"""Whether tensors hold numbers now, or stand for them: export and function transforms."""

from __future__ import annotations

import torch
from torch._C import _functorch

_KNOWN = getattr(torch.compiler, "is_exporting", None)
"""Came with torch 2.7."""


def exporting() -> bool:
    """Whether :func:`torch.export.export` traces."""
    if _KNOWN is not None:
        return bool(_KNOWN())
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jacrev) is at work."""
    return _functorch.maybe_current_level() is not None


def numbers_are_hidden() -> bool:
    """Whether no branch may depend on a tensor's values."""
    return torch.compiler.is_compiling() or exporting() or transformed()
