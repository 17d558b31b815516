"""Started by torchrun from a test: trains through the suite's runner in many ways, in one go."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import snopt
from tasks.common.checks import ConfigError
from tasks.engine.training.parallel import World
from tests.support import fake
from tests.support.left_at_once import leave_together


class Watched(fake.Rings):
    """Without dropout and noise; weights that differ between processes end the run."""

    def build_model(self, family, solver):
        model = super().build_model(family, solver)
        model[2].p = 0.0
        return model

    def forward(self, model, batch, noise):
        if model.training and dist.is_initialized():
            own = [p.detach().clone() for p in model.parameters()]
            both: list[Any] = [None, None]
            dist.all_gather_object(both, own)
            assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
            self.watched()
        return model(batch[0])

    def watched(self) -> None:
        """What a process does before its solve, once both have the same weights."""


class Lopsided(Watched):
    """Its third solve fails in the second process alone."""

    def watched(self) -> None:
        self.calls += 1
        if self.calls == 3 and dist.get_rank() == 1:
            raise snopt.SolverError(reason="made to fail", time=0.5, dt=0.0, nfe=3)


class Missing(Watched):
    """Data that the first process does not find, and the other would not look for."""

    def load(self, *args):
        if dist.get_rank() == 0:
            raise ConfigError("the data are missing")
        return super().load(*args)


def changes(optim: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "task": {"_target_": f"{__name__}.Watched", "name": "watched"},
        "dtype": "float64",
        "optim": optim,
        **more,
    }


def _rule(**settings: Any) -> dict[str, Any]:
    """20 steps, three of them with a rest of an epoch, four with a refresh."""
    target = {"_target_": "snopt.SNOpt", "name": "snopt", "lr": 0.02, "refresh_every": 5}
    return changes({**target, **settings})


RULES = {
    **{
        f"{rule}-{basis}": _rule(rule=rule, basis=basis)
        for rule in ("paper", "adam", "kfac")
        for basis in ("curvature", "gradient", "both")
    },
    "kfac-ggn": _rule(rule="kfac", curvature="ggn"),
}

SGD = {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.1, "momentum": 0.9}
MOVING = {"rule": "feedback", "every": 3}
SCHEDULEFREE = changes(
    {"_target_": "pytorch_optimizer.ScheduleFreeAdamW", "name": "schedulefree", "lr": 0.02},
    horizon=MOVING,
)

LOPSIDED = {
    limit: {
        **changes(SGD, horizon=MOVING),
        "task": {"_target_": f"{__name__}.Lopsided", "name": "lopsided"},
        "solver": {"on_failure": "skip_step"},
        "schedule": {"name": "cosine"},
        "train": train,
    }
    for limit, train in {
        "steps": {"max_steps": 8},
        "seconds": {"max_steps": None, "max_seconds": 0.5},
    }.items()
}

REFUSED: dict[str, dict[str, Any]] = {
    "batch": {
        "task": {"_target_": f"{__name__}.Watched", "name": "watched", "batch_size": 15},
    },
    "data": {"task": {"_target_": f"{__name__}.Missing", "name": "missing"}},
    "gauss_newton": {
        "optim": {"_target_": "snopt.SNOpt", "name": "snopt", "rule": "gauss_newton"},
    },
}


def main(root: str) -> None:
    dist.init_process_group("gloo")
    World.leave = lambda self: None  # type: ignore[method-assign]  # one group for all runs
    refused = {}
    for name, given in REFUSED.items():
        try:
            fake.train(root, **given)
        except ConfigError as error:
            refused[name] = str(error)
    (Path(root) / f"refused-{dist.get_rank()}.json").write_text(json.dumps(refused))
    for given in (*RULES.values(), SCHEDULEFREE, *LOPSIDED.values()):
        fake.train(root, **given)
        gc.collect()
    leave_together()


if __name__ == "__main__":
    import tests.support.parallel_runs

    tests.support.parallel_runs.main(*sys.argv[1:])
