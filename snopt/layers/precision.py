"""Products in the precision of their factors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, autocast rounds nothing; loops may have ``backward()`` and ``step()`` in its scope.

    Args:
        device: of the tensors.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
