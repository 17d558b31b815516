"""Gradient methods beside plain ``torchdiffeq.odeint_adjoint``: time, memory, NFE, error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from scripts.benchmarks.bare import bare_work, field_call
from scripts.benchmarks.memory import peak_bytes
from scripts.benchmarks.plain import CallCounter, with_plain_blocks
from scripts.benchmarks.tables import Cell, present, range_text
from scripts.benchmarks.timing import interleave
from scripts.benchmarks.workloads import (
    Weights,
    Workload,
    load,
    load_with_ode,
    nfe,
    ode_blocks,
    trained,
)

PLAIN = "odeint_adjoint 1e-3"
"""The yardstick's name in the table."""

TIGHT = 1e-9
"""Tolerance of the solve that errors are measured against, in float64."""

TIGHT_WITH_KINKS = 1e-6
"""The same for nets with ReLU: an adaptive solver meets every kink, and 1e-9 takes an hour."""

_ADAPTIVE = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}


def _fixed(steps: int, method: str = "rk4", **options: Any) -> dict[str, Any]:
    return {"method": method, "steps": steps, "gradient": "direct", **options}


WAYS: Mapping[str, Mapping[str, Any]] = {
    "adjoint": {**_ADAPTIVE, "gradient": "adjoint"},
    "adjoint-seminorm": {**_ADAPTIVE, "gradient": "adjoint-seminorm"},
    "checkpoint": {**_ADAPTIVE, "gradient": "checkpoint"},
    "direct": {**_ADAPTIVE, "gradient": "direct"},
    "adjoint, warm start": {**_ADAPTIVE, "gradient": "adjoint", "warm_start": True},
    "direct, warm start": {**_ADAPTIVE, "gradient": "direct", "warm_start": True},
    "direct, rk4 4 steps": _fixed(4),
    "direct, rk4 3 steps": _fixed(3),
    "direct, rk4 2 steps": _fixed(2),
    "direct, rk4 1 step": _fixed(1),
    "direct, dopri5 1 step": _fixed(1, "dopri5"),
    "checkpoint, rk4 2 steps": {**_fixed(2), "gradient": "checkpoint"},
    "direct, rk4 4 steps, compiled": _fixed(4, compile=True),
    "direct, rk4 3 steps, compiled": _fixed(3, compile=True),
    "direct, rk4 2 steps, compiled": _fixed(2, compile=True),
    "direct, rk4 1 step, compiled": _fixed(1, compile=True),
    "direct, dopri5 1 step, compiled": _fixed(1, "dopri5", compile=True),
}
"""Solver settings by name; the last ones need a C++ compiler."""

HEADINGS = (
    "gradient", "NFE f/b", "s/step", "speed-up", "error", "error, field", "step / field", "peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One gradient method, ready to run."""

    name: str
    model: nn.Module
    step: Callable[[], object]


def run(
    tasks: Sequence[str],
    rounds: int,
    steps: int,
    ways: Sequence[str] | None,
    out: Console,
    folder: Path | None,
) -> None:
    """Measure every way on each net, at weights after ``steps`` training steps."""
    chosen = {name: WAYS[name] for name in (WAYS if ways is None else ways)}
    for task in tasks:
        workload = load_with_ode(task)
        weights = trained(workload, steps)
        title = (
            f"{task}, batch {len(workload.batch[0])}, after {steps} training steps: one SGD step. "
            "Speed-up over plain odeint_adjoint; errors are relative to a float64 solve at "
            f"{tight(workload):g}"
        )
        present(
            title,
            HEADINGS,
            rows(workload, weights, chosen, rounds),
            out,
            folder,
            f"gradients-{task}",
        )


def rows(
    workload: Workload, weights: Weights, ways: Mapping[str, Mapping[str, Any]], rounds: int
) -> list[list[Cell]]:
    """One line a gradient method, plain torchdiffeq first."""
    reference = tight_gradient(workload, weights)
    cases = [_case(workload, PLAIN, with_plain_blocks(workload.model(weights)))]
    cases += [_case(workload, name, workload.model(weights, s)) for name, s in ways.items()]
    lines: list[list[Cell]] = []
    work: dict[str, Callable[[], object]] = {case.name: case.step for case in cases}
    counts = {case.name: _evaluations(workload, case) for case in cases}
    probe = workload.model(weights)
    field, inputs = field_call(workload, probe)
    for case in cases:
        gradient = "adjoint" if case.name == PLAIN else ode_blocks(case.model)[0].gradient
        work[f"field: {case.name}"] = bare_work(field, inputs, counts[case.name], gradient)
    times = interleave(work, rounds)
    for case in cases:
        error, field_error = gradient_errors(workload, case.model, reference)
        lines.append(
            [
                case.name,
                "{}/{}".format(*counts[case.name]),
                times.seconds(case.name),
                range_text(times.ratio(PLAIN, case.name)),
                error,
                field_error,
                range_text(times.ratio(case.name, f"field: {case.name}")),
                peak_bytes(case.step) / 1e6,
            ]
        )
    return lines


def tight(workload: Workload) -> float:
    """The tolerance of the reference for a workload."""
    kinks = any(isinstance(m, nn.ReLU) for m in workload.model().modules())
    return TIGHT_WITH_KINKS if kinks else TIGHT


def tight_gradient(
    workload: Workload, weights: Weights, tolerance: float | None = None
) -> dict[str, Tensor]:
    """The gradient by plain torchdiffeq in float64 at tight tolerances, by parameter name."""
    tolerance = tolerance or tight(workload)
    double = load(workload.name, batch_size=len(workload.batch[0]), dtype="float64")
    model = with_plain_blocks(
        double.model({k: v.double() for k, v in weights.items()}),
        rtol=tolerance,
        atol=tolerance,
    )
    double.loss(model).backward()
    return _gradient(model)


def gradient_errors(
    workload: Workload, model: nn.Module, reference: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Relative error of the whole gradient, and of the fields' part of it."""
    model.zero_grad()
    workload.loss(model).backward()
    found = _gradient(model)
    inside = [name for name in reference if ".field." in f".{name}"]
    return _relative(found, reference, list(reference)), _relative(found, reference, inside)


def _gradient(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def _relative(
    found: Mapping[str, Tensor], reference: Mapping[str, Tensor], names: Sequence[str]
) -> float:
    difference = sum(float((found[n] - reference[n]).square().sum()) for n in names)
    return float((difference / sum(float(reference[n].square().sum()) for n in names)) ** 0.5)


def _case(workload: Workload, name: str, model: nn.Module) -> Case:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        workload.loss(model).backward()
        optimizer.step()

    step()  # compiles, allocates, and makes a step for a warm start to start from
    return Case(name, model, step)


def _evaluations(workload: Workload, case: Case) -> tuple[int, int]:
    """Evaluations of one step: the block's own count, or calls where there is no such block."""
    if case.name != PLAIN:
        before = nfe(case.model)
        case.step()
        after = nfe(case.model)
        return after[0] - before[0], after[1] - before[1]
    counter = CallCounter(case.model)
    loss = workload.loss(case.model)
    forward = counter.calls
    loss.backward()
    counter.close()
    return forward, counter.calls - forward
