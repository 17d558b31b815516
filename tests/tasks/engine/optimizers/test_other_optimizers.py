"""Optimizers of other libraries, as conf/optim has them: each one learns."""

import pytest
import torch
from torch import nn

import snopt
from tasks.common.checks import ConfigError
from tasks.engine import experiment
from tasks.engine.optimizers.build import build_optimizer
from tests.support import fake
from tests.support.composed import read


@pytest.mark.parametrize(
    "optim", ["soap", "muon", "shampoo", "adahessian", "lbfgs", "schedulefree", "kron"]
)
def test_loss_falls(optim, tmp_path) -> None:
    config = read("task=digits", f"optim={optim}").config["optim"]
    config = {**config, "lr": max(config["lr"], 0.05)}  # within 80 steps
    summary = fake.train(tmp_path, optim=config, train={"max_steps": 80})
    start = next(
        row["value"]
        for row in fake.rows(next(tmp_path.glob(f"rings/node/{optim}/*")))
        if (row["split"], row["metric"]) == ("train", "loss")
    )
    assert summary["outcome"] == "completed"
    assert summary["final"]["train"]["loss"] < 0.95 * start


@pytest.mark.parametrize("task", ["digits", "circle"])
def test_adahessian_brings_the_gradient_it_needs(task) -> None:
    assert read(f"task={task}", "optim=adahessian").config["solver"]["gradient"] == "direct"


@pytest.mark.parametrize("change", ["solver.gradient=adjoint", "solver.compile=true"])
def test_gradients_that_cannot_be_differentiated_again(change) -> None:
    with pytest.raises(ConfigError, match=r"Use solver\.gradient=direct solver\.compile=false"):
        experiment.build_task(read("task=digits", "optim=adahessian", change))


@pytest.mark.filterwarnings("ignore:Using backward")  # once a process, so it may not come
def test_adahessian_is_given_the_hessian() -> None:
    """On a quadratic, one Rademacher sample of a diagonal Hessian is the Hessian itself."""
    weight = nn.Linear(3, 1, bias=False)
    config = {**read("optim=adahessian").config["optim"], "lr": 0.5, "eps": 1e-12}
    optimizer = build_optimizer(config, weight)
    before = weight.weight.detach().clone()
    loss = (torch.tensor([1.0, 10.0, 100.0]) * weight.weight.square()).sum() / 2
    loss.backward(create_graph=True)
    optimizer.step()
    # A Newton step of length lr, whatever the curvature.
    torch.testing.assert_close(weight.weight.detach(), 0.5 * before, rtol=1e-4, atol=1e-6)
    optimizer.zero_grad()


def test_muon_orthogonalises_matrices_alone() -> None:
    block = snopt.ODEBlock(fake.Field(), (0.0, 1.0))
    net = nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2))
    optimizer = build_optimizer(
        dict(read("optim=muon", "tuned=none").config["optim"], field_lr=1e-3), net
    )
    kinds = [(g["use_muon"], g["lr"], len(g["params"])) for g in optimizer.param_groups]
    assert kinds == [(True, 1e-3, 1), (False, 1e-3, 1), (True, 0.02, 2), (False, 3e-3, 2)]
    assert sum(kind[2] for kind in kinds) == len(list(net.parameters()))


def test_lbfgs_has_no_groups() -> None:
    config = {**read("optim=lbfgs").config["optim"], "field_lr": 1e-3}
    net = nn.Sequential(snopt.ODEBlock(fake.Field(), (0.0, 1.0)))
    with pytest.raises(ConfigError, match="LBFGS refuses its settings"):
        build_optimizer(config, net)
