"""The command that searches settings: what it asks for, what it writes, what it refuses."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from scripts import search, tune


def test_nothing_is_written_where_every_whole_run_failed(tmp_path, monkeypatch, capsys) -> None:
    short = search.Result(search.Rung(2, 1.0, 100), 0.5, 9)
    lost = search.Found([search.Trial({"optim.lr": 0.5}, (short,))], [search.Space.of("adam")])
    monkeypatch.setattr(tune, "search", lambda *rest, **more: lost)
    monkeypatch.setattr(tune, "write_file", lambda *rest: pytest.fail("it was written"))
    given = ["task=digits", "optim=adam", "--seconds=8", "--results", str(tmp_path)]
    assert tune.main(given) == 1
    assert "every run of 8 s diverged; nothing is written" in capsys.readouterr().err


def test_several_pairs_are_searched_each_in_its_own_process(tmp_path, monkeypatch) -> None:
    started = []

    def run_all(commands, jobs, begin) -> list[int]:
        started.extend(commands)
        assert jobs == 2
        return [0] * len(commands)

    monkeypatch.setattr(tune, "run_all", run_all)
    given = ["task=digits,circle", "optim=adam,snopt", "threads=1", "--jobs", "2", "--trials", "3"]
    assert tune.main([*given, "--results", str(tmp_path)]) == 0
    pairs = [command[3:5] for command in started]
    assert pairs[:2] == [["task=digits", "optim=adam"], ["task=digits", "optim=snopt"]]
    assert len(pairs) == 4
    for command in started:
        assert {"threads=1", "--trials=3", f"--results={tmp_path}"} <= set(command)


def test_a_pair_that_fails_is_named_and_an_interruption_too(tmp_path, monkeypatch, capsys) -> None:
    given = ["task=digits", "optim=adam,snopt", "--results", str(tmp_path)]
    monkeypatch.setattr(tune, "run_all", lambda *rest: [0, 1])
    assert tune.main(given) == 1
    assert "not tuned: digits snopt" in capsys.readouterr().err
    monkeypatch.setattr(tune, "run_all", lambda *rest: [130, None])
    assert tune.main(given) == 130


def found(space: search.Space, wider: search.Space | None = None) -> search.Found:
    """Two trials, whose first had a full run."""
    first, other = space.draw(2, seed=0)
    short, whole = search.Rung(2, 2.0, 100), search.Rung(1, 16.0, 100)
    best = search.Trial(first, (search.Result(short, 0.5, 9), search.Result(whole, 0.25, 72)))
    second = search.Trial(other, (search.Result(short, 0.75, 8),))
    return search.Found([best, second], [space] if wider is None else [space, wider])


def flat(text: str) -> dict[str, Any]:
    parts = yaml.safe_load(text)
    return {f"{group}.{key}": value for group, keys in parts.items() for key, value in keys.items()}


def test_file_says_how_it_was_found_and_for_which_length() -> None:
    space = search.Space.of("sgd")
    wider = replace(space, lr=search.LogUniform(0.01, 10.0))
    result = found(space, wider)
    text = tune.render(result, space, "python -m scripts.tune ...", "8 s", "history.md")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[1:] == [
        "# Found by: python -m scripts.tune ...",
        "# 2 trials in runs of 8 s; all of the search: history.md",
    ]
    length = {"tuned_for.seconds": 16.0, "tuned_for.clock": "wall", "tuned_for.steps": 72}
    assert flat(text) == {**result.trials[0].changes, **length}
    history = tune.record(result, "sgd", "python -m scripts.tune ...", "8 s each")
    assert "Space: lr 0.01..1; " in history
    assert "Widened, the best lay at an edge: lr 0.01..10; " in history
    assert "\n0.5 -> 0.25  optim.lr=" in history


def test_file_keeps_what_was_given() -> None:
    given = {"optim.betas": "[0.8,0.9]", "schedule.warmup": "0.05"}
    space = search.Space.of("adamw", given)
    result = found(space)
    written = flat(tune.render(result, space, "python -m scripts.tune ...", "8 s", "history.md"))
    assert written["optim.betas"] == [0.8, 0.9]
    assert written["optim.lr"] == result.trials[0].changes["optim.lr"]
    assert written["schedule.warmup"] == 0.05


def test_searches_that_end_at_once_all_get_into_the_history(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mnist.md"
    write = tune.write_file
    monkeypatch.setattr(tune, "write_file", lambda *given: (time.sleep(0.02), write(*given)))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: tune.append(path, "# mnist\n", f"## {i}\n"), range(6)))
    title, *sections = path.read_text().splitlines()
    assert title == "# mnist"
    assert sorted(sections) == [f"## {i}" for i in range(6)]


def test_command_writes_a_file_that_composes(tmp_path, monkeypatch) -> None:
    written = {}
    monkeypatch.setattr(
        tune, "write_file", lambda path, text: written.update({path: text.decode()})
    )
    monkeypatch.setattr(tune, "search", lambda configure, space, **rest: _composed(configure))
    arguments = ["task=digits", "optim=adam", "--seconds", "7", "--results", str(tmp_path)]
    assert tune.main(arguments) == 0
    (path, text), (history, _) = written.items()
    root = tune.composing.CONF.parent
    assert path == root / "conf/tuned/digits/adam.yaml"
    assert history == root / "results/reference/tuning/digits.md"
    assert (
        "task=digits optim=adam --trials=16 --seconds=7 --seeds=100,101 --select=valid "
        "--draw-seed=0\n" in text
    )
    assert str(tmp_path) not in text
    assert tune.main([*arguments, "task.batch_size=64", "train.clock=cpu"]) == 0
    length = {"seconds": 7.0, "clock": "cpu", "steps": 50}
    tuned = {"optim": {"lr": 0.5}, "task": {"batch_size": 64}, "tuned_for": length}
    assert yaml.safe_load(written[path]) == tuned


def test_settings_of_a_class_from_outside_are_its_alone(tmp_path, monkeypatch) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(tune.composing.CONF, conf)
    monkeypatch.setattr(tune.composing, "CONF", conf)
    rate = {"optim.lr": 0.5}
    result = (search.Result(search.Rung(1, 7.0, 100), 1.0, 50),)

    def found(configure, space, **rest) -> search.Found:
        assert configure(rate)["optim"]["rho"] == 0.9
        return search.Found([search.Trial(rate, result)], [space])

    monkeypatch.setattr(tune, "search", found)
    asked = ["task=digits", "optim=custom", "optim._target_=torch.optim.Rprop", "optim.rho=0.9"]
    asked += ["optim.about.first_order=true"]
    assert tune.main([*asked, "--seconds=7", "--results", str(tmp_path / "results")]) == 0
    assert [path.name for path in (conf / "tuned" / "digits").iterdir()] == ["rprop.yaml"]
    text = (conf / "tuned" / "digits" / "rprop.yaml").read_text()
    assert " ".join(asked) in text
    assert "## rprop" in (tmp_path / "results/reference/tuning/digits.md").read_text()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        tuned, other = (
            compose("config", overrides=["task=digits", "optim=custom", *more]).optim
            for more in (["tuned=digits/rprop"], ["optim._target_=torch.optim.NAdam"])
        )
    assert (tuned._target_, tuned.rho, tuned.lr) == ("torch.optim.Rprop", 0.9, 0.5)
    assert tuned.keys() - other.keys() == {"rho"}  # about.first_order is no setting of the class
    assert other.lr == 1e-3  # of conf/optim/custom.yaml


def _composed(configure) -> search.Found:
    config = configure({"seed": 100, "optim.lr": 0.5, "train.max_seconds": 7.0})
    assert (config["optim"]["lr"], config["seed"]) == (0.5, 100)
    train = config["train"]
    assert train["max_epochs"] is train["max_steps"] is train["eval_every_epochs"] is None
    assert train["eval_splits"] == ["valid"]
    assert config["tuned_for"] == {"steps": None, "seconds": None, "clock": "wall"}
    result = search.Result(search.Rung(1, 7.0, 100), 1.0, 50)
    return search.Found([search.Trial({"optim.lr": 0.5}, (result,))], [search.Space.of("adam")])


def test_dry_run_says_what_it_will_cost(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tune, "search", lambda *rest, **more: pytest.fail("it ran"))
    given = ["task=digits,circle", "optim=adam", "--seconds=80", "--results", str(tmp_path)]
    assert tune.main([*given, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "16 runs of 10 s with seed 100 4 runs of 20 s with seed 101 3 runs of 80 s" in said
    assert "2 searches of 23 runs and 480 s of training each, 960 s in all, as much again" in said
    assert tune.main([*given, "--dry-run", "--no-widen", "task=digits"]) == 0
    said = capsys.readouterr().out
    assert "1 search of 23 runs" in said
    assert "as much again" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim=adam"], "say what to tune"),
        (["task=digits", "optim=adam", "optim.lr=1"], "optim.lr is what is searched"),
        (["task=digits", "optim=adam", "train.max_seconds=9"], "say --seconds="),
        (
            ["task=digits", "optim=adam", "optim.about.search.lr.to=1"],
            "optim.about.search is read from",
        ),
        (["task=digits", "optim=adam", "train.target=0.9"], "train.target ends a trial"),
        (["task=digits", "optim=adam", "train.max_steps=9"], "train.max_steps ends a trial"),
        (["task=digits", "optim=adam", "train.max_epochs=2"], "train.max_epochs ends a trial"),
        (["task=digits", "optim=adam", "train.eval_splits=[test]"], "say --select="),
        (["task=digits", "optim=adan"], "Did you mean adam"),
        (["task=digits", "optim=custom"], r"optim._target_ is missing"),
        (["task=digits", "optim=custom", "optim._target_=torch.optim.Adam"], "another name"),
        (["task=digits", "optim=custom", "optim.lr=1"], "optim.lr is what is searched"),
        (["task=digits", "optim=adam,lbfgs"], "optim=lbfgs: no such choice"),
        (["task=digits", "optim=adam", "--seeds", "3"], "3 is for results"),
        (["task=digits", "optim=adam", "--seeds", "100,100"], "a seed is given twice"),
        (["task=digits", "optim=adam", "--seconds=-3"], "--seconds=-3: must be positive"),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tune, "search", lambda *rest, **more: pytest.fail("it ran before"))
    assert tune.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("flag", ["--trials", "--jobs"])
def test_counts_are_at_least_one(flag, capsys) -> None:
    with pytest.raises(SystemExit):
        tune.main(["task=digits", "optim=adam", flag, "0"])
    assert "0: must be a whole number, at least 1" in capsys.readouterr().err
