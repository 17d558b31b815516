"""Search an optimizer's settings: ``python -m scripts.tune task=japanese_vowels optim=adam``.

Every optimizer gets the same number of trials, training seconds and points. A trial is as many
steps as the optimizer makes in the seconds given, timed once, so that a busy moment cannot cut it
short; the points are a scrambled Sobol sequence, scaled to the ranges of ``RATES`` and to the
choices that are the same for all. The lowest loss at the end of training wins, on the evaluated
part of the training split, or with ``--select valid`` on the validation split; nothing looks at the
test split, and seeds 0 to 9 are left to what is reported. The winner goes to
``conf/tuned/<task>-<optim>.yaml``, which says how it was found. Finished trials are kept under
``--results`` and not made again.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from tasks import cli, experiment
from tasks.data.errors import DataError
from tasks.report.console import console
from tasks.results import Outcome, ResultsError
from tasks.settings import ConfigError, Settings, require_choice

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
WARMUPS = (0, 10, 30)
SCHEDULES = ("constant", "cosine")
#: Steps of the runs that time an optimizer; the first only warms up.
PILOT_STEPS = (1, 5, 35)
#: Seeds of results, which no choice may depend on.
REPORTED_SEEDS = range(10)

Changes = Mapping[str, Any]
Configure = Callable[[Changes], Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, by dotted key, and the loss at the end for every seed."""

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
        horizon: steps over which the cosine falls to a tenth; after them it stays there.
    """
    points = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed).draw(count).tolist()
    drawn = []
    for first, second, third, fourth in points:
        lr = _round(_log_uniform(first, *RATES[optim]))
        changes = {
            "optim.lr": lr,
            "optim.field_lr": _round(lr * _log_uniform(second, *FIELD_RATIO)),
            "schedule.name": SCHEDULES[int(third * len(SCHEDULES))],
            "schedule.warmup_steps": WARMUPS[int(fourth * len(WARMUPS))],
        }
        if changes["schedule.name"] == "cosine":
            changes |= {"schedule.total_steps": horizon, "schedule.final_factor": 0.1}
        drawn.append(changes)
    return drawn


def _log_uniform(unit: float, low: float, high: float) -> float:
    return low * math.exp(unit * math.log(high / low))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def run(configure: Configure, changes: Changes, seed: int, select: str) -> float:
    """Train once; the loss at the end on the split ``select``, infinite after a failure."""
    settings = Settings.read(configure({**changes, "seed": seed}))
    record = experiment.train(settings)
    if record["outcome"] == Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    loss = record["final"].get(select, {}).get("loss")
    # A loss that is not finite is written as null.
    completed = record["outcome"] == Outcome.COMPLETED
    return float(loss) if completed and loss is not None else math.inf


def steps_in(configure: Configure, seconds: float, seed: int) -> int:
    """How many steps of an optimizer, with its defaults, the machine makes in so much time.

    Counted in seconds of the processor where those are fewer: other work on the machine would cut
    short one optimizer's trials and not another's. What a run does besides steps is in both of the
    runs whose difference is taken.
    """
    spent = []
    for count in PILOT_STEPS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter(), time.process_time()
            run(configure, {"train.max_steps": count, "results.root": folder}, seed, "train")
            ended = time.perf_counter(), time.process_time()
        spent.append(min(end - start for start, end in zip(started, ended, strict=True)))
    step = (spent[-1] - spent[-2]) / (PILOT_STEPS[-1] - PILOT_STEPS[-2])
    return max(1, round(seconds / max(step, 1e-6)))


def search(
    configure: Configure,
    optim: str,
    *,
    trials: int,
    steps: int,
    seeds: Sequence[int],
    select: str = "train",
    draw_seed: int = 0,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try every point with every seed; best first.

    Args:
        configure: the resolved configuration with changes, by dotted key.
        optim: a key of ``RATES``.
        trials: points tried.
        steps: training steps of each run.
        seeds: seeds of each point, none of ``REPORTED_SEEDS``.
        select: ``train`` or ``valid``.
        draw_seed: of the points.
        report: called with every trial as it ends.

    Raises:
        ConfigError: a setting that cannot be, or an optimizer without a range.
    """
    require_choice("optim", optim, RATES)
    for name, value in (("trials", trials), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1.")
    reserved = [seed for seed in seeds if seed in REPORTED_SEEDS]
    if reserved:
        raise ConfigError(f"--seeds: {reserved[0]} is for results; tune on others, such as 100.")
    tried = []
    for changes in draw(optim, trials, draw_seed, steps):
        limited = {**changes, "train.max_steps": steps}
        losses = tuple(run(configure, limited, seed, select) for seed in seeds)
        tried.append(Trial(changes, losses))
        report(tried[-1])
    return sorted(tried, key=lambda trial: trial.score)


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
        f"# (falling to a tenth); warm-up {' | '.join(map(str, WARMUPS))} steps. "
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


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and write; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    out, err = console(), console(stderr=True)
    given = dict(item.partition("=")[::2] for item in options.overrides)
    try:
        if not {"task", "optim"} <= given.keys():
            raise ConfigError("say what to tune: task=digits optim=adam.")
        seeds = [int(seed) for seed in options.seeds.split(",")]
        cli.check_overrides(options.overrides)

        def configure(changes: Changes) -> Mapping[str, Any]:
            fixed = ["tuned=none", f"results.root={options.results}", "logger.progress=off"]
            fixed += ["train.max_epochs=1000000", "train.eval_every_epochs=null"]
            fixed += ["train.eval_at_start=false", *options.overrides]
            fixed += [f"{key}={value}" for key, value in changes.items()]
            with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF)):
                return cli.plain(compose("config", overrides=fixed))

        steps = options.steps or steps_in(configure, options.seconds, seeds[0])
        out.print(f"{steps} steps a trial; --steps {steps} continues this search")
        tried = search(
            configure,
            given["optim"],
            trials=options.trials,
            steps=steps,
            seeds=seeds,
            select=options.select,
            draw_seed=options.draw_seed,
            report=lambda trial: out.print(f"{trial.score:.4g}  {dict(trial.changes)}"),
        )
    except (ConfigError, DataError, ResultsError, ValueError) as error:
        err.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        err.print("stopped; the same command continues where it was.")
        return 130
    if not math.isfinite(tried[0].score):
        err.print("every trial diverged; nothing is written.")
        return 1
    seed_list = ",".join(map(str, seeds))
    command = (
        f"python -m scripts.tune {' '.join(options.overrides)} --trials {options.trials} "
        f"--steps {steps} --seeds {seed_list} --select {options.select} "
        f"--draw-seed {options.draw_seed}"
    )
    about = (
        f"{steps} steps each (measured here as {options.seconds:g} s), seeds {seed_list}, by the "
        f"loss at the end on the {options.select} split"
    )
    path = cli.CONF / "tuned" / f"{given['task']}-{given['optim']}.yaml"
    write(path, render(tried, given["optim"], command, about))
    out.print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="+", help="task=... optim=... and others, as for run.py")
    parser.add_argument("--trials", type=int, default=8, help="points of the search space (8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of training, each run (10)")
    parser.add_argument("--steps", type=int, help="of each run, instead of timing --seconds")
    parser.add_argument("--seeds", default="100", help="separated by commas; 10 or more (100)")
    parser.add_argument("--select", choices=["train", "valid"], default="train", help="split")
    parser.add_argument("--draw-seed", type=int, default=0, help="of the points (0)")
    parser.add_argument("--results", type=Path, default=Path("results/tuning"), help="of trials")
    return parser


if __name__ == "__main__":
    logging.getLogger("tasks").setLevel(logging.ERROR)  # a trial that diverges is no news
    sys.exit(main())
