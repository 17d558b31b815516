"""``optim=custom``: a class from outside the package, its arguments from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import train
from tasks.engine.optimizers.about import about, colour
from tasks.engine.optimizers.build import check_optimizer
from tasks.engine.records.runs import read_runs
from tests.support import console

TOY = """
import torch


class Toy(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1, *, rho: float = 0.0):
        super().__init__(params, lr=lr, momentum=rho)


class NoStep(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, {"lr": lr})


class NoOptimizer:
    def __init__(self, params, lr: float = 0.1):
        pass
"""


@pytest.fixture(autouse=True)
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_of_mine.py").write_text(TOY.lstrip())
    monkeypatch.syspath_prepend(tmp_path)


def read(*overrides: str) -> Settings:
    checked = composing.check_overrides(["task=digits", "optim=custom", *overrides])
    with composing.initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        return Settings.read(composing.plain(composing.compose("config", overrides=checked)))


@pytest.mark.parametrize("rho", ["optim.rho=0.9", "+optim.rho=0.9", "++optim.rho=0.9"])
def test_any_argument_of_its_class(rho: str) -> None:
    settings = read("optim._target_=toy_of_mine.Toy", rho, "optim.field_lr=0.01")
    optim = settings.config["optim"]
    check_optimizer(optim)
    assert (settings.names[2], optim["rho"], optim["lr"]) == ("toy", 0.9, 1e-3)
    assert read("optim._target_=toy_of_mine.Toy", "optim.name=mine").names[2] == "mine"


def test_what_is_known_of_it() -> None:
    optim = read("optim._target_=toy_of_mine.Toy", "optim.about.first_order=true").config["optim"]
    assert about("toy", optim).first_order
    assert about("toy", optim).search["lr"] == {"from": 1e-4, "to": 1.0}
    assert colour("toy", optim).startswith("#")


def test_it_steps_as_torch_does(tmp_path: Path) -> None:
    """SGD with momentum under another name, and its runs beside SGD's own."""
    common = ["train.max_steps=4", "train.max_epochs=null", "train.eval_valid_samples=8"]
    common += ["train.eval_splits=[valid]", "logger.progress=off", f"results.root={tmp_path}/r"]
    common += ["optim.lr=0.02", "device=cpu", "threads=1", "solver.steps=2", "solver.method=euler"]
    ends = []
    for optim in (
        ["optim._target_=toy_of_mine.Toy", "optim.rho=0.9"],
        ["optim._target_=torch.optim.SGD", "optim.momentum=0.9"],
    ):
        ends.append(train(read(*optim, *common))["final"])
    assert ends[0] == ends[1]
    assert {run.optim for run in read_runs(tmp_path / "r")[0]} == {"toy", "sgd"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"optim\._target_ is missing: .* optim\._target_=my_module\.MyClass"),
        (
            ["optim._target_=toy_of_mine.Toy", "optim.about.color=red"],
            r"optim\.about: has first_order, colour",
        ),
        (["optim._target_=no_such.Toy"], r"no_such.Toy: cannot be imported .*PYTHONPATH"),
        (["optim._target_=toy_of_mine.Tow"], r"toy_of_mine.Tow: cannot be imported"),
        (["optim._target_=toy_of_mine.NoStep"], r"its settings: NotImplementedError\. Given"),
        (["optim._target_=toy_of_mine.NoOptimizer"], r"NoOptimizer: not a torch\.optim\.Optimizer"),
        (
            ["optim._target_=toy_of_mine.Toy", "optim.rhoo=1"],
            r"optim\.rhoo: no such key\. Did you mean optim\.rho\? Keys of optim: .*lr.*rho",
        ),
    ],
)
def test_what_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_optimizer(read(*overrides).config["optim"])


def test_from_the_console(tmp_path: Path) -> None:
    asked = ["optim=custom", "optim._target_=toy_of_mine.Toy", "optim.rhoo=1"]
    answer = console.run(*console.ONE_STEP, *asked, f"results.root={tmp_path}/r")
    assert answer.code == 2
    assert "optim.rhoo: no such key. Did you mean optim.rho?" in answer.text
