"""Run what is missing of an experiment, then draw it: ``python -m scripts.reproduce paper/images``.

An experiment is a folder of ``conf/experiment``, with one file per run or sweep, or one such file
(``reference/digits``); ``all`` stands for every one.
Finished runs are skipped and interrupted ones resumed, so the command can be stopped at any time
and given again. It writes ``comparison.png``, ``report.html``, ``summary.csv``, and ``table.md``
with published numbers beside ours, to ``<results>/reproduced/<experiment>/``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from scripts.entry import status
from scripts.family_study import write_study
from scripts.horizon_study import horizon_markdown
from scripts.jobs import Job, chosen, estimate, experiments, plan, wall_factor
from scripts.paper_study import by_machine, paper_markdown
from scripts.pool import run_all
from scripts.seeds import read_seeds
from tasks.common.checks import ConfigError
from tasks.engine.cli import DIVERGED, REFUSED
from tasks.engine.config.composing import check_overrides, override
from tasks.engine.records.results import ResultsError, write_file
from tasks.engine.records.runs import UnreadableRunError
from tasks.engine.report import Report, Run, SkippedRun, read_run, write_runs
from tasks.engine.report.console import console, show
from tasks.engine.report.formatting import number
from tasks.engine.training.signals import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and draw; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    out, err = console(), console(stderr=True)
    known = experiments()
    single = [choice for choice in known.get("all", []) if choice == options.experiment]
    choices = known.get(options.experiment) or single
    if not choices:
        names = ", ".join(sorted(known)) or "none, conf/experiment holds no folder"
        err.print(f"{options.experiment}: no such experiment. Choices: {names}.")
        return REFUSED
    root = Path(options.results)
    try:
        seeds = read_seeds(options.seeds)
        if not options.results.strip() or (root.exists() and not root.is_dir()):
            raise ConfigError(f"--results={options.results}: must name a folder.")
        if any(o.startswith("results.root=") for o in options.override):
            raise ConfigError("results.root: say --results=... here, for runs and report alike.")
        extra = [override("results.root", root), *options.override]
        if options.budget is not None and not 0 < options.budget < math.inf:
            raise ConfigError(f"--budget={options.budget:g}: seconds, above 0.")
        if options.jobs < 1:
            raise ConfigError(f"--jobs={options.jobs}: must be at least 1.")
        if options.override:
            given = check_overrides([f"experiment={choices[0]}", *options.override])[1:]
            extra[1:] = given
        with err.status(f"planning {options.experiment}, which takes a second for every few runs"):
            jobs = plan(choices, seeds, options.budget, extra)
    except (ConfigError, ValueError) as error:
        err.print(str(error), markup=False)
        return REFUSED
    if options.dry_run:
        _print_plan(jobs, root, options.jobs, out)
        return 0
    failed, interrupted = _run(jobs, options.jobs, root, out)
    trials = [job for job in jobs if job.trial]
    if trials and not interrupted:
        repeats = chosen(trials, seeds)
        further, interrupted = _run(repeats, options.jobs, root, out)
        failed += further
        jobs = [job for job in jobs if not job.trial] + repeats
    if interrupted:
        err.print("stopped; the same command continues where it was.")
        return INTERRUPTED
    folder = root / "reproduced" / options.experiment.replace("/", "-")
    try:
        report = _draw(jobs, root, folder)
    except ResultsError as error:
        err.print(str(error), markup=False)
        return REFUSED
    show(report.tables, report.skipped, root, out)
    if report.tables:
        out.print((folder / "table.md").read_text(encoding="utf-8"), markup=False)
        out.print(f"wrote {folder}", markup=False)
    return 1 if failed or not report.tables else 0


def _run(jobs: Sequence[Job], at_once: int, root: Path, out: Console) -> tuple[list[Job], bool]:
    """Run what is not finished, in order; the jobs that failed, and whether a user stopped it.

    A run that diverged is a result, which the report shows.
    """
    titles = [f"[{n}/{len(jobs)}] {' '.join(job.overrides)}" for n, job in enumerate(jobs, start=1)]
    missing = []
    for index, job in enumerate(jobs):
        if job.finished:
            out.print(f"{titles[index]}: finished before", markup=False)
        else:
            missing.append(index)
    # Several bars would draw over each other.
    quiet = ["logger.progress=plain"] if at_once > 1 else []
    program = [sys.executable, "run.py"]
    codes = run_all(
        [[*program, *_absolute(jobs[index].overrides, root), *quiet] for index in missing],
        at_once,
        lambda place: out.print(titles[missing[place]], markup=False),
    )
    interrupted = any(code in (None, INTERRUPTED) for code in codes)
    failed = [i for i, code in zip(missing, codes, strict=True) if code not in (0, DIVERGED)]
    return [jobs[index] for index in failed], interrupted


def _absolute(overrides: Sequence[str], root: Path) -> list[str]:
    """Overrides with the results folder as seen from anywhere; run.py starts in the checkout."""
    seen = override("results.root", root.resolve())
    return [seen if o.startswith("results.root=") else o for o in overrides]


def _draw(jobs: Sequence[Job], root: Path, folder: Path) -> Report:
    runs: list[Run] = []
    skipped: list[SkippedRun] = []
    for job in jobs:
        try:
            if not job.finished:
                raise UnreadableRunError("not finished")
            runs.append(read_run(job.folder).on_its_clock())
        except UnreadableRunError as error:
            skipped.append(SkippedRun(job.folder, str(error)))
    report = write_runs(runs, skipped, root, folder)
    if report.tables:
        text = write_study(runs, folder) or horizon_markdown(runs)
        text = text or paper_markdown(by_machine(runs))
        write_file(folder / "table.md", text.encode())
    return report


def _print_plan(jobs: Sequence[Job], root: Path, at_once: int, out: Console) -> None:
    grid = RichTable("run", "state", "estimated s", box=None, pad_edge=False)
    total, wall, unknown = 0.0, 0.0, 0
    for job in jobs:
        seconds = estimate(job, root)
        state = "finished" if job.finished else "resumes" if job.record else "missing"
        if math.isnan(seconds):
            unknown += 1
        else:
            factor = wall_factor(job, root)
            total += seconds
            wall += seconds * (1.0 if math.isnan(factor) else factor)
        text = "unknown" if math.isnan(seconds) else number(seconds)
        grid.add_row(" ".join(job.overrides), state, text)
    out.print(grid)
    known = len(jobs) - unknown
    costs = [f"{known} with about {total:.0f} s of training to do"] if known else []
    if unknown:
        costs.append(f"{unknown} of unknown cost: no earlier run of the task tells, see --budget")
    if known and not any(root.glob("*/*/*/*/run.json")):
        costs.append("as measured elsewhere, for the order of magnitude")
    out.print(f"\n{len(jobs)} runs: {', '.join(costs)}")
    if known:
        out.print(
            f"wall time with --jobs {at_once}: about {wall / at_once / 60:.1f} min; evaluation is "
            "in it where earlier runs of the task tell, starting up is not"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.reproduce", description=__doc__)
    parser.add_argument(
        "experiment", help="a folder or file of conf/experiment (paper/images), or all"
    )
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas (0,1,2)")
    parser.add_argument("--budget", type=float, help="training seconds of each run, at most")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would run")
    parser.add_argument(
        "--results",
        default="results",
        help="results folder (results)",
    )
    # Without a default argparse calls it required.
    parser.add_argument(
        "override", nargs="*", default=[], help="overrides for all runs (device=cpu)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
