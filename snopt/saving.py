"""What a saved state is read with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def copied(value: Any, device: torch.device) -> Any:
    """A nest of mappings, lists and tuples, its tensors copied to a device."""
    if isinstance(value, Tensor):
        return value.to(device).clone()
    if isinstance(value, Mapping):
        return {key: copied(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(entry, device) for entry in value)
    return value
