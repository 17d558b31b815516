"""The runs that an experiment consists of: what they are, which are done, what they would cost."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tasks.common.checks import ConfigError
from tasks.engine.config.composing import CONF, plain
from tasks.engine.config.settings import Settings
from tasks.engine.records.record import FINISHED, Outcome, record_or_empty
from tasks.engine.records.results import run_folder

#: Seconds of a step of the paper's experiments, and samples of an epoch, measured once: for the
#: order of magnitude, where no earlier run tells. Four seconds of each on one thread of a
#: 2-core virtual machine; svhn is taken to cost what cifar10 does, which has as large images.
COSTS = Path(__file__).with_name("costs.csv")

#: Seed of the runs that choose a learning rate; none of those that are reported.
TRIAL_SEED = 100


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        overrides: what to give ``run.py``.
        folder: where the run is kept.
        config: its resolved configuration.
        trial: whether it tries one learning rate of several, the best of which is to be reported.
    """

    overrides: tuple[str, ...]
    folder: Path
    config: dict[str, Any]
    trial: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """What its ``run.json`` holds; empty where there is none that can be read."""
        return record_or_empty(self.folder / "run.json")

    @property
    def finished(self) -> bool:
        """Whether ``run.py`` would not run it again."""
        return self.record.get("outcome") in FINISHED


def experiments() -> dict[str, list[str]]:
    """Names that can be reproduced, each with its configurations (``experiment=`` choices).

    A folder of ``conf/experiment`` is an experiment, with one file a run, or for all combinations
    of the choices under its ``hydra.sweeper.params``; a folder that holds folders stands for all of
    them, and ``all`` for everything.
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

    A configuration whose sweep has several ``optim.lr`` gives trials: every rate runs with
    :data:`TRIAL_SEED`, and :func:`chosen` makes the runs to report of the best.

    Args:
        choices: values of ``experiment=``.
        seeds: seeds of every configuration.
        budget: training seconds of each run; its configuration's own limits by default.
        extra: further overrides, for all runs alike; a key given here is not swept over.

    Raises:
        ConfigError: a configuration does not compose; the message says why.
    """
    limit = [] if budget is None else [f"train.max_seconds={budget:g}"]
    further = [*limit, *extra]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF.resolve())):
        # Composing takes longest, and the seed is the last to be known.
        drafts = {choice: _drafts(choice, further) for choice in choices}
    searched = {c for c, runs in drafts.items() if len({_rate(job.overrides) for job in runs}) > 1}
    tried = [job for c in choices if c in searched for job in drafts[c]]
    reported = [job for c in choices if c not in searched for job in drafts[c]]
    trials = [replace(_seeded(job, TRIAL_SEED), trial=True) for job in tried]
    return trials + [_seeded(job, s) for s in seeds for job in reported]


def chosen(trials: Sequence[Job], seeds: Sequence[int]) -> list[Job]:
    """The best trial of every task, model and optimizer, with the seeds to report.

    The lowest training loss at the end is best; trials that diverged or failed are not in it.
    """
    best: dict[tuple[str, ...], tuple[float, Job]] = {}
    for job in trials:
        record = job.record
        loss = (record.get("final") or {}).get("train", {}).get("loss")
        names = tuple(job.config[part].get("name") for part in ("task", "model", "optim"))
        # What is final of a run that did not end well was measured before.
        ended = record.get("outcome") in FINISHED and record["outcome"] != Outcome.DIVERGED
        if ended and isinstance(loss, (int, float)) and math.isfinite(loss):
            best[names] = min(best.get(names, (math.inf, job)), (loss, job), key=lambda x: x[0])
    return [replace(_seeded(job, s), trial=False) for s in seeds for _, job in best.values()]


def _drafts(choice: str, extra: Sequence[str]) -> list[Job]:
    """Every run that a configuration stands for, with seed 0."""
    given = [f"experiment={choice}", "seed=0"]
    try:
        config = compose("config", [*given, *extra], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"experiment={choice}: {error}") from error
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    named = {override.partition("=")[0].lstrip("+~") for override in extra}
    parser = OverridesParser.create()
    swept = parser.parse_overrides([f"{k}={v}" for k, v in params.items() if k not in named])
    if not swept:  # a single run, which is composed already
        with open_dict(config):
            del config["hydra"]
        return [_job([*given, *extra], config)]
    values = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in swept
    ]
    return [_job([*given, *run, *extra]) for run in itertools.product(*values)]


