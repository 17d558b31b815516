"""One file to add a thing: all of them from outside the package, through ``run.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tests.support import console

ROOT = Path(__file__).parents[2]

FILES = {
    "my_solver.py": """
from snopt.ode.runge_kutta import TABLEAUS, Tableau

TABLEAUS["ralston"] = Tableau((0.0, 2 / 3), ((2 / 3,),), (1 / 4, 3 / 4))
""",
    "my_gradient.py": """
from snopt.ode.gradients import GRADIENTS, Gradient, direct

GRADIENTS["mine"] = Gradient(direct.solved, through_layers=True, through_solver=True)
""",
    "my_kind.py": """
import torch
from torch import nn

from snopt.layers.kinds import KINDS
from snopt.layers.linear import LinearLayer


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return x @ self.weight


class TransposedLayer(LinearLayer):
    def matrix(self, weight):
        return weight.mT.unsqueeze(0)

    def weight_of(self, matrix):
        return matrix.squeeze(0).mT


KINDS[Transposed] = TransposedLayer
""",
    # Moves the layers of a kind that is known, and no other parameter.
    "my_rule.py": """
from dataclasses import dataclass
from typing import ClassVar

from snopt.optim.rules import RULES, EigenbasisRule
from snopt.optim.settings import POSITIVE, setting


@dataclass(frozen=True, kw_only=True)
class Scaled(EigenbasisRule):
    name: ClassVar[str] = "scaled"
    keeps: ClassVar[frozenset[str]] = frozenset()

    factor: float = setting(2.0, POSITIVE, group=True)

    def refresh(self, state, old, new):
        pass

    def direction(self, state, grad, basis, settings, samples):
        return grad * settings["factor"]

    def fallback(self, state, grad, settings):
        return 0 * grad


RULES["scaled"] = Scaled
""",
    "my_optimizer.py": """
import torch


class Plain(torch.optim.SGD):
    pass
""",
    "my_task.py": """
import torch
from torch import nn

from my_kind import Transposed
from snopt import ODEBlock
from tasks.task import Splits, Task


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Transposed()

    def forward(self, t, x):
        return self.layer(torch.cat([x, -x[:, :1]], dim=1))


class Line(Task):
    name, metric, higher_is_better, provenance = "line", "loss", False, "synthetic"

    def __init__(self, *, batch_size: int = 8):
        self.batch_size = self.eval_batch_size = batch_size

    def load(self, root, seed, device, dtype):
        x = torch.linspace(-1, 1, 32, device=device, dtype=dtype).reshape(16, 2)
        return Splits((x, -x), (x, -x), (x, -x))

    def build_model(self, family, solver):
        return ODEBlock(Field(), **solver)

    def forward(self, model, batch, noise):
        return model(batch[0])

    def loss(self, outputs, batch):
        return self.measure(outputs, batch)["loss"].mean()

    def measure(self, outputs, batch):
        return {"loss": (outputs - batch[1]).square().sum(1)}
""",
    "task/line.yaml": """
# @package _global_
task:
  name: line
  _target_: my_task.Line
  batch_size: 8
solver:
  steps: 4
train:
  max_epochs: 2
""",
    "optim/scaled.yaml": """
name: scaled
_target_: snopt.SNOpt
lr: 0.02
rule: scaled
factor: 3.0
""",
    "optim/plain.yaml": """
name: plain
_target_: my_optimizer.Plain
lr: 0.06
""",
}


def command_line(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "run.py", *arguments, "task=line", "dtype=float64"]
    return subprocess.run(
        [*command, "device=cpu", "threads=1", "results.root=results", "logger.progress=off"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def final(folder: Path, optim: str) -> float:
    (path,) = (folder / "results" / "line" / "node" / optim).glob("*/run.json")
    summary = json.loads(path.read_text())
    assert (summary["outcome"], summary["steps"]) == ("completed", 4)
    return summary["final"]["test"]["loss"]


def test_all_from_outside(tmp_path: Path) -> None:
    """A linear field, where methods of two stages and order two agree, as do scaled rates."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    answer = command_line(
        tmp_path,
        f"--config-dir={tmp_path}",
        "imports=[my_solver,my_gradient,my_kind,my_rule]",
        "solver.method=ralston",
        "solver.gradient=mine",
        "optim=scaled",
    )
    assert answer.returncode == 0, answer.stderr
    answer = command_line(
        tmp_path,
        f"hydra.searchpath=[file://{tmp_path}]",
        "solver.method=midpoint",
        "solver.gradient=direct",
        "optim=plain",
    )
    assert answer.returncode == 0, answer.stderr
    assert final(tmp_path, "scaled") == pytest.approx(final(tmp_path, "plain"), rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["imports=[no_such]"], r"imports=[no_such]: cannot be imported (ModuleNotFoundError"),
        (["imports=no_such"], "imports=no_such: must be a list of modules, imports=[my_solver]."),
        (["imports=[1]"], "imports=[1]: must be a list of modules"),
        (["solver.gradient=mine"], "solver.gradient=mine: no such choice."),
        (["imports=[json]", "solver.gradient=mine"], "gradient='mine'; choose one of adjoint"),
        (["imports=[json]", "solver.gradient=3"], "solver.gradient=3: expected str"),
    ],
)
def test_what_cannot_be(tmp_path: Path, overrides: list[str], message: str) -> None:
    answer = console.run(*console.ONE_STEP, *overrides, f"results.root={tmp_path}")
    assert answer.code == 2
    assert message in answer.text
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_fault.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    answer = console.run(*console.ONE_STEP, "imports=[my_fault]", f"results.root={tmp_path}/to")
    assert answer.code == 2
    assert "imports=[my_fault]: cannot be imported (ZeroDivisionError: division" in answer.text


def test_imports_are_no_identity() -> None:
    with composing.initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(composing.compose("config", overrides=["task=digits"]))
    assert Settings.read({**config, "imports": ["json"]}).imports == ("json",)
    before = {key: value for key, value in config.items() if key != "imports"}
    assert Settings.read(before).imports == ()  # a run's file from before there was such a key
    assert config_hash(config) == config_hash(before) == config_hash({**config, "imports": ["a"]})
    with pytest.raises(ConfigError, match="imports=None: must be a list"):
        Settings.read({**config, "imports": None})
