"""Costs as ratios measured side by side in one run: ``python -m scripts.bench``.

``step``       seconds of a step per task, and over the bare field work at the same evaluations
``runner``     the runner against the same loop written by hand
``snopt``      SNOpt's ordinary and refresh steps over SGD's; memory of a refresh by solver steps
``gradients``  every gradient method beside plain torchdiffeq: time, memory, NFE, error
``warmstart``  evaluations of a solve with and without a warm start
``solvers``    candidates for a task's default solver: time and gradient error
``scaling``    growth with batch, width, observations and solver steps: table, plot, exponents

Nothing here is a test: numbers belong to the machine and the moment. Variants take turns within
rounds, and ratios are medians over rounds with their quartiles.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.entry import at_least, status
from tasks.common.checks import ConfigError, require_choice
from tasks.engine.config.composing import CONF

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, or all; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Read when torch is loaded; without them its profiler announces every measurement of memory.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from tasks.engine.report.console import console

    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    known = [path.stem for path in (CONF / "task").glob("*.yaml")]
    for name in _tasks(options):
        require_choice("--task", name, known)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    out = console()
    out.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    names = list(SUBJECTS) if options.subject == "all" else [options.subject]
    for name in names:
        SUBJECTS[name](options, out)
    return 0


def _step(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import step

    step.run(_tasks(options) or step.all_tasks(), options.rounds, out, options.out)


def _runner(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import overhead

    tasks = _tasks(options) or ["digits", "japanese_vowels"]
    overhead.run(tasks, options.rounds, options.steps, out, options.out)


def _snopt(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import curvature
    from scripts.benchmarks.workloads import NETS

    tasks = _tasks(options) or NETS
    curvature.run(tasks, options.rounds, options.steps, out, options.out)


def _gradients(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import gradients
    from scripts.benchmarks.workloads import NETS

    tasks = _tasks(options) or NETS
    ways = None if options.ways is None else [way.strip() for way in options.ways.split(";")]
    unknown = [way for way in ways or () if way not in gradients.WAYS]
    if unknown:
        raise ConfigError(f"--ways: no {unknown[0]!r}. Choices: {'; '.join(gradients.WAYS)}.")
    gradients.run(tasks, options.rounds, options.steps, ways, out, options.out)


def _warmstart(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import warmstart
    from scripts.benchmarks.workloads import NETS

    warmstart.run(_tasks(options) or NETS, options.steps, out, options.out)


def _solvers(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import solvers, step

    tasks = _tasks(options) or step.all_tasks()
    solvers.run(tasks, options.rounds, options.steps, options.batch, out, options.out)


def _scaling(options: argparse.Namespace, out: Console) -> None:
    from scripts.benchmarks import scaling
    from snopt.ode.gradients import GRADIENTS

    scaling.run(options.rounds, tuple(GRADIENTS), out, options.out, short=options.short)


SUBJECTS = {
    "step": _step,
    "runner": _runner,
    "snopt": _snopt,
    "gradients": _gradients,
    "warmstart": _warmstart,
    "solvers": _solvers,
    "scaling": _scaling,
}


def _tasks(options: argparse.Namespace) -> list[str]:
    return [] if options.task is None else options.task.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", nargs="?", default="all", choices=[*SUBJECTS, "all"])
    parser.add_argument("--task", help="only these tasks, separated by commas")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="timed rounds (7)")
    parser.add_argument(
        "--steps", type=at_least(1), default=60, help="training steps before or in it (60)"
    )
    parser.add_argument("--threads", type=at_least(1), help="threads of torch (its own choice)")
    parser.add_argument(
        "--batch", type=at_least(1), help="solvers: samples of a batch (the task's own)"
    )
    parser.add_argument("--ways", help="gradients: only these, separated by semicolons")
    parser.add_argument("--short", action="store_true", help="scaling: three values of each sweep")
    parser.add_argument("--out", type=Path, help="folder for CSV files and the plot")
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
