"""``report.html``: tables as text and pictures inside it, one section a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.engine.records.runs import Run, SkippedRun
from tasks.engine.report.columns import Place, Value, columns
from tasks.engine.report.comparison import Series, find_curve
from tasks.engine.report.drawing import AXES
from tasks.engine.report.formatting import metric_style, number, spread
from tasks.engine.report.interactive import Line, Quantity, available, interactive_curves
from tasks.engine.report.pages import Grid, Item, render_page
from tasks.engine.report.statistics import Spread
from tasks.engine.report.summary import Table
from tasks.engine.report.targets import LOSS, Goal, TimeToTarget, metric_goal

_TEMPLATE = Path(__file__).parent / "templates" / "report.html"


@dataclass(frozen=True)
class Picture:
    """A picture that is a file of its own: its name without the comparison's, caption and PNG."""

    name: str
    caption: str
    content: bytes


@dataclass(frozen=True)
class Section:
    """One comparison's part of the page: numbers, pictures, and further PNG files by caption."""

    table: Table
    figure: bytes
    diagnostics: bytes | None
    drawn: Sequence[Picture]
    pictures: Mapping[str, bytes]


def render(root: Path, sections: Sequence[Section], skipped: Sequence[SkippedRun]) -> str:
    """The whole page; with plotly, it loads the script beside it and its curves can be pointed at.

    Args:
        root: the results folder, to name runs relative to it.
        sections: one per comparison, in the order of the page.
        skipped: folders that look like runs and are not in the numbers.
    """
    return render_page(
        _TEMPLATE,
        interactive=available(),
        sections=[_section(f"curves{i}", section) for i, section in enumerate(sections)],
        skipped=[(relative(entry.path, root), entry.reason) for entry in skipped],
        runs=_runs(root, sections),
    )


def _section(name: str, section: Section) -> dict[str, Any]:
    table = section.table
    comparison = table.comparison
    drawn = {picture.caption: picture.content for picture in section.drawn}
    return {
        "title": comparison.title,
        "provenance": comparison.provenance,
        "notes": comparison.notes,
        "interactive": _curves(name, table) if available() else "",
        "figure": section.figure,
        "results": _grid(table, "page"),
        "targets": [
            _target(table, "loss target", table.time_to_loss, LOSS),
            _target(table, "metric target", table.time_to_metric, metric_goal(comparison)),
        ],
        "costs": _grid(table, "costs"),
        "pictures": drawn | dict(section.pictures),
        "diagnostics": section.diagnostics,
    }


def _curves(name: str, table: Table) -> str:
    """Training loss and the test metric."""
    metric = metric_goal(table.comparison)
    shown = ((LOSS, table.time_to_loss), (metric, table.time_to_metric))
    quantities = [
        Quantity(goal.name, found.target.median if found else None, rises=goal.higher)
        for goal, found in shown
    ]
    lines = [_line(series, [goal for goal, _ in shown]) for series in table.comparison.series]
    return interactive_curves(name, quantities, lines, AXES)


def _line(series: Series, goals: Sequence[Goal]) -> Line:
    failed = [run for run in series.runs if run.outcome == "diverged"]
    return Line(
        series.label,
        series.colour,
        series.variant,
        curves=[series.curves(goal.keys) for goal in goals],
        diverged=[[c for r in failed if (c := find_curve(r, goal.keys))] for goal in goals],
    )


def _target(table: Table, place: Place, found: TimeToTarget | None, goal: Goal) -> dict[str, Any]:
    return {
        "name": goal.name,
        "about": _explained(found, goal),
        "grid": _grid(table, place) if found else None,
    }


def _explained(found: TimeToTarget | None, goal: Goal) -> str:
    """What the target is and what the ratios divide by."""
    if found is None:
        return f"No first-order optimizer measured a {goal.name} here, so there is no target."
    shown = spread(found.target, metric_style(goal.keys[0][1]))
    return (
        f"Target: the final {goal.name} of {found.baseline}, the best first-order optimizer here, "
        f"{shown}, seed by seed. A ratio is an optimizer's seconds to that "
        f"target divided by those of {found.baseline} on the same seed (below 1 is faster); the "
        f"last column divides by {found.baseline}'s whole training time. Medians, with the range "
        "over seeds in brackets; 'never' counts as infinite. A target counts as reached at the "
        f"first measurement that shows it; they lie {spread(found.spacing)} s apart."
    )


def _grid(table: Table, place: Place) -> Grid:
    shown = columns(table, place)
    rows = [
        [
            Item(c.text(row), _key(c.value(row)), colour="" if i else row.series.colour)
            for i, c in enumerate(shown)
        ]
        for row in table.rows
    ]
    return Grid([column.headings[place] for column in shown], rows)


def _key(value: Value) -> float | None:
    """What a cell is sorted by; nothing is NaN."""
    if isinstance(value, Spread):
        return value.median
    if isinstance(value, str):
        return None
    return math.nan if value is None else float(value)


def _runs(root: Path, sections: Iterable[Section]) -> Grid:
    heads = ("folder", "seed", "outcome", "steps", "seconds", "how it ended", "made on")
    every = (s for section in sections for s in section.table.comparison.series)
    return Grid(heads, [_run(root, run) for series in every for run in series.runs])


def _run(root: Path, run: Run) -> list[Item]:
    return [
        Item(relative(run.path, root)),
        Item(str(run.seed), run.seed),
        Item(run.outcome),
        Item(str(run.steps), run.steps),
        Item(number(run.seconds), run.seconds),
        Item(run.message, prose=True),
        Item(_machine(run), prose=True),
    ]


def _machine(run: Run) -> str:
    names = ("device_name", "threads", "torch", "snopt")
    known = ((name, run.environment.get(name)) for name in names)
    return ", ".join(f"{name} {value}" for name, value in known if value is not None)


def relative(path: Path, root: Path) -> str:
    """The path as seen from the results folder, so that a page can travel."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
