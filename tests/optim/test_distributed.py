"""Two processes with half a batch each make the update of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snopt import SNOpt
from snopt.curvature.processes import Processes
from tests.support import distributed_run, problems
from tests.support.distributed_run import CASES, REFUSED

ROOT = Path(__file__).parents[2]

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What both processes ended with, by case; they are started once."""
    target = tmp_path_factory.mktemp("two") / "results.pt"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        "-m", "tests.support.distributed_run", str(target),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(target, weights_only=True)


SHARED = [
    name
    for name, case in CASES.items()
    if not case.get("order", "").startswith("alone") and name not in REFUSED
]


@pytest.mark.parametrize("name", SHARED)
def test_replicas_are_equal_to_the_last_bit(name: str, results: Results) -> None:
    one, other = results[name]
    for left, right in zip(one["weights"], other["weights"], strict=True):
        assert torch.equal(left, right)
    assert one["samples"] == other["samples"]
    assert one["T"] == other["T"]
    assert not one["said"] + other["said"]


@pytest.mark.parametrize(
    "name", [name for name in SHARED if not name.startswith(("fisher", "broken"))]
)
def test_two_processes_are_one(name: str, results: Results) -> None:
    """Equal batches or not: the loss is the mean of both processes' means."""
    joined = results[name][0]
    model, optimizer, horizon = distributed_run.alone(CASES[name])
    for key, pair in optimizer.factors().items():
        for got, want in zip(joined["factors"][key], pair, strict=True):
            assert (got - want).norm() < 1e-6 * want.norm()
    for got, want in zip(joined["weights"], model.parameters(), strict=True):
        assert (got - want).norm() < 1e-6 * want.norm()
    if horizon is not None:
        assert joined["T"] == pytest.approx(horizon.T, rel=1e-9)
    # Its state goes on in one process: names are those of the model without its wrapper.
    optimizer.load_state_dict(joined["state"])


@pytest.mark.parametrize("name", ["alone", "alone, said", "alone, wrapped", "gauss_newton, alone"])
def test_processes_that_train_models_of_their_own(name: str, results: Results) -> None:
    """A group that is up is not asked for anything; that it is not is said, once."""
    for rank, own in enumerate(results[name]):
        model, _, _ = distributed_run.alone(CASES[name], rank)
        for got, want in zip(own["weights"], model.parameters(), strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=0)
        assert len(own["said"]) == (0 if "said" in name or "wrapped" in name else 1)
        assert all("process_group=" in words for words in own["said"])


@pytest.mark.parametrize("what", ["sums", "decompositions"])
def test_what_fails_in_one_process_is_discarded_in_both(what: str, results: Results) -> None:
    """Replicas are compared above; here, that something did fail."""
    one, other = results[f"broken {what}"]
    assert one["failures"] == other["failures"] > 0
    assert bool(one["factors"]) == (what == "decompositions")  # half of them are found by process 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gauss_newton", "rule='gauss_newton' runs in one process"),
        ("join", "within join() a process may make fewer steps than the others"),
        ("sharded-first", "parameter '0.weight' is spread over processes"),
        ("sharded-later", "parameter '0.weight' is spread over processes"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_all(
    name: str, words: str, results: Results
) -> None:
    for own in results[name]:
        assert words in own["refused"]


def test_a_group_is_a_group() -> None:
    with pytest.raises(ValueError, match=r"process_group='gloo'; expected"):
        SNOpt(distributed_run.build(), rule="paper", process_group="gloo")


def test_draws_differ_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curvature that is drawn from the model's distribution: one draw for each sample."""
    x, y = problems.batch()

    def drawn(rank: int) -> Tensor:
        monkeypatch.setattr(Processes, "rank", rank)
        model = distributed_run.build()
        optimizer = SNOpt(model, 0.0, rule="paper", curvature="fisher")
        outputs = model(x)
        optimizer.curvature_pass(outputs, "gaussian")
        problems.squares(y)(outputs).backward()
        optimizer.step()
        return optimizer.factors()["4"][1]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
