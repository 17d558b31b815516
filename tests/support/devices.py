"""Tests that need CUDA: their marks, their device, and what they compare with.

``SNOPT_TEST_DEVICE=cpu python -m pytest -m gpu`` runs most of them without one, to try the tests
themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

DEVICE = os.environ.get("SNOPT_TEST_DEVICE", "cuda")

HALVES = [torch.bfloat16, *([torch.float16] if DEVICE == "cuda" else [])]
"""Half precisions that the device computes in."""

ONLY_CUDA = pytest.mark.skipif(DEVICE != "cuda", reason="asks the CUDA runtime itself")


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers in one vector, float64 on the CPU."""
    return torch.cat([x.detach().cpu().double().reshape(-1) for x in tensors])


def same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Whether two vectors are apart by no more than a fraction of their length."""
    assert bool(found.isfinite().all())
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def devices(nest: object) -> set[str]:
    """The devices of all tensors with a dimension in a nest of mappings and sequences."""
    if isinstance(nest, Tensor):
        return {nest.device.type} if nest.ndim else set()
    parts = list(nest.values()) if isinstance(nest, dict) else nest
    return set().union(*map(devices, parts)) if isinstance(parts, list | tuple) else set()


def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 convolutions in float32: by default cuDNN rounds what it multiplies to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def weights(model: nn.Module) -> Tensor:
    """A model's parameters and buffers of real numbers."""
    return flat(x for x in model.state_dict().values() if x.is_floating_point())
