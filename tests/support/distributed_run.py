"""Started by torchrun from a test: trains data-parallel in many ways, and writes what came of it.

Every way is trained by both processes; both processes' weights are written.
"""

from __future__ import annotations

import copy
import gc
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from snopt import FactorizationError, Horizon, LevenbergMarquardt, ODEBlock, SNOpt
from snopt.optim import preconditioner
from tests.support import problems
from tests.support.left_at_once import leave_together

STEPS = 6
EQUAL = ((5, 5),) * STEPS
RESTS = ((5, 5), (2, 2), (4, 4), (5, 5), (4, 4), (2, 2))
EMPTY = ((5, 3), (0, 4), (4, 4), (3, 0), (0, 7), (0, 3))
UNEVEN = ((4, 3), (4, 4), (3, 5), (4, 4), (2, 5), (1, 4))

RULES: dict[str, dict[str, Any]] = {
    f"{rule}-{basis}": {"rule": rule, "basis": basis, "refresh_every": 2}
    for rule in ("paper", "adam", "kfac")
    for basis in ("curvature", "gradient", "both")
}
SETTINGS: dict[str, dict[str, Any]] = {
    **RULES,
    "ggn": {"rule": "kfac", "curvature": "ggn", "refresh_every": 2},
    "fisher": {"rule": "paper", "curvature": "fisher", "refresh_every": 2},
    "staggered": {"rule": "adam", "basis": "curvature", "stagger": True, "refresh_every": 3},
    "levenberg": {"rule": "paper", "damping": 0.1},
    "gauss_newton": {"rule": "gauss_newton"},
}

REFUSED = ("gauss_newton", "join", "sharded-first", "sharded-later")
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name}-rests": {"settings": name, "sizes": RESTS}
        for name in SETTINGS
        if name != "gauss_newton"
    },
    **{f"{name}-uneven": {"settings": name, "sizes": UNEVEN} for name in (*RULES, "levenberg")},
    **{f"{name}-empty": {"settings": name, "sizes": EMPTY} for name in RULES},
    **{
        f"wrapped-{order}": {"settings": "paper-curvature", "order": order}
        for order in ("first", "later", "inside", "whole", "by hand", "group later", "copied")
    },
    "wrapped-again": {"settings": "paper-curvature", "order": "again"},
    **{f"no_sync-{n}": {"settings": n, "micro": 2} for n in ("paper-curvature", "adam-both")},
    "horizon": {"settings": "paper-curvature", "horizon": True},
    "alone": {"settings": "paper-curvature", "order": "alone"},
    **{
        f"broken {what}": {"settings": "paper-curvature", "broken": what}
        for what in ("sums", "decompositions")
    },
    "gauss_newton": {"settings": "gauss_newton"},
    "join": {"settings": "adam-gradient", "order": "join"},
    **{
        f"sharded-{when}": {"settings": "paper-curvature", "order": f"sharded {when}"}
        for when in ("first", "later")
    },
    "gauss_newton, alone": {"settings": "gauss_newton", "order": "alone"},
    "alone, wrapped": {"settings": "paper-curvature", "order": "alone, wrapped"},
    "alone, said": {"settings": "paper-curvature", "order": "alone, said"},
}


def build() -> nn.Sequential:
    block = ODEBlock(problems.field(), method="rk4", gradient="direct", options={"steps": 4})
    return problems.model(block)


def batches(case: dict[str, Any]) -> list[list[tuple[Tensor, Tensor]]]:
    """By step and process."""
    found = []
    for step, sizes in enumerate(case.get("sizes", EQUAL)):
        x, y = problems.batch(sum(sizes), seed=step)
        found.append(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    return found


def optimizer_of(case: dict[str, Any], model: nn.Module, **more: Any) -> SNOpt:
    settings = dict(SETTINGS[case["settings"]])
    if "damping" in settings:
        settings["damping"] = LevenbergMarquardt(settings["damping"], every=2)
    return SNOpt(model, lr=0.02, **settings, **more)


def train(
    case: dict[str, Any],
    optimizer: SNOpt,
    parts: Callable[[int], list[tuple[Tensor, Tensor]]],
    forward: Callable[[Tensor], Tensor],
    *,
    averaged: Callable[[], None] = lambda: None,
    unsynced: Callable[[], Any] = nullcontext,
) -> None:
    """Each step's loss is the mean over its parts of their means, or of the whole where joined."""
    for step in range(STEPS):
        mine = parts(step)

        def closure(mine: list[tuple[Tensor, Tensor]] = mine) -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for i, (x, y) in enumerate(mine):
                with unsynced() if i + 1 < len(mine) else nullcontext():
                    outputs = forward(x)
                    loss = outputs.sum()  # of nothing, unless there is something
                    if len(x):
                        optimizer.curvature_pass(outputs, "gaussian")
                        loss = problems.squares(y)(outputs) / len(mine)
                    with torch.enable_grad():
                        loss.backward()
                    total += loss.detach()
            averaged()
            return total

        if case["settings"] == "levenberg":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def alone(case: dict[str, Any], rank: int | None = None) -> tuple[nn.Module, SNOpt, Any]:
    """One process with the joined batch, or with that of one of the two."""
    model = build()
    optimizer = optimizer_of(case, model)
    horizon = Horizon(model[1], optimizer, every=2) if case.get("horizon") else None
    data = batches(case)

    def forward(x: Tensor) -> Tensor:
        return model(x)

    if rank is not None:
        train(case, optimizer, lambda step: [data[step][rank]], forward)
    elif case.get("micro"):
        train(case, optimizer, lambda step: _thirds(data, step), forward)
    else:
        # One pass over both parts, whose means are averaged.
        for step in range(STEPS):
            x, y = (torch.cat(tensors) for tensors in zip(*data[step], strict=True))
            weight = torch.cat(
                [torch.full((len(p[0]),), 0.5 / (len(p[0]) or 1)) for p in data[step]]
            )

            def closure(x: Tensor = x, y: Tensor = y, weight: Tensor = weight) -> Tensor:
                optimizer.zero_grad()
                with torch.enable_grad():
                    outputs = model(x)
                    optimizer.curvature_pass(outputs, "gaussian")
                    loss = (weight.double() * (outputs - y).square().sum(1)).sum()
                    loss.backward()
                return loss.detach()

            if case["settings"] == "levenberg":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    return model, optimizer, horizon


def _thirds(data: list[list[tuple[Tensor, Tensor]]], step: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[i::2], y[i::2]) for x, y in data[step] for i in range(2)]


