"""The second moment of convolution patches, without patches, is that of the patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snopt.layers import patches
from snopt.layers.kinds import layer_of


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dims=st.integers(1, 3), channels=st.integers(1, 3), batch=st.integers(1, 3))
def test_moment_is_that_of_the_rows(
    data: st.DataObject, dims: int, channels: int, batch: int
) -> None:
    kernel, stride, dilation, space = [], [], [], []
    for _ in range(dims):
        step = data.draw(st.integers(1, 3 if dims < 3 else 2))
        gap = data.draw(st.integers(1, 3)) if step == 1 else 1
        size = step * data.draw(st.integers(1, 3 if dims < 3 else 2))
        extra = data.draw(st.integers(0, 5 if dims < 3 else 3))
        for values, value in zip(
            (kernel, stride, dilation, space),
            (size, step, gap, gap * (size - 1) + 1 + extra),
            strict=True,
        ):
            values.append(value)
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *space, dtype=torch.float64)
    rows = patches.as_rows(patches.patches(x, kernel, stride, dilation), 1)[0]
    found = patches.patch_moment(x, kernel, stride, dilation)
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "shared"),
    [(3, 1, 1, True), (4, 2, 1, True), (3, 1, 2, True), (3, 2, 1, False), (1, 1, 1, False)],
)
def test_a_layer_takes_the_cheaper_way(
    monkeypatch: pytest.MonkeyPatch,
    bias: bool,
    kernel: int,
    stride: int,
    dilation: int,
    shared: bool,
) -> None:
    taken = []
    moment = patches.patch_moment

    def watched(*args: object) -> torch.Tensor:
        taken.append(True)
        return moment(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("snopt.layers.convolution.patch_moment", watched)
    torch.manual_seed(0)
    module = nn.Conv2d(
        64, 3, kernel, stride, padding=1, dilation=dilation, padding_mode="reflect", bias=bias
    ).double()
    layer = layer_of("m", module)
    assert layer is not None
    x = torch.randn(32, 64, 7, 6, dtype=torch.float64)
    a, _, count, _ = layer.moments(x, torch.randn_like(module(x)), None)
    rows = layer.input_rows(x)
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=2)
    assert count == rows.shape[1]
    torch.testing.assert_close(a, rows.mT @ rows, rtol=1e-10, atol=1e-10)
    assert bool(taken) == shared
