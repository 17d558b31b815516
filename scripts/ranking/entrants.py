"""One optimizer on one workload: settings chosen on tuning seeds, then the runs that count.

``python -m scripts.ranking.entrants default mnist adamw`` makes what is missing of one; the
benchmark starts several of these. All runs are ordinary ones of ``run.py``, kept below the results
folder and found again by their configurations, so that a stopped command continues where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from scripts.entry import at_least, status
from scripts.ranking.outcomes import Outcome, merit
from scripts.ranking.workloads import Workload
from scripts.search import Space, Trial, label, parsed, search, settings_of, typed
from scripts.seeds import TUNING_SEEDS
from tasks.common.checks import ConfigError
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.about import About, about, colour
from tasks.engine.records.record import FINISHED, record_or_empty
from tasks.engine.records.results import run_folder, write_file
from tasks.engine.report.console import console
from tasks.engine.training.dataset_cache import DatasetCache

TRACKS = ("default", "tuned")
#: Exit status where the tuned track's search found no settings to run with.
NO_SETTINGS = 4

#: Parts of the budget that a run may take, its schedule with it: whoever is there sooner may end
#: sooner.
SHARES = (0.5, 1.0)
#: Learning rates of the default track that go on to the second tuning seed.
FINALISTS = 2
#: Budgets that the tuned track's search takes.
SEARCH_BUDGETS = 6.0
#: Warm-up of the default track, as a share of the run.
WARMUP = 0.05

Changes = Mapping[str, Any]


class NoSettingsError(ConfigError):
    """No trial of a search got through a whole run."""


@dataclass(frozen=True)
class Tried:
    """Settings that were tried.

    Attributes:
        settings: by dotted key.
        seed: of the run.
        merit: what it was worth, see :func:`~scripts.ranking.outcomes.merit`.
    """

    settings: Changes
    seed: int
    merit: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """What was tried in the last rung and before it; the first is what the entrant runs with."""

    trials: tuple[Tried, ...]

    @property
    def settings(self) -> Changes:
        """What the entrant runs with, by dotted key."""
        return self.trials[0].settings

    @property
    def merit(self) -> tuple[float, float]:
        """What it was chosen by."""
        return self.trials[0].merit


@dataclass(frozen=True)
class Entrant:
    """An optimizer that runs on a workload.

    Attributes:
        track: one of :data:`TRACKS`.
        workload: what it runs on.
        optim: name of a file of ``conf/optim``.
        root: results folder of the benchmark.
        overrides: further ones, as for ``run.py``.
    """

    track: str
    workload: Workload
    optim: str
    root: Path
    overrides: tuple[str, ...] = ()

    @property
    def runs(self) -> Path:
        """Results folder of its runs."""
        return self.root / self.track / self.workload.name / self.label

    @property
    def chosen(self) -> Path:
        """The file that keeps what was chosen."""
        return self.runs / "choice.json"

    @cached_property
    def label(self) -> str:
        """What it is called."""
        return label(self.optim, self.overrides)

    @cached_property
    def about(self) -> About:
        """What is known of it."""
        return about(self.optim, self._optim)

    @property
    def colour(self) -> str:
        """In figures."""
        return colour(self.label, self._optim)

    @cached_property
    def _optim(self) -> dict[str, Any]:
        found: dict[str, Any] = self.configure({})["optim"]
        return found

    def configure(self, changes: Changes, seed: int = 0) -> dict[str, Any]:
        """The resolved configuration with changes, by dotted key."""
        given = [f"target={self.workload.name}", f"optim={self.optim}", "tuned=none"]
        given += [
            composing.override("results.root", self.runs),
            "logger.progress=off",
            f"seed={seed}",
        ]
        given += [*self.overrides, *(f"{key}={typed(value)}" for key, value in changes.items())]
        with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
            return composing.plain(compose("config", overrides=composing.opened(given)))

    def settings(self, changes: Changes, seed: int) -> Settings:
        """The same, checked."""
        return Settings.read(self.configure(changes, seed))

    def point(self, lr: float, share: float) -> dict[str, Any]:
        """Settings of the default track: a learning rate, and a part of the budget."""
        return {
            "optim.lr": lr,
            "schedule.name": self.about.schedule,
            "schedule.warmup": WARMUP,
            "train.max_seconds": share * self.workload.seconds,
        }

    def _conditions(self) -> dict[str, Any]:
        """What a choice holds for: the target, the configuration before, and what it was among."""
        about = self.about
        default = {"rates": [*about.rates], "schedule": about.schedule}
        return {
            "target": self.workload.goal,
            "base": run_folder(self.settings({}, 0)).name,
            "among": default if self.track == "default" else about.search,
        }

    def choice(self) -> Choice | None:
        """What was chosen for target and configuration as they stand, or ``None``."""
        try:
            kept = json.loads(self.chosen.read_text(encoding="utf-8"))
            holds = self._conditions()
            kept.setdefault("among", holds["among"])  # earlier choices do not say
            if all(kept.get(key) == value for key, value in holds.items()):
                trials = kept["trials"]
                return Choice(
                    tuple(Tried(t["settings"], t["seed"], tuple(t["merit"])) for t in trials)
                )
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.chosen}: is damaged ({error}). Remove it.") from error
        return None

    def keep(self, choice: Choice) -> None:
        """Write down what was chosen."""
        content = {**self._conditions(), **asdict(choice)}
        write_file(self.chosen, json.dumps(content, indent=1).encode())

    def finals(self, seeds: Sequence[int]) -> list[Path]:
        """Folders of the runs that count; empty before the choice, and where one is missing."""
        choice = self.choice()
        if choice is None:
            return []
        folders = [run_folder(self.settings(choice.settings, seed)) for seed in seeds]
        ended = [record_or_empty(folder / "run.json").get("outcome") for folder in folders]
        return folders if all(outcome in FINISHED for outcome in ended) else []

    def spent(self) -> tuple[float, float]:
        """Processor seconds of training, and seconds in all, that went into it so far."""
        records = [record_or_empty(path) for path in self.runs.rglob("run.json")]
        cpu = sum(float(record.get("cpu_seconds") or 0.0) for record in records)
        return cpu, sum(float(record.get("wall") or 0.0) for record in records)

    def price(self, seeds: int) -> float:
        """Processor seconds of training that all of it takes at most."""
        budget = self.workload.seconds
        if self.track == "tuned":
            return (SEARCH_BUDGETS + seeds) * budget
        return (SHARES[0] * len(self.about.rates) + FINALISTS * sum(SHARES) + seeds) * budget


class Trainer:
    """Makes an entrant's runs one after the other, and says what they came to.

    Args:
        entrant: whose.
        say: takes a line for the console.
    """

    def __init__(self, entrant: Entrant, say: Callable[[str], None]) -> None:
        self.entrant, self._say = entrant, say
        self._cache = DatasetCache()

    def run(self, changes: Changes, seed: int) -> Outcome:
        """Train with changes and a seed, unless that was done before.

        Raises:
            KeyboardInterrupt: it was stopped; the run resumes next time.
        """
        from tasks.engine.experiment import train

        settings = self.entrant.settings(changes, seed)
        summary = train(settings, self._cache)
        if summary["outcome"] == "interrupted":
            raise KeyboardInterrupt
        outcome = Outcome.read(run_folder(settings))
        length = f"{settings.train.max_seconds:g} s, seed {seed}"
        self._say(f"{self.entrant.label} {length}, {_shown(changes)}: {outcome.best:.4g}")
        return outcome

    def choose(self) -> Choice:
        """The default track's settings.

        All learning rates run for the smaller part of the budget with the first tuning seed, and
        the best of them for both parts with the other. Settings that ran with both seeds count by
        the mean.
        """
        point, rates = self.entrant.point, self.entrant.about.rates
        first = self._tried([point(lr, SHARES[0]) for lr in rates], TUNING_SEEDS[0])
        best = [one.settings["optim.lr"] for one in first[:FINALISTS]]
        last = [point(lr, share) for lr, share in itertools.product(best, SHARES)]
        final = self._tried(last, TUNING_SEEDS[1])

        def worth(one: Tried) -> tuple[float, ...]:
            same = [other.merit for other in (*final, *first) if other.settings == one.settings]
            return tuple(sum(parts) / len(same) for parts in zip(*same, strict=True))

        return Choice((*sorted(final, key=worth), *first))

    def search(self) -> Choice:
        """The tuned track's settings, by the search of ``scripts.tune``.

        Its trials are ranked by their lowest loss; of those that ran for the whole budget the one
        with the best merit is chosen. What the overrides say is not searched.

        Raises:
            NoSettingsError: none ran for the whole budget.
        """
        workload = self.entrant.workload

        def configure(changes: Changes) -> dict[str, Any]:
            return self.entrant.configure({**changes, "train.eval_splits": ["valid"]})

        space = Space.of(self.entrant.optim, parsed(self.entrant.overrides))
        found = search(
            configure, space, seconds=workload.seconds, cache=self._cache, report=self._report
        )
        tried = []
        for trial in found.trials:
            if trial.lasted(workload.seconds):
                rung = trial.results[-1].rung
                folder = run_folder(settings_of(configure, trial.changes, rung))
                worth = merit(Outcome.read(folder), workload.goal, workload.seconds)
                settings = {**trial.changes, "train.max_seconds": workload.seconds}
                tried.append(Tried(settings, rung.seed, worth))
        if not tried:
            raise NoSettingsError(
                f"{self.entrant.label}: every trial on {workload.name} diverged before the whole "
                "budget, so that there are no settings to run with."
            )
        return Choice(tuple(sorted(tried, key=lambda one: one.merit)))

    def _report(self, trial: Trial) -> None:
        seconds = trial.results[-1].rung.seconds
        self._say(f"{self.entrant.label} {seconds:g} s, {_shown(trial.changes)}: {trial.score:.4g}")

    def _tried(self, points: Sequence[Changes], seed: int) -> list[Tried]:
        """Settings with a seed, best first; nothing here sees the test split."""
        workload = self.entrant.workload
        tried = []
        for settings in points:
            outcome = self.run({**settings, "train.eval_splits": ["valid"]}, seed)
            worth = merit(outcome, workload.goal, workload.seconds)
            tried.append(Tried(settings, seed, worth))
        return sorted(tried, key=lambda one: one.merit)


def make(entrant: Entrant, seeds: Sequence[int], say: Callable[[str], None]) -> None:
    """Choose settings, unless that was done before, and make the runs that count."""
    trainer = Trainer(entrant, say)
    choice = entrant.choice()
    if choice is None:
        choice = trainer.choose() if entrant.track == "default" else trainer.search()
        entrant.keep(choice)
    for seed in seeds:
        trainer.run(choice.settings, seed)


def _shown(changes: Changes) -> str:
    """Settings in a line, without those that say how a run is measured."""
    parts = [(key, value) for key, value in changes.items() if not key.startswith("train.")]
    return " ".join(f"{key.partition('.')[2]}={typed(value)}" for key, value in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of one entrant; returns the exit status."""
    options = _parser().parse_args(arguments)
    out = console()
    workload = Workload.read(options.workload)
    entrant = Entrant(
        options.track, workload, options.optim, options.results, tuple(options.overrides)
    )
    try:
        make(
            entrant,
            range(options.seeds),
            lambda line: out.print(line, markup=False, highlight=False),
        )
    except NoSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return NO_SETTINGS
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ranking.entrants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("workload", help="a file of conf/target")
    parser.add_argument("optim", help="a file of conf/optim")
    parser.add_argument("overrides", nargs="*", help="further ones, as for run.py")
    parser.add_argument("--seeds", type=at_least(0), default=5, help="runs that count (5)")
    parser.add_argument("--results", type=Path, default=Path("results/benchmark"))
    return parser


if __name__ == "__main__":
    logging.getLogger("tasks").setLevel(logging.ERROR)  # a trial that diverges is no news
    sys.exit(status(main))
