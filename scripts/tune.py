"""Search optimizers' settings: ``python -m scripts.tune task=digits,mnist optim=adam,snopt``.

Every optimizer gets the same number of trials, training seconds and points. The points are a
scrambled Sobol sequence, scaled to the ranges in ``conf/optim/<name>.yaml`` and to the schedules
that are the same for all; a setting that is given, as ``optim.betas=[0.8,0.9]`` or
``task.batch_size=512``, is kept and not searched. All points run for an eighth of ``--seconds``,
the best quarter of them for a quarter with another seed, the best of these for all of it; a run's
schedule spans its own seconds, and its score is its lowest validation loss. Nothing looks at the
test split, and seeds 0 to 9 are left to what is reported. Where the best lies at the edge of a
range, the range is widened tenfold and searched again, twice at most (``--no-widen``: never). Where
every run of full length diverged, that of the learning rate is, at its lower end.

The winner goes to ``conf/tuned/<task>/<optim>.yaml``, with the length of the runs it was found in,
and how it was found to ``results/reference/tuning/<task>.md``. Settings are good only for runs of
about that length. Runs are kept under ``--results`` and not made again, so the command can be
stopped at any time and given again. ``train.clock=cpu`` counts seconds on processors, which other
work on the machine does not change.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from scripts.entry import MISTAKES, at_least, require_ranges_of_files, status
from scripts.pool import run_all
from scripts.search import (
    MOST_WIDENINGS,
    Changes,
    Found,
    Space,
    Trial,
    label,
    parsed,
    ranges,
    rungs,
    search,
    typed,
)
from scripts.seeds import check_seeds, read_seeds
from tasks.common.checks import ConfigError, require_choice
from tasks.engine import cli
from tasks.engine.config import composing
from tasks.engine.records.results import write_file
from tasks.engine.report.console import console
from tasks.engine.training.dataset_cache import DatasetCache
from tasks.engine.training.signals import INTERRUPTED

#: What is kept in the tuned file where it is given: settings of how a task is trained.
KEPT = ("optim.", "schedule.", "task.batch_size")
_SHORTER = "ends a trial before its seconds, which are the same for all: leave it out"
#: What the search itself sets, and what to say instead.
SEARCHED = {
    "optim.lr": "is what is searched: leave it out, or train with run.py",
    "seed": "is that of each trial: say --seeds=...",
    "train.max_seconds": "is that of each trial: say --seconds=...",
    **dict.fromkeys(("train.max_steps", "train.max_epochs", "train.target"), _SHORTER),
    "train.eval_every_seconds": "follows from --seconds: leave it out",
    "train.eval_splits": "is the split that scores: say --select=...",
}


def render(
    found: Found, space: Space, command: str, about: str, history: str, clock: str = "wall"
) -> str:
    """The text of a tuned file: comments, the settings of the best trial, and the length.

    Args:
        found: the search.
        space: which settings were given.
        command: what finds the same again.
        about: lengths and criterion, in words.
        history: the file that holds the rest.
        clock: ``train.clock`` of the trials.
    """
    lines = [
        "# @package _global_",
        f"# Found by: {command}",
        f"# {len(found.trials)} trials in runs of {about}; all of the search: {history}",
    ]
    section = ""
    settings: dict[str, Any] = {**space.given, **found.trials[0].changes}
    longest = found.trials[0].results[-1]
    settings |= {"tuned_for.seconds": longest.rung.seconds, "tuned_for.clock": clock}
    settings |= {"tuned_for.steps": longest.steps}
    for key, value in sorted(settings.items(), key=lambda item: item[0].partition(".")[0]):
        group, _, name = key.partition(".")
        lines += [f"{group}:"] if group != section else []
        lines.append(f"  {name}: {typed(value)}")
        section = group
    return "\n".join(lines) + "\n"


def record(found: Found, optim: str, command: str, about: str) -> str:
    """A section of a task's history of searches, as Markdown; arguments as for :func:`render`."""
    spaces = "\n".join(
        f"{'Space' if index == 0 else 'Widened, the best lay at an edge'}: {space}."
        for index, space in enumerate(found.spaces)
    )
    best = "\n".join(
        f"{' -> '.join(f'{result.loss:.4g}' for result in trial.results)}  {_shown(trial.changes)}"
        for trial in found.trials[:3]
    )
    return f"""
## {optim}

```
Found by: {command}
{len(found.trials)} trials in runs of {about}.
{spaces}
Points, trials and seconds are the same for all optimizers of one command.
The best, with the loss of each of its runs:
{best}
```
"""


