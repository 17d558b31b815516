"""Layer kinds: rows whose outer products are autograd's gradient, for every shape (Hypothesis)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snopt.layers.kinds import KINDS, layer_of

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "reflect", "replicate", "circular")


def check(module: nn.Module, x: Tensor) -> None:
    """The layer's gradient is the sum of its rows' outer products, and reads both ways."""
    module = module.double()
    layer = layer_of("m", module)
    assert layer is not None
    y = module(x)
    g = torch.randn_like(y)
    y.backward(g)
    gradient = layer.gradient()
    assert gradient is not None
    assert gradient.shape == layer.shape
    assert [sum(map(math.prod, side)) for side in layer.factor_sizes] == [*layer.shape[1:]]
    batched, cotangents = (x[None], g[None]) if layer.unbatched(x) else (x, g)
    rows = layer.input_rows(batched)
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
    outer = layer.cotangent_rows(cotangents)
    torch.testing.assert_close(outer.mT @ rows, gradient, rtol=1e-9, atol=1e-9)

    a, b, count, used = layer.moments(x, g, None)
    torch.testing.assert_close(a, rows.mT @ rows, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b, outer.mT @ outer, rtol=1e-9, atol=1e-9)
    assert count == rows.shape[1] == outer.shape[1]
    assert used == len(batched)
    for p, piece in layer.split(gradient):
        assert torch.equal(piece, p.grad)

    half = layer.moments(x, g, 1)
    first = layer.moments(batched[:1], cotangents[:1], None)
    for got, want in zip(half, first, strict=True):
        torch.testing.assert_close(got, want)


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    inner=st.integers(1, 5),
    outer=st.integers(1, 5),
    bias=st.booleans(),
)
def test_linear(lead: list[int], inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(0)
    check(nn.Linear(inner, outer, bias=bias), torch.randn(*lead, inner, dtype=torch.float64))


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool) -> tuple[nn.Module, Tensor]:
    dim = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dim))

    groups = draw(st.sampled_from([1, 2, 3]))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    size = each(4, 6 if dim < 3 else 5)
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    settings: dict[str, Any] = {
        "stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans()),
    }  # fmt: skip
    if transposed:
        settings["padding"] = each(0, 2)
        settings["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        ends = [
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                size, stride, settings["padding"], dilation, kernel, settings["output_padding"],
                strict=True,
            )
        ]  # fmt: skip
        assume(min(ends) >= 1)
        module = TRANSPOSES[dim - 1](into, out, kernel, **settings)
    else:
        settings["padding_mode"] = draw(st.sampled_from(MODES))
        settings["padding"] = draw(st.sampled_from(["valid", "same", "numbers"]))
        if settings["padding"] == "same":
            settings["stride"] = (1,) * dim
        if settings["padding"] == "numbers":
            settings["padding"] = each(0, 2)
        module = CONVS[dim - 1](into, out, kernel, **settings)
    samples = draw(st.lists(st.integers(1, 3), max_size=1))
    torch.manual_seed(draw(st.integers(0, 99)))
    return module, torch.randn(*samples, into, *size, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own
@settings(max_examples=120, deadline=None)
@given(case=convolutions(transposed=False))
def test_convolution(case: tuple[nn.Module, Tensor]) -> None:
    module, x = case
    spatial = x.shape[-(module.weight.ndim - 2) :]
    # The field of view must fit into what padding leaves; torch refuses otherwise.
    for n, k, d, p in zip(
        spatial,
        module.kernel_size,
        module.dilation,
        [9] * 3 if module.padding == "same" else
        [0] * 3 if module.padding == "valid" else module.padding,
        strict=False,
    ):  # fmt: skip
        assume(n + 2 * p >= d * (k - 1) + 1)
    check(module, x)


@settings(max_examples=100, deadline=None)
@given(case=convolutions(transposed=True))
def test_transposed_convolution(case: tuple[nn.Module, Tensor]) -> None:
    check(*case)


def test_large_inputs_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patches of a batch need not exist at once; the moments are the same."""
    layer = layer_of("m", nn.Conv2d(3, 4, 3).double())
    x, g = torch.randn(7, 3, 6, 6).double(), torch.randn(7, 4, 4, 4).double()
    whole = layer.moments(x, g, None)
    monkeypatch.setattr("snopt.layers.base._PATCH_ELEMENTS", 1000)
    for got, want in zip(layer.moments(x, g, None), whole, strict=True):
        torch.testing.assert_close(got, want)


