"""The search behind :mod:`scripts.tune`: the space, the trials, and what a trial is worth."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tasks import experiment
from tasks.results import Outcome
from tasks.settings import ConfigError, Settings, require_choice
from tasks.shelf import Shelf


@dataclass(frozen=True)
class LogUniform:
    """A number between two bounds, uniform in its logarithm."""

    low: float
    high: float

    def at(self, unit: float) -> float:
        """The value at a point of [0, 1)."""
        return _round(self.low * math.exp(unit * math.log(self.high / self.low)))

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of some values, equally likely."""

    values: tuple[Any, ...]

    def at(self, unit: float) -> Any:
        """The value at a point of [0, 1)."""
        return self.values[int(unit * len(self.values))]

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


#: Learning rates, about the optimizer's default.
RATES = {
    "sgd": LogUniform(1e-2, 1.0),
    "adam": LogUniform(1e-3, 0.1),
    "adamw": LogUniform(1e-3, 0.1),
    "snopt": LogUniform(1e-3, 0.1),
    "snopt_gauss_newton": LogUniform(0.1, 1.0),  # 1 is a whole step
    "snopt_paper": LogUniform(1e-3, 0.1),
    "soap": LogUniform(1e-3, 0.1),
    "muon": LogUniform(3e-3, 0.3),
    "shampoo": LogUniform(1e-2, 1.0),
    "adahessian": LogUniform(1e-2, 1.0),
}
#: What every optimizer has: the field's rate over ``lr``, and the schedule.
FIELD_RATIO = LogUniform(0.01, 1.0)
SCHEDULES = Choice(("constant", "cosine"))
WARMUPS = Choice((0.0, 0.05, 0.15))
#: What some have beside it, where the end depends on it much.
_BETAS = Choice(([0.8, 0.9], [0.9, 0.95], [0.9, 0.999]))
OWN: Mapping[str, Mapping[str, LogUniform | Choice]] = {
    "adam": {"optim.betas": _BETAS},
    "adamw": {"optim.betas": _BETAS},
    "snopt": {"optim.betas": _BETAS},  # so it tries the very points that Adam and AdamW do
    "snopt_gauss_newton": {"optim.damping": LogUniform(1e-3, 1.0)},
}
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


def own_space(optim: str, given: Collection[str] = ()) -> dict[str, LogUniform | Choice]:
    """What is searched beside rates and schedule, without the keys that are given."""
    return {key: space for key, space in OWN.get(optim, {}).items() if key not in given}


def draw(optim: str, count: int, seed: int, given: Collection[str] = ()) -> list[dict[str, Any]]:
    """Points of the search space; of the unit cube the same for optimizers with as many settings.

    Args:
        optim: a key of ``RATES``.
        count: points; powers of two fill the space most evenly.
        seed: of the scrambling.
        given: dotted keys that are not searched.
    """
    own = own_space(optim, given)
    sequence = torch.quasirandom.SobolEngine(4 + len(own), scramble=True, seed=seed)
    drawn = []
    for first, second, third, fourth, *rest in sequence.draw(count).tolist():
        lr = RATES[optim].at(first)
        changes = {
            "optim.lr": lr,
            "optim.field_lr": _round(lr * FIELD_RATIO.at(second)),
            **{key: space.at(unit) for (key, space), unit in zip(own.items(), rest, strict=True)},
            "schedule.name": SCHEDULES.at(third),
            "schedule.warmup": WARMUPS.at(fourth),
        }
        if changes["schedule.name"] == "cosine":
            changes["schedule.final_factor"] = 0.1
        drawn.append({key: value for key, value in changes.items() if key not in given})
    return drawn


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
    given: Collection[str] = (),
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
        given: dotted keys that are not searched.
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
    for changes in draw(optim, trials, draw_seed, given):
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


def render(
    tried: Sequence[Trial],
    optim: str,
    command: str,
    about: str,
    given: Mapping[str, str] | None = None,
) -> str:
    """The text of a tuned file.

    Args:
        tried: trials, best first.
        optim: a key of ``RATES``.
        command: what finds the same again.
        about: budget, seeds and criterion, in words.
        given: settings of optimizer and schedule that were not searched, by dotted key, as typed.
    """
    given = given or {}
    own = "".join(
        f"; {key.removeprefix('optim.')} {space}" for key, space in own_space(optim, given).items()
    )
    lines = [
        "# @package _global_",
        f"# Found by: {command}",
        f"# {len(tried)} trials, {about}.",
        f"# Space: lr {RATES[optim]} and field_lr / lr {FIELD_RATIO}, log-uniform{own}; schedule",
        f"# {SCHEDULES} (falling to a tenth) after a warm-up of {WARMUPS} of the run.",
        "# Points, trials and seconds are the same for all optimizers of one command.",
        "# Best and second: " + ", ".join(f"{trial.score:.4g}" for trial in tried[:2]),
    ]
    section = ""
    settings = {**given, **tried[0].changes}
    for key, value in sorted(settings.items(), key=lambda item: item[0].partition(".")[0]):
        group, _, name = key.partition(".")
        lines += [f"{group}:"] if group != section else []
        lines.append(f"  {name}: {value}")
        section = group
    return "\n".join(lines) + "\n"
