"""One HTML page with everything in it: tables as text, pictures embedded, nothing to fetch."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tasks.engine.records.runs import Run, SkippedRun
from tasks.engine.report.columns import Column, Place, columns
from tasks.engine.report.formatting import metric_style, number, spread
from tasks.engine.report.summary import Table, TableRow
from tasks.engine.report.targets import LOSS, Goal, TimeToTarget, metric_goal

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.5em; } h2 { margin-top: 2.2em; border-bottom: 2px solid #ddd; }
h3 { margin-bottom: .3em; font-size: 1.05em; }
table { border-collapse: collapse; font-size: .88em; margin: .6em 0 1em; }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #e5e5e5;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: #f6f6f6; vertical-align: bottom; } th:first-child, td:first-child
{ text-align: left; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
.data { display: inline-block; background: #eef3f8; border-radius: 4px; padding: 0 .5em; }
.data.part { background: #fdeeda; } .note { color: #8a4b00; } .quiet { color: #666; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
details { margin: .6em 0; } summary { cursor: pointer; }
"""


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
    """The whole page.

    Args:
        root: the results folder, to name runs relative to it.
        sections: one per comparison, in the order of the page.
        skipped: folders that look like runs and are not in the numbers.
    """
    runs = sum(len(s.runs) for section in sections for s in section.table.comparison.series)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Training Neural ODEs: {escape(_titles(sections))}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Training Neural ODEs: {runs} runs</h1>",
        _contents(sections),
    ]
    parts.extend(_section(index, section) for index, section in enumerate(sections))
    parts.extend((_skipped(root, skipped), _runs(root, sections), "</body></html>"))
    return "\n".join(part for part in parts if part) + "\n"


def _titles(sections: Sequence[Section]) -> str:
    return ", ".join(section.table.comparison.title for section in sections)


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    items = (
        f'<li><a href="#c{i}">{escape(s.table.comparison.title)}</a> {_provenance(s.table)}</li>'
        for i, s in enumerate(sections)
    )
    return f"<ul>{''.join(items)}</ul>"


def _provenance(table: Table) -> str:
    text = table.comparison.provenance
    kind = "data" if text.startswith("complete") else "data part"
    return f'<span class="{kind}">data: {escape(text)}</span>'


def _section(index: int, section: Section) -> str:
    table = section.table
    comparison = table.comparison
    parts = [
        f'<h2 id="c{index}">{escape(comparison.title)}</h2>',
        f"<p>{_provenance(table)}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in comparison.notes),
        _image(section.figure, f"curves of {comparison.title}"),
        "<h3>Results at the end of training</h3>",
        _table(table, "page"),
        "<h3>Time to target: training loss</h3>",
        f"<p>{escape(_target(table.time_to_loss, LOSS))}</p>",
        _table(table, "loss target") if table.time_to_loss else "",
        f"<h3>Time to target: test {escape(comparison.metric)}</h3>",
        f"<p>{escape(_target(table.time_to_metric, metric_goal(comparison)))}</p>",
        _table(table, "metric target") if table.time_to_metric else "",
        "<h3>Where the time goes: milliseconds a step, median over seeds</h3>",
        '<p class="quiet">Evaluation, logging and other lie outside of the training clock.</p>',
        _table(table, "costs"),
    ]
    drawn = {picture.caption: picture.content for picture in section.drawn}
    for caption, picture in (drawn | dict(section.pictures)).items():
        parts.append(f"<h3>{escape(caption)}</h3>{_image(picture, caption)}")
    if section.diagnostics is not None:
        image = _image(section.diagnostics, f"other metrics of {comparison.title}")
        parts.append(
            f"<details><summary>Everything else that was logged</summary>{image}</details>"
        )
    return "\n".join(part for part in parts if part)


def _target(found: TimeToTarget | None, goal: Goal) -> str:
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


def _table(table: Table, place: Place) -> str:
    shown = columns(table, place)
    head = "".join(f"<th>{escape(column.headings[place])}</th>" for column in shown)
    body = "".join(_table_row(row, shown) for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _table_row(row: TableRow, shown: Sequence[Column]) -> str:
    dot = f'<span class="dot" style="background:{row.series.colour}"></span>'
    cells = [escape(column.text(row)) for column in shown]
    return "<tr>" + "".join(f"<td>{c}</td>" for c in (dot + cells[0], *cells[1:])) + "</tr>"


def _image(content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _skipped(root: Path, skipped: Sequence[SkippedRun]) -> str:
    if not skipped:
        return ""
    items = (
        f"<li><code>{escape(relative(entry.path, root))}</code>: {escape(entry.reason)}</li>"
        for entry in skipped
    )
    return f"<h2>Left out</h2><ul>{''.join(items)}</ul>"


def _runs(root: Path, sections: Iterable[Section]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(relative(run.path, root))}</code></td><td>{run.seed}</td>"
        f"<td>{escape(run.outcome)}</td><td>{run.steps}</td><td>{number(run.seconds)}</td>"
        f'<td style="text-align:left">{escape(run.message)}</td>'
        f'<td style="text-align:left">{escape(_machine(run))}</td></tr>'
        for section in sections
        for series in section.table.comparison.series
        for run in series.runs
    )
    head = "<tr><th>folder</th><th>seed</th><th>outcome</th><th>steps</th><th>seconds</th>"
    head += "<th>how it ended</th><th>made on</th>"
    table = f'<div class="wide"><table>{head}</tr>{rows}</table></div>'
    return f"<h2>Runs</h2><details><summary>Every run in these numbers</summary>{table}</details>"


def _machine(run: Run) -> str:
    names = ("device_name", "threads", "torch", "snopt")
    known = ((name, run.environment.get(name)) for name in names)
    return ", ".join(f"{name} {value}" for name, value in known if value is not None)


def relative(path: Path, root: Path) -> str:
    """The path as seen from the results folder, so that a page can travel."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
