import json
import math
import os
import signal

import pytest
import torch
from torch import nn

import snopt
from tasks.engine.config.solver import block_arguments
from tests.support import fake

LBFGS = {"_target_": "torch.optim.LBFGS", "name": "lbfgs", "lr": 0.1, "max_iter": 3}


def steps(folder, metric="batch_loss"):
    return [r["step"] for r in fake.rows(folder) if r["metric"] == metric and r["split"] == "train"]


def test_completed_after_epochs(tmp_path) -> None:
    summary = fake.train(tmp_path, train={"max_steps": None, "max_epochs": 2})
    assert (summary["outcome"], summary["steps"], summary["epochs"]) == ("completed", 14, 2)
    folder = fake.folder(tmp_path, train={"max_steps": None, "max_epochs": 2})
    assert sorted(set(steps(folder, "loss"))) == [0, 7, 14]


def test_threads_of_one_run_are_not_those_of_the_next(tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    fake.train(tmp_path, threads=2)
    fake.train(tmp_path, threads=None)
    assert given == [2, 5]


def test_budget_is_of_the_training_clock(tmp_path) -> None:
    summary = fake.train(tmp_path, train={"max_steps": None, "max_seconds": 0.05})
    assert summary["outcome"] == "budget"
    assert summary["seconds"] >= 0.05
    assert summary["final"]["test"]["loss"] > 0


def test_target_is_of_the_validation_split(tmp_path) -> None:
    summary = fake.train(tmp_path, train={"target": 0.01, "eval_every_steps": 3})
    assert (summary["outcome"], summary["steps"]) == ("target_reached", 0)
    train = {"target": 0.01, "eval_every_steps": 3, "eval_at_start": False}
    summary = fake.train(tmp_path, train=train)
    assert (summary["outcome"], summary["steps"]) == ("target_reached", 3)


def test_loss_that_is_not_finite(tmp_path) -> None:
    changes = {"task": {"explode_at": 6}}
    summary = fake.train(tmp_path, **changes)
    assert summary["outcome"] == "diverged"
    assert "Step 6 failed: the training loss is nan" in summary["message"]
    folder = fake.folder(tmp_path, **changes)
    last = fake.rows(folder)[-1]
    assert (last["step"], last["metric"], last["value"]) == (6, "batch_loss", None)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_failed_solve_ends_the_run(tmp_path) -> None:
    summary = fake.train(tmp_path, task={"fail_at": [4]})
    assert summary["outcome"] == "diverged"
    assert "a solve failed: made to fail" in summary["message"]
    assert not summary["message"].endswith("..")
    assert summary["steps"] == 3


def test_a_run_that_diverged_claims_no_test_result(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", logger="tasks"):
        fake.train(tmp_path / "a", task={"fail_at": [4]})
        assert "diverged" in caplog.text
        assert "Test " not in caplog.text
        fake.train(tmp_path / "b")
        assert "Test loss" in caplog.text


def test_failed_solve_is_left_out(tmp_path) -> None:
    changes = {"task": {"fail_at": [4, 9]}, "solver": {"on_failure": "skip_step"}}
    summary = fake.train(tmp_path, **changes)
    assert (summary["outcome"], summary["steps"]) == ("completed", 20)
    assert summary["skipped_steps"] == 2
    folder = fake.folder(tmp_path, **changes)
    assert steps(folder, "skipped_steps") == [4, 9]
    assert set(range(1, 21)) - set(steps(folder)) == {4, 9}


def test_nothing_but_failed_solves(tmp_path) -> None:
    summary = fake.train(
        tmp_path,
        task={"fail_at": list(range(500))},
        solver={"on_failure": "skip_step"},
        train={"max_steps": 400},
    )
    assert summary["outcome"] == "diverged"
    assert "100 solves in a row failed" in summary["message"]


class Adaptive(fake.Rings):
    """Rings whose solver is the one asked for."""

    def build_model(self, family, solver):
        model = super().build_model(family, {"rtol": 0.1, "atol": 0.1})
        model[1] = snopt.ODEBlock(fake.Field(), (0.0, 1.0), **solver)
        return model


@pytest.mark.parametrize("on_failure", ["raise", "partial", "skip_step"])
def test_solves_that_stop_early(tmp_path, caplog, on_failure) -> None:
    """After one step of three; whatever happens to training, an evaluation is not left out."""
    target = {"_target_": "tests.tasks.engine.training.test_outcomes.Adaptive", "name": "rings"}
    solver = {"on_failure": on_failure, "max_steps": 1, "rtol": 1e-6, "atol": 1e-6}
    train = {"max_steps": 3, "eval_at_start": False, "eval_every_epochs": None}
    summary = fake.train(tmp_path, task=target, solver=solver, train=train)
    if on_failure == "partial":
        assert (summary["outcome"], summary["steps"]) == ("completed", 3)
        assert summary["skipped_steps"] == 0
        assert "solve stopped early" in caplog.text
    else:
        assert summary["outcome"] == "diverged"
        assert "too many steps" in summary["message"]
        assert summary["steps"] == (3 if on_failure == "skip_step" else 0)


class Stiff(nn.Module):
    """No step longer than some 1e-5 is accepted."""

    def forward(self, t, x):
        return -1e6 * x + torch.sin(1e5 * t)


class Exploded(fake.Rings):
    """Rings whose field has become too stiff to solve."""

    def build_model(self, family, solver):
        model = super().build_model(family, {"rtol": 0.1, "atol": 0.1})
        model[1] = snopt.ODEBlock(Stiff(), (0.0, 1.0), **solver)
        return model


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_a_hopeless_solve_ends_before_long(tmp_path, method) -> None:
    target = {"_target_": "tests.tasks.engine.training.test_outcomes.Exploded", "name": "rings"}
    summary = fake.train(tmp_path, task=target, solver={"method": method})
    assert summary["outcome"] == "diverged"
    assert "too many steps" in summary["message"]
    assert "limit 1000" in summary["message"]


@pytest.mark.parametrize(
    ("solver", "limit"),
    [
        ({"method": "dopri5"}, 1000),
        ({"method": "dopri5", "max_steps": 7}, 7),
        ({"method": "dopri5", "max_steps": 2000000}, 2000000),
        ({"method": "rk4", "steps": 3}, math.inf),  # they end by themselves
        ({"method": "euler"}, math.inf),
    ],
)
def test_how_many_steps_a_solve_may_try(solver, limit) -> None:
    block = snopt.ODEBlock(fake.Field(), (0.0, 1.0), **block_arguments(solver))
    assert block.solver.limit(3) == 3 * limit


class Signalling(fake.Rings):
    """Sends its own process a signal in the middle of a step."""

    def loss(self, outputs, batch):
        if self.calls == 5 and outputs.requires_grad:
            os.kill(os.getpid(), signal.Signals[os.environ["SNOPT_TEST_SIGNAL"]])
        return super().loss(outputs, batch)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_saves_and_the_same_command_resumes(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setenv("SNOPT_TEST_SIGNAL", name)
    task = {"_target_": f"{__name__}.Signalling", "name": "signalling"}
    summary = fake.train(tmp_path, task=task)
    assert (summary["outcome"], summary["steps"]) == ("interrupted", 5)
    assert "the same command resumes" in summary["message"]
    monkeypatch.setattr(Signalling, "loss", fake.Rings.loss)
    summary = fake.train(tmp_path, task=task)
    assert (summary["outcome"], summary["steps"]) == ("completed", 20)
    fake.train(tmp_path / "whole", task=task)
    assert fake.rows(fake.folder(tmp_path, task=task)) == fake.rows(
        fake.folder(tmp_path / "whole", task=task)
    )


class Broken(fake.Rings):
    def forward(self, model, batch, noise):
        raise ZeroDivisionError("broken")


def test_error_is_written_down_and_raised(tmp_path) -> None:
    task = {"_target_": f"{__name__}.Broken", "name": "broken"}
    with pytest.raises(ZeroDivisionError):
        fake.train(tmp_path, task=task)
    summary = json.loads((fake.folder(tmp_path, task=task) / "run.json").read_text())
    assert summary["outcome"] == "error"
    assert summary["message"] == "ZeroDivisionError: broken"


def test_evaluation_leaves_no_trace_in_training(tmp_path) -> None:
    often = fake.train(tmp_path, train={"eval_every_steps": 1})
    seldom = fake.train(tmp_path, train={"eval_every_epochs": None, "eval_at_start": False})
    assert often["final"] == seldom["final"]
    assert often["nfe_forward"] == seldom["nfe_forward"] == 20


def test_optimizers_see_the_same_batches_and_weights(tmp_path) -> None:
    still = {"lr": 0.0, "name": "still"}
    losses = [
        [
            r["value"]
            for r in fake.rows(fake.folder(tmp_path, optim=optim))
            if r["metric"] == "batch_loss"
        ]
        for optim in (
            {"_target_": "torch.optim.SGD", **still},
            {"_target_": "torch.optim.AdamW", **still},
        )
        if fake.train(tmp_path, optim=optim)
    ]
    assert losses[0] == losses[1]


def test_closure_is_given_to_those_that_need_one(tmp_path) -> None:
    summary = fake.train(tmp_path, optim=LBFGS)
    assert summary["outcome"] == "completed"
    assert summary["nfe_forward"] > 20  # several evaluations of the loss a step
    valid = [r for r in fake.rows(fake.folder(tmp_path, optim=LBFGS)) if r["split"] == "valid"]
    losses = [r["value"] for r in valid if r["metric"] == "loss"]
    assert losses[-1] < losses[0]
