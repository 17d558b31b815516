"""Two processes with half a batch each make the update of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SNOpt
from tests.library import problems

ROOT = Path(__file__).parents[2]


def build(kind: str) -> nn.Module:
    block = ODEBlock(problems.field(), method="rk4", gradient=kind, options={"steps": 4})
    return problems.model(block)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 2, generator=generator, dtype=torch.float64)


CASES: list[dict[str, Any]] = [
    {"kind": "adjoint", "rule": "paper", "refresh_every": 2, "momentum": 0.9},
    {"kind": "direct", "rule": "adam", "refresh_every": 2, "basis": "both", "grouped": True},
    {"kind": "adjoint-seminorm", "rule": "kfac", "refresh_every": 2, "curvature": "ggn"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["rule"])
def test_two_processes_are_one(case: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "result.pt"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        "-m", "tests.library.distributed_run", str(target), json.dumps(case),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    joined = torch.load(target, weights_only=True)

    settings = {k: v for k, v in case.items() if k not in ("kind", "grouped")}
    model = build(case["kind"])
    groups: Any = [{"params": model[1].field, "lr": 0.01}, {"params": model}]
    optimizer = SNOpt(groups if case.get("grouped") else model, lr=0.02, **settings)
    for step in range(5):
        x, y = batch(step)
        optimizer.zero_grad()
        outputs = model(x)
        optimizer.curvature_pass(outputs, "gaussian")
        problems.squares(y)(outputs).backward()
        optimizer.step()
    for name, pair in optimizer.factors().items():
        for got, want in zip(joined["factors"][name], pair, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    for got, want in zip(joined["parameters"], model.parameters(), strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-8)
    # Its state goes on in one process: names are those of the model without its wrapper.
    optimizer.load_state_dict(joined["state"])
    assert optimizer.preconditioner.samples == 8
