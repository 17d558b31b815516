"""Draw runs of the paper's tasks beside its numbers.

``python -m scripts.paper_study FOLDER --out DIR`` reads the finished runs of one results folder or
several, whoever made them, and writes ``comparison.png``, ``runs.csv`` and ``table.md`` to
``--out``. Runs on different machines are compared apart. What is shorter than the paper's, or has
one seed, says so in its row. Seconds of runs with ``train.clock=cpu`` are those on processors.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from scripts.entry import status
from scripts.horizon_study import horizon_markdown
from scripts.published import CLAIMS, INTEGRATION_TIME, PUBLISHED, SOURCE
from scripts.solver_check import error_markdown, solver_markdown, solver_pairs
from tasks.common.checks import ConfigError
from tasks.common.figures import png
from tasks.engine.records.metrics import Key
from tasks.engine.records.record import FINISHED
from tasks.engine.records.results import write_file
from tasks.engine.records.runs import Run, read_runs
from tasks.engine.report.comparison import Comparison, Series, compare
from tasks.engine.report.console import console
from tasks.engine.report.figures import comparison_figure, overview_figure
from tasks.engine.report.formatting import NOTHING, metric_style, number, spread, until
from tasks.engine.report.horizon_figure import horizon_figure
from tasks.engine.report.markdown import markdown_table
from tasks.engine.report.nfe import late_evaluations
from tasks.engine.report.statistics import Spread
from tasks.engine.report.summary import runs_csv
from tasks.engine.report.targets import LOSS, metric_goal, time_to_target

FAMILIES = "tasks.family_images.FamilyImageClassification"
"""Tasks of the same names with other networks, which are no runs of the paper's."""
MOVED: Key = ("train", "horizon/T")
"""Logged by runs whose integration time is traced or optimised."""

RESULTS = (
    f"Ours: median [range] over seeds. Published: {SOURCE}; training losses from the curves. "
    "Epochs: `3 of 5` is a run that is shorter than the paper's. After equal seconds: the last "
    "test metric within the training seconds of the task's shortest series."
)
COSTS = (
    "Ours: training seconds over training steps, and those of Adam with the same solver on the "
    "same machine. Published: Table 6, on the authors' machine. Evaluations of the field, "
    "forward/backward, in the last tenth of training."
)
TIMES = (
    "Seconds to the training loss at which the better of Adam and SGD ends, over its own seconds; "
    "below 1 is faster. Ours is known to an evaluation. Published: digitised from the curves, "
    "within 5 to 10%."
)
HORIZONS = f"T0: where T starts. Published: {INTEGRATION_TIME}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Read and draw; returns the exit status."""
    options = _parser().parse_args(arguments)
    runs: dict[tuple[str, str, str, int, str], Run] = {}
    for root in [*options.results, *options.partial]:
        if not root.is_dir():
            raise ConfigError(f"{root}: is not a folder of runs.")
        for run in read_runs(root, partial=root in options.partial)[0]:
            if run.task in PUBLISHED and run.config["task"].get("_target_") != FAMILIES:
                identity = run.task, run.optim, run.config_hash, run.seed, _machine(run)
                runs[identity] = run
    moved = [run for run in runs.values() if MOVED in run.curves]
    others = [run for run in runs.values() if MOVED not in run.curves]
    if not others:
        raise ConfigError("the folders hold no finished run of the paper's tasks.")
    pairs = solver_pairs(others)
    uses = Counter((run.task, _solver(run)) for run in others)
    # A task's other runs show which of the two solvers is the one to compare optimizers with.
    checks = [min(pair, key=lambda run: uses[run.task, _solver(run)]) for pair in pairs]
    paths = {run.path for run in checks}
    comparisons = by_machine(run for run in others if run.path not in paths)
    horizons = compare(moved)
    text = paper_markdown(comparisons)
    if pairs:
        text += f"\n### The paper's solver\n\n{solver_markdown(pairs)}"
    options.out.mkdir(parents=True, exist_ok=True)
    firsts = [series.runs[0] for comparison in comparisons for series in comparison.series]
    if errors := error_markdown(firsts, options.out / "solver_errors.csv"):
        text += f"\n### Solvers at the end of training\n\n{errors}"
    if moved:
        text += f"\n### Integration time\n\n{horizon_markdown(moved)}\n{HORIZONS}\n"
    files = {
        "comparison.png": png(overview_figure(comparisons)),
        **{f"horizon-{c.slug}.png": png(horizon_figure(c)) for c in horizons},
        **{
            f"solver-{c.slug}.png": png(comparison_figure(c))
            for c in compare(run for pair in pairs for run in pair)
        },
        "runs.csv": runs_csv([*comparisons, *compare(checks), *horizons]).encode(),
        "table.md": text.encode(),
    }
    for name, content in files.items():
        write_file(options.out / name, content)
    console().print("wrote " + ", ".join(str(options.out / name) for name in files))
    return 0


