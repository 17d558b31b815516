"""The runs that an experiment consists of: what they are, which are done, what they would cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tasks.cli import CONF, plain
from tasks.results import FINISHED, run_folder
from tasks.settings import ConfigError, Settings


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        overrides: what to give ``run.py``.
        folder: where the run is kept.
        config: its resolved configuration.
    """

    overrides: tuple[str, ...]
    folder: Path
    config: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """What its ``run.json`` holds; empty where there is none that can be read."""
        return _record(self.folder / "run.json")

    @property
    def finished(self) -> bool:
        """Whether ``run.py`` would not run it again."""
        return self.record.get("outcome") in FINISHED


def experiments() -> dict[str, list[str]]:
    """Names that can be reproduced, each with its configurations (``experiment=`` choices).

    A folder of ``conf/experiment`` is an experiment, with one file a run; a folder that holds
    folders stands for all of them, and ``all`` for everything.
    """
    root = CONF / "experiment"
    found: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*/*.yaml")):
        place = file.relative_to(root)
        names = ["all" if parent == Path() else parent.as_posix() for parent in place.parents]
        for name in names:
            found.setdefault(name, []).append(place.with_suffix("").as_posix())
    return found


def plan(
    choices: Sequence[str], seeds: Sequence[int], budget: float | None, extra: Sequence[str] = ()
) -> list[Job]:
    """Jobs of every configuration and seed, all optimizers of a seed before the next seed.

    Args:
        choices: values of ``experiment=``.
        seeds: seeds of every configuration.
        budget: training seconds of each run; its configuration's own limits by default.
        extra: further overrides, for all runs alike.

    Raises:
        ConfigError: a configuration does not compose; the message says why.
    """
    limit = [] if budget is None else [f"train.max_seconds={budget:g}"]
    jobs = []
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF.resolve())):
        for seed in seeds:
            for choice in choices:
                overrides = [f"experiment={choice}", f"seed={seed}", *limit, *extra]
                jobs.append(_job(overrides))
    return jobs


def _job(overrides: Sequence[str]) -> Job:
    try:
        settings = Settings.read(plain(compose("config", overrides=list(overrides))))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    return Job(tuple(overrides), run_folder(settings), dict(settings.config))


def estimate(job: Job, root: Path) -> float:
    """Training seconds that a job would still take; NaN where nothing tells.

    Steps are priced as in an earlier run of the same task and model, on whatever data and machine
    that was, with the same optimizer where there is one; ``train.max_seconds`` bounds the estimate.
    """
    if job.finished:
        return 0.0
    train = job.config["train"]
    limit = math.inf if train.get("max_seconds") is None else float(train["max_seconds"])
    done = float(job.record.get("seconds") or 0.0)
    relatives = _relatives(job, root, any_optim=False) or _relatives(job, root, any_optim=True)
    whole = min((_priced(train, record) for record in relatives), default=math.nan)
    bounded = limit if math.isnan(whole) else min(whole, limit)
    return max(0.0, bounded - done) if math.isfinite(bounded) else math.nan


def _priced(train: dict[str, Any], record: dict[str, Any]) -> float:
    step_seconds = float(record["seconds"]) / int(record["steps"])
    steps = [math.inf if train.get("max_steps") is None else int(train["max_steps"])]
    if train.get("max_epochs") is not None:
        steps.append(int(train["max_epochs"]) * int(record["steps_per_epoch"]))
    return min(steps) * step_seconds


def _relatives(job: Job, root: Path, *, any_optim: bool) -> list[dict[str, Any]]:
    """Records of earlier runs with the same names, partial ones too."""
    names = [job.config[part].get("name") or "*" for part in ("task", "model", "optim")]
    if any_optim:
        names[-1] = "*"
    records = (_record(path) for path in root.glob("/".join([*names, "*", "run.json"])))
    return [r for r in records if r.get("steps") and r.get("seconds") and r.get("steps_per_epoch")]


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
