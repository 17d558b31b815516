"""The search behind :mod:`scripts.tune`: the space, the trials, and what a trial is worth."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tasks.common.checks import ConfigError, require_choice
from tasks.engine import experiment
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.about import known
from tasks.engine.records.record import Outcome
from tasks.engine.training.dataset_cache import DatasetCache


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


#: What every optimizer has: the field's rate over ``lr``, and the schedule.
FIELD_RATIO = LogUniform(0.01, 1.0)
SCHEDULES = Choice(("constant", "cosine"))
WARMUPS = Choice((0.0, 0.05, 0.15))
#: How far on each side of given rates a closer search looks.
CLOSER = 3.0
#: Training seconds, about, of the run that times an optimizer, and its fewest and most steps.
PILOT_SECONDS, PILOT_STEPS = 8.0, (3, 40)
#: Seeds of results, which no choice may depend on.
REPORTED_SEEDS = range(10)

Changes = Mapping[str, Any]
Configure = Callable[[Changes], Mapping[str, Any]]


def ranges() -> dict[str, dict[str, Any]]:
    """What is searched of each optimizer, by setting, from its file in ``conf/optim``."""
    return {
        name: {key: _range(entry) for key, entry in one.search.items()}
        for name, one in known().items()
        if "lr" in one.search
    }


def _range(entry: Mapping[str, Any]) -> LogUniform | Choice:
    if "among" in entry:
        return Choice(tuple(entry["among"]))
    return LogUniform(float(entry["from"]), float(entry["to"]))


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, by dotted key, and the loss at the end for every seed they had."""

    changes: Changes
    losses: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over seeds; infinite where a run diverged."""
        return statistics.fmean(self.losses)


@dataclass(frozen=True)
class Space:
    """What is searched for an optimizer: two rates, settings of its own, the schedule.

    Args:
        optim: a key of :func:`ranges`.
        given: settings that are not searched, by dotted key, as typed.
        around: ``lr`` and ``field_lr`` found before, within ``CLOSER`` times of which (``field_lr``
            over ``lr``, for the field) the search stays; None searches the whole range.

    Raises:
        ConfigError: an optimizer without a range, or rates that are not positive.
    """

    optim: str
    given: Mapping[str, str] = field(default_factory=dict)
    around: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require_choice("optim", self.optim, ranges())
        if self.around is not None and not all(0 < rate < math.inf for rate in self.around):
            raise ConfigError("--around: the rates must be positive and finite.")

    @property
    def lr(self) -> LogUniform:
        """The range of the learning rate."""
        return ranges()[self.optim]["lr"] if self.around is None else _about(self.around[0])

    @property
    def field_ratio(self) -> LogUniform:
        """The range of the field's rate over the learning rate."""
        return FIELD_RATIO if self.around is None else _about(self.around[1] / self.around[0])

    @property
    def own(self) -> dict[str, LogUniform | Choice]:
        """What is searched beside rates and schedule, by dotted key."""
        settings = {f"optim.{k}": v for k, v in ranges()[self.optim].items() if k != "lr"}
        return {key: values for key, values in settings.items() if key not in self.given}

    def draw(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Points; of the unit cube the same for optimizers with as many settings.

        Args:
            count: points; powers of two fill the space most evenly.
            seed: of the scrambling.
        """
        own = self.own
        sequence = torch.quasirandom.SobolEngine(4 + len(own), scramble=True, seed=seed)
        drawn = []
        for first, second, third, fourth, *rest in sequence.draw(count).tolist():
            lr = self.lr.at(first)
            changes = {
                "optim.lr": lr,
                "optim.field_lr": _round(lr * self.field_ratio.at(second)),
                **{key: own[key].at(unit) for key, unit in zip(own, rest, strict=True)},
                "schedule.name": SCHEDULES.at(third),
                "schedule.warmup": WARMUPS.at(fourth),
            }
            if changes["schedule.name"] == "cosine":
                changes["schedule.final_factor"] = 0.1
            drawn.append({key: value for key, value in changes.items() if key not in self.given})
        return drawn

    def __str__(self) -> str:
        own = [f"{key.removeprefix('optim.')} {values}" for key, values in self.own.items()]
        parts = [f"lr {self.lr} and field_lr / lr {self.field_ratio}, log-uniform", *own]
        if "schedule.name" not in self.given:
            parts.append(f"schedule {SCHEDULES} (falling to a tenth)")
        if "schedule.warmup" not in self.given:
            parts.append(f"warm-up of {WARMUPS} of the run")
        return "; ".join(parts)


def _about(value: float) -> LogUniform:
    return LogUniform(_round(value / CLOSER), _round(value * CLOSER))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def run(
    configure: Configure,
    changes: Changes,
    seed: int,
    select: str,
    cache: DatasetCache | None = None,
) -> float:
    """Train once; the loss at the end on the split ``select``, infinite after a failure."""
    settings = Settings.read(configure({**changes, "seed": seed}))
    record = experiment.train(settings, cache)
    if record["outcome"] == Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    loss = record["final"].get(select, {}).get("loss")
    # A loss that is not finite is written as null.
    ended = record["outcome"] in (Outcome.COMPLETED, Outcome.BUDGET)
    return float(loss) if ended and loss is not None else math.inf


def steps_in(
    configure: Configure, seconds: float, seed: int, cache: DatasetCache | None = None
) -> int:
    """How many steps of an optimizer, with its defaults, the machine makes in so much time.

    Counted in seconds of the processor where those are fewer: other work on the machine would cut
    short one optimizer's trials and not another's. What a run does besides steps is in both of the
    runs whose difference is taken.
    """

    def spent(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter(), time.process_time()
            changes = {"train.max_steps": count, "results.root": folder}
            run(configure, changes, seed, "train", cache)
            ended = time.perf_counter(), time.process_time()
        return min(end - start for start, end in zip(started, ended, strict=True))

    spent(1)  # loads the data, and warms up
    short = spent(1)
    fewest, most = PILOT_STEPS
    more = min(most, max(fewest, round(PILOT_SECONDS / short)))
    step = (spent(1 + more) - short) / more
    return max(1, round(seconds / max(step, 1e-6)))


def check_budget(trials: int, steps: int | None, finalists: int, seeds: Sequence[int]) -> None:
    """Refuse what no search can be made with.

    Raises:
        ConfigError: a count below 1, or a seed of ``REPORTED_SEEDS``.
    """
    for name, value in (("trials", trials), ("steps", steps), ("finalists", finalists)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1.")
    reserved = [seed for seed in seeds if seed in REPORTED_SEEDS]
    if reserved:
        raise ConfigError(f"--seeds: {reserved[0]} is for results; tune on others, such as 100.")


def search(
    configure: Configure,
    space: Space,
    *,
    trials: int,
    steps: int,
    seeds: Sequence[int],
    finalists: int = 2,
    select: str = "train",
    draw_seed: int = 0,
    ceiling: float | None = None,
    cache: DatasetCache | None = None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try every point with the first seed, the best of them with the others; best first.

    One seed alone can choose settings that collapse on the next, and all seeds for every point
    would be spent on points that are out of the running.

    Args:
        configure: the resolved configuration with changes, by dotted key.
        space: what is searched.
        trials: points tried.
        steps: training steps of each run.
        seeds: none of ``REPORTED_SEEDS``.
        finalists: points that go on to the seeds after the first; one that diverges there makes
            room for the next best.
        select: ``train`` or ``valid``.
        draw_seed: of the points.
        ceiling: training seconds after which a run is ended, whatever its steps.
        cache: keeps the data between runs.
        report: called with every trial as it ends.

    Raises:
        ConfigError: a setting that cannot be.
    """
    check_budget(trials, steps, finalists, seeds)

    def losses(changes: Changes, with_seeds: Sequence[int]) -> tuple[float, ...]:
        limited = {**changes, "train.max_steps": steps}
        if ceiling is not None:
            limited["train.max_seconds"] = ceiling
        return tuple(run(configure, limited, seed, select, cache) for seed in with_seeds)

    def score(trial: Trial) -> float:
        return trial.score

    first, others = seeds[:1], seeds[1:]
    tried = []
    for changes in space.draw(trials, draw_seed):
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


def render(tried: Sequence[Trial], space: Space, command: str, length: str, history: str) -> str:
    """The text of a tuned file: two lines of comment, then the settings of the best trial.

    Args:
        tried: trials, best first.
        space: what was searched.
        command: what finds the same again.
        length: of each trial and what it was chosen by, in words.
        history: the file that holds the rest.
    """
    lines = [
        "# @package _global_",
        f"# Found by: {command}",
        f"# {len(tried)} trials of {length}; all of the search: {history}",
    ]
    section = ""
    settings = {**space.given, **tried[0].changes}
    for key, value in sorted(settings.items(), key=lambda item: item[0].partition(".")[0]):
        group, _, name = key.partition(".")
        lines += [f"{group}:"] if group != section else []
        lines.append(f"  {name}: {value}")
        section = group
    return "\n".join(lines) + "\n"


def record(tried: Sequence[Trial], space: Space, optim: str, command: str, about: str) -> str:
    """A section of a task's history of searches, as Markdown.

    Args:
        tried: trials, best first.
        space: what was searched.
        optim: the optimizer's name.
        command: what finds the same again.
        about: budget, seeds and criterion, in words.
    """
    return f"""
## {optim}

```
Found by: {command}
{len(tried)} trials, {about}.
Space: {space}.
Points, trials and seconds are the same for all optimizers of one command.
Best and second: {", ".join(f"{trial.score:.4g}" for trial in tried[:2])}
```
"""
