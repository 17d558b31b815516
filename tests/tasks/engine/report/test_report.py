"""From results folders to files: what is read, what is left out, what is written."""

import csv
import json
import re

import pytest
from PIL import Image

from scripts.report import main
from tasks.engine.report import read_runs, write_report
from tasks.engine.report.comparison import compare
from tasks.engine.report.figures import diagnostics_figure
from tasks.engine.report.markdown import summary_markdown
from tests.support.made_up_runs import made_up_run, made_up_suite, tables_of


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    made_up_suite(root)
    return root, write_report(root)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_of_the_report(suite):
    root, report = suite
    assert {path.name for path in report.files} - {"plotly.min.js"} == {
        "comparison.png",
        "summary.csv",
        "summary.md",
        "runs.csv",
        "report.html",
    }
    assert [t.comparison.task for t in report.tables] == ["digits", "japanese_vowels"]
    assert not report.skipped
    assert (root / "summary.md").read_text() == summary_markdown(report.tables)
    with Image.open(root / "comparison.png") as picture:
        assert min(picture.size) > 600
        assert len(set(picture.convert("RGB").resize((200, 100)).get_flattened_data())) > 50


def test_page_loads_nothing_but_the_script_beside_it_and_names_the_data_of_every_number(suite):
    page = (suite[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # curves and diagnostics of two tasks
    beside = set(re.findall(r"(?:src|href)=\"(?!data:|#)([^\"]*)", page))
    assert beside == {path.name for path in suite[1].files} & {"plotly.min.js"}
    # Contents, the section's own label; the pictures carry it too.
    assert page.count("synthetic, made up by a test") >= 4
    assert str(suite[0]) not in page


def test_without_plotly_the_page_shows_pictures_alone(tmp_path, suite, monkeypatch):
    monkeypatch.setattr("tasks.engine.report.interactive.find_spec", lambda name: None)
    report = write_report(suite[0], tmp_path, tasks=["digits"])
    assert "plotly.min.js" not in {path.name for path in report.files}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "plotly" not in page
    assert "<summary>As a picture</summary>" not in page
    assert page.count("data:image/png;base64,") == 2


def test_summary_has_one_row_a_series_with_medians_and_ranges(suite):
    rows = {(r["task"], r["label"]): r for r in read_csv(suite[0] / "summary.csv")}
    assert len(rows) == 9
    row = rows["digits", "snopt (rule=adam)"]
    assert row["seeds"] == "0 1 2"
    assert row["outcomes"] == "budget:3"
    assert float(row["steps_median"]) == 340
    assert float(row["step_seconds_median"]) == pytest.approx(0.115 * (0.01 + 0.9 + 0.05 + 0.09))
    assert float(row["ms_per_step_curvature"]) == pytest.approx(115 * 0.09)
    assert all(
        float(r["final_train_loss_min"])
        <= float(r["final_train_loss_median"])
        <= float(r["final_train_loss_max"])
        for r in rows.values()
    )
    assert {r["data"] for r in rows.values()} == {"synthetic, made up by a test"}


def test_runs_table_has_one_row_a_run(suite):
    rows = read_csv(suite[0] / "runs.csv")
    assert len(rows) == 21
    assert sum(row["outcome"] == "diverged" for row in rows) == 1


def test_series_of_one_optimizer_are_told_apart_by_what_differs(suite):
    labels = [s.label for s in suite[1].tables[0].comparison.series]
    assert labels == ["snopt (rule=adam)", "snopt (rule=paper)", "adam", "adamw", "sgd"]


def test_subset_and_complete_data_are_not_mixed(tmp_path):
    made_up_run(tmp_path, provenance="complete")
    made_up_run(tmp_path, optim="sgd", provenance="first 5000 images")
    tables = tables_of(tmp_path)
    assert [t.comparison.provenance for t in tables] == ["complete", "first 5000 images"]
    assert all(len(t.comparison.series) == 1 for t in tables)


def damage(folder, what):
    if what == "no run.json":
        (folder / "run.json").unlink()
    elif what == "half a run.json":
        text = (folder / "run.json").read_text()
        (folder / "run.json").write_text(text[: len(text) // 2])
    elif what == "no seed":
        record = json.loads((folder / "run.json").read_text())
        del record["seed"]
        (folder / "run.json").write_text(json.dumps(record))
    elif what == "a list":
        (folder / "run.json").write_text("[]")
    elif what == "no metrics":
        (folder / "metrics.jsonl").unlink()
    elif what == "empty metrics":
        (folder / "metrics.jsonl").write_text("")
    elif what == "binary metrics":
        (folder / "metrics.jsonl").write_bytes(b"\x80\x00\xff" * 50)
    elif what == "broken config":
        (folder / "config.yaml").write_text("a: [1, 2")
    elif what == "buckets of text":
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "buckets": {"data": "soon"}}))
    elif what == "half the metrics":
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(line) for line in lines if '"test", "metric": "loss"' in line][-1]
        record = json.loads((folder / "run.json").read_text())
        record["final"] = {"test": {"loss": last["value"]}}
        (folder / "run.json").write_text(json.dumps(record))
        assert read_runs(folder.parent)[1] == []
        (folder / "metrics.jsonl").write_text("\n".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no run.json", "no run.json"),
        ("half a run.json", "run.json cannot be read"),
        ("no seed", "no 'seed'"),
        ("a list", "not an object"),
        ("no metrics", "metrics.jsonl cannot be read"),
        ("empty metrics", "no readable row"),
        ("binary metrics", "no readable row"),
        ("broken config", "config.yaml cannot be read"),
        ("buckets of text", "something unexpected"),
        ("half the metrics", "metrics.jsonl is not whole: its last test loss is"),
    ],
)
def test_damaged_runs_are_left_out_with_a_reason(tmp_path, what, reason):
    made_up_run(tmp_path, seed=0)
    bad = made_up_run(tmp_path, seed=1)
    damage(bad, what)
    runs, skipped = read_runs(tmp_path)
    assert [run.seed for run in runs] == [0]
    assert [entry.path for entry in skipped] == [bad]
    assert reason in skipped[0].reason


