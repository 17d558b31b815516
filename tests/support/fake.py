"""A task that trains in milliseconds: points on two rings, one small ODE block.

Run as a module it trains a configuration given as JSON, for tests that kill real processes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import snopt
from tasks.common.seeding import stream
from tasks.task import Batch, Splits, Task


class Rings(Task):
    name = "rings"
    metric = "accuracy"
    higher_is_better = True
    likelihood = "categorical"
    provenance = "synthetic"

    def __init__(
        self,
        batch_size: int = 16,
        samples: int = 100,
        explode_at: int | None = None,
        fail_at: tuple[int, ...] = (),
    ) -> None:
        self.batch_size = batch_size
        self.eval_batch_size = 32
        self.samples = samples
        self.explode_at = explode_at
        self.fail_at = tuple(fail_at)
        self.calls = 0

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        generator = stream(seed, "data")

        def draw(count: int) -> Batch:
            label = torch.randint(2, (count,), generator=generator)
            angle = 6.2831853 * torch.rand(count, generator=generator)
            radius = 1.0 + label + 0.1 * torch.randn(count, generator=generator)
            points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
            return points.to(device, dtype), label.to(device)

        return Splits(draw(self.samples), draw(40), draw(40))

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 4),
            snopt.ODEBlock(Field(), (0.0, 1.0), **{**solver, "method": "euler"}),
            nn.Dropout(0.1),
            nn.Linear(4, 2),
        )

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        if model.training:
            self.calls += 1
            if self.calls in self.fail_at:
                raise snopt.SolverError(reason="made to fail", time=0.5, dt=0.0, nfe=3)
        points = batch[0]
        jitter = torch.randn(
            points.shape, generator=noise, dtype=points.dtype, device=points.device
        )
        return model(points + 0.01 * jitter)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = functional.cross_entropy(outputs, batch[1])
        return loss * float("nan") if self.calls == self.explode_at else loss

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {
            "loss": functional.cross_entropy(outputs, batch[1], reduction="none"),
            "accuracy": (outputs.argmax(1) == batch[1]).to(outputs.dtype),
        }


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def config(root: Path | str, **changes: Any) -> dict[str, Any]:
    """A complete configuration; ``changes`` are merged into its parts."""
    base: dict[str, Any] = {
        "seed": 0,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "data": {"root": None},
        "results": {"root": str(root)},
        "task": {"_target_": "tests.support.fake.Rings", "name": "rings"},
        "model": {"name": "node"},
        "optim": {"_target_": "torch.optim.Adam", "name": "adam", "lr": 0.01},
        "solver": {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "gradient": "direct"},
        "logger": {"name": "local", "progress": "off"},
        "train": {"max_steps": 20, "eval_every_epochs": 1, "log_every_steps": 1},
        "schedule": {},
    }
    for key, value in changes.items():
        if isinstance(value, dict) and "_target_" not in value:
            base[key] = {**base.get(key, {}), **value}
        else:
            base[key] = value
    return base


def train(root: Path | str, **changes: Any) -> dict[str, Any]:
    """Train the fake task in this process; returns what ``run.json`` holds."""
    from tasks.engine import experiment
    from tasks.engine.config.settings import Settings

    return dict(experiment.train(Settings.read(config(root, **changes))))


def folder(root: Path | str, **changes: Any) -> Path:
    """Where such a run is kept."""
    from tasks.engine.config.settings import Settings
    from tasks.engine.records.results import run_folder

    return run_folder(Settings.read(config(root, **changes)))


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run without what depends on time."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "cpu_seconds", "wall")}
        for line in lines
    ]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = json.loads(sys.argv[1])
    summary = train(**arguments)
    sys.exit(130 if summary["outcome"] == "interrupted" else 0)
