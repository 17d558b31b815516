"""One list of columns makes every table, and one goal every time to target."""

import csv
import io
import math
from typing import get_args

import pytest

from tasks.common.figures import new_figure
from tasks.engine.report.columns import Place, columns, summary_csv
from tasks.engine.report.drawing import draw_legend
from tasks.engine.report.formatting import NOTHING
from tasks.engine.report.targets import LOSS, Goal, time_to_target
from tests.support.made_up_runs import made_up_run, made_up_suite, tables_of


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    made_up_suite(root)
    return tables_of(root)


@pytest.mark.parametrize("place", get_args(Place))
def test_every_table_has_headings_and_a_text_in_each_cell(tables, place) -> None:
    for table in tables:
        shown = columns(table, place)
        assert len({column.headings[place] for column in shown}) > 3
        assert all(column.text(row) for column in shown for row in table.rows if place != "csv")


def test_what_is_read_is_what_the_csv_file_holds(tables) -> None:
    """A number on the console or the page is the median in ``summary.csv``, rounded."""
    file = list(csv.DictReader(io.StringIO(summary_csv(tables))))
    checked = 0
    pairs = [(table, row) for table in tables for row in table.rows]
    for kept, (table, row) in zip(file, pairs, strict=True):
        for column in columns(table, "csv"):
            name, text = column.headings["csv"], column.text(row)
            if f"{name}_median" not in kept:
                continue
            median = kept[f"{name}_median"]
            first = text.partition(" ")[0]
            scale = 1000 if name == "step_seconds" else 1
            scale = 100 if first.endswith("%") else scale
            if not median:
                assert first == NOTHING
            elif median.endswith("inf"):
                assert first in ("never", "diverged")
            else:
                assert float(first.rstrip("%")) == pytest.approx(scale * float(median), rel=6e-3)
            checked += 1
    assert checked > 100


def test_time_to_a_rising_target_is_that_to_the_falling_one_of_what_is_lacking(tmp_path) -> None:
    losses = {"adam": [0.9, 0.5, 0.4, 0.2], "snopt": [0.9, 0.3, 0.15, 0.1], "sgd": [0.9, 0.8]}
    for optim, lacking in losses.items():
        gains = {10 * place: -value for place, value in enumerate(lacking)}
        extra = {("test", "gain"): gains.get}
        made_up_run(tmp_path, optim=optim, losses=lacking, steps=30, every=10, extra=extra)
    (table,) = tables_of(tmp_path, "gain")
    up = Goal((("test", "gain"),), "test gain", higher=True)
    rising, falling = time_to_target(table.comparison, up), time_to_target(table.comparison, LOSS)
    assert rising is not None
    assert falling is not None
    assert (rising.baseline, rising.target.median) == ("adam", -falling.target.median)
    assert rising.outcomes == falling.outcomes
    assert falling.outcomes["snopt"].cost["steps"].median == 20
    assert falling.outcomes["sgd"].cost["steps"].median == math.inf


def test_the_legend_names_the_baselines_of_both_targets(tmp_path) -> None:
    errors = {"adam": 0.9, "sgd": 0.4}  # SGD ends with the higher loss and the better test metric
    for optim, losses in {"adam": [0.9, 0.1], "sgd": [0.9, 0.2]}.items():
        extra = {("test", "error"): {0: 2.0, 10: errors[optim]}.get}
        made_up_run(tmp_path, optim=optim, losses=losses, steps=10, every=10, extra=extra)
    (table,) = tables_of(tmp_path, "error")
    figure = new_figure(6, 4)
    draw_legend(figure, table.comparison)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-1] == "targets: where adam (training loss) and sgd (test error) end"
