"""Weight decay: the default's, and of which entries it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

import snopt
from snopt import SNOpt
from snopt.optim.judging import as_real
from snopt.optim.rules import RULES, Adam

CONF = Path(__file__).resolve().parents[2] / "conf/optim/snopt.yaml"


class Net(nn.Module):
    """Layers, a norm, and complex numbers without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
        self.double()
        self.gain = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.gain).abs().square().sum()


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def numbers(model: nn.Module) -> Tensor:
    return torch.cat([as_real(p.detach()).flatten() for p in model.parameters()]).clone()


def stepped(model: nn.Module, loss: Callable[[], Tensor], optimizer: Optimizer) -> Tensor:
    """The numbers of a model before a step, and after it."""
    before = numbers(model)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    return torch.stack([before, numbers(model)])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(({"rule": rule}, 0.1 if rule == "adam" else 0.0) for rule in RULES),
        ({"rule": Adam()}, 0.1),
        ({"rule": Adam(), "weight_decay": 0.3}, 0.3),
        ({"weight_decay": 0}, 0),
        ({"weight_decay": None}, 0.1),
        ({"rule": "paper", "weight_decay": 0.2}, 0.2),
    ],
    ids=str,
)
def test_the_default_is_the_rules_own(settings: dict[str, Any], expected: float) -> None:
    groups = SNOpt(net(), **settings).param_groups
    assert [group["weight_decay"] for group in groups] == [expected]


def test_other_names_have_none() -> None:
    for named in (snopt.GaussNewton, snopt.KFAC):
        assert named(net()).param_groups[0]["weight_decay"] == 0


def test_the_suites_file_has_the_librarys_default() -> None:
    assert OmegaConf.load(CONF).weight_decay == Adam.weight_decay


def test_a_group_may_have_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SNOpt([{"params": model[0], "weight_decay": 0.0}, {"params": model[1]}])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]


def test_only_entries_decay_that_their_step_makes_smaller() -> None:
    model, twin = net(), net()
    x = torch.randn(8, 4, dtype=torch.float64)
    plain = SNOpt(model, 0.05, warmup_steps=0, weight_decay=0.0)
    before, after = stepped(model, lambda: model(x), plain)
    inwards = (before - after) * before > 0
    assert 0.2 < inwards.double().mean() < 0.8
    _, decayed = stepped(twin, lambda: twin(x), SNOpt(twin, 0.05, warmup_steps=0, weight_decay=0.2))
    expected = after - 0.05 * 0.2 * before * inwards
    torch.testing.assert_close(decayed, expected, rtol=1e-12, atol=1e-14)


def test_without_caution_every_entry_decays() -> None:
    """As torch's AdamW has it, where there is no layer."""
    ours, theirs = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
    optimizer = SNOpt(ours, 0.1, warmup_steps=0, cautious=False)
    other = torch.optim.AdamW(theirs.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.1)
    x = torch.randn(6, 4, dtype=torch.float64)
    for _ in range(5):
        stepped(ours, lambda: (ours(x) - 1).square().sum(), optimizer)
        stepped(theirs, lambda: (theirs(x) - 1).square().sum(), other)
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-9, atol=1e-12)


def test_a_run_saved_without_decay_goes_on_without() -> None:
    """What was saved when the default had none says so itself."""
    model = net()
    saved = SNOpt(model, weight_decay=0.0).state_dict()
    optimizer = SNOpt(model)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
