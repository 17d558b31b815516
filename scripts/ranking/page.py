"""What the benchmark leaves: a page to read and sort, Markdown, CSV, and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.ranking.drawing import after_start, curves, profiles, title
from scripts.ranking.ratios import RATIOS, as_text, beside, kept
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
from tasks.engine.records.metrics import Axis
from tasks.engine.records.results import write_file
from tasks.engine.report.formatting import NOTHING, metric_style, number
from tasks.engine.report.interactive import (
    Line,
    Quantity,
    available,
    interactive_curves,
    script_files,
)
from tasks.engine.report.pages import Grid, Item, render_page

Results = Mapping[str, Sequence[tuple[Workload, Sequence[Entry]]]]
"""By track: every workload with those whose runs are all there."""

_TEMPLATE = Path(__file__).parent / "templates" / "benchmark.html"


def write(results: Results, folder: Path) -> list[str]:
    """Write everything that the finished runs allow.

    Workloads of which there are no runs here keep the tables and pictures that the folder has of
    them, as long as their targets are the same.

    Args:
        results: by track.
        folder: gets ``index.html``, ``summary.md``, ``ratios.csv`` and PNG files, and plotly's
            script where that is installed.

    Returns:
        What to say of it, a line each.
    """
    made = {
        track: [one for pair in pairs if (one := standing(*pair)) is not None]
        for track, pairs in results.items()
    }
    standings = beside(made, kept(folder / RATIOS))
    if not standings:
        return ["nothing to draw yet: no workload has a target and a first-order optimizer's runs."]
    pictures: dict[str, bytes] = {}
    for track, found in standings.items():
        pictures[f"profile-{track}.png"] = profiles(found)
        for one in found:
            name = f"{track}-{one.workload.name}.png"
            if one.entries:
                pictures[name] = curves(title(one.workload, track), one.target, one.entries)
            elif (folder / name).is_file():
                pictures[name] = (folder / name).read_bytes()
    files = {
        **pictures,
        RATIOS: as_text(standings).encode(),
        "summary.md": _markdown(standings).encode(),
        "index.html": _html(standings, pictures).encode(),
        **script_files(),
    }
    for name, content in files.items():
        write_file(folder / name, content)
    said = [_score(track, found) for track, found in standings.items()]
    return [*said, f"wrote {folder}/index.html"]


def _score(track: str, found: Sequence[Standing]) -> str:
    means = ", ".join(f"{optim} {mean_ratio(found, optim)}" for optim in optims(found))
    workloads = f"{len(found)} workload{'s' if len(found) > 1 else ''}"
    return f"{track} track, {workloads}, geometric mean of the ratios: {means}"


def mean_ratio(found: Sequence[Standing], optim: str) -> str:
    """The geometric mean of an optimizer's ratios, and over how many workloads if not over all."""
    ratios = [row.ratio for one in found if (row := one.row(optim)) is not None]
    mean = number(geometric_mean(ratios))
    return mean if len(ratios) == len(found) else f"{mean} ({len(ratios)} of {len(found)})"


def _seconds(row: Row) -> str:
    return number(row.seconds) if row.reaches else "never"


def _ratio(row: Row | None) -> str:
    if row is None:
        return NOTHING
    low, high = row.interval
    text = f"{number(row.ratio)} [{number(low)}, {number(high)}]"
    return text if row.no_worse else f"{text} (test worse)"


