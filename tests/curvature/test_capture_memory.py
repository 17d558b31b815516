"""Memory of a refresh step: it grows neither with solver steps nor with sampled times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snopt import ODEBlock, SNOpt
from tests.support import problems


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of elements in tensors alive at once, counted by storage."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        return out

    def _track(self, tensor: Tensor) -> None:
        import weakref

        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or not storage.nbytes():
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
def test_memory_of_a_refresh_does_not_grow_with_steps(kind: str) -> None:
    peaks = []
    x, y = torch.randn(64, 3).double(), torch.randn(64, 3).double()
    for steps in (10, 40, 160):
        field = problems.field(width=16)
        block = ODEBlock(field, method="rk4", gradient=kind, options={"step_size": 1 / steps})
        optimizer = SNOpt(block, rule="paper", lr=0.0)
        with Peak() as peak:
            problems.squares(y)(block(x)).backward()
            optimizer.step()
        peaks.append(peak.peak)
    assert max(peaks) < 1.1 * min(peaks)


def test_memory_of_a_refresh_does_not_grow_with_samples_in_time() -> None:
    peaks = []
    x, y = torch.randn(64, 3).double(), torch.randn(64, 3).double()
    for points in (10, 40, 160):
        block = ODEBlock(problems.field(width=16), method="rk4", options={"step_size": 0.1})
        optimizer = SNOpt(block, rule="paper", lr=0.0, sampling="grid", grid_points=points)
        with Peak() as peak:
            problems.squares(y)(block(x)).backward()
            optimizer.step()
        peaks.append(peak.peak)
    assert max(peaks) < 1.1 * min(peaks)