def test_last_line_of_a_killed_run_is_ignored_and_noted(tmp_path):
    folder = made_up_run(tmp_path)
    intact = read_runs(tmp_path)[0][0]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 420, "split": "tra')
    run = read_runs(tmp_path)[0][0]
    assert run.curves["train", "loss"].final == intact.curves["train", "loss"].final
    assert "1 unreadable line" in run.warnings[0]
    assert any("unreadable line" in note for note in tables_of(tmp_path)[0].comparison.notes)


def test_unfinished_runs_show_only_when_asked_for(tmp_path):
    made_up_run(tmp_path, seed=0)
    made_up_run(tmp_path, seed=1, outcome="interrupted")
    runs, skipped = read_runs(tmp_path)
    assert [run.seed for run in runs] == [0]
    assert "interrupted at step 400" in skipped[0].reason
    assert [run.seed for run in read_runs(tmp_path, partial=True)[0]] == [0, 1]


def test_the_same_run_found_twice_counts_once(tmp_path):
    made_up_run(tmp_path / "a")
    made_up_run(tmp_path / "b")
    runs, skipped = read_runs(tmp_path)
    assert len(runs) == 1
    assert "the same run as" in skipped[0].reason


def test_a_row_written_twice_after_a_resume_counts_once(tmp_path):
    folder = made_up_run(tmp_path)
    before = read_runs(tmp_path)[0][0].curves["test", "accuracy"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines + lines[-20:]) + "\n")
    after = read_runs(tmp_path)[0][0].curves["test", "accuracy"]
    assert after.steps.tolist() == before.steps.tolist()


def test_settings_that_differ_between_optimizers_are_pointed_out(tmp_path):
    made_up_run(tmp_path, optim="adam")
    folder = made_up_run(
        tmp_path, optim="snopt", environment={"device_name": "another", "threads": 2}
    )
    config = (folder / "config.yaml").read_text().replace("rtol: 0.001", "rtol: 0.1")
    (folder / "config.yaml").write_text(config)
    notes = " ".join(tables_of(tmp_path)[0].comparison.notes)
    assert "solver.rtol = 0.001 / 0.1" in notes
    assert "device_name = another / made-up" in notes
    assert "version of the code: 0123abc / None" in notes
    assert "test samples" not in notes


def test_the_rule_tells_variants_of_snopt_apart_before_all_else(tmp_path):
    for rule, basis in (("adam", "gradient"), ("paper", "curvature")):
        settings = {"rule": rule, "basis": basis, "lr": 0.1 if rule == "adam" else 0.2}
        made_up_run(tmp_path, optim="snopt", config_hash=rule, optim_settings=settings)
    labels = [row.series.label for row in tables_of(tmp_path)[0].rows]
    assert labels == ["snopt (rule=adam)", "snopt (rule=paper)"]


