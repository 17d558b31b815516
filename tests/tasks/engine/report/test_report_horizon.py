"""The picture of an optimised integration time."""

from __future__ import annotations

import pytest

from scripts.horizon_study import horizon_markdown
from tasks.engine.records.runs import read_runs
from tasks.engine.report.comparison import compare
from tasks.engine.report.horizon_figure import has_horizon, horizon_figure
from tasks.engine.report.nfe import per_step
from tasks.engine.report.write import write_report
from tests.support.made_up_runs import made_up_run

PARTS = ("T", "q_t", "q_tt", "open", "feedback")


def with_horizon(root, rule, start, seed=0, config_hash="0a1b2c3d", task="mnist", optim="adam"):
    curves = {("train", f"horizon/{name}"): lambda step: 0.5 + 1e-3 * step for name in PARTS}
    curves["train", "horizon/T"] = lambda step: start - (1e-4 * step if rule != "fixed" else 0)
    settings = {"rule": rule, "T0": start, "max_change": 0.1 if rule == "feedback" else None}
    folder = made_up_run(
        root, task=task, optim=optim, seed=seed, config_hash=config_hash, extra=curves
    )
    config = folder / "config.yaml"
    config.write_text(config.read_text() + f"horizon: {settings}\n".replace("None", "null"))
    return folder


def test_runs_with_a_horizon_are_drawn_and_named_by_rule_and_start(tmp_path):
    with_horizon(tmp_path, "feedback", 1.0, config_hash="aaaaaaaa")
    with_horizon(tmp_path, "feedback", 1.0, seed=1, config_hash="aaaaaaaa")
    with_horizon(tmp_path, "fixed", 0.05, config_hash="bbbbbbbb")
    (comparison,) = compare(read_runs(tmp_path)[0])
    labels = [series.label for series in comparison.series]
    assert all("horizon.rule=" in label and "horizon.T0=" in label for label in labels)
    assert has_horizon(comparison)
    figure = horizon_figure(comparison)
    trace, _, _, opened, *_ = figure.axes
    assert len(trace.lines) == 3  # every run
    drawn = sorted(tuple(line.get_ydata()[[0, -1]]) for line in trace.lines)
    assert drawn == [(0.05, 0.05), pytest.approx((1.0, 0.96)), pytest.approx((1.0, 0.96))]
    assert len(opened.lines) == 2 + 1  # a fixed T has no updates; the line at zero
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["feedback", "fixed", "T0 = 1", "T0 = 0.05"]


def test_the_report_holds_it_only_where_there_is_one(tmp_path):
    with_horizon(tmp_path / "a", "first_order", 1.0)
    made_up_run(tmp_path / "b")
    assert "horizon-mnist-node.png" in [f.name for f in write_report(tmp_path / "a").files]
    (without,) = compare(read_runs(tmp_path / "b")[0])
    assert not has_horizon(without)
    assert "Integration time" in (tmp_path / "a/report.html").read_text()


def test_a_seed_that_was_killed_before_it_logged_t_is_left_out_of_the_picture(tmp_path):
    with_horizon(tmp_path, "feedback", 1.0)
    folder = with_horizon(tmp_path, "feedback", 1.0, seed=1)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "horizon/" not in line]
    (folder / "metrics.jsonl").write_text("".join(kept))
    (comparison,) = compare(read_runs(tmp_path)[0])
    assert len(horizon_figure(comparison).axes[0].lines) == 1


def test_the_table_says_where_t_began_and_ended(tmp_path):
    with_horizon(tmp_path, "feedback", 1.0, config_hash="aaaaaaaa")
    with_horizon(tmp_path, "feedback", 1.0, seed=1, config_hash="aaaaaaaa")
    folder = with_horizon(tmp_path, "fixed", 0.05, config_hash="bbbbbbbb")
    path = folder / "metrics.jsonl"  # a run that was not evaluated at its start logs T later
    late = [row for row in path.read_text().splitlines(keepends=True) if '"step": 0,' not in row]
    path.write_text("".join(late).replace('"value": 0.05,', '"value": 0.06,'))
    rows = horizon_markdown(read_runs(tmp_path)[0]).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1:8] for row in cells] == [
        ["400", "1", "feedback", "0.1", "2", "0.96", "30 to 30"],
        ["400", "0.05", "fixed", "none", "1", "0.06", "30 to 30"],
    ]
    made_up_run(tmp_path / "none")
    assert horizon_markdown(read_runs(tmp_path / "none")[0]) == ""


def test_evaluations_of_a_step_come_from_the_counters(tmp_path):
    folder = made_up_run(tmp_path, steps=100, every=20)
    (run,) = read_runs(folder)[0]
    (folder / "metrics.jsonl").unlink()  # reading it once is enough
    found = per_step(run)
    assert found.steps.tolist() == [20, 40, 60, 80, 100]
    assert found.parts.tolist() == [[14.0] * 5, [16.0] * 5]


def test_tasks_optimizers_and_settings_are_no_seeds_of_each_other(tmp_path):
    with_horizon(tmp_path, "feedback", 1.0, config_hash="aaaaaaaa")
    with_horizon(tmp_path, "feedback", 1.0, config_hash="bbbbbbbb")  # another batch size, say
    with_horizon(tmp_path, "feedback", 1.0, config_hash="aaaaaaaa", optim="sgd")
    with_horizon(tmp_path, "feedback", 1.0, config_hash="aaaaaaaa", task="cifar10", optim="sgd")
    rows = horizon_markdown(read_runs(tmp_path)[0]).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[5] for row in cells] == ["1"] * 4
    assert sorted(row[0].split("; ")[1] for row in cells) == [
        *("cifar10 with sgd", "mnist with adam", "mnist with adam", "mnist with sgd")
    ]
