"""Wide factors of ``basis="gradient"``, which are kept as blocks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import snopt.layers.base
from snopt import SNOpt
from snopt.layers.base import WIDEST, parts_of
from tests.support import reference

X = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snopt.layers.base, "WIDEST", 3)


def turned(moment: Tensor, sizes: list[int]) -> Tensor:
    """One step of orthogonal iteration on every block along the diagonal."""
    blocks, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        blocks.append(reference.turned(moment[part, part], None))
        start += size
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("width", [1, 2, WIDEST, WIDEST + 1, 3 * WIDEST, 3 * WIDEST + 2, 50_000])
def test_parts_are_few_and_equal(width: int) -> None:
    parts = parts_of(width)
    assert sum(parts) == width
    assert len(parts) == math.ceil(width / WIDEST)
    assert max(parts) <= WIDEST
    assert max(parts) - min(parts) <= 1


@pytest.mark.usefixtures("narrow")
def test_a_wide_linear_layer_has_the_bases_of_its_blocks() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double()
    optimizer = SNOpt(layer, 0.01, refresh_every=9, warmup_steps=0, cautious=False, weight_decay=0)
    mean, square = torch.zeros(5, 8).double(), torch.zeros(5, 8).double()
    bases: tuple[Tensor, ...] = ()
    for count in range(1, 4):
        optimizer.zero_grad()
        layer(X).tanh().square().sum().backward()
        grad = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        before = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)
        bases = bases or (turned(grad @ grad.T, [3, 2]), turned(grad.T @ grad, [3, 3, 2]))
        inside = bases[0].T @ grad @ bases[1]
        mean = 0.9 * mean + 0.1 * inside
        square = 0.95 * square + 0.05 * inside.square()
        step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.95**count)).sqrt() + 1e-8)
        optimizer.step()
        after = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)
        torch.testing.assert_close(after, before - 0.01 * bases[0] @ step @ bases[1].T)


@pytest.mark.usefixtures("narrow")
def test_a_wide_convolution_has_blocks_of_channels() -> None:
    conv = nn.Conv2d(4, 5, 2).double()
    optimizer = SNOpt(conv)
    conv(torch.randn(3, 4, 5, 5, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    a, b = optimizer.factors()[""]
    grad = conv.weight.grad
    assert grad is not None
    for block in (slice(0, 2), slice(2, 4)):
        part = grad[:, block]
        channels = torch.einsum("ock,odk->cd", part.flatten(2), part.flatten(2))
        positions = torch.einsum("ock,ocl->kl", part.flatten(2), part.flatten(2))
        want = torch.kron(channels, positions)
        places = slice(4 * block.start, 4 * block.stop)
        got = a[places, places]
        torch.testing.assert_close(got / got.trace(), want / want.trace())
    rows = torch.cat([grad.flatten(1), conv.bias.grad[:, None]], 1)
    want = torch.block_diag(rows[:3] @ rows[:3].T, rows[3:] @ rows[3:].T)
    torch.testing.assert_close(b / b.trace(), want / want.trace())
    assert not a[:8, 8:].any()


def trained(model: nn.Module, optimizer: SNOpt, steps: int) -> Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.usefixtures("narrow")
@pytest.mark.filterwarnings("ignore:.*none took part")
@pytest.mark.parametrize("rule", ["adam", "paper", "kfac"])
def test_a_wide_layer_goes_on_where_it_was_saved(rule: str) -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    settings = {"rule": rule, "basis": "gradient", "lr": 1e-3}
    optimizer = SNOpt(model, **settings)
    trained(model, optimizer, 3)
    again = copy.deepcopy(model)
    other = SNOpt(again, **settings)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(trained(model, optimizer, 3), trained(again, other, 3))


def as_saved_before(optimizer: SNOpt) -> dict[str, object]:
    """A state in the form of earlier versions, whose B was one matrix."""
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["preconditioner"]["layers"].values():
        for name, place in (("factors", 1), ("basis", 3), ("averages", 0)):
            parts = list(entry[name])
            ((parts[place],),) = parts[place]
            entry[name] = tuple(parts)
    return state


def test_states_of_earlier_versions_are_read() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    optimizer = SNOpt(model)
    trained(model, optimizer, 3)
    again = copy.deepcopy(model)
    other = SNOpt(again)
    other.load_state_dict(as_saved_before(optimizer))
    assert torch.equal(trained(model, optimizer, 3), trained(again, other, 3))


def test_what_an_earlier_version_kept_whole_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(7, WIDEST + 1).double()
    with monkeypatch.context() as patch:
        patch.setattr(snopt.layers.base, "WIDEST", WIDEST + 1)
        optimizer = SNOpt(model)
        trained(model, optimizer, 1)
    other = SNOpt(copy.deepcopy(model))
    other.load_state_dict(as_saved_before(optimizer))
    assert other.factors() == {}
    trained(model, other, 1)