def test_a_test_curve_of_a_part_of_the_split_is_said_to_be_one(tmp_path):
    folder = made_up_run(tmp_path)
    config = (folder / "config.yaml").read_text()
    parts = "max_seconds: 40\n  eval_test_samples: 192\n  eval_valid_samples: 16"
    (folder / "config.yaml").write_text(config.replace("max_seconds: 40", parts))
    assert tables_of(tmp_path)[0].comparison.notes == (
        "Validation values, and what is chosen by them, are of 16 validation samples.",
        "Test values before the last are of 192 test samples, the last of all.",
    )


def test_first_order_runs_of_another_folder_are_compared_with(tmp_path, capsys):
    half, full = tmp_path / "half", tmp_path / "full"
    made_up_run(half, optim="snopt", steps=200, rate=0.06, floor=0.01)
    for optim in ("adam", "soap", "snopt"):
        made_up_run(full, optim=optim, steps=400)
    made_up_run(full, optim="adam", task="circle")
    assert main([str(half), "--beside", str(full)]) == 0
    rows = {(row["task"], row["label"]): row for row in read_csv(half / "summary.csv")}
    assert rows.keys() == {("digits", "snopt"), ("digits", "adam")}
    assert float(rows["digits", "snopt"]["steps_median"]) == 200
    assert 0 < float(rows["digits", "snopt"]["loss_target_ratio_median"]) < 0.5
    assert main([str(half), "--beside", str(tmp_path / "none")]) == 2
    assert "none is not a folder" in capsys.readouterr().err.replace("\n", "")


def test_metric_and_task_can_be_chosen(tmp_path, suite):
    report = write_report(suite[0], tmp_path, tasks=["digits"], metric="loss")
    (table,) = report.tables
    assert table.comparison.metric == "loss"
    assert not table.comparison.higher_is_better
    assert table.time_to_metric is not None
    assert table.time_to_metric.baseline == "adam"
    assert (tmp_path / "report.html").exists()


def test_pictures_of_a_run_are_embedded(tmp_path):
    folder = made_up_run(tmp_path)
    Image.new("RGB", (8, 8), "red").save(folder / "density.png")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "density: adam, seed 0" in page
    assert page.count("data:image/png;base64,") == 3


def test_names_with_markup_do_not_reach_the_page(tmp_path):
    made_up_run(tmp_path, provenance="<script>alert(1)</script>", message="a < b & c")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "a &lt; b &amp; c" in page


def test_command_prints_unbroken_rows_without_a_terminal(tmp_path, suite, capsys):
    assert main([str(suite[0]), "--out", str(tmp_path), "--task", "digits"]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("snopt (rule=adam)")]
    assert "99.6%" in row
    assert "13.8" in row
    assert "\x1b" not in printed


def test_command_says_what_is_missing(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "make run" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_of_what_else_was_logged_keep_to_their_panels(tmp_path) -> None:
    long = {("train", f"optimizer/{name}"): lambda s: 1e-3 * 10 ** (s % 5) for name in LONG}
    made_up_run(tmp_path, optim="snopt", extra=long)
    (comparison,) = compare(read_runs(tmp_path)[0])
    figure = diagnostics_figure(comparison)
    assert figure is not None
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if "optimizer" in axes.get_ylabel()]
    assert len(panels) == len(LONG)
    for axes in panels:
        assert axes.yaxis.label.get_window_extent().height < axes.bbox.height


LONG = [f"direction_over_gradient_{number}" for number in range(9)]


def test_a_run_that_lies_in_both_folders_counts_once(tmp_path):
    for root in ("half", "full"):
        made_up_run(tmp_path / root, optim="adam")
        made_up_run(tmp_path / root, optim="sgd", seed=int(root == "full"))
    for root in (tmp_path / "half", tmp_path):
        write_report(root, tmp_path / "out", beside=tmp_path / "full")
        rows = read_csv(tmp_path / "out" / "summary.csv")
        assert {row["optimizer"]: row["seeds"] for row in rows} == {"adam": "0", "sgd": "0 1"}


def test_training_losses_of_single_batches_are_called_so(tmp_path):
    note = "Training losses of {} are of single batches, not of the split"
    for optim, seed in (("adam", 0), ("sgd", 1)):
        folder = made_up_run(tmp_path, optim=optim, seed=seed)
        (comparison,) = compare(read_runs(tmp_path)[0])
        assert not any("single batches" in one for one in comparison.notes)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    measured = '"split": "train", "metric": "loss"'
    path.write_text("".join(line for line in lines if measured not in line))
    (comparison,) = compare(read_runs(tmp_path)[0])
    assert any(one.startswith(note.format("sgd")) for one in comparison.notes)
