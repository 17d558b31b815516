"""What the benchmark leaves: a page to read and sort, Markdown, CSV, and the pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from scripts.ranking.drawing import curves, profiles, title
from scripts.ranking.scores import (
    LEVEL,
    Entry,
    Row,
    Standing,
    area,
    geometric_mean,
    optims,
    profile,
    standing,
)
from scripts.ranking.workloads import Workload
from tasks.engine.records.results import write_file
from tasks.engine.report.formatting import NOTHING, metric_style, number
from tasks.engine.report.summary import Cell, as_csv

Results = Mapping[str, Sequence[tuple[Workload, Sequence[Entry]]]]
"""By track: every workload with those whose runs are all there."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.5em; } h2 { margin-top: 2em; border-bottom: 2px solid #ddd; }
table { border-collapse: collapse; font-size: .88em; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e5e5e5;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: #f6f6f6; cursor: pointer; } th:first-child, td:first-child { text-align: left; }
tr.baseline td { background: #fafaf2; } .wide { overflow-x: auto; } .quiet { color: #666; }
img { max-width: 100%; height: auto; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
"""

#: Sorts a table by the column whose heading is clicked; numbers as numbers, "never" last.
_SORT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const up = head.dataset.up = head.dataset.up === "1" ? "0" : "1";
  const value = row => { const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
  const order = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b);
  const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
  if (up === "0") rows.reverse();
  body.append(...rows);
});
"""


def write(results: Results, folder: Path) -> list[str]:
    """Write everything that the finished runs allow.

    Args:
        results: by track.
        folder: gets ``index.html``, ``summary.md``, ``ratios.csv`` and PNG files.

    Returns:
        What to say of it, a line each.
    """
    standings = {
        track: [one for pair in pairs if (one := standing(*pair)) is not None]
        for track, pairs in results.items()
    }
    if not any(standings.values()):
        return ["nothing to draw yet: no workload has a target and a first-order optimizer's runs."]
    pictures: dict[str, bytes] = {}
    for track, found in standings.items():
        colours = {row.entry.optim: row.entry.colour for one in found for row in one.rows}
        if found:
            pictures[f"profile-{track}.png"] = profiles(found, colours)
        for one in found:
            name = f"{track}-{one.workload.name}.png"
            entries = [row.entry for row in one.rows]
            pictures[name] = curves(title(one.workload, track), one.target, entries)
    files = {
        **pictures,
        "ratios.csv": as_csv([c for t, s in standings.items() for c in _cells(t, s)]).encode(),
        "summary.md": _markdown(standings).encode(),
        "index.html": _html(standings, pictures).encode(),
    }
    for name, content in files.items():
        write_file(folder / name, content)
    said = [_score(track, found) for track, found in standings.items() if found]
    return [*said, f"wrote {folder}/index.html"]


def _score(track: str, found: Sequence[Standing]) -> str:
    means = ", ".join(
        f"{optim} {number(geometric_mean(_ratios(found, optim)))}" for optim in optims(found)
    )
    workloads = f"{len(found)} workload{'s' if len(found) > 1 else ''}"
    return f"{track} track, {workloads}, geometric mean of the ratios: {means}"


def _ratios(found: Sequence[Standing], optim: str) -> list[float]:
    return [row.ratio for one in found if (row := one.row(optim)) is not None]


def _cells(track: str, found: Sequence[Standing]) -> list[dict[str, Cell]]:
    return [
        {
            "track": track,
            "workload": one.workload.name,
            "optimizer": row.entry.optim,
            "settings": " ".join(f"{k}={v}" for k, v in row.entry.settings.items()),
            "seeds": len(row.entry.outcomes),
            "target_loss": one.target.loss,
            "reached": row.reached,
            "cpu_seconds_to_target": row.seconds,
            "baseline": one.baseline,
            "ratio": row.ratio,
            "ratio_low": row.interval[0],
            "ratio_high": row.interval[1],
            "wall_ratio": row.wall_ratio,
            "best_valid_loss": row.best,
            "test_metric": row.entry.outcomes[0].run.metric,
            "test_at_target": row.test_at_target,
            "test_at_best": row.test_at_best,
            "test_at_end": row.test_at_end,
            "test_no_worse": str(row.no_worse).lower(),
            "ms_per_step": 1000 * row.step_seconds,
        }
        for one in found
        for row in one.rows
    ]


def _seconds(row: Row) -> str:
    never = 2 * row.reached <= len(row.entry.outcomes)
    return "never" if never else number(row.seconds)


def _ratio(row: Row | None) -> str:
    if row is None:
        return NOTHING
    low, high = row.interval
    text = f"{number(row.ratio)} [{number(low)}, {number(high)}]"
    return text if row.no_worse else f"{text} (test worse)"


def _markdown(standings: Mapping[str, Sequence[Standing]]) -> str:
    parts = ["# Time to the validation target", "", *_explained(), ""]
    for track, found in standings.items():
        if not found:
            continue
        names = optims(found)
        parts += [f"## {track.capitalize()} track", ""]
        parts += [_line(["workload", "target", "best first-order", "its seconds", *names])]
        parts += [_line(["---"] * (4 + len(names)))]
        for one in found:
            base = one.row(one.baseline)
            assert base is not None
            cells = [one.workload.name, number(one.target.loss), one.baseline, _seconds(base)]
            parts.append(_line([*cells, *(_ratio(one.row(name)) for name in names)]))
        means = [number(geometric_mean(_ratios(found, name))) for name in names]
        areas = [f"{area(profile(found, name)):.2f}" for name in names]
        parts += [_line(["geometric mean", "", "", "", *means])]
        parts += [_line(["area of the profile", "", "", "", *areas]), ""]
        metrics = [["workload", "test metric", *names], ["---"] * (2 + len(names))]
        for one in found:
            metric = one.rows[0].entry.outcomes[0].run.metric
            show = metric_style(metric)
            tests = [NOTHING if (r := one.row(n)) is None else show(r.test_at_best) for n in names]
            metrics.append([one.workload.name, metric, *tests])
        parts += ["Test metric where the validation loss is lowest, mean over seeds:", ""]
        parts += [*map(_line, metrics), ""]
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _explained() -> list[str]:
    return [
        "Processor seconds of training until the validation loss reaches the target, divided by "
        "those of the best first-order optimizer of the track; below 1 is sooner. Medians over "
        f"seeds, with {LEVEL:.0%} intervals of a bootstrap over seeds. A run that never reaches "
        'the target counts as four budgets. "Test worse": its test metric at the lowest '
        "validation loss is worse than the baseline's by more than the standard error of their "
        "difference, so that it has not won.",
    ]


_COLUMNS: tuple[tuple[str, Callable[[Row], str], Callable[[Row], float] | None], ...] = (
    ("seconds to target", _seconds, lambda row: row.seconds),
    ("ratio [90%]", _ratio, lambda row: row.ratio),
    ("ratio, wall", lambda row: number(row.wall_ratio), lambda row: row.wall_ratio),
    ("reached", lambda row: f"{row.reached} of {len(row.entry.outcomes)}", None),
    ("best valid loss", lambda row: number(row.best), lambda row: row.best),
    ("ms a step", lambda row: number(1000 * row.step_seconds), lambda row: row.step_seconds),
)


def _html(standings: Mapping[str, Sequence[Standing]], pictures: Mapping[str, bytes]) -> str:
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Optimizers on Neural ODEs</title><style>{_STYLE}</style></head><body>",
        "<h1>Optimizers on Neural ODEs: time to the validation target</h1>",
        *(f"<p>{escape(text)}</p>" for text in _explained()),
        '<p class="quiet">Click a heading to sort.</p>',
    ]
    for track, found in standings.items():
        if not found:
            continue
        parts += [f"<h2>{track.capitalize()} track</h2>", f"<p>{escape(_score(track, found))}.</p>"]
        parts.append(_image(pictures[f"profile-{track}.png"], f"performance profile, {track}"))
        for one in found:
            name = f"{track}-{one.workload.name}.png"
            parts += [
                f"<h3>{escape(one.workload.name)}</h3><p>{escape(one.workload.about)} "
                f"Budget {number(one.workload.seconds)} s. Target: validation loss "
                f"{number(one.target.loss)}, of {escape(one.target.optim)}, "
                f"{escape(one.target.date)}.</p>",
                _table(one),
                _image(pictures[name], name),
            ]
    return "\n".join([*parts, f"<script>{_SORT}</script></body></html>", ""])


def _table(one: Standing) -> str:
    metric = one.rows[0].entry.outcomes[0].run.metric
    show = metric_style(metric)
    tests: list[tuple[str, Callable[[Row], float]]] = [
        (f"test {metric} at target", lambda row: row.test_at_target),
        ("at best valid", lambda row: row.test_at_best),
        ("at the end", lambda row: row.test_at_end),
    ]
    heads = ["optimizer", *(name for name, *_ in _COLUMNS), *(name for name, _ in tests)]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = []
    for row in one.rows:
        dot = f'<span class="dot" style="background:{row.entry.colour}"></span>'
        settings = " ".join(f"{k}={v}" for k, v in row.entry.settings.items())
        cells = [f'<td title="{escape(settings)}">{dot}{escape(row.entry.optim)}</td>']
        cells += [_cell(text(row), key and key(row)) for _, text, key in _COLUMNS]
        cells += [_cell(show(value(row)), value(row)) for _, value in tests]
        kind = ' class="baseline"' if row.entry.optim == one.baseline else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(text: str, key: float | None) -> str:
    sorted_by = "" if key is None else f' data-value="{key:.6g}"'
    return f"<td{sorted_by}>{escape(text)}</td>"


def _image(content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