def _markdown(standings: Mapping[str, Sequence[Standing]]) -> str:
    parts = ["# Time to the validation target", "", *_explained(), ""]
    for track, found in standings.items():
        names = optims(found)
        parts += [f"## {track.capitalize()} track", ""]
        parts += [_line(["workload", "target", "best first-order", "its seconds", *names])]
        parts += [_line(["---"] * (4 + len(names)))]
        for one in found:
            base = one.row(one.baseline)
            assert base is not None
            cells = [one.workload.name, number(one.target.loss), one.baseline, _seconds(base)]
            parts.append(_line([*cells, *(_ratio(one.row(name)) for name in names)]))
        means = [mean_ratio(found, name) for name in names]
        areas = [f"{area(profile(found, name)):.2f}" for name in names]
        parts += [_line(["geometric mean", "", "", "", *means])]
        parts += [_line(["area of the profile", "", "", "", *areas]), ""]
        metrics = [["workload", "test metric", *names], ["---"] * (2 + len(names))]
        for one in found:
            metric = one.rows[0].metric
            show = metric_style(metric)
            tests = [NOTHING if (r := one.row(n)) is None else show(r.test_at_best) for n in names]
            metrics.append([one.workload.name, metric, *tests])
        parts += ["Test metric where the validation loss is lowest, mean over seeds:", ""]
        parts += [*map(_line, metrics), ""]
        for one in found:
            if note := _parts(one):
                parts += [f"{one.workload.name}:{note}", ""]
    return "\n".join(parts)


def _parts(one: Standing) -> str:
    """What to know of test values of which some are of a part of the split."""
    size = one.workload.test_samples
    return f" Test values before the last are of {size} samples, the last of all." if size else ""


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
    ("reached", lambda row: f"{row.reached} of {row.seeds}", None),
    ("best valid loss", lambda row: number(row.best), lambda row: row.best),
    ("ms a step", lambda row: number(1000 * row.step_seconds), lambda row: row.step_seconds),
)


def _html(standings: Mapping[str, Sequence[Standing]], pictures: Mapping[str, bytes]) -> str:
    tracks = [
        {
            "name": track,
            "score": _score(track, found),
            "profile": pictures[f"profile-{track}.png"],
            "workloads": [_workload(track, one, pictures) for one in found],
        }
        for track, found in standings.items()
    ]
    return render_page(_TEMPLATE, interactive=available(), explained=_explained(), tracks=tracks)


def _workload(track: str, one: Standing, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    name = f"{track}-{one.workload.name}"
    return {
        "name": one.workload.name,
        "about": (
            f"{one.workload.about} Budget {number(one.workload.seconds)} s. Target: validation "
            f"loss {number(one.target.loss)}, of {one.target.optim}, {one.target.date}."
            f"{_parts(one)}"
        ),
        "grid": _grid(one),
        "figure": pictures.get(f"{name}.png"),
        "interactive": _curves(name, one) if one.entries and available() else "",
    }


_AXES: tuple[tuple[Axis, str], ...] = (
    ("cpu_seconds", "training time, seconds on one processor"),
    ("seconds", "training time (s)"),
    ("steps", "optimizer steps"),
    ("nfe", "field evaluations, forward + backward"),
)


def _curves(name: str, one: Standing) -> str:
    """Validation loss and test metric, as in the picture."""
    run = one.entries[0].outcomes[0].run
    quantities = [
        Quantity("validation loss", one.target.loss),
        Quantity(f"test {run.metric}", rises=run.higher_is_better),
    ]
    lines = [
        Line(
            entry.optim,
            entry.colour,
            dashes=int(entry.optim == "snopt_paper"),
            curves=[
                [after_start(outcome.loss) for outcome in entry.outcomes],
                [after_start(outcome.test) for outcome in entry.outcomes],
            ],
        )
        for entry in one.entries
    ]
    return interactive_curves(name, quantities, lines, _AXES)


def _grid(one: Standing) -> Grid:
    metric = one.rows[0].metric
    show = metric_style(metric)
    tests: list[tuple[str, Callable[[Row], float]]] = [
        (f"test {metric} at target", lambda row: row.test_at_target),
        ("at best valid", lambda row: row.test_at_best),
        ("at the end", lambda row: row.test_at_end),
    ]
    heads = ["optimizer", *(name for name, *_ in _COLUMNS), *(name for name, _ in tests)]
    rows = []
    for row in one.rows:
        cells = [Item(row.optim, note=row.settings, colour=row.colour)]
        cells += [Item(text(row), key and key(row)) for _, text, key in _COLUMNS]
        cells += [Item(show(value(row)), value(row)) for _, value in tests]
        rows.append(cells)
    baseline = [row.optim for row in one.rows].index(one.baseline)
    return Grid(heads, rows, marked=baseline)