class Louder(nn.Linear):
    """A subclass with a forward of its own that still calls the parent's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Louder(2, 3), "LinearLayer"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 3), "LinearLayer"),
        (type("MyConv", (nn.Conv2d,), {})(2, 3, 3), "ConvLayer"),
        (nn.ConvTranspose2d(2, 3, 3), "ConvTransposeLayer"),
    ],
)
def test_subclasses_are_handled(module: nn.Module, kind: str) -> None:
    assert type(layer_of("m", module)).__name__ == kind


def test_what_no_kind_handles() -> None:
    assert layer_of("m", nn.Bilinear(2, 3, 4)) is None
    assert layer_of("m", nn.LayerNorm(3)) is None
    assert layer_of("m", nn.Embedding(3, 2)) is None
    assert not layer_of("m", nn.Linear(2, 2).requires_grad_(False)).trains
    assert layer_of("m", nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) is None


def test_frozen_bias_is_left_out() -> None:
    module = nn.Linear(2, 3)
    module.bias.requires_grad_(False)
    layer = layer_of("m", module)
    assert layer.shape == (1, 3, 2)
    assert [id(p) for p in layer.parameters] == [id(module.weight)]


def test_no_gradient_yet() -> None:
    layer = layer_of("m", nn.Linear(2, 3))
    assert layer.gradient() is None
    layer.weight.grad = torch.ones(3, 2)
    assert torch.equal(layer.gradient()[0, :, 2], torch.zeros(3))  # the bias has none


def test_a_new_kind_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose weight is stored transposed, added from outside."""
    from snopt.layers.linear import LinearLayer

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class TransposedLayer(LinearLayer):
        def matrix(self, weight: Tensor) -> Tensor:
            return weight.mT.unsqueeze(0)

        def weight_of(self, matrix: Tensor) -> Tensor:
            return matrix.squeeze(0).mT

    monkeypatch.setitem(KINDS, Transposed, TransposedLayer)
    check(Transposed(), torch.randn(5, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(48, 4, 4, stride=2, padding=1), (3, 48, 6, 6)),
        (nn.Conv1d(64, 4, 5, groups=2, bias=False), (2, 64, 9)),
        (nn.Linear(131, 2), (5, 131)),
    ],
)
def test_wide_moments_are_whole_though_summed_by_strips(module, shape):
    layer = layer_of("m", module.double())
    z = torch.randn(shape, dtype=torch.float64)
    moment, *_ = layer.moments(z, torch.randn_like(module(z)), None)
    rows = layer.input_rows(z)
    if layer.bias is not None:
        rows = nn.functional.pad(rows, (0, 1), value=1.0)
    torch.testing.assert_close(moment, rows.mT @ rows, rtol=1e-12, atol=1e-12)


PASSES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 2), (4, 3)),
    "no bias": (nn.Linear(3, 2, bias=False), (4, 3)),
    "locations": (nn.Linear(3, 2), (4, 5, 3)),
    "groups": (nn.Conv2d(4, 6, 2, groups=2), (4, 4, 3, 3)),
    "transposed": (nn.ConvTranspose1d(2, 3, 2, stride=2), (4, 2, 3)),
}


@pytest.mark.parametrize("kind", PASSES)
def test_several_passes_give_a_sample_the_products_of_each(kind: str) -> None:
    module, shape = PASSES[kind]
    layer = layer_of("m", module.double())
    assert layer is not None
    torch.manual_seed(0)
    uses = []
    for _ in range(3):
        z = torch.randn(shape, dtype=torch.float64)
        y = module(z).detach()
        uses.append((z, torch.randn(len(z), 2, *y.shape[1:], dtype=torch.float64)))
    sums = layer.per_sample_outer_products(uses[1:], layer.per_sample_outer_products(uses[:1]))
    found = layer.per_sample_gradients(sums).unflatten(0, (-1, 2))
    for k in range(2):
        alone = layer.per_sample_outer_products([(z, g[:, k]) for z, g in uses])
        torch.testing.assert_close(found[:, k], layer.per_sample_gradients(alone))


def test_an_output_size_of_the_call_is_refused() -> None:
    """Patches follow the module's own padding, and would belong to other outputs."""
    module = nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False)
    layer = layer_of("up", module)
    assert layer is not None
    x = torch.randn(4, 2, 3, 3)
    layer.moments(x, torch.randn_like(module(x)), None)
    larger = module(x, output_size=(7, 7))
    with pytest.raises(ValueError, match=r"'up' has 196 outputs for 144 patches.*output_padding"):
        layer.moments(x, torch.randn_like(larger), None)
