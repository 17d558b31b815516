"""The table of runs whose integration time was traced or moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tasks.engine.records.runs import Run
from tasks.engine.report.formatting import number, spread
from tasks.engine.report.horizon_figure import start_of
from tasks.engine.report.markdown import markdown_table
from tasks.engine.report.nfe import per_step
from tasks.engine.report.result import result
from tasks.engine.report.statistics import Spread

_T = ("train", "horizon/T")


def horizon_markdown(runs: Sequence[Run]) -> str:
    """T at both ends of training, and what it cost and gave, one row a configuration.

    Args:
        runs: all runs of an experiment; those without an integration time are left aside.

    Returns:
        Markdown; empty where no run has one.
    """
    groups: dict[tuple[str, str, float, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if _T in run.curves:
            settings = run.config.get("horizon", {})
            bound = "none" if settings.get("max_change") is None else str(settings["max_change"])
            data = f"{run.provenance}; {run.task} with {run.optim}"
            rule = str(settings.get("rule"))
            groups[data, rule, start_of(run), bound, run.config_hash].append(run)
    if not groups:
        return ""
    metrics = {run.metric for members in groups.values() for run in members}
    heads = (
        "data|steps|T0|rule|bound of an update|seeds|T at the end"
        "|evaluations a step, first and last tenth|s a step|train loss"
        f"|test {metrics.pop() if len(metrics) == 1 else 'metric'}|machine"
    ).split("|")
    rows: list[tuple[str, ...]] = []
    for (data, rule, start, bound, _), members in sorted(groups.items(), key=lambda g: -g[0][2]):
        cells = (
            data,
            " / ".join(sorted({str(run.steps) for run in members})),
            number(start),
            rule,
            bound,
            str(len(members)),
            spread(Spread.of(run.curves[_T].final for run in members)),
            " to ".join(number(part) for part in _evaluations(members)),
            spread(Spread.of(run.seconds / run.steps for run in members if run.steps)),
            result(members, ("train", "loss")),
            result(members, ("test", members[0].metric)),
            " / ".join(sorted({str(run.environment.get("device_name")) for run in members})),
        )
        rows.append(cells)
    return markdown_table(heads, rows) + "\n"


def _evaluations(members: Sequence[Run]) -> tuple[float, float]:
    """Medians over seeds of a step's evaluations, forward and backward together."""
    ends = []
    for run in members:
        both = per_step(run).parts.sum(axis=0)
        some = max(1, len(both) // 10)
        ends.append((both[:some].mean(), both[-some:].mean()))
    first, last = np.median(ends, axis=0)
    return float(first), float(last)
