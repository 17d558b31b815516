"""Every recipe runs, and its loss falls."""

import math
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tasks.data.torchvision_compat import torchvision_datasets

RECIPES = Path(__file__).parents[1] / "docs" / "recipes"
OPTIONAL = {
    "tensorboard_log": "tensorboard",
    "accelerate_loop": "accelerate",
    "lightning_module": "lightning",
    "wandb_offline": "wandb",
    "torchode_steps": "torchode",
}
#: Those that are run otherwise, and what they share.
OTHERS = {"ddp", "problem"}
NAMES = sorted({path.stem for path in RECIPES.glob("*.py")} - OTHERS)


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        if name in OPTIONAL:  # other projects' warnings are theirs
            warnings.simplefilter("ignore")
            torchvision_datasets()  # some of them import torchvision, which may need help
            pytest.importorskip(OPTIONAL[name])
        losses = runpy.run_path(str(RECIPES / f"{name}.py"))["losses"]
    torch._dynamo.reset()
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_recipe_for_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    paths = os.pathsep.join([str(RECIPES.parents[1]), str(RECIPES)])
    leaving = RECIPES.parents[1] / "tests/support/left_at_once.py"
    done = subprocess.run(
        [*command, str(leaving), str(RECIPES / "ddp.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_recipes_are_on_their_page():
    page = (RECIPES.parent / "recipes.md").read_text()
    assert [name for name in [*NAMES, *OTHERS] if f"recipes/{name}.py" not in page] == []
