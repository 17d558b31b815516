"""Tasks as their configuration files make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import OmegaConf

from tasks.task import Task

CONF = Path(__file__).parents[2] / "conf" / "task"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SOLVER = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "gradient": "adjoint", "options": None}
NODE = {"name": "node"}


def settings(name: str) -> dict[str, Any]:
    """The sections of a task's file."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def make(name: str, **changes: Any) -> Task:
    """The task that ``conf/task/<name>.yaml`` describes, with changed arguments."""
    arguments = {k: v for k, v in settings(name)["task"].items() if k != "name"}
    task = hydra.utils.instantiate({**arguments, **changes})
    assert isinstance(task, Task)
    return task
