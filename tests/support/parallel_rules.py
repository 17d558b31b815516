"""Started by torchrun from a test: trains every rule through the suite's runner, in one go."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from tasks.engine.training.parallel import World
from tests.support import fake

RULES = [
    {"rule": rule, "basis": basis}
    for rule in ("paper", "adam", "kfac")
    for basis in ("curvature", "gradient", "both")
] + [{"rule": "kfac", "curvature": "ggn"}]


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
        return model(batch[0])


def changes(settings: dict[str, Any]) -> dict[str, Any]:
    """20 steps, three of them with a rest of an epoch, four with a refresh."""
    target = {"_target_": "snopt.SNOpt", "name": "snopt", "lr": 0.02, "refresh_every": 5}
    return {
        "task": {"_target_": f"{__name__}.Watched", "name": "watched"},
        "dtype": "float64",
        "optim": {**target, **settings},
    }


def main(root: str) -> None:
    dist.init_process_group("gloo")
    World.leave = lambda self: None  # type: ignore[method-assign]  # one group for all runs
    for settings in RULES:
        fake.train(root, **changes(settings))
        gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    # A thread of gloo's that asks for the interpreter while it shuts down aborts the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    import tests.support.parallel_rules

    tests.support.parallel_rules.main(*sys.argv[1:])