def by_machine(runs: Iterable[Run]) -> list[Comparison]:
    """Comparisons whose runs share a machine, which the provenance names where there are several.

    Args:
        runs: finished runs.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_machine(run)].append(run)
    order = [*PUBLISHED, *sorted({run.task for members in groups.values() for run in members})]
    found = [_with_rules(c) for members in groups.values() for c in compare(members)]
    if len(groups) > 1:
        found = [replace(c, provenance=f"{c.provenance}; on {_where(c)}") for c in found]
    return sorted(found, key=lambda c: (order.index(c.task), c.title))


def _with_rules(comparison: Comparison) -> Comparison:
    """The same with SNOpt's rule in its label where it has but one: the default is another."""

    def named(series: Series) -> Series:
        rule = series.runs[0].config["optim"].get("rule")
        plain = rule is not None and series.label == series.optim
        return replace(series, label=f"{series.label} (rule={rule})") if plain else series

    return replace(comparison, series=tuple(named(series) for series in comparison.series))


def paper_markdown(comparisons: Sequence[Comparison]) -> str:
    """Ours beside the published numbers: the test metric, a step's seconds, seconds to a loss.

    Args:
        comparisons: of any tasks; those that the paper does not have come without its numbers.
    """
    results = (
        "### Test metric at the end of training",
        "task|machine|optimizer|epochs|seeds|train loss|published|test metric|published"
        "|after equal seconds",
        [_result(c, s) for c in comparisons for s in c.series],
        RESULTS,
    )
    costs = (
        "### Seconds of a training step",
        "task|machine|optimizer|ms a step|published|over Adam's|published|evaluations",
        [row for c in comparisons for row in _costs(c)],
        COSTS,
    )
    times = (
        "### Time to the better baseline's training loss",
        "task|machine|optimizer|reached by|ratio of seconds|ratio of steps|published",
        [row for c in comparisons for row in _times(c)],
        TIMES,
    )
    parts = [
        f"{title}\n\n{markdown_table(heads.split('|'), rows)}\n\n{note}"
        for title, heads, rows, note in (results, costs, times)
        if rows
    ]
    notes = "\n".join(f"- {line}" for line in _notes(comparisons))
    claims = "\n".join(f"- {line}." for line in CLAIMS)
    parts += [f"### What to know\n\n{notes}", f"### What else the paper claims\n\n{claims}"]
    return "\n\n".join(parts) + "\n"


def published_name(series: Series) -> str:
    """The paper's name of a series' optimizer; empty where it is another method."""
    settings = series.runs[0].config["optim"]
    rule = settings.get("rule", "paper"), settings.get("basis", "curvature")
    if series.optim == "snopt" and rule != ("paper", "curvature"):
        return ""
    return series.optim if series.optim in ("adam", "sgd", "snopt") else ""


def _result(comparison: Comparison, series: Series) -> list[str]:
    goal, published = metric_goal(comparison), PUBLISHED.get(comparison.task)
    name = published_name(series)
    show = _style(comparison.metric)
    shared = min(Spread.of(r.seconds for r in s.runs).median for s in comparison.series)
    theirs = loss = ""
    if published is not None and published.metric == comparison.metric:
        theirs = published.shown(name)
        loss = number(published.train.get(name, math.nan))
    return [
        comparison.task,
        _where(comparison),
        series.label,
        _epochs(comparison.task, name or "adam", series.runs),
        ", ".join(str(run.seed) for run in series.runs),
        spread(LOSS.final(series.runs)),
        loss.replace(NOTHING, ""),
        spread(goal.final(series.runs), show),
        theirs,
        spread(Spread.of(_within(run, goal.keys[0], shared) for run in series.runs), show),
    ]


