"""The search behind :mod:`scripts.tune`: the space, the trials, and what a trial is worth."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tasks import experiment
from tasks.results import Outcome
from tasks.settings import ConfigError, Settings, require_choice
from tasks.shelf import Shelf

#: Learning rates, lowest and highest: log-uniform, two decades each, about the optimizer's default.
RATES = {
    "sgd": (1e-2, 1.0),
    "adam": (1e-3, 0.1),
    "adamw": (1e-3, 0.1),
    "snopt": (1e-3, 0.1),
    "snopt_paper": (1e-3, 0.1),
    "soap": (1e-3, 0.1),
    "muon": (3e-3, 0.3),
    "shampoo": (1e-2, 1.0),
    "adahessian": (1e-2, 1.0),
}
#: ``field_lr`` over ``lr``, log-uniform.
FIELD_RATIO = (0.01, 1.0)
#: Of a trial's steps.
WARMUPS = (0.0, 0.05, 0.15)
SCHEDULES = ("constant", "cosine")
#: Training seconds, about, of the run that times an optimizer, and its fewest and most steps.
PILOT_SECONDS, PILOT_STEPS = 8.0, (3, 40)
#: Seeds of results, which no choice may depend on.
REPORTED_SEEDS = range(10)

Changes = Mapping[str, Any]
Configure = Callable[[Changes], Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, by dotted key, and the loss at the end for every seed they had."""

    changes: Changes
    losses: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over seeds; infinite where a run diverged."""
        return statistics.fmean(self.losses)


def draw(optim: str, count: int, seed: int, horizon: int) -> list[dict[str, Any]]:
    """Points of the search space; the same of the unit cube for every optimizer.

    Args:
        optim: a key of ``RATES``.
        count: points; powers of two fill the space most evenly.
        seed: of the scrambling.
        horizon: steps of a trial, over which the cosine falls to a tenth; after them it stays
            there.
    """
    points = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed).draw(count).tolist()
    drawn = []
    for first, second, third, fourth in points:
        lr = _round(_log_uniform(first, *RATES[optim]))
        changes = {
            "optim.lr": lr,
            "optim.field_lr": _round(lr * _log_uniform(second, *FIELD_RATIO)),
            "schedule.name": SCHEDULES[int(third * len(SCHEDULES))],
            "schedule.warmup_steps": round(horizon * WARMUPS[int(fourth * len(WARMUPS))]),
        }
        if changes["schedule.name"] == "cosine":
            changes |= {"schedule.total_steps": horizon, "schedule.final_factor": 0.1}
        drawn.append(changes)
    return drawn


def _log_uniform(unit: float, low: float, high: float) -> float:
    return low * math.exp(unit * math.log(high / low))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def run(
    configure: Configure, changes: Changes, seed: int, select: str, shelf: Shelf | None = None
) -> float:
    """Train once; the loss at the end on the split ``select``, infinite after a failure."""
    settings = Settings.read(configure({**changes, "seed": seed}))
    record = experiment.train(settings, shelf)
    if record["outcome"] == Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    loss = record["final"].get(select, {}).get("loss")
    # A loss that is not finite is written as null.
    ended = record["outcome"] in (Outcome.COMPLETED, Outcome.BUDGET)
    return float(loss) if ended and loss is not None else math.inf


def steps_in(configure: Configure, seconds: float, seed: int, shelf: Shelf | None = None) -> int:
    """How many steps of an optimizer, with its defaults, the machine makes in so much time.

    Counted in seconds of the processor where those are fewer: other work on the machine would cut
    short one optimizer's trials and not another's. What a run does besides steps is in both of the
    runs whose difference is taken.
    """

    def spent(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter(), time.process_time()
            changes = {"train.max_steps": count, "results.root": folder}
            run(configure, changes, seed, "train", shelf)
            ended = time.perf_counter(), time.process_time()
        return min(end - start for start, end in zip(started, ended, strict=True))

    spent(1)  # loads the data, and warms up
    short = spent(1)
    fewest, most = PILOT_STEPS
    more = min(most, max(fewest, round(PILOT_SECONDS / short)))
    step = (spent(1 + more) - short) / more
    return max(1, round(seconds / max(step, 1e-6)))


def search(
    configure: Configure,
    optim: str,
    *,
    trials: int,
    steps: int,
    seeds: Sequence[int],
    finalists: int = 2,
    select: str = "train",
    draw_seed: int = 0,
    ceiling: float | None = None,
    shelf: Shelf | None = None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try every point with the first seed, the best of them with the others; best first.

    One seed alone can choose settings that collapse on the next, and all seeds for every point
    would be spent on points that are out of the running.

    Args:
        configure: the resolved configuration with changes, by dotted key.
        optim: a key of ``RATES``.
        trials: points tried.
        steps: training steps of each run.
        seeds: none of ``REPORTED_SEEDS``.
        finalists: points that go on to the seeds after the first; one that diverges there makes
            room for the next best.
        select: ``train`` or ``valid``.
        draw_seed: of the points.
        ceiling: training seconds after which a run is ended, whatever its steps.
        shelf: keeps the data between runs.
        report: called with every trial as it ends.

    Raises:
        ConfigError: a setting that cannot be, or an optimizer without a range.
    """
    require_choice("optim", optim, RATES)
    for name, value in (("trials", trials), ("steps", steps), ("finalists", finalists)):
        if value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1.")
    reserved = [seed for seed in seeds if seed in REPORTED_SEEDS]
    if reserved:
        raise ConfigError(f"--seeds: {reserved[0]} is for results; tune on others, such as 100.")

    def losses(changes: Changes, with_seeds: Sequence[int]) -> tuple[float, ...]:
        limited = {**changes, "train.max_steps": steps}
        if ceiling is not None:
            limited["train.max_seconds"] = ceiling
        return tuple(run(configure, limited, seed, select, shelf) for seed in with_seeds)

    def score(trial: Trial) -> float:
        return trial.score

    first, others = seeds[:1], seeds[1:]
    tried = []
    for changes in draw(optim, trials, draw_seed, steps):
        tried.append(Trial(changes, losses(changes, first)))
        report(tried[-1])
    tried.sort(key=score)
    if not others:
        return tried
    final: list[Trial] = []
    while tried and sum(math.isfinite(trial.score) for trial in final) < finalists:
        trial = tried.pop(0)
        final.append(replace(trial, losses=trial.losses + losses(trial.changes, others)))
        report(final[-1])
    return sorted(final, key=score) + tried


def render(tried: Sequence[Trial], optim: str, command: str, about: str) -> str:
    """The text of a tuned file.

    Args:
        tried: trials, best first.
        optim: a key of ``RATES``.
        command: what finds the same again.
        about: budget, seeds and criterion, in words.
    """
    low, high = RATES[optim]
    lines = [
        "# @package _global_",
        f"# Found by: {command}",
        f"# {len(tried)} trials, {about}.",
        f"# Space: lr {low:g}..{high:g} and field_lr / lr {FIELD_RATIO[0]:g}..{FIELD_RATIO[1]:g}, "
        f"log-uniform; schedule {' | '.join(SCHEDULES)}",
        f"# (falling to a tenth); warm-up {' | '.join(f'{w:.0%}' for w in WARMUPS)} of the steps. "
        "The same trials and seconds for every optimizer.",
        "# Best and second: " + ", ".join(f"{trial.score:.4g}" for trial in tried[:2]),
    ]
    section = ""
    for key, value in tried[0].changes.items():
        group, _, name = key.partition(".")
        lines += [f"{group}:"] if group != section else []
        lines.append(f"  {name}: {value}")
        section = group
    return "\n".join(lines) + "\n"
