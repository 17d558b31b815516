"""The search behind :mod:`scripts.tune`: the space, the trials, and what a trial is worth.

Successive halving: all points in short runs, the best of them in longer ones, the best of those in
runs of the full length, each with a schedule over its own seconds. Sixteen points cost as many
training seconds as six full runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from scripts.seeds import TUNING_SEEDS, check_seeds
from tasks.common.checks import ConfigError, require_choice
from tasks.engine import experiment
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.about import known
from tasks.engine.records.metrics import read_curves
from tasks.engine.records.record import Outcome
from tasks.engine.records.results import run_folder
from tasks.engine.training.dataset_cache import DatasetCache

#: Share at either end of an open range in which a winner says that the range is too narrow.
EDGE = 1 / 8
#: By how much a range is widened, and how often at most.
WIDER, MOST_WIDENINGS = 10.0, 2
#: Evaluations of a trial.
EVALUATIONS = 12

Changes = Mapping[str, Any]
Configure = Callable[[Changes], Mapping[str, Any]]


@dataclass(frozen=True)
class LogUniform:
    """A number between two bounds, uniform in its logarithm.

    Attributes:
        low: the lower bound.
        high: the upper one.
        open: whether a search may widen the range.
    """

    low: float
    high: float
    open: bool = True

    def at(self, unit: float) -> float:
        """The value at a point of [0, 1)."""
        return _round(self.low * math.exp(unit * math.log(self.high / self.low)))

    def widened(self, best: float) -> LogUniform:
        """The range for another search: wider where the best value lies at or beyond an end."""
        unit = math.log(best / self.low) / math.log(self.high / self.low)
        if self.open and unit < EDGE:
            return replace(self, low=_round(self.low / WIDER))
        if self.open and unit > 1 - EDGE:
            return replace(self, high=_round(self.high * WIDER))
        return self

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
        return " | ".join(map(typed, self.values))


Range = LogUniform | Choice

#: The field's rate over ``lr``, at most that of everything else.
FIELD_RATIO = LogUniform(0.01, 1.0, open=False)
#: What every optimizer has beside its own settings.
SCHEDULE: Mapping[str, Range] = {
    "schedule.name": Choice(("constant", "cosine")),
    "schedule.warmup": Choice((0.0, 0.05, 0.15)),
    "schedule.final_factor": Choice((0.0, 0.1)),
    "schedule.end": Choice((1.0, 0.5)),
}
OF_COSINE = ("schedule.final_factor", "schedule.end")
#: Coordinates of the points, of which an optimizer uses the first; so they are the same for all.
COORDINATES = 16


def ranges() -> dict[str, dict[str, Range]]:
    """What is searched of each optimizer, by setting, from its file in ``conf/optim``."""
    return {
        name: {key: _range(entry) for key, entry in one.search.items()}
        for name, one in known().items()
        if "lr" in one.search
    }


def _range(entry: Mapping[str, Any]) -> Range:
    if "among" in entry:
        return Choice(tuple(entry["among"]))
    return LogUniform(float(entry["from"]), float(entry["to"]), not entry.get("closed", False))


def typed(value: Any) -> str:
    """A value as YAML and the command line have it."""
    return value if isinstance(value, str) else json.dumps(value)


def label(optim: str, overrides: Iterable[str]) -> str:
    """What an optimizer is called: its file's name, or its class's where the file is anybody's.

    Args:
        optim: a file of ``conf/optim``.
        overrides: as for ``run.py``.

    Raises:
        ConfigError: ``custom`` without a class, or by the name of a file.
    """
    if optim != "custom":
        return optim
    given = parsed(overrides)
    name = given.get("optim.name") or given.get("optim._target_", "").rpartition(".")[2].lower()
    if not name:
        raise ConfigError("optim=custom: say which, optim._target_=package.module.Class.")
    if name in known():
        raise ConfigError(
            f"optim=custom: {name} is conf/optim/{name}.yaml. Give yours another name by "
            "optim.name=..."
        )
    return name


def parsed(overrides: Iterable[str]) -> dict[str, str]:
    """Overrides as typed, by key, without signs that add a key."""
    return dict(override.lstrip("+").partition("=")[::2] for override in overrides)


def _round(value: float) -> float:
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Space:
    """What is searched for an optimizer: two rates, the schedule, settings of its own.

    Attributes:
        lr: the learning rate's range.
        own: further settings of the optimizer, by dotted key.
        given: settings that are not searched, by dotted key, as typed.
    """

    lr: LogUniform
    own: Mapping[str, Range] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, optim: str, given: Mapping[str, str] | None = None) -> Space:
        """The space that an optimizer's file gives it.

        Args:
            optim: a key of :func:`ranges`.
            given: settings that are not searched.

        Raises:
            ConfigError: an optimizer without a range, or with too many.
        """
        require_choice("optim", optim, ranges())
        lr, *own = ranges()[optim].items()
        if lr[0] != "lr" or not isinstance(lr[1], LogUniform):
            raise ConfigError(f"conf/optim/{optim}.yaml: about.search begins with a range of lr.")
        most = COORDINATES - 2 - len(SCHEDULE)
        if len(own) > most:
            raise ConfigError(
                f"conf/optim/{optim}.yaml: about.search: lists {len(own)} settings beside lr, and "
                f"points have coordinates for {most}."
            )
        return cls(lr[1], {f"optim.{key}": values for key, values in own}, dict(given or {}))

    def draw(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Points, whose coordinates are the same for every optimizer.

        Args:
            count: points; powers of two fill the space most evenly.
            seed: of the scrambling.
        """
        sequence = torch.quasirandom.SobolEngine(COORDINATES, scramble=True, seed=seed)
        further = {**SCHEDULE, **self.own}
        drawn = []
        for first, second, *rest in sequence.draw(count).tolist():
            lr = self.lr.at(first)
            units = zip(further.items(), rest, strict=False)  # the others stay unused
            changes = {
                "optim.lr": lr,
                "optim.field_lr": _round(lr * FIELD_RATIO.at(second)),
                **{key: values.at(unit) for (key, values), unit in units},
            }
            name = {**changes, **self.given}["schedule.name"]
            changes = {key: value for key, value in changes.items() if key not in self.given}
            if name not in ("linear", "cosine"):
                for key in OF_COSINE:
                    changes.pop(key, None)
            drawn.append(changes)
        return drawn

    def widened(self, best: Changes | None) -> Space:
        """The space for another search; the same where the best point lies at no edge.

        Where no point got through a whole run, there is no best one, and learning rates are lower.
        """
        if best is None:
            return replace(self, lr=self.lr.widened(self.lr.low))
        own = {
            key: values.widened(best[key])
            if isinstance(values, LogUniform) and key in best
            else values
            for key, values in self.own.items()
        }
        lr = self.lr.widened(best["optim.lr"]) if "optim.lr" in best else self.lr
        return replace(self, lr=lr, own=own)

    def __str__(self) -> str:
        parts = {"lr": str(self.lr), "field_lr / lr": str(FIELD_RATIO)}
        parts |= {key.removeprefix("optim."): str(v) for key, v in {**self.own, **SCHEDULE}.items()}
        searched = [f"{k} {v}" for k, v in parts.items() if not {k, f"optim.{k}"} & {*self.given}]
        return "; ".join(searched)


