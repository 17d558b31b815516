"""Search optimizers' settings: ``python -m scripts.tune task=digits,mnist optim=adam,snopt``.

Every optimizer gets the same number of trials, training seconds and points. A trial is as many
steps as the optimizer makes in the seconds given, timed once, so that a busy moment cannot cut it
short; the points are a scrambled Sobol sequence, scaled to the ranges in
``conf/optim/<name>.yaml`` and to the choices that are the same for all; a setting that is given, as
``optim.betas=[0.8,0.9]`` or ``task.batch_size=512``, is kept and not searched. ``--around
LR,FIELD_LR`` looks closer, about the rates that an earlier search of one pair found. Every point
runs with the first of the seeds, the best two (``--finalists``) with the others too; the lowest
mean loss at the end of training wins, on the evaluated part of the training split, or with
``--select valid`` on the validation split; nothing looks at the test split, and seeds 0 to 9 are
left to what is reported. The winner goes to ``conf/tuned/<task>/<optim>.yaml``, and how it was
found in ``results/reference/tuning/<task>.md``. What is finished is kept under
``--results`` and not made again, so the command can be stopped at any time and given again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from scripts.entry import MISTAKES, status
from scripts.pool import INTERRUPTED, run_all
from scripts.search import Changes, Space, check_budget, ranges, record, render, search, steps_in
from scripts.seeds import read_seeds
from tasks.common.checks import ConfigError, require_choice
from tasks.common.files import written_whole
from tasks.engine import cli
from tasks.engine.report.console import console
from tasks.engine.training.dataset_cache import DatasetCache

#: What is kept in the tuned file where it is given: settings of how a task is trained.
KEPT = ("optim.", "schedule.", "task.batch_size")
#: Times the seconds given after which a trial is ended: settings can make a solve costly.
CEILING = 3.0


def remembered(path: Path, asked: Mapping[str, Any], measure: Callable[[], int]) -> int:
    """What was measured before for the same question, or is now.

    Args:
        path: file that keeps it.
        asked: the question, as JSON has it.
        measure: answers it.
    """
    try:
        kept = json.loads(path.read_text())
        if kept["asked"] == asked:
            return int(kept["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    steps = measure()
    write(path, json.dumps({"asked": asked, "steps": steps}) + "\n")
    return steps


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and write; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    err = console(stderr=True)
    try:
        given = _parsed(options.overrides)
        if not {"task", "optim"} <= given.keys():
            raise ConfigError("say what to tune: task=digits optim=adam.")
        if "optim.lr" in given:
            raise ConfigError("optim.lr is what is searched: leave it out, or train with run.py.")
        if options.jobs < 1:
            raise ConfigError(f"--jobs={options.jobs}: must be at least 1.")
        options.overrides = cli.check_overrides(options.overrides, sweep=True)
        given = _parsed(options.overrides)
        pairs = list(itertools.product(given["task"].split(","), given["optim"].split(",")))
        for task, optim in pairs:
            require_choice("task", task, [path.stem for path in (cli.CONF / "task").glob("*.yaml")])
            require_choice("optim", optim, ranges())
        if len(pairs) > 1:
            if options.around is not None:
                raise ConfigError("--around: say it for one task and one optimizer at a time.")
            return _each(options, pairs)
        return _one(options, given["task"], given["optim"])
    except (*MISTAKES, ValueError) as error:
        err.print(str(error), markup=False)
        return cli.REFUSED
    except KeyboardInterrupt:
        err.print("stopped; the same command continues where it was.")
        return INTERRUPTED


def _parsed(overrides: Sequence[str]) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in overrides)


def _each(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> int:
    """Every pair in a process of its own, some at once."""
    out, err = console(), console(stderr=True)
    rest = [o for o in options.overrides if o.partition("=")[0] not in ("task", "optim")]
    flags = [f"--trials={options.trials}", f"--seconds={options.seconds}"]
    flags += [] if options.steps is None else [f"--steps={options.steps}"]
    flags += [f"--seeds={options.seeds}", f"--finalists={options.finalists}"]
    flags += [f"--select={options.select}"]
    flags += [f"--draw-seed={options.draw_seed}", f"--results={options.results.resolve()}"]
    flags += [] if options.out is None else [f"--out={options.out.resolve()}"]
    program = [sys.executable, "-m", "scripts.tune"]
    commands = [[*program, f"task={t}", f"optim={o}", *rest, *flags] for t, o in pairs]
    codes = run_all(
        commands,
        options.jobs,
        lambda index: out.print(f"[{index + 1}/{len(pairs)}] {' '.join(pairs[index])}"),
    )
    if any(code in (None, INTERRUPTED) for code in codes):
        raise KeyboardInterrupt
    failed = [" ".join(pair) for pair, code in zip(pairs, codes, strict=True) if code]
    if failed:
        err.print(f"not tuned: {', '.join(failed)}", markup=False)
    return 1 if failed else 0


def _one(options: argparse.Namespace, task: str, optim: str) -> int:
    """Search for one pair, in this process."""
    out, err = console(), console(stderr=True)
    seeds = read_seeds(options.seeds)
    check_budget(options.trials, options.steps, options.finalists, seeds)
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds={options.seconds:g}: must be positive.")
    typed = _parsed(options.overrides)
    given = {key: typed[key] for key in typed if key.startswith(KEPT)}
    space = Space(optim, given, options.around)
    cache = DatasetCache()
    steps = options.steps

    def configure(changes: Changes) -> Mapping[str, Any]:
        fixed = ["tuned=none", cli.override("results.root", options.results), "logger.progress=off"]
        fixed += ["train.max_epochs=1000000", "train.eval_every_epochs=null"]
        fixed += ["train.eval_at_start=false", f"train.eval_splits=[{options.select}]"]
        fixed += ["train.checkpoint_every_seconds=null", *options.overrides]
        fixed += [f"{key}={value}" for key, value in changes.items()]
        with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF)):
            return cli.plain(compose("config", overrides=fixed))

    if steps is None:
        asked = {"overrides": options.overrides, "seconds": options.seconds, "seed": seeds[0]}
        steps = remembered(
            options.results / task / f"{optim}-steps.json",
            asked,
            lambda: steps_in(configure, options.seconds, seeds[0], cache),
        )
    out.print(f"{task} {optim}: {steps} steps a trial", markup=False)
    tried = search(
        configure,
        space,
        trials=options.trials,
        steps=steps,
        seeds=seeds,
        finalists=options.finalists,
        select=options.select,
        draw_seed=options.draw_seed,
        ceiling=CEILING * options.seconds,
        cache=cache,
        report=lambda trial: out.print(
            f"{task} {optim}: {trial.score:.4g}  {dict(trial.changes)}", markup=False
        ),
    )
    if not math.isfinite(tried[0].score):
        err.print(f"{task} {optim}: every trial diverged; nothing is written.")
        return 1
    seed_list = ",".join(map(str, seeds))
    command = (
        f"python -m scripts.tune {' '.join(options.overrides)} --trials {options.trials} "
        f"--seconds {options.seconds:g} --steps {steps} --seeds {seed_list} "
        f"--finalists {options.finalists} --select {options.select} --draw-seed {options.draw_seed}"
    )
    if options.around is not None:
        command += f" --around {','.join(map(str, options.around))}"
    measured = "" if options.steps else f" (measured here as {options.seconds:g} s)"
    about = (
        f"{steps} steps each{measured}, seed {seeds[0]}"
        + (
            f", the best {options.finalists} also {','.join(map(str, seeds[1:]))}"
            if seeds[1:]
            else ""
        )
        + f", by the loss at the end on the {options.select} split"
    )
    length = f"{steps} steps, chosen by the loss on the {options.select} split"
    history = _histories(options) / f"{task}.md"
    root = cli.CONF.parent
    shown = history.relative_to(root) if history.is_relative_to(root) else history
    path = (options.out or cli.CONF / "tuned") / task / f"{optim}.yaml"
    write(path, render(tried, space, command, length, str(shown)))
    earlier = history.read_text() if history.exists() else f"# How settings for {task} were found\n"
    write(history, earlier + record(tried, space, optim, command, about))
    out.print(f"wrote {path}, and how it was found to {history}")
    return 0


def _histories(options: argparse.Namespace) -> Path:
    out: Path | None = options.out
    return cli.CONF.parent / "results/reference/tuning" if out is None else out / "history"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        help="task=... optim=..., several separated by commas, and others as for run.py",
    )
    parser.add_argument("--trials", type=int, default=8, help="points of the search space (8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of training, each run (10)")
    parser.add_argument("--steps", type=int, help="of each run, instead of timing --seconds")
    parser.add_argument(
        "--seeds", default="100,101", help="separated by commas; 10 or more (100,101)"
    )
    parser.add_argument(
        "--finalists", type=int, default=2, help="points that the seeds after the first try (2)"
    )
    parser.add_argument("--select", choices=["train", "valid"], default="train", help="split")
    parser.add_argument("--draw-seed", type=int, default=0, help="of the points (0)")
    parser.add_argument(
        "--around", type=_rates, metavar="LR,FIELD_LR", help="search no farther than a factor of 3"
    )
    parser.add_argument("--jobs", type=int, default=1, help="pairs at a time (1)")
    parser.add_argument("--out", type=Path, help="folder of the files written (conf/tuned)")
    parser.add_argument("--results", type=Path, default=Path("results/tuning"), help="of trials")
    return parser


def _rates(typed: str) -> tuple[float, float]:
    try:
        lr, field_lr = map(float, typed.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{typed}: give two rates, as 0.01,0.001") from None
    return lr, field_lr


if __name__ == "__main__":
    logging.getLogger("tasks").setLevel(logging.ERROR)  # a trial that diverges is no news
    sys.exit(status(main))
