"""One root seed, named streams: what one part draws never shifts what another part sees."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Stream = Literal["data", "init", "order", "noise"]


def stream_seed(seed: int, name: Stream) -> int:
    """A 63-bit seed for one named stream, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, name: Stream, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named stream.

    Args:
        seed: the run's root seed.
        name: ``data`` (splits, synthetic data), ``init`` (weights), ``order`` (batches) or
            ``noise`` (divergence estimates, dropout).
        device: where the numbers are drawn.
    """
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name))