def _fail(factors: Any) -> Any:
    raise FactorizationError("made to fail")


class Larger(nn.Module):
    """A module that holds the model, as trainers' modules do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def sharded(case: dict[str, Any], model: nn.Sequential) -> dict[str, Any]:
    """What is said of a model whose parameters are spread over the processes."""
    x, _ = problems.batch()
    mesh = init_device_mesh("cpu", (2,))
    try:
        if case["order"] == "sharded first":
            fully_shard(model, mesh=mesh)
        optimizer = optimizer_of(case, model)
        fully_shard(model, mesh=mesh)
        model(x).sum().backward()
        optimizer.step()
    except ValueError as error:
        return {"refused": str(error)}
    return {"refused": ""}


def run(case: dict[str, Any], model: nn.Sequential, early: SNOpt | None = None) -> dict[str, Any]:
    """What one process ends with, with an optimizer that was made before there was a group."""
    rank = dist.get_rank()
    ddp = nn.parallel.DistributedDataParallel
    order = case.get("order", "later")
    more: dict[str, Any] = {}
    forward: nn.Module = model
    if order in ("first", "inside"):
        forward = ddp(model)
    if order == "copied":
        forward = copy.deepcopy(ddp(model))
        model = forward.module
    if order == "alone, wrapped":
        forward = ddp(model, process_group=[dist.new_group([i]) for i in range(2)][rank])
    if order == "by hand":
        more["process_group"] = dist.group.WORLD
    if order == "alone, said":
        more["process_group"] = False
    optimizer = early or optimizer_of(case, forward if order == "first" else model, **more)
    horizon = Horizon(model[1], optimizer, every=2) if case.get("horizon") else None
    if order in ("later", "group later", "join"):
        forward = ddp(model)
    if order == "whole":
        forward = ddp(Larger(model))
    if order == "again":
        left = ddp(model, process_group=dist.new_group())
        assert optimizer.method.processes.size == 2
        dist.destroy_process_group(left.process_group)
        forward = ddp(model)
    data = batches(case)

    def averaged() -> None:
        if rank == 1 and case.get("broken") == "sums":
            for sums in optimizer.method.capture.sums.values():  # type: ignore[attr-defined]
                sums.a.fill_(torch.nan)
        if order == "by hand":
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2

    def parts(step: int) -> list[tuple[Tensor, Tensor]]:
        x, y = data[step][rank]
        count = case.get("micro", 1)
        return [(x[i::count], y[i::count]) for i in range(count)]

    refused = ""
    unsynced = forward.no_sync if case.get("micro") else nullcontext
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always")
        if order == "join":
            stack.enter_context(forward.join())
        if rank == 1 and case.get("broken") == "decompositions":
            stack.enter_context(patch.object(preconditioner, "eigenbasis", _fail))
        try:
            train(case, optimizer, parts, forward, averaged=averaged, unsynced=unsynced)
        except RuntimeError as error:
            if case["settings"] != "gauss_newton" and order != "join":
                raise
            refused = str(error)
    said = [str(w.message) for w in caught if "processes is up" in str(w.message)]
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "factors": optimizer.factors(),
        "state": optimizer.state_dict(),
        "samples": getattr(optimizer.method, "samples", None),
        "said": said,
        "refused": refused,
        "failures": optimizer.method.failures,  # type: ignore[attr-defined]
        "T": None if horizon is None else horizon.T,
    }


def main(target: str) -> None:
    before = build()
    early = optimizer_of(CASES["wrapped-group later"], before)
    dist.init_process_group("gloo")
    results = {}
    for name, case in CASES.items():
        later = case.get("order") == "group later"
        if case.get("order", "").startswith("sharded"):
            mine = sharded(case, build())
        else:
            mine = run(case, before, early) if later else run(case, build())
        both: list[Any] = [None, None]
        dist.all_gather_object(both, mine)
        results[name] = both
        gc.collect()
    if dist.get_rank() == 0:
        torch.save(results, target)
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
