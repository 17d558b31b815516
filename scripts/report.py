"""Draw what a results folder holds: ``python -m scripts.report results/``.

Writes ``comparison.png``, ``report.html``, ``summary.csv`` and ``summary.md`` (one row per
optimizer) and ``runs.csv`` (one row per run), and prints the comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.entry import status
from tasks.common.checks import ConfigError
from tasks.engine.cli import REFUSED
from tasks.engine.records.results import ResultsError
from tasks.engine.report import write_report
from tasks.engine.report.console import console, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit status."""
    options = _parser().parse_args(arguments)
    out, err = console(), console(stderr=True)
    root = Path(options.results)
    for folder in (root, options.beside or root):
        if not folder.is_dir():
            err.print(f"{folder} is not a folder. Train something first: make run, or run.py.")
            return REFUSED
    try:
        report = write_report(
            root,
            options.out,
            tasks=None if options.task is None else options.task.split(","),
            metric=options.metric,
            partial=options.partial,
            beside=options.beside,
        )
    except (ConfigError, ResultsError, OSError) as error:
        err.print(str(error), markup=False)
        return REFUSED
    show(report.tables, report.skipped, root, out)
    if not report.tables:
        wanted = "" if options.task is None else f" of task {options.task}"
        err.print(f"{root} holds no finished run{wanted}: nothing to draw.")
        return REFUSED
    out.print("\nwrote " + ", ".join(str(path) for path in report.files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__)
    parser.add_argument("results", nargs="?", default="results", help="folder to read (results)")
    parser.add_argument("--out", type=Path, help="folder to write to (the one that is read)")
    parser.add_argument("--task", help="only these tasks, separated by commas")
    parser.add_argument("--metric", help="test metric to draw instead of each task's own")
    parser.add_argument("--partial", action="store_true", help="show unfinished runs as well")
    parser.add_argument(
        "--beside", type=Path, help="compare with the first-order runs of this folder, too"
    )
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