def _rate(run: Sequence[str]) -> str | None:
    return next((override for override in run if override.startswith("optim.lr=")), None)


def _job(overrides: Sequence[str], config: DictConfig | None = None) -> Job:
    try:
        composed = config or compose("config", overrides=list(overrides))
        settings = Settings.read(plain(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    return Job(tuple(overrides), run_folder(settings), dict(settings.config))


def _seeded(job: Job, seed: int) -> Job:
    """The same run with another seed."""
    settings = Settings.read({**job.config, "seed": seed})
    overrides = (f"seed={seed}" if o.startswith("seed=") else o for o in job.overrides)
    return replace(
        job,
        overrides=tuple(overrides),
        folder=run_folder(settings),
        config=dict(settings.config),
    )


def estimate(job: Job, root: Path) -> float:
    """Training seconds that a job would still take; NaN where nothing tells.

    Steps are priced as in an earlier run of the same task and model, on whatever data and machine
    that was, with the same optimizer where there is one; without any, as in :data:`COSTS`.
    ``train.max_seconds`` bounds the estimate.
    """
    if job.finished:
        return 0.0
    train = job.config["train"]
    limit = math.inf if train.get("max_seconds") is None else float(train["max_seconds"])
    done = float(job.record.get("seconds") or 0.0)
    relatives = _relatives(job, root, any_optim=False) or _relatives(job, root, any_optim=True)
    whole = min(
        (_priced(train, record) for record in relatives or _recorded(job)), default=math.nan
    )
    bounded = limit if math.isnan(whole) else min(whole, limit)
    return max(0.0, bounded - done) if math.isfinite(bounded) else math.nan


def wall_factor(job: Job, root: Path) -> float:
    """Wall time over training time of earlier runs of the same task and model; NaN without any.

    A run of less than an epoch is mostly its first evaluation, and tells nothing.
    """
    relatives = _relatives(job, root, any_optim=False) or _relatives(job, root, any_optim=True)
    whole = [r for r in relatives if r.get("wall") and r["steps"] >= r["steps_per_epoch"]]
    factors = [r["wall"] / r["seconds"] for r in whole]
    return statistics.median(factors) if factors else math.nan


def _priced(train: dict[str, Any], record: dict[str, Any]) -> float:
    step_seconds = float(record["seconds"]) / int(record["steps"])
    steps = [math.inf if train.get("max_steps") is None else int(train["max_steps"])]
    if train.get("max_epochs") is not None:
        steps.append(int(train["max_epochs"]) * int(record["steps_per_epoch"]))
    return min(steps) * step_seconds


def _recorded(job: Job) -> list[dict[str, Any]]:
    """What :data:`COSTS` says of a job's task, as the record of a run, of the slowest optimizer.

    An epoch is taken to cost the same whatever the batch.
    """
    task = job.config["task"]
    with COSTS.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task["name"]]
    own = [row for row in rows if row["optim"] == job.config["optim"]["name"]] or rows
    if not own or task.get("batch_size") is None:
        return []
    slowest = max(own, key=lambda row: float(row["step_seconds"]))
    batch, measured = int(task["batch_size"]), int(slowest["batch_size"])
    seconds = float(slowest["step_seconds"]) * batch / measured
    epoch = math.ceil(int(slowest["samples"]) / batch)
    return [{"seconds": seconds, "steps": 1, "steps_per_epoch": epoch}]


def _relatives(job: Job, root: Path, *, any_optim: bool) -> list[dict[str, Any]]:
    """Records of earlier runs with the same names, partial ones too."""
    names = [job.config[part].get("name") or "*" for part in ("task", "model", "optim")]
    if any_optim:
        names[-1] = "*"
    records = (record_or_empty(path) for path in root.glob("/".join([*names, "*", "run.json"])))
    return [r for r in records if r.get("steps") and r.get("seconds") and r.get("steps_per_epoch")]