def _style(metric: str) -> Callable[[float], str]:
    """Two decimals, as published."""
    return (lambda share: f"{100 * share:.2f}%") if metric == "accuracy" else metric_style(metric)


def _epochs(task: str, name: str, runs: Sequence[Run]) -> str:
    """Whole epochs that were made, and how many the paper has, where these are fewer."""
    made = min(run.steps / max(1, run.steps_per_epoch) for run in runs)
    published = PUBLISHED.get(task)
    whole = published.epochs.get(name, 0) if published else 0
    return f"{number(made)} of {number(whole)}" if made < whole else number(made)


def _within(run: Run, key: Key, seconds: float) -> float:
    """The last value that was measured within so many training seconds."""
    curve = run.curves.get(key)
    if curve is None:
        return math.nan
    early = np.flatnonzero(curve.seconds <= seconds)
    return float(curve.values[early[-1]]) if len(early) else math.nan


def _costs(comparison: Comparison) -> list[list[str]]:
    costs = {
        s.label: Spread.of(r.seconds / r.steps for r in s.runs if r.steps)
        for s in comparison.series
    }
    published = PUBLISHED.get(comparison.task)
    rows = []
    for series in comparison.series:
        own = costs[series.label]
        alike = [
            s for s in comparison.series if s.optim == "adam" and _setting(s) == _setting(series)
        ]
        ratio = own.median / costs[alike[0].label].median if alike else math.nan
        theirs = published.step(published_name(series)) if published else math.nan
        adams = published.step("adam") if published else math.nan
        rows.append(
            [
                comparison.task,
                _where(comparison),
                series.label,
                spread(own, lambda value: number(1000 * value)),
                number(1000 * theirs),
                number(ratio),
                number(theirs / adams),
                late_evaluations(series.runs),
            ]
        )
    return rows


def _times(comparison: Comparison) -> list[list[str]]:
    """Rows of all that is no baseline, against the paper's two baselines alone."""
    kept = [s for s in comparison.series if not s.first_order or published_name(s)]
    found = time_to_target(replace(comparison, series=tuple(kept)), LOSS)
    if found is None:
        return []
    published = PUBLISHED.get(comparison.task)
    (base,) = [series for series in kept if series.label == found.baseline]
    steps = found.outcomes[found.baseline].cost["steps"].median
    rows = []
    for series in kept:
        if series.first_order:
            continue
        outcome = found.outcomes[series.label]
        theirs = published.time_ratio if published and published_name(series) == "snopt" else None
        alike = _setting(series) == _setting(base)
        rows.append(
            [
                comparison.task,
                _where(comparison),
                f"{series.label}, to {found.baseline}'s {number(found.target.median)}",
                f"{outcome.reached} of {outcome.runs}",
                spread(outcome.ratio, until) if alike else NOTHING,
                until(outcome.cost["steps"].median / steps),
                "" if theirs is None else number(theirs),
            ]
        )
    return rows


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    notes: dict[str, None] = {}
    for comparison in comparisons:
        published = PUBLISHED.get(comparison.task)
        said = [f"the data are {comparison.provenance}"]
        for series in comparison.series:
            cut = [str(run.seed) for run in series.runs if run.outcome not in FINISHED]
            said += [f"{series.label} was interrupted (seed {', '.join(cut)})"] if cut else []
        said += [*(published.notes if published else ()), *comparison.notes]
        notes.update(dict.fromkeys(f"{comparison.task}: {note.rstrip('.')}." for note in said))
    return list(notes)


def _machine(run: Run) -> str:
    return str(run.environment.get("device_name") or "a machine that is not named")


def _setting(series: Series) -> tuple[str, str]:
    """Solver and clock, without which seconds do not compare."""
    run = series.runs[0]
    return _solver(run), str(run.config["train"].get("clock") or "wall")


def _solver(run: Run) -> str:
    return str({key: value for key, value in run.config["solver"].items() if value is not None})


def _where(comparison: Comparison) -> str:
    return _machine(comparison.series[0].runs[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.paper_study", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--partial",
        action="append",
        default=[],
        type=Path,
        help="a further folder, whose interrupted runs are shown as well; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
