"""The picture that a task draws of the models trained on it."""

from __future__ import annotations

from dataclasses import asdict
from pickle import UnpicklingError
from typing import Any

from tasks.common.checks import ConfigError
from tasks.common.figures import png
from tasks.engine.config.solver import EvaluationSolver
from tasks.engine.records.runs import Run
from tasks.engine.report.comparison import Comparison, Series
from tasks.engine.report.figures import heading
from tasks.engine.report.html import Picture
from tasks.task import Task, Trained

_MOST = 7  # models in a picture


def task_picture(comparison: Comparison) -> Picture | None:
    """The picture of every series' first seed.

    Returns:
        ``None`` where the task draws none, or
        no run can be drawn: its checkpoint or its data are gone, or its weights are those of
        another network.
    """
    task = _task(comparison.series[0].runs[0])
    if task is None or not task.picture_name:
        return None
    trained: list[Trained] = []
    for series in comparison.series:
        if len(trained) < _MOST and (one := _trained(series)) is not None:
            trained.append(one)
    figure = task.picture(heading(comparison), trained) if trained else None
    return None if figure is None else Picture(task.picture_name, task.picture_caption, png(figure))


def _task(run: Run) -> Task | None:
    from tasks.engine.config.settings import Settings
    from tasks.engine.experiment import build_task

    try:
        return build_task(Settings.read(run.config))
    except (ConfigError, KeyError, TypeError):  # of another version, or made elsewhere
        return None


def _judging(run: Run) -> dict[str, Any]:
    """The solver of the run's evaluations, whose numbers stand beside the picture."""
    given = run.config["solver"].get("evaluation")
    own = {} if given is None else {**asdict(EvaluationSolver(**given)), "warm_start": False}
    return {**own, "compile": False}  # not worth it for a few solves


def _trained(series: Series) -> Trained | None:
    from tasks.data.errors import DataError
    from tasks.engine.report.reload import rebuild

    run = series.runs[0]
    try:
        made = rebuild(run, solver=_judging(run))
    except (OSError, UnpicklingError, RuntimeError, KeyError, DataError, ConfigError):
        return None
    test = run.curves.get(("test", made.task.metric))
    score = None if test is None else test.final
    return Trained(series.label, series.colour, run.seed, made.model, made.splits, score)
