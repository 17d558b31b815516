"""What runs of one configuration end with, as a cell of a table."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.engine.records.metrics import Key
from tasks.engine.records.runs import Run
from tasks.engine.report.formatting import metric_style, spread
from tasks.engine.report.targets import Goal


def result(runs: Sequence[Run], key: Key) -> str:
    """Median and range over seeds; a run that diverged has the worst there can be.

    Args:
        runs: of one configuration.
        key: split and metric.
    """
    metric = key[1]
    goal = Goal((key,), metric, runs[0].higher_is_better and metric != "loss")
    return spread(goal.final(runs), metric_style(metric))
