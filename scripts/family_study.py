"""Draw runs that compare families, beside what others logged.

``python -m scripts.family_study FOLDER... --out DIR`` reads runs that anybody made; those of
``conf/experiment/families`` are drawn by ``scripts.reproduce``.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.entry import status
from scripts.published_families import LOGGED, SILVERBOX, Logged
from tasks.common.checks import ConfigError
from tasks.common.figures import png
from tasks.engine.config.identity import config_hash
from tasks.engine.records.metrics import Key
from tasks.engine.records.results import write_file
from tasks.engine.records.runs import Run, read_runs
from tasks.engine.report.comparison import compare
from tasks.engine.report.console import console
from tasks.engine.report.family_figures import (
    by_model,
    forecast_figure,
    growth_figure,
    point_cloud_figure,
    training_figure,
)
from tasks.engine.report.formatting import NOTHING, metric_style, number, spread
from tasks.engine.report.markdown import markdown_table
from tasks.engine.report.nfe import late_evaluations
from tasks.engine.report.reload import evaluations, rebuild
from tasks.engine.report.result import result
from tasks.engine.report.statistics import Spread
from tasks.engine.report.summary import as_csv, runs_csv

DRAWS = 10
"""Initialisations of the Silverbox study, as published."""
MARKS = (16, 32, 63)
"""Times of its table."""


@dataclass(frozen=True)
class Study:
    """What is shown of a task.

    Attributes:
        key: split and metric of the result.
        tolerances: at which evaluations of the field are measured with the final weights.
        samples: training samples that they are measured on.
        logged: how long the logged runs trained.
    """

    key: Key
    tolerances: tuple[float, ...]
    samples: int
    logged: str


STUDIES = {
    "nested_spheres": Study(("train", "loss"), (1e-3, 1e-5, 1e-7), 50, "300 steps"),
    "mnist": Study(("test", "accuracy"), (1e-2, 1e-3, 1e-4), 8, "40 epochs of 60000 images"),
    "cifar10": Study(
        ("test", "accuracy"), (1e-2, 1e-3, 1e-4, 1e-5), 8, "40 epochs of 50000 images"
    ),
    "plane_vibration": Study(("test", "forecast"), (1e-3, 1e-5, 1e-7), 64, "200 to 500 epochs"),
    "walker2d": Study(("test", "loss"), (1e-3, 1e-5, 1e-7), 64, "500 epochs"),
}

NOTE = (
    "Ours: median [range] over seeds at the end of training. Evaluations a step are those of "
    "training with its own solver, late in it; columns with a tolerance were measured afterwards "
    "with the first seed's final weights, dopri5 and the adjoint in float64, on one batch of {} "
    "training samples, forward/backward (failed: no step was small enough, or 1000 were too "
    "few). Seconds an epoch are ours, on {}, which may have had other work. Logged: from the "
    "HBNODE authors' raw logs, on their budget and machine (evaluations of a batch late in "
    "training, forward/backward); none are known for AdamNODE and NesterovNODE."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read and draw; returns the exit status."""
    options = _parser().parse_args(arguments)
    runs: list[Run] = []
    for root in options.results:
        if not root.is_dir():
            raise ConfigError(f"{root}: is not a folder of runs.")
        runs += read_runs(root, partial=options.partial)[0]
    options.out.mkdir(parents=True, exist_ok=True)
    text = write_study(runs, options.out)
    if not text:
        raise ConfigError("the folders hold no task that several families were trained on.")
    write_file(options.out / "table.md", text.encode())
    write_file(options.out / "runs.csv", runs_csv(compare(runs)).encode())
    console().print(f"wrote {options.out}", markup=False)
    return 0


def write_study(runs: Sequence[Run], folder: Path) -> str:
    """Draw and tabulate an experiment whose runs differ in the family.

    Args:
        runs: all its runs.
        folder: where pictures and CSV files go.

    Returns:
        Markdown; empty where no task was run with several families.
    """
    parts = []
    for task, members in _studies(runs):
        if len({run.model for run in members}) < 2:
            continue
        if len({run.optim for run in members}) > 1:
            parts.append(_optimizers(task, members))
        elif task == "silverbox":
            parts.append(_silverbox(members, folder))
        elif task in STUDIES:
            parts.append(_families(task, members, folder))
        # Weights of a run that diverged are those before it did: nothing to show.
        ended = _ended(members)
        if len({run.optim for run in members}) == 1 and task in _FIGURES and ended:
            name, draw = _FIGURES[task]
            write_file(folder / f"{name}.png", png(draw(ended)))
    return "\n".join(parts)


