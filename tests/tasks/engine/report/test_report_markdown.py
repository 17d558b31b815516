"""One table over all tasks: what a row says, and what it does not hide."""

from tasks.engine.report.markdown import summary_markdown
from tests.support.made_up_runs import made_up_run, tables_of


def rows(root):
    text = summary_markdown(tables_of(root))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_one_row_a_task_and_optimizer_with_ratios(tmp_path) -> None:
    for seed, share in ((0, 0.5), (1, 0.25)):
        flat = [2.0, 1.0, 0.5, 0.25, 0.125]
        made_up_run(tmp_path, optim="adam", seed=seed, losses=flat, steps=40, every=10)
        quick = [2.0, 0.1, 0.1, 0.1, 0.1] if share == 0.25 else [2.0, 1.0, 0.1, 0.1, 0.1]
        made_up_run(tmp_path, optim="snopt", seed=seed, losses=quick, steps=40, every=10)
    made_up_run(tmp_path, task="circle", optim="sgd", metric="nll", higher_is_better=False)
    table = {(row[0], row[2]): row for row in rows(tmp_path)}
    assert set(table) == {("digits", "snopt"), ("digits", "adam"), ("circle", "sgd")}
    assert table["digits", "snopt"][3] == "2"
    assert table["digits", "snopt"][7] == "0.375 [0.25, 0.5]"
    assert table["digits", "adam"][7] == "1"
    assert table["digits", "adam"][5] == "0.125"
    assert table["circle", "sgd"][1] == "synthetic, made up by a test"
    assert table["circle", "sgd"][6].startswith("nll ")
    assert table["digits", "adam"][6].startswith("accuracy ")
    assert table["digits", "adam"][6].endswith("%")


def test_a_target_that_is_never_reached_and_a_run_that_diverged_are_said(tmp_path) -> None:
    made_up_run(tmp_path, optim="adam")
    made_up_run(tmp_path, optim="snopt", floor=1.0)
    made_up_run(tmp_path, optim="sgd", outcome="diverged")
    table = {row[2]: row for row in rows(tmp_path)}
    assert table["snopt"][7] == "never"
    assert table["sgd"][5] == "diverged"


def test_a_share_is_of_the_whole_run_of_the_best_first_order_optimizer(tmp_path) -> None:
    early = [2.0, 0.5, 0.125, 0.125, 0.125]
    made_up_run(tmp_path, optim="adam", losses=early, steps=40, every=10)
    made_up_run(tmp_path, optim="snopt", losses=[2.0, 0.1, 0.1, 0.1, 0.1], steps=40, every=10)
    table = {row[2]: row for row in rows(tmp_path)}
    assert table["snopt"][7:9] == ["0.5", "0.25"]
    assert table["adam"][7:9] == ["1", "0.5"]
