"""Mistakes on the scripts' command lines: a sentence and exit code 2, before any work."""

import pytest

from scripts import bench, benchmark, entry, family_study, point_cloud, report, reproduce, tune
from tests.support import fake

MISTAKES = [
    (report, ["{folder}/nowhere"], "is not a folder"),
    (report, ["{file}"], "is not a folder"),
    (report, ["{folder}"], "holds no finished run"),
    (report, ["{folder}", "--task="], "holds no finished run of task"),
    (report, ["{folder}", "--beside", "{file}"], "is not a folder"),
    (family_study, ["{folder}/nowhere", "--out={folder}"], "is not a folder"),
    (family_study, ["{folder}", "--out={folder}"], "no task that several families"),
    (reproduce, ["nope"], "no such experiment"),
    (reproduce, ["reference/digits", "--seeds="], "--seeds=: give whole numbers"),
    (reproduce, ["reference/digits", "--budget=nan"], "--budget=nan: seconds, above 0"),
    (reproduce, ["reference/digits", "--budget=0"], "--budget=0: seconds, above 0"),
    (reproduce, ["reference/digits", "--results="], "--results=: must name a folder"),
    (reproduce, ["reference/digits", "--results={file}"], "must name a folder"),
    (reproduce, ["reference/digits", "optim=1"], "optim=1: no such choice"),
    (reproduce, ["reference/digits", "results.root=x"], "say --results="),
    (tune, ["task=digits"], "say what to tune"),
    (tune, ["task=glob(dig*)", "optim=adam"], "task=glob(dig*): no such choice"),
    (tune, ["task=digits", "optim=adam", "--seconds=0"], "--seconds=0: must be positive"),
    (tune, ["task=digits", "optim=adam", "--seconds=nan"], "--seconds=nan: must be positive"),
    (tune, ["task=digits", "optim=adam", "task.batch_size=("], "not an override"),
    (
        tune,
        ["task=digits", "optim=adam", "seed=3", "--dry-run"],
        "seed is that of each trial: say --seeds",
    ),
    (
        tune,
        ["task=digits", "optim=adam", "model=node,anode", "--dry-run"],
        "model=node,anode: several values",
    ),
    (bench, ["step", "--task=foo"], "--task=foo: no such choice"),
    (bench, ["step", "--task=digits", "--out={file}"], "{file}"),
    (bench, ["gradients", "--ways="], "--ways: no ''"),
    (point_cloud, ["--models=foo"], "--models=foo: no such choice"),
    (point_cloud, ["--models=node", "--out={file}"], "{file}"),
]


def place(tmp_path, text: str) -> str:
    return text.replace("{file}", str(tmp_path / "file")).replace("{folder}", str(tmp_path / "f"))


@pytest.mark.parametrize(
    ("script", "arguments", "message"), MISTAKES, ids=[f"{m[0].__name__} {m[1]}" for m in MISTAKES]
)
def test_mistakes(script, arguments, message, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "f").mkdir()
    given = [place(tmp_path, argument) for argument in arguments]
    assert entry.status(lambda: script.main(given)) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert place(tmp_path, message).replace(" ", "") in shown.replace(" ", "")
    assert list((tmp_path / "f").iterdir()) == []


def test_metric_that_nobody_measured(tmp_path, capsys) -> None:
    fake.train(tmp_path)
    assert report.main([str(tmp_path), "--metric=accurracy", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean accuracy? Choices: accuracy, loss." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (bench, ["step", "--rounds=0"]),
        (bench, ["step", "--threads=0"]),
        (bench, ["solvers", "--batch=-1"]),
        (bench, ["runner", "--steps=x"]),
        (point_cloud, ["--repeats=0"]),
        (point_cloud, ["--steps=1.5"]),
    ],
)
def test_numbers_out_of_range(script, arguments, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(arguments)
    assert end.value.code == 2
    assert "must be a whole number, at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (reproduce, [], "the following arguments are required: experiment"),
        (
            benchmark,
            ["--dry-run", "--optims="],
            "argument --optims: names nothing; leave the flag out for the default",
        ),
        (
            benchmark,
            ["--dry-run", "--workloads=,"],
            "argument --workloads: names nothing; leave the flag out for the default",
        ),
    ],
)
def test_what_is_left_out_is_named(script, arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(message)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError(), 1), (OSError(28, "full"), 2)]
)
def test_what_goes_wrong_is_one_line(error, code, capsys) -> None:
    def fail() -> int:
        raise error

    assert entry.status(fail) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
