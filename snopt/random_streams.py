"""Torch's random streams as a diagnostic leaves them: as they were."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def random_streams_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, a module may draw random numbers that training afterwards draws again.

    Args:
        module: on whose devices; the CPU is always among them.
    """
    devices = {p.device for p in module.parameters() if p.is_cuda}
    kept: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return kept
