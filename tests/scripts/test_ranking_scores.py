"""The benchmark's numbers, against values worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.ranking.drawing import _of_interest
from scripts.ranking.outcomes import NEVER, Outcome, merit
from scripts.ranking.page import mean_ratio
from scripts.ranking.ratios import RATIOS, as_text, beside, kept
from scripts.ranking.scores import (
    TAUS,
    Entry,
    area,
    geometric_mean,
    interval,
    optims,
    profile,
    standing,
)
from scripts.ranking.workloads import Target, Workload, rounded_up
from tasks.engine.records.metrics import Curve

TARGET = Target(0.5, 0.4, 0.6, "adamw", "2026-11-25", "made up")


def workload(name: str = "toy") -> Workload:
    return Workload(name, "digits", 10.0, "made up", TARGET)


def curve(values, every: float, wall: float = 2.0) -> Curve:
    """Measured every so many processor seconds, which take ``wall`` times as long on the wall."""
    steps = np.arange(len(values), dtype=np.float64)
    seconds = every * steps
    return Curve(10 * steps, wall * seconds, seconds, steps, steps, np.array(values, dtype=float))


def outcome(losses, every=1.0, tests=None, higher=True, wall=2.0) -> Outcome:
    run = SimpleNamespace(metric="accuracy", higher_is_better=higher)
    measured = losses if tests is None else tests
    return Outcome(run, curve(losses, every, wall), curve(measured, every, wall))


def entry(optim: str, *outcomes: Outcome, first_order: bool = False) -> Entry:
    return Entry(optim, first_order, "#000000", {"optim.lr": 0.01}, outcomes)


def test_time_to_target_is_that_of_the_first_evaluation_at_or_below_it() -> None:
    one = outcome([2.0, 0.9, 0.5, 0.7, 0.3, 0.4], every=1.5, tests=[0, 1, 2, 3, 4, 5])
    assert one.time_to(0.5, budget=10) == 2 * 1.5
    assert one.time_to(0.5, budget=10, axis="seconds") == 2 * 2 * 1.5
    assert one.time_to(0.1, budget=10) == NEVER * 10
    assert one.best == 0.3
    assert (one.test_at(0.5), one.test_at(), one.test.final) == (2.0, 4.0, 5.0)
    assert math.isnan(one.test_at(0.1))
    assert one.step_seconds == pytest.approx(0.15)


def test_a_run_that_diverged_has_what_it_measured_before() -> None:
    one = outcome([2.0, 0.6, math.nan])
    assert one.best == 0.6
    assert one.time_to(0.5, budget=10) == 40.0
    nothing = outcome([math.nan])
    assert nothing.best == math.inf
    assert math.isnan(nothing.test_at())


def test_seconds_to_the_target_count_before_the_loss() -> None:
    soon, low, never = outcome([2, 0.5, 0.5]), outcome([2, 0.6, 0.1]), outcome([2, 0.9, 0.8])
    by_target = sorted((low, never, soon), key=lambda one: merit(one, 0.5, 10))
    assert by_target == [soon, low, never]
    assert min((low, never, soon), key=lambda one: merit(one, None, 10)) is low


def test_ratios_are_of_medians_over_the_best_first_order_optimizer() -> None:
    adam = entry("adam", *(outcome([2, 1, 0.5], s) for s in (3, 4, 5)), first_order=True)
    sgd = entry("sgd", *(outcome([2, 1, 0.5], s) for s in (6, 6, 6)), first_order=True)
    ours = entry("ours", *(outcome([2, 1, 0.5], s, wall=1.0) for s in (1, 2, 9)))
    table = standing(workload(), [sgd, ours, adam])
    assert table.baseline == "adam"
    assert [row.optim for row in table.rows] == ["ours", "adam", "sgd"]
    assert [row.ratio for row in table.rows] == [0.5, 1.0, 1.5]
    assert table.row("ours").wall_ratio == 0.25
    assert table.row("ours").reached == 3
    assert table.row("ours").colour == ours.colour
    assert table.row("adam").interval == (1.0, 1.0)
    low, high = table.row("ours").interval
    assert 2 / 10 <= low < 0.5 < high <= 18 / 6


def test_interval_of_equal_runs_is_their_ratio() -> None:
    assert interval(np.full(5, 2.0), np.full(5, 8.0)) == (0.25, 0.25)


def test_worse_on_the_test_split_by_more_than_the_error_of_the_difference() -> None:
    def tested(*values: float, **more) -> list[Outcome]:
        return [outcome([1.0, 0.5], tests=[0.0, value], **more) for value in values]

    base = entry("adam", *tested(0.90, 0.92, 0.91), first_order=True)
    # The base's mean is 0.91, its standard error 0.00577; that of the others is the same.
    table = standing(
        workload(),
        [base, entry("near", *tested(0.905, 0.915, 0.895)), entry("far", *tested(0.89, 0.91, 0.9))],
    )
    assert table.row("near").no_worse
    assert not table.row("far").no_worse
    losses = entry("adam", *tested(0.3, 0.3, higher=False), first_order=True)
    lower = entry("low", *tested(0.2, 0.2, higher=False))
    assert standing(workload(), [losses, lower]).row("low").no_worse


def test_without_target_or_baseline_there_is_no_table() -> None:
    ours = entry("ours", outcome([1.0, 0.5]))
    assert standing(workload(), [ours]) is None
    assert standing(Workload("toy", "digits", 10.0, "made up"), [ours]) is None


def test_profile_counts_workloads_within_a_factor_of_the_fastest() -> None:
    def table(name: str, ours: float, theirs: float):
        reaching = [outcome([2, 0.5], s) for s in (ours, ours)]
        base = [outcome([2, 0.5], s) for s in (theirs, theirs)]
        entries = [entry("ours", *reaching), entry("adam", *base, first_order=True)]
        return standing(workload(name), entries)

    tables = [table("a", 1.0, 2.0), table("b", 3.0, 1.0)]
    never = [entry("ours", outcome([2, 1])), entry("adam", outcome([2, 0.5]), first_order=True)]
    tables.append(standing(workload("c"), never))
    shares = dict(zip(TAUS.round(6), profile(tables, "ours"), strict=True))
    assert (shares[1.0], shares[2.975], shares[3.0], shares[4.0]) == (1 / 3, 1 / 3, 2 / 3, 2 / 3)
    adam = profile(tables, "adam")
    assert (adam[0], adam[-1]) == (2 / 3, 1.0)
    assert area(np.ones_like(TAUS)) == pytest.approx(1.0)
    assert area(adam) == pytest.approx((1 * 2 / 3 + 2 * 1) / 3, abs=0.01)
    assert optims(tables) == ["adam", "ours"]


def test_a_mean_over_fewer_workloads_than_there_are_says_so() -> None:
    adam = entry("adam", outcome([2, 0.5], 1.0), first_order=True)
    slow, fast = (entry("ours", outcome([2, 0.5], s)) for s in (4.0, 0.5))
    other = entry("other", outcome([2, 0.5], 2.0))
    names = ("a", "b", "c")
    tables = [
        standing(workload(n), [adam, o, other])
        for n, o in zip(names, (slow, fast, fast), strict=True)
    ]
    assert [mean_ratio(tables, name) for name in ("adam", "ours")] == ["1", "1"]
    tables[0] = standing(workload("a"), [adam, other])  # the one that ours is slow on
    assert [mean_ratio(tables, name) for name in ("other", "ours")] == ["2", "0.5 (2 of 3)"]


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([]))


def test_who_diverged_does_not_stretch_the_axis() -> None:
    good, flat, wild = (np.array(x) for x in ([2.0, 0.5, 0.1], [2.0, 1.0, 0.9], [2.0, 1e9, 1e21]))
    lost = np.array([2.0, np.nan, np.nan])
    shown = [(y, y[1:]) for y in (good, flat, wild, lost)]
    assert _of_interest(shown, rises=False).tolist() == [0.5, 0.1, 1.0, 0.9]
    assert _of_interest([(1 - y, (1 - y)[1:]) for y in (good, wild)], rises=True).max() == 0.9
    assert len(_of_interest([(lost, lost)], rises=False)) == 0


def test_the_committed_tables_read_and_write_themselves() -> None:
    path = Path("results/reference/benchmark") / RATIOS
    assert as_text(kept(path)) == path.read_text()
    tables = kept(path)["default"]
    assert {one.workload.name for one in tables} >= {"circle", "mnist", "spoken_arabic_digits"}


def test_new_tables_replace_old_ones_of_the_same_workload_and_leave_the_others() -> None:
    def table(name: str, seconds: float):
        adam = entry("adam", outcome([2, 1, 0.5], seconds), first_order=True)
        return standing(workload(name), [adam])

    old = {"default": [table("b", 1), table("c", 1)], "tuned": [table("a", 1)]}
    found = beside({"tuned": [], "default": [table("a", 2), table("b", 2)]}, old)
    assert list(found) == ["default", "tuned"]  # whichever was drawn
    seconds = {
        (track, one.workload.name): one.rows[0].seconds
        for track, tables in found.items()
        for one in tables
    }
    expected = {("default", "a"): 4, ("default", "b"): 4, ("default", "c"): 2, ("tuned", "a"): 2}
    assert seconds == expected


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (2.35721e-05, 2.358e-05),
        (1.325, 1.325),
        (3.75901, 3.76),
        (-0.12345, -0.1234),
        (12345.0, 12350),
    ],
)
def test_a_target_is_reached_by_the_run_that_it_is_of(loss: float, target: float) -> None:
    assert rounded_up(loss) == target
    assert rounded_up(loss) >= loss