def _shown(changes: Changes) -> str:
    return " ".join(f"{key}={typed(value)}" for key, value in changes.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and write; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    err = console(stderr=True)
    try:
        given = parsed(options.overrides)
        if not {"task", "optim"} <= given.keys():
            raise ConfigError("say what to tune: task=digits optim=adam.")
        for key in SEARCHED.keys() & given.keys():
            raise ConfigError(f"{key} {SEARCHED[key]}.")
        require_ranges_of_files(given)
        if not 0 < options.seconds < math.inf:
            raise ConfigError(f"--seconds={options.seconds:g}: must be positive.")
        options.seeds = read_seeds(options.seeds)
        check_seeds(options.seeds)
        options.overrides = composing.check_overrides(options.overrides, sweep=True)
        given = parsed(options.overrides)
        _require_single(options.overrides)
        tasks, optims = (dict.fromkeys(given[key].split(",")) for key in ("task", "optim"))
        pairs = list(itertools.product(tasks, optims))
        for task, optim in pairs:
            require_choice(
                "task", task, [path.stem for path in (composing.CONF / "task").glob("*.yaml")]
            )
            require_choice("optim", optim, ranges())
        if options.dry_run:
            _say_costs(options, len(pairs))
            return 0
        if len(pairs) > 1:
            return _each(options, pairs)
        return _one(options, given["task"], given["optim"])
    except (*MISTAKES, ValueError) as error:
        err.print(str(error), markup=False)
        return cli.REFUSED
    except KeyboardInterrupt:
        err.print("stopped; the same command continues where it was.")
        return INTERRUPTED


def _require_single(overrides: Sequence[str]) -> None:
    """Refuse several values of what is neither task nor optimizer."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override() and override.key_or_group not in ("task", "optim"):
            raise ConfigError(
                f"{override.input_line}: several values, which only task and optim may have. Give "
                "the command once for each."
            )


def _costs(options: argparse.Namespace) -> tuple[int, float]:
    """Runs and training seconds of one space of one pair."""
    steps = rungs(options.trials, options.seconds, options.seeds)
    return sum(rung.runs for rung in steps), sum(rung.runs * rung.seconds for rung in steps)


def _say_costs(options: argparse.Namespace, pairs: int) -> None:
    out = console()
    runs, seconds = _costs(options)
    for rung in rungs(options.trials, options.seconds, options.seeds):
        out.print(f"{rung.runs} runs of {rung.seconds:g} s with seed {rung.seed}")
    again = f", as much again for each of {options.widenings} wider spaces at most"
    out.print(
        f"{pairs} {'searches' if pairs > 1 else 'search'} of {runs} runs and {seconds:g} s of "
        f"training each, "
        f"{pairs * seconds:g} s in all{again if options.widenings else ''}"
    )


def _flags(options: argparse.Namespace) -> list[str]:
    """What makes the same search again."""
    flags = [f"--trials={options.trials}", f"--seconds={options.seconds:g}"]
    flags += [f"--seeds={','.join(map(str, options.seeds))}", f"--select={options.select}"]
    flags += [f"--draw-seed={options.draw_seed}"]
    return flags if options.widenings else [*flags, "--no-widen"]


def _each(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> int:
    """Every pair in a process of its own, some at once."""
    out, err = console(), console(stderr=True)
    rest = [o for o in options.overrides if o.partition("=")[0] not in ("task", "optim")]
    flags = [*_flags(options), f"--results={options.results.resolve()}"]
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
    given = parsed(options.overrides)
    kept = [k for k in given if k.startswith(KEPT) and not k.startswith("optim.about.")]
    space = Space.of(optim, {key: given[key] for key in kept})
    name = label(optim, options.overrides)

    def configure(changes: Changes) -> Mapping[str, Any]:
        fixed = [
            "tuned=none",
            composing.override("results.root", options.results),
            "logger.progress=off",
        ]
        fixed += ["train.max_epochs=null", "train.eval_every_epochs=null"]
        fixed += ["train.eval_at_start=false", f"train.eval_splits=[{options.select}]"]
        fixed += ["train.checkpoint_every_seconds=null", *options.overrides]
        fixed += [f"{key}={typed(value)}" for key, value in changes.items()]
        with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
            return composing.plain(compose("config", overrides=fixed))

    _, seconds = _costs(options)
    left = 0.0

    def begin(searched: Space) -> None:
        nonlocal left
        left = seconds
        if searched != space:
            out.print(f"{task} {name}: a wider space is searched: {searched}", markup=False)

    def report(trial: Trial) -> None:
        nonlocal left
        last = trial.results[-1]
        length = last.rung.seconds
        left -= length if math.isfinite(last.loss) else 0.0  # another takes a failed run's place
        out.print(
            f"{task} {name} [{max(0.0, left):.0f} s left]: {last.loss:.4g} after "
            f"{last.steps} steps of {length:g} s  {_shown(trial.changes)}",
            markup=False,
        )

    found = search(
        configure,
        space,
        seconds=options.seconds,
        trials=options.trials,
        seeds=options.seeds,
        select=options.select,
        draw_seed=options.draw_seed,
        widenings=options.widenings,
        cache=DatasetCache(),
        begin=begin,
        report=report,
    )
    if not found.trials[0].lasted(options.seconds):
        err.print(
            f"{task} {name}: every run of {options.seconds:g} s diverged; nothing is written."
        )
        return 1
    asked = [override.removeprefix("++") for override in options.overrides]
    command = f"python -m scripts.tune {' '.join([*asked, *_flags(options)])}"
    lengths = rungs(options.trials, options.seconds, options.seeds)
    about = (
        f"{', '.join(f'{r.runs} x {r.seconds:g} s (seed {r.seed})' for r in lengths)}, "
        f"chosen by the lowest loss on the {options.select} split"
    )
    history = _histories(options) / f"{task}.md"
    root = composing.CONF.parent
    shown = history.relative_to(root) if history.is_relative_to(root) else history
    path = (options.out or composing.CONF / "tuned") / task / f"{name}.yaml"
    clock = configure({})["train"]["clock"]
    write_file(path, render(found, space, command, about, str(shown), clock).encode())
    append(history, f"# How settings for {task} were found\n", record(found, name, command, about))
    out.print(f"wrote {path}, and how it was found to {history}")
    if name != optim:  # one file of settings for all classes would be nobody's
        out.print(f"It applies where it is asked for: optim={optim} tuned={task}/{name}")
    return 0


def append(path: Path, title: str, section: str) -> None:
    """Add a section to a file that other searches may be adding to; ``title`` begins a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        earlier = path.read_text(encoding="utf-8") if path.exists() else title
        write_file(path, (earlier + section).encode())


def _histories(options: argparse.Namespace) -> Path:
    out: Path | None = options.out
    return composing.CONF.parent / "results/reference/tuning" if out is None else out / "history"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        help="task=... optim=..., several separated by commas, and other settings as for run.py",
    )
    parser.add_argument("--trials", type=at_least(1), default=16, help="settings to try (16)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="training seconds of the longest runs (60)"
    )
    parser.add_argument(
        "--seeds", default="100,101", help="10 or more, separated by commas (100,101)"
    )
    parser.add_argument(
        "--select", choices=["valid", "train"], default="valid", help="split that scores (valid)"
    )
    parser.add_argument("--draw-seed", type=int, default=0, help="seed of the points (0)")
    parser.add_argument(
        "--no-widen",
        dest="widenings",
        action="store_const",
        const=0,
        default=MOST_WIDENINGS,
        help="search the given ranges alone, wherever the best lies",
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, help="searches at a time (1)")
    parser.add_argument("--dry-run", action="store_true", help="say how many runs and seconds")
    parser.add_argument("--out", type=Path, help="folder of the files written (conf/tuned)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/tuning"),
        help="folder of trials (results/tuning)",
    )
    return parser


if __name__ == "__main__":
    logging.getLogger("tasks").setLevel(logging.ERROR)  # a trial that diverges is no news
    sys.exit(status(main))
