"""Writes ``comparison.png``, ``summary.csv``, ``summary.md``, ``runs.csv`` and ``report.html``.

Where plotly is installed, ``plotly.min.js`` lies beside the page for its curves. The picture of a
task is a file too, ``density-<task>-<model>.png`` of flows in the plane, and so is that of the
integration time, ``horizon-<task>-<model>.png``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.common.checks import require_choice
from tasks.common.figures import png
from tasks.engine.records.results import write_file
from tasks.engine.records.runs import Run, SkippedRun, read_runs
from tasks.engine.report.columns import summary_csv
from tasks.engine.report.comparison import Comparison, compare, is_first_order
from tasks.engine.report.figures import comparison_figure, diagnostics_figure, overview_figure
from tasks.engine.report.horizon_figure import has_horizon, horizon_figure
from tasks.engine.report.html import Picture, Section, render
from tasks.engine.report.interactive import script_files
from tasks.engine.report.markdown import summary_markdown
from tasks.engine.report.summary import Table, runs_csv, tabulate
from tasks.engine.report.task_picture import task_picture

# Density plots and the like that a task left in a run's folder; more would drown the curves.
_MOST_PICTURES = 6


@dataclass(frozen=True)
class Report:
    """What was read and written.

    Attributes:
        tables: one per comparison, empty if there was nothing to compare.
        skipped: folders that are not in the numbers, and why.
        files: what was written.
    """

    tables: tuple[Table, ...]
    skipped: tuple[SkippedRun, ...]
    files: tuple[Path, ...]


def write_report(
    root: Path,
    out: Path | None = None,
    *,
    tasks: Iterable[str] | None = None,
    metric: str | None = None,
    partial: bool = False,
    beside: Path | None = None,
) -> Report:
    """Read every run below ``root`` and draw the report.

    Nothing is written where no run could be read.

    Args:
        root: a results folder.
        out: where the files go; ``root`` by default. Created where missing.
        tasks: only these tasks.
        metric: test metric to show instead of each task's own.
        partial: show runs that have not ended as well.
        beside: another results folder, whose first-order runs of the same tasks are compared with:
            those of full length, where ``root`` has runs with half the seconds.

    Raises:
        ConfigError: no run measured the metric.
        ResultsError: a file cannot be written.
    """
    runs, skipped = read_runs(root, tasks=tasks, partial=partial)
    if beside is not None:
        others, more = read_runs(beside, tasks={run.task for run in runs}, partial=partial)
        known = {run.identity for run in runs}
        runs += [run for run in others if is_first_order(run) and run.identity not in known]
        skipped += more
    return write_runs(runs, skipped, root, root if out is None else out, metric=metric)


def write_runs(
    runs: Iterable[Run],
    skipped: Iterable[SkippedRun],
    root: Path,
    folder: Path,
    *,
    metric: str | None = None,
) -> Report:
    """Draw the report of some runs.

    Args:
        runs: what to show.
        skipped: what to name as missing.
        root: folder that runs are named relative to.
        folder: where the files go.
        metric: test metric to show instead of each task's own.

    Raises:
        ConfigError: no run measured the metric.
        ResultsError: a file cannot be written.
    """
    runs, skipped = list(runs), tuple(skipped)
    measured = {name for run in runs for split, name in run.curves if split == "test"}
    if metric is not None and runs:
        require_choice("metric", metric, measured)
    comparisons = compare(runs, metric=metric)
    tables = tuple(tabulate(comparison) for comparison in comparisons)
    if not tables:
        return Report((), skipped, ())
    sections = [_section(table) for table in tables]
    files = {
        "comparison.png": _overview(comparisons, sections),
        "summary.csv": summary_csv(tables).encode(),
        "summary.md": summary_markdown(tables).encode(),
        "runs.csv": runs_csv(comparisons).encode(),
        "report.html": render(root, sections, skipped).encode(),
        **script_files(),
        **{
            f"{drawn.name}-{section.table.comparison.slug}.png": drawn.content
            for section in sections
            for drawn in section.drawn
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_file(folder / name, content)
    return Report(tables, skipped, tuple(folder / name for name in files))


def _overview(comparisons: Sequence[Comparison], sections: Sequence[Section]) -> bytes:
    return sections[0].figure if len(sections) == 1 else png(overview_figure(comparisons))


def _section(table: Table) -> Section:
    diagnostics = diagnostics_figure(table.comparison)
    return Section(
        table=table,
        figure=png(comparison_figure(table.comparison)),
        diagnostics=None if diagnostics is None else png(diagnostics, dpi=90),
        drawn=_drawn(table.comparison),
        pictures=_pictures(table.comparison),
    )


def _drawn(comparison: Comparison) -> tuple[Picture, ...]:
    """The task's own picture, and that of the integration time."""
    found = []
    if (own := task_picture(comparison)) is not None:
        found.append(own)
    if has_horizon(comparison):
        found.append(Picture("horizon", "Integration time", png(horizon_figure(comparison))))
    return tuple(found)


def _pictures(comparison: Comparison) -> dict[str, bytes]:
    """Pictures in the folders of each series' first seed, by a caption that says whose they are."""
    found: dict[str, bytes] = {}
    for series in comparison.series:
        run = series.runs[0]
        for path in sorted(run.path.glob("*.png")):
            if len(found) < _MOST_PICTURES:
                found[f"{path.stem}: {series.label}, seed {run.seed}"] = path.read_bytes()
    return found
