"""A step's own length is told from what somebody wrote to the parameters after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snopt.optim.displacement import length_since, written_since


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_leads_further_than_the_step_was_written(dtype: torch.dtype) -> None:
    p, q = (nn.Parameter(torch.full(size, 5.0, dtype=dtype)) for size in ((3, 2), (10,)))
    before = {x: x.detach().clone() for x in (p, q)}
    with torch.no_grad():
        p += 3.0
        q -= 1.0
    length = length_since(before)
    assert length == pytest.approx((6 * 9 + 10) ** 0.5)
    assert not written_since(before, length)
    with torch.no_grad():
        q -= 5.0
    assert written_since(before, length)


def test_rounding_is_no_writing() -> None:
    """A step below the parameters' last digit comes out longer or shorter than it was meant."""
    p = nn.Parameter(torch.full((4,), 100.0))
    before = {p: p.detach().clone()}
    with torch.no_grad():
        p += 6e-6
    assert length_since(before) > 1.2e-5
    assert not written_since(before, 1.2e-5)