def _studies(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """Runs by task and all that families share in a comparison.

    Raises:
        ConfigError: a family has runs with several settings, which are no seeds of one another.
    """
    found: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        # Both forcings of Silverbox are in one study.
        task = {key: value for key, value in run.config["task"].items() if key != "forcing"}
        shared = {**run.config, "task": task, "model": {}, "optim": {}}
        found[run.task, run.provenance, config_hash(shared)].append(run)
    for (task, *_), members in sorted(found.items()):
        settings: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for run in members:
            forcing = str(run.config["task"].get("forcing"))
            settings[run.model, run.optim, forcing].add(run.config_hash)
        for (model, optim, _), hashes in settings.items():
            if len(hashes) > 1:
                raise ConfigError(
                    f"task {task}, {model} with {optim}: has runs of {len(hashes)} settings, which "
                    "are no seeds of one another. Give folders with one of them alone."
                )
        yield task, members


_FIGURES: dict[str, tuple[str, Callable[[Sequence[Run]], Any]]] = {
    "nested_spheres": ("point_cloud", point_cloud_figure),
    "plane_vibration": ("forecasts", forecast_figure),
    "mnist": ("training", training_figure),
    "cifar10": ("training", training_figure),
}


def _families(task: str, runs: Sequence[Run], folder: Path) -> str:
    study = STUDIES[task]
    split, metric = study.key
    logged = LOGGED.get(task, {})
    measured = _measured(study, runs, folder / "evaluations.csv")
    heads = [
        "family",
        "parameters",
        "seeds",
        "epochs",
        f"{split} {'MSE' if metric == 'loss' else metric}",
        "after one epoch",
        "evaluations a step",
        *(f"at {tolerance:g}" for tolerance in study.tolerances),
        "s an epoch",
        "logged",
        "logged after one epoch",
        "logged evaluations",
        "logged s an epoch",
    ]
    rows = []
    for name, members in by_model(runs).items():
        theirs = logged.get(name, Logged(""))
        rows.append(
            [
                name,
                str(members[0].record.get("parameters", "")),
                str(len(members)),
                number(min(r.steps / max(1, r.steps_per_epoch) for r in members)),
                result(members, study.key),
                _early(members, study.key),
                late_evaluations(members),
                *(measured[_shown(members).path.name, t] for t in study.tolerances),
                spread(Spread.of(_step(r) * r.steps_per_epoch for r in members)),
                theirs.value,
                theirs.early,
                theirs.nfe,
                theirs.seconds,
            ]
        )
    data = ", ".join(sorted({run.provenance for run in runs}))
    steps = " / ".join(sorted({str(run.steps) for run in runs}))
    title = f"{task}: {steps} steps here, {study.logged} where logged (data: {data})"
    machines = ", ".join(sorted({str(run.environment.get("device_name")) for run in runs}))
    return _table(title, heads, rows) + NOTE.format(study.samples, machines) + "\n"


def _early(members: Sequence[Run], key: Key) -> str:
    """The result after one epoch; empty where it was not measured then."""
    curves = [(run.curves[key], run.steps_per_epoch) for run in members if key in run.curves]
    found = [curve.values[curve.steps == steps] for curve, steps in curves]
    values = np.concatenate([*found, []])
    return spread(Spread.of(values), metric_style(key[1])).replace(NOTHING, "")


def _step(run: Run) -> float:
    """Training seconds of a step; NaN where none was made."""
    return run.seconds / run.steps if run.steps else math.nan


def _shown(members: Sequence[Run]) -> Run:
    """The first run that did not diverge."""
    return (_ended(members) or list(members))[0]


def _ended(members: Sequence[Run]) -> list[Run]:
    """Runs that did not diverge."""
    return [run for run in members if run.outcome != "diverged"]


def _measured(study: Study, runs: Sequence[Run], file: Path) -> dict[tuple[str, float], str]:
    """Evaluations by run and tolerance, measured once and kept in ``file`` till a run goes on."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as lines:
            kept = csv.DictReader(lines)
            rows = {(r["model"], r["run"], r["tolerance"]): {"steps": "", **r} for r in kept}
    for members in by_model(runs).values():
        run = _shown(members)
        for tolerance in study.tolerances:
            key = (run.model, run.path.name, f"{tolerance:g}")
            if rows.get(key, {"steps": None})["steps"] not in ("", str(run.steps)):
                forward, backward = evaluations(run, tolerance, study.samples)
                rows[key] = {
                    **dict(zip(("model", "run", "tolerance"), key, strict=True)),
                    "steps": str(run.steps),
                    "samples": str(study.samples),
                    "forward": str(forward),
                    "backward": str(backward),
                }
    write_file(file, as_csv(list(rows.values())).encode())
    return {
        (run, float(tolerance)): "failed"
        if row["forward"] == "-1"
        else f"{row['forward']}/{row['backward']}"
        for (_, run, tolerance), row in rows.items()
    }


def _silverbox(runs: Sequence[Run], folder: Path) -> str:
    """Growth of untrained states from fresh draws, and its figure."""
    growth: dict[str, dict[str, np.ndarray]] = {}
    output = np.zeros(0)
    for forcing in SILVERBOX:
        chosen = [run for run in runs if run.config["task"]["forcing"] == forcing]
        for name, members in by_model(chosen).items():
            norms, output = _growth(members[0])
            growth.setdefault(forcing, {})[name] = norms
    write_file(folder / "growth.png", png(growth_figure(growth, output)))
    heads = ["forcing", "family", *(f"t = {t}" for t in MARKS), "median draw at 63", "re-run"]
    rows: list[list[str]] = []
    for forcing, families in growth.items():
        for name, norms in families.items():
            mean = [f"{math.log10(norms[:, t].mean()):.1f}" for t in MARKS]
            median = f"{math.log10(float(np.median(norms[:, -1]))):.1f}"
            theirs = "/".join(f"{value:.1f}" for value in SILVERBOX[forcing][name])
            rows.append([forcing, name, *mean, median, theirs])
    write_file(
        folder / "growth.csv", as_csv([dict(zip(heads, row, strict=True)) for row in rows]).encode()
    )
    note = (
        f"log10 of the mean norm of the whole state over {DRAWS} initialisations (seeds 0 to "
        f"{DRAWS - 1}), first training window, without training. The mean is the worst draw's. "
        "Re-run: t = 16/32/63 of an independent re-run with 60 draws; the published figure has no "
        "numbers.\n"
    )
    return _table("silverbox", heads, rows) + note


def _growth(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Norms of shape (draws, times), and the size of the measured output."""
    norms = []
    for seed in range(DRAWS):
        made = rebuild(run, trained=False, seed=seed)
        batch = tuple(tensor[:1] for tensor in made.splits.train)
        with torch.no_grad():
            norms.append(made.forward(batch)[0, :, 1].numpy())
    return np.stack(norms), batch[1][0].abs().numpy()


def _optimizers(task: str, runs: Sequence[Run]) -> str:
    """Families by optimizers: the training loss at the end, the test metric, seconds a step."""
    first = ("snopt", "adam", "sgd")
    optims = sorted(
        {run.optim for run in runs}, key=lambda name: ((*first, name).index(name), name)
    )
    metric = runs[0].metric
    heads = ["family"]
    for optim in optims:
        rules = {run.config["optim"].get("rule") for run in runs if run.optim == optim} - {None}
        title = f"{optim} ({', '.join(sorted(rules))})" if rules else optim
        heads += [f"{title}: train loss", f"test {metric}", "lr", "ms a step"]
    rows = []
    for name, members in by_model(runs).items():
        cells = [name]
        for optim in optims:
            own = [run for run in members if run.optim == optim]
            rates = sorted({f"{run.config['optim']['lr']:g}" for run in own})
            cells += [
                result(own, ("train", "loss")),
                result(own, ("test", metric)),
                ", ".join(rates),
                spread(Spread.of(1000 * _step(run) for run in own)),
            ]
        rows.append(cells)
    steps = " / ".join(map(str, sorted({run.steps for run in runs})))
    data = ", ".join(sorted({run.provenance for run in runs}))
    title = f"{task}: families by optimizers (data: {data}; {steps} steps)"
    note = (
        "Median [range] over seeds at the end of training. lr: the best of those swept over, by "
        "the training loss at the end on a seed of its own. Steps cost differently, see ms.\n"
    )
    return _table(title, heads, rows) + note


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{markdown_table(heads, rows)}\n\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.family_study", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--partial", action="store_true", help="also show runs that were interrupted"
    )
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
