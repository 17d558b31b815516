"""A checkpoint that is damaged or of another run is refused; one of an earlier version is not."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.records import checkpoint
from tasks.engine.records.results import ResultsError
from tests.support import damaged, fake
from tests.tasks.engine.records.test_resume import assert_equal

SEED = 2
HOW = ("removed", "text", "null", "list", "tensor")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each optimizer the folder of a stopped run, and that of one which was not."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name in damaged.OPTIMIZERS:
        changes = damaged.settings(name)
        fake.train(root / "whole", **changes)
        part = damaged.stopped(root / "stopped", **changes)
        found[name] = part, fake.folder(root / "whole", **changes)
    return found


def take_up(runs: dict[str, tuple[Path, Path]], name: str, root: Path) -> Path:
    """A copy of a stopped run, where :func:`resume` finds it."""
    folder = fake.folder(root, **damaged.settings(name))
    shutil.copytree(runs[name][0], folder)
    return folder


def resume(runs: dict[str, tuple[Path, Path]], name: str, root: Path) -> str | None:
    """What the refusal says, or None for a run that ends as the uninterrupted one."""
    before = sorted(path.name for path in root.rglob("*"))
    try:
        fake.train(root, **damaged.settings(name))
    except ResultsError as error:
        assert sorted(path.name for path in root.rglob("*")) == before
        return str(error)
    assert fake.rows(fake.folder(root, **damaged.settings(name))) == fake.rows(runs[name][1])
    return None


@pytest.mark.parametrize("name", damaged.OPTIMIZERS)
@pytest.mark.parametrize("sealed", [True, False])
def test_an_undamaged_one_is_taken_up(runs, tmp_path, name, sealed) -> None:
    folder = take_up(runs, name, tmp_path)
    if not sealed:
        damaged.as_before_seals(folder)
    assert resume(runs, name, tmp_path) is None


def flips(runs: Any, tmp_path: Path, count: int) -> None:
    draw, path = random.Random(0), tmp_path / "checkpoint.pt"
    content = (runs["adam"][0] / "checkpoint.pt").read_bytes()
    for _ in range(count):
        path.write_bytes(damaged.flipped(content, draw))
        with pytest.raises(ResultsError, match=r"could not read the checkpoint.*Restore it"):
            checkpoint.load(path)
    for cut in (1, 30, 100, len(content) // 2, len(content) - 3, len(content)):
        path.write_bytes(content[: len(content) - cut])
        with pytest.raises(ResultsError, match="could not read the checkpoint"):
            checkpoint.load(path)


def flips_before_seals(runs: Any, tmp_path: Path, count: int) -> None:
    draw = random.Random(1)
    folder = take_up(runs, "adam", tmp_path)
    damaged.as_before_seals(folder)
    path = folder / "checkpoint.pt"
    content, whole = path.read_bytes(), checkpoint.load(path)
    refused = 0
    for _ in range(count):
        path.write_bytes(damaged.flipped(content, draw))
        try:
            assert_equal(checkpoint.load(path), whole)
        except ResultsError:
            refused += 1
    assert refused > count // 2  # the others hit what nothing is read from


def test_a_turned_bit_is_noticed(runs, tmp_path) -> None:
    flips(runs, tmp_path, 40)
    flips_before_seals(runs, tmp_path / "old", 40)


def test_what_was_saved_by_other_means_is_refused(runs, tmp_path) -> None:
    path = take_up(runs, "adam", tmp_path) / "checkpoint.pt"
    torch.save({**checkpoint.load(path), "metrics_bytes": 0}, path)
    said = resume(runs, "adam", tmp_path)
    assert said is not None
    assert "digest at its end is missing" in said


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": (damaged.settings("sgd"), "optim is 'sgd' there, and 'adam' here"),
    "rate": (damaged.settings(optim={**damaged.ADAM, "lr": 0.02}), "config_hash is"),
    "dtype": (damaged.settings(dtype="float64"), "config_hash is"),
    "seed": (damaged.settings(seed=1), "seed is 1 there, and 0 here"),
    "batch": (
        damaged.settings(
            task={"_target_": "tests.support.fake.Rings", "name": "rings", "batch_size": 8}
        ),
        "config_hash is",
    ),
}
#: What can be told without the identity that checkpoints once lacked.
TOLD_BY_CONTENT = ("optimizer", "dtype")


@pytest.mark.parametrize(
    ("what", "sealed"), [*((what, True) for what in OTHERS), *((w, False) for w in TOLD_BY_CONTENT)]
)
def test_one_of_another_run_is_refused(runs, tmp_path, what, sealed) -> None:
    changes, said = OTHERS[what]
    other = damaged.stopped(tmp_path / "other", **changes)
    folder = take_up(runs, "adam", tmp_path / "own")
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")
    if not sealed:
        damaged.as_before_seals(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    answer = resume(runs, "adam", tmp_path / "own")
    assert answer is not None
    assert f"{folder / 'checkpoint.pt'} is not one of this run" in answer
    assert (said if sealed else "there, and" if what == "dtype" else "has") in answer
    assert "Restore it from a copy, or remove the folder" in answer
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_of_another_number_of_processes(runs, tmp_path) -> None:
    path = take_up(runs, "adam", tmp_path) / "checkpoint.pt"
    state = checkpoint.load(path)
    assert state is not None
    state["identity"]["processes"] = 2
    checkpoint.save(path, {**state, "random": state["random"] * 2})
    assert "processes is 2 there, and 1 here" in (resume(runs, "adam", tmp_path) or "")


def beyond(place: tuple[Any, ...], how: str, sealed: bool) -> bool:
    """Whether nobody can know better: a parameter without any state is right where it never had a
    gradient, says a checkpoint that was sealed again."""
    return sealed and how == "removed" and place[:2] == ("optimizer", "state") and len(place) == 3


def mutations(runs: Any, tmp_path: Path, count: int, *, names: Any, sealed: bool) -> None:
    draw = random.Random(SEED)
    unnoticed, refused = [], 0
    for index in range(count):
        name = draw.choice(names)
        root = tmp_path / str(index)
        folder = take_up(runs, name, root)
        if not sealed:
            damaged.as_before_seals(folder)
        state = checkpoint.load(folder / "checkpoint.pt")
        assert state is not None
        place = draw.choice([p for p in damaged.places(state) if p[0] != "format"])
        how = draw.choice(HOW)
        if beyond(place, how, sealed):
            continue
        changed = damaged.mutated(state, place, how)
        if sealed:
            checkpoint.save(folder / "checkpoint.pt", changed)
        else:
            torch.save(changed, folder / "checkpoint.pt")
        try:
            said = resume(runs, name, root)
        except (Exception, AssertionError) as error:
            unnoticed.append((name, place, how, repr(error)[:150]))
        else:
            assert said is None or "Restore it" in said, said
            refused += said is not None
        shutil.rmtree(root)
    assert not unnoticed, "\n".join(map(str, unnoticed))
    assert refused > count // 2


@pytest.mark.parametrize("sealed", [True, False])
def test_a_changed_entry_is_refused_or_makes_no_difference(runs, tmp_path, sealed) -> None:
    mutations(runs, tmp_path, 20, names=["adam", "sgd"], sealed=sealed)


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_three_hundred_changed_entries(runs, tmp_path, sealed) -> None:
    mutations(runs, tmp_path, 300, names=list(damaged.OPTIMIZERS), sealed=sealed)


@pytest.mark.slow
def test_three_hundred_turned_bits(runs, tmp_path) -> None:
    flips(runs, tmp_path, 300)
    flips_before_seals(runs, tmp_path / "old", 300)


def test_an_identity_in_run_json_that_is_another(runs, tmp_path) -> None:
    folder = take_up(runs, "adam", tmp_path)
    damaged.as_before_seals(folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "seed": 3, "outcome": "completed"}))
    assert "run.json is of another run (seed is 3 there" in (resume(runs, "adam", tmp_path) or "")


@pytest.mark.parametrize("what", ["checkpoint.pt", "metrics.jsonl", "run.json"])
def test_the_command_line_says_it_in_one_message(runs, tmp_path, what) -> None:
    from omegaconf import OmegaConf

    from tasks.engine import cli

    path = take_up(runs, "adam", tmp_path) / what
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    config = OmegaConf.create(fake.config(tmp_path, **damaged.settings()))
    code, said = cli.main(config)
    assert code == cli.REFUSED
    assert "Restore it from a copy" in said
    assert len(said) < 600