@dataclass(frozen=True)
class Rung:
    """Runs of one length: how many that do not fail, their training seconds, and their seed."""

    runs: int
    seconds: float
    seed: int


def rungs(
    trials: int, seconds: float, seeds: Sequence[int] = TUNING_SEEDS
) -> tuple[Rung, Rung, Rung]:
    """All points in an eighth of the seconds, a quarter of them in a quarter, the best in all.

    Args:
        trials: points; 16 make 2 + 1 + 3 full runs.
        seconds: of training, of the last runs.
        seeds: in turn; the last runs have the first again where there are two.
    """
    second = min(trials, max(2, trials // 4))
    third = max(1, 3 * second // 4)
    first, other, last = (seeds[index % len(seeds)] for index in range(3))
    return (
        Rung(trials, seconds / 8, first),
        Rung(second, seconds / 4, other),
        Rung(third, seconds, last),
    )


@dataclass(frozen=True)
class Result:
    """What a run came to: its lowest loss, infinite after a failure, and its steps."""

    rung: Rung
    loss: float
    steps: int


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, by dotted key, and their runs, the longest last."""

    changes: Changes
    results: tuple[Result, ...] = ()

    @property
    def score(self) -> float:
        """Lowest loss of the longest run."""
        return self.results[-1].loss if self.results else math.inf

    def lasted(self, seconds: float) -> bool:
        """Whether it got through a run of so many seconds: no other is a choice."""
        return math.isfinite(self.score) and self.results[-1].rung.seconds == seconds

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sorts trials: those of longer runs first, and who failed in theirs last."""
        length = self.results[-1].rung.seconds if self.results else 0.0
        return not math.isfinite(self.score), -length, self.score


def settings_of(configure: Configure, changes: Changes, rung: Rung) -> Settings:
    """Settings of a trial's run."""
    limits = {
        "train.max_seconds": rung.seconds,
        "train.eval_every_seconds": rung.seconds / EVALUATIONS,
    }
    return Settings.read(configure({**changes, **limits, "seed": rung.seed}))


def run(
    configure: Configure,
    changes: Changes,
    rung: Rung,
    select: str = "valid",
    cache: DatasetCache | None = None,
) -> Result:
    """Train once, or find the run that was made before; the lowest loss on the split ``select``."""
    settings = settings_of(configure, changes, rung)
    record = experiment.train(settings, cache)
    if record["outcome"] == Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    lowest = math.inf
    if record["outcome"] in (Outcome.COMPLETED, Outcome.BUDGET):
        curves, _ = read_curves((run_folder(settings) / "metrics.jsonl").read_bytes())
        losses = curves[select, "loss"].finite().values
        lowest = float(losses.min()) if len(losses) else math.inf
    return Result(rung, lowest, int(record["steps"]))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: best first, of all the spaces.
        spaces: what was searched; each but the first because the best lay at an edge, or every
            whole run of the one before failed.
    """

    trials: list[Trial]
    spaces: list[Space]


def search(
    configure: Configure,
    space: Space,
    *,
    seconds: float,
    trials: int = 16,
    seeds: Sequence[int] = TUNING_SEEDS,
    select: str = "valid",
    draw_seed: int = 0,
    widenings: int = MOST_WIDENINGS,
    cache: DatasetCache | None = None,
    begin: Callable[[Space], None] = lambda space: None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Search a space, and again a wider one where the best lies at an edge, or all of them fail.

    Settings that fail in a longer run make room there for the next best, so that what is chosen
    has got through a whole run wherever anything has.

    Args:
        configure: the resolved configuration with changes, by dotted key.
        space: what is searched.
        seconds: of training, of the longest runs.
        trials: points tried in each space.
        seeds: none of those of results.
        select: ``valid`` or ``train``, the split whose lowest loss is a run's score.
        draw_seed: of the points; a wider space has those of the next.
        widenings: how often at most the space is widened.
        cache: keeps the data between runs.
        begin: called with each space before its trials.
        report: called with a trial after each of its runs.

    Raises:
        ConfigError: a setting that cannot be.
    """
    check_seeds(seeds)
    spaces: list[Space] = []
    tried: list[Trial] = []
    while space not in spaces and len(spaces) <= widenings:
        standing = [Trial(changes) for changes in space.draw(trials, draw_seed + len(spaces))]
        spaces.append(space)
        begin(space)
        for rung in rungs(trials, seconds, seeds):
            wanted = rung.runs
            for index, trial in enumerate(standing):
                if not wanted or (trial.results and not math.isfinite(trial.score)):
                    break
                result = run(configure, trial.changes, rung, select, cache)
                standing[index] = replace(trial, results=(*trial.results, result))
                report(standing[index])
                wanted -= math.isfinite(result.loss)
            standing.sort(key=lambda trial: trial.rank)
        tried = sorted([*tried, *standing], key=lambda trial: trial.rank)
        space = space.widened(tried[0].changes if tried[0].lasted(seconds) else None)
    return Found(tried, spaces)
