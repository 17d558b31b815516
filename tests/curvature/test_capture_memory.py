"""Memory of a refresh step: it grows neither with solver steps nor with sampled times."""

from __future__ import annotations

import pytest
import torch

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.peak import Peak


@pytest.mark.parametrize("kind", ["adjoint", "adjoint-seminorm"])
def test_memory_of_a_refresh_does_not_grow_with_steps(kind: str) -> None:
    peaks = []
    x, y = torch.randn(64, 3).double(), torch.randn(64, 3).double()
    for steps in (10, 60):
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
    for points in (10, 60):
        block = ODEBlock(problems.field(width=16), method="rk4", options={"step_size": 0.1})
        optimizer = SNOpt(block, rule="paper", lr=0.0, sampling="grid", grid_points=points)
        with Peak() as peak:
            problems.squares(y)(block(x)).backward()
            optimizer.step()
        peaks.append(peak.peak)
    assert max(peaks) < 1.1 * min(peaks)
