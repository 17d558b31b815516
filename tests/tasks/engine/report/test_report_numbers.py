"""The numbers of the report, against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.records.metrics import Curve
from tasks.engine.report.statistics import Spread, band, spans_decades
from tasks.engine.report.targets import LOSS, Goal
from tests.support.made_up_runs import made_up_run, tables_of


def curve(x, values):
    x = np.asarray(x, dtype=float)
    return Curve(x, x / 10, x / 10, x * 14, x * 16, np.asarray(values, dtype=float))


def table(root):
    (found,) = tables_of(root)
    return found


def row(found, label):
    (one,) = [r for r in found.rows if r.series.label == label]
    return one


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_spread_is_numpys_median_and_range(values):
    spread = Spread.of(values)
    assert spread.median == pytest.approx(np.median(values))
    assert (spread.low, spread.high, spread.count) == (min(values), max(values), len(values))


def test_never_counts_in_the_median_and_nan_does_not():
    assert Spread.of([1.0, math.inf, math.inf]).median == math.inf
    assert Spread.of([1.0, 2.0, math.inf]).median == 2.0
    assert Spread.of([1.0, math.inf]).median == math.inf
    assert Spread.of([1.0, math.nan]) == Spread(1.0, 1.0, 1.0, 1)
    assert Spread.of([]).count == 0


def test_band_interpolates_where_all_seeds_are_defined():
    a = curve([0, 10, 20], [4.0, 2.0, 0.0])
    b = curve([0, 5, 30], [8.0, 6.0, 1.0])
    c = curve([0, 40], [0.0, 40.0])
    found = band([a, b, c], "steps", points=21)
    assert found.x[0] == 0
    assert found.x[-1] == 20
    at_ten = int(np.flatnonzero(found.x == 10)[0])
    assert found.low[at_ten] == pytest.approx(2.0)
    assert found.median[at_ten] == pytest.approx(5.0)
    assert found.high[at_ten] == pytest.approx(10.0)


def test_band_on_a_log_scale_takes_geometric_means():
    curves = [curve([0, 10], [1.0, 0.01]), curve([0, 4, 10], [1.0, 1.0, 1.0])]
    found = band(curves, "steps", log=True, points=3)
    assert found.low[1] == pytest.approx(0.1)


def test_band_of_seeds_measured_at_the_same_places_keeps_them():
    found = band([curve([0, 3, 7], [1, 2, 3]), curve([0, 3, 7], [3, 4, 5])], "nfe")
    assert found.x.tolist() == [0, 90, 210]
    assert found.median.tolist() == [2, 3, 4]


def test_band_ignores_what_is_not_finite_and_may_be_empty():
    assert band([curve([0, 1], [1.0, math.nan])], "steps").x.tolist() == [0]
    assert len(band([curve([0], [math.nan])], "steps").x) == 0
    assert len(band([curve([0, 1], [1, 1]), curve([5, 6], [1, 1])], "steps").x) == 0


def test_log_scale_only_where_values_span_decades():
    assert spans_decades([curve([0, 1], [1.0, 0.05])])
    assert not spans_decades([curve([0, 1], [1.0, 0.5])])
    assert not spans_decades([curve([0, 1], [1.0, -0.001])])
    assert spans_decades([curve([0, 1, 2], [1.0, 0.05, 0.0])])
    assert not spans_decades([curve([0, 1], [1.0, 0.0])])
    assert not spans_decades([])


def test_target_is_reached_at_a_measurement_not_between_two():
    falling = curve([0, 10, 20, 30], [1.0, 0.5, 0.2, 0.3])
    assert LOSS.first_reach(falling, 0.3) == 2
    assert LOSS.first_reach(falling, 0.1) is None
    accuracy = Goal((("test", "accuracy"),), "test accuracy", higher=True)
    rising = curve([0, 10, 20], [0.1, math.nan, 0.9])
    assert accuracy.first_reach(rising, 0.8) == 2


def run_pair(root, seed, adam, snopt, **settings):
    common = {"seed": seed, "every": 10, "steps": 30}
    made_up_run(root, optim="adam", losses=adam, step_seconds=0.1, **common)
    made_up_run(root, optim="snopt", losses=snopt, step_seconds=0.2, **common, **settings)


def test_time_to_target_by_hand(tmp_path):
    # Seed 0: Adam ends at 0.4 after 3 s; SNOpt is below at step 10, 2 s: ratio 2/3.
    run_pair(tmp_path, 0, [2, 1, 0.6, 0.4], [2, 0.3, 0.2, 0.1])
    # Seed 1: Adam ends at 0.5, which it had first reached at step 20, 2 s; SNOpt at 4 s: ratio 2.
    run_pair(tmp_path, 1, [2, 1, 0.45, 0.5], [2, 0.7, 0.5, 0.1])
    # Seed 2: Adam ends at 0.1 after 3 s; SNOpt never gets there.
    run_pair(tmp_path, 2, [2, 1, 0.6, 0.1], [2, 0.7, 0.5, 0.3])
    found = table(tmp_path)
    assert found.time_to_loss.baseline == "adam"
    assert found.time_to_loss.target == Spread(0.4, 0.1, 0.5, 3)
    outcome = row(found, "snopt").time_to_loss
    assert (outcome.reached, outcome.runs) == (2, 3)
    assert outcome.cost["seconds"] == Spread(4.0, 2.0, math.inf, 3)
    assert outcome.cost["steps"] == Spread(20, 10, math.inf, 3)
    assert outcome.cost["nfe"] == Spread(600, 300, math.inf, 3)
    assert outcome.ratio.low == pytest.approx(2 / 3)
    assert outcome.ratio.median == pytest.approx(2.0)
    assert outcome.ratio.high == math.inf
    assert outcome.budget_fraction.low == pytest.approx(2 / 3)
    assert outcome.budget_fraction.median == pytest.approx(4 / 3)
    own = row(found, "adam").time_to_loss
    assert own.ratio == Spread(1.0, 1.0, 1.0, 3)
    assert own.budget_fraction.low == pytest.approx(2 / 3)


def test_seed_that_the_baseline_did_not_run_takes_its_median(tmp_path):
    run_pair(tmp_path, 0, [2, 1, 0.6, 0.4], [2, 0.3, 0.2, 0.1])
    made_up_run(
        tmp_path, optim="snopt", seed=5, every=10, losses=[2, 1, 0.41, 0.4], step_seconds=0.2
    )
    outcome = row(table(tmp_path), "snopt").time_to_loss
    assert outcome.ratio.high == pytest.approx(6.0 / 3.0)


def test_baseline_is_the_best_first_order_optimizer_and_never_a_second_order_one(tmp_path):
    made_up_run(tmp_path, optim="sgd", floor=0.01)
    made_up_run(tmp_path, optim="adam", floor=0.2)
    made_up_run(tmp_path, optim="snopt", floor=0.001)
    made_up_run(tmp_path, optim="soap", floor=0.0005)
    assert table(tmp_path).time_to_loss.baseline == "sgd"


def test_first_order_optimizer_under_another_name_is_known_by_its_class(tmp_path):
    settings = {"_target_": "torch.optim.AdamW"}
    made_up_run(tmp_path, optim="my_baseline", optim_settings=settings)
    assert table(tmp_path).time_to_loss.baseline == "my_baseline"


def test_diverged_run_is_no_target_whatever_it_had_reached(tmp_path):
    losses = [2.0, 0.1, 0.001, math.nan]
    made_up_run(tmp_path, optim="sgd", losses=losses[:3], every=10, outcome="diverged")
    made_up_run(tmp_path, optim="adam", losses=[2.0, 1.0, 0.5, 0.4], every=10)
    found = table(tmp_path)
    assert found.time_to_loss.baseline == "adam"
    assert row(found, "sgd").train_loss.median == math.inf
    assert row(found, "sgd").test_metric.median == -math.inf


def test_without_first_order_runs_there_is_no_target(tmp_path):
    made_up_run(tmp_path, optim="snopt")
    found = table(tmp_path)
    assert found.time_to_loss is None
    assert found.time_to_metric is None


def test_metric_target_is_reached_from_below_where_higher_is_better(tmp_path):
    run_pair(tmp_path, 0, [2, 1, 0.6, 0.4], [2, 0.3, 0.2, 0.1])
    found = table(tmp_path)
    assert found.time_to_metric.target.median == pytest.approx(1 / 1.4)
    assert row(found, "snopt").time_to_metric.cost["steps"].median == 10


def test_batch_losses_stand_in_where_the_training_split_was_not_evaluated(tmp_path):
    folder = made_up_run(tmp_path, losses=[2, 1, 0.5, 0.25], every=10)
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [r for r in rows if '"metric": "loss"' not in r]
    (folder / "metrics.jsonl").write_text("".join(kept))
    assert row(table(tmp_path), "adam").train_loss.median == pytest.approx(0.25 * 1.1)


def test_selected_metric_is_the_test_value_at_the_best_validation_step(tmp_path):
    # The validation metric is best where the loss is lowest: at step 20, not at the end.
    made_up_run(tmp_path, losses=[2, 1, 0.25, 0.5], every=10)
    one = row(table(tmp_path), "adam")
    assert one.selected_metric.median == pytest.approx(1 / 1.25)
    assert one.test_metric.median == pytest.approx(1 / 1.5)


def test_seconds_of_runs_limited_by_processors_are_those_on_processors(tmp_path):
    for optim, share in (("adam", 0.25), ("snopt", 0.5)):
        made_up_run(tmp_path, optim=optim, processors=share)
    found = table(tmp_path)
    # 400 steps of 0.1 s on the wall, each.
    assert row(found, "adam").seconds.median == pytest.approx(10)
    assert row(found, "snopt").seconds.median == pytest.approx(20)
    assert row(found, "snopt").step_seconds.median == pytest.approx(
        2 * row(found, "adam").step_seconds.median
    )
    # The curves are the same, step by step.
    assert row(found, "snopt").time_to_loss.ratio.median == pytest.approx(2)
    assert any("on processors" in note for note in found.comparison.notes)


def test_seconds_of_other_runs_are_those_on_the_wall(tmp_path):
    made_up_run(tmp_path, optim="adam", cpu_seconds=10.0)
    found = table(tmp_path)
    assert row(found, "adam").seconds.median == pytest.approx(40)
    assert not any("on processors" in note for note in found.comparison.notes)
