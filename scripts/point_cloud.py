"""How often each family solves the point cloud: ``python -m scripts.point_cloud --out DIR``.

Trains many networks of the task ``nested_spheres`` at once, stacked and mapped over, by the
published recipe: 22 + 28 points, 300 full-batch steps of Adam. A run is solved if its training MSE
ends at or below 1e-3. Every family begins ``--repeats`` times on points of its own, and as often on
each of ``--sets`` fixed sets of points. Unlike the task, it solves with ``--steps`` equal steps of
rk4, accurate enough for counting, and differentiates them directly.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from scripts.entry import at_least, status
from scripts.published_families import SOLVED
from tasks.common.checks import require_choice
from tasks.data.nested_spheres import make_nested_spheres
from tasks.engine.records.results import write_file
from tasks.engine.report.console import console
from tasks.engine.report.summary import Cell, as_csv
from tasks.models.families import FAMILIES
from tasks.models.family_nets import PointNet

STEPS, RATE, THRESHOLD = 300, 0.01, 1e-3
FRESH = "drawn for each run"

State = tuple[Tensor, ...]


def train(name: str, points: Tensor, targets: Tensor, seeds: Sequence[int], steps: int) -> Tensor:
    """Training error of every run after the published 300 steps, shape (R,).

    Args:
        name: the family.
        points: each run's points, (R, N, 2).
        targets: their targets, (R, N, 1).
        seeds: of the weights, one a run.
        steps: of rk4 over the interval.
    """
    nets = [_net(name, seed, points.dtype) for seed in seeds]
    stacked, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    parameters = {key: value.detach().requires_grad_() for key, value in stacked.items()}
    net = _Unrolled(nets[0], steps)

    def error(values: dict[str, Tensor], own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        named = {f"net.{key}": value for key, value in (values | own).items()}
        outputs: Tensor = functional_call(net, named, (x,))
        return (outputs - y).square().mean()

    errors = vmap(error)
    optimizer = torch.optim.Adam(parameters.values(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        # The sum's gradient is every run's own.
        errors(parameters, buffers, points, targets).sum().backward()
        optimizer.step()
    with torch.no_grad():
        final: Tensor = errors(parameters, buffers, points, targets)
    return final


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    z, share = 1.959964, successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


class _Unrolled(nn.Module):
    """A point network whose ODE is solved with equal classical Runge-Kutta steps."""

    def __init__(self, net: PointNet, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x: Tensor) -> Tensor:
        start, block, *head = self.net
        state = start(x)
        parts: State = (state,) if isinstance(state, Tensor) else state
        dt = 1.0 / self.steps
        for index in range(self.steps):
            parts = _rk4(block.field, index * dt, parts, dt)
        out: Tensor = parts[0]
        for layer in head[1:]:  # the first only picks the position
            out = layer(out)
        return out


def _rk4(field: nn.Module, t: float, state: State, dt: float) -> State:
    def slope(at: float, parts: State) -> State:
        out = field(torch.tensor(at), parts[0] if len(parts) == 1 else parts)
        return (out,) if isinstance(out, Tensor) else out

    def moved(k: State, by: float) -> State:
        return tuple(x + by * v for x, v in zip(state, k, strict=True))

    k1 = slope(t, state)
    k2 = slope(t + dt / 2, moved(k1, dt / 2))
    k3 = slope(t + dt / 2, moved(k2, dt / 2))
    k4 = slope(t + dt, moved(k3, dt))
    total = zip(k1, k2, k3, k4, strict=True)
    return moved(tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in total), dt)


def _net(name: str, seed: int, dtype: torch.dtype) -> PointNet:
    torch.manual_seed(seed)
    return PointNet({"name": name}, {}).to(dtype)


def clouds(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Points (R, 50, 2) and targets (R, 50, 1) of the published recipe, one cloud a seed."""
    made = [make_nested_spheres(22, 28, seed) for seed in seeds]
    points = np.stack([points for points, _ in made])
    targets = np.stack([targets for _, targets in made])
    return torch.as_tensor(points), torch.as_tensor(targets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, count, print and write; returns the exit status."""
    options = _parser().parse_args(arguments)
    out = console()
    names = options.models.split(",")
    for name in names:
        require_choice("--models", name, FAMILIES)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    rows: list[dict[str, Cell]] = []
    weights = range(options.repeats)
    sets = {FRESH: [1000 + run for run in weights]}
    sets.update({f"fixed, set {k}": [k] * options.repeats for k in range(options.sets)})
    for name in names:
        for label, data_seeds in sets.items():
            errors = train(name, *clouds(data_seeds), weights, options.steps)
            solved = int((errors <= THRESHOLD).sum())
            low, high = interval(solved, len(errors))
            row = {
                "model": name,
                "points": label,
                "runs": len(errors),
                "solved": solved,
                "share": f"{solved / len(errors):.2f}",
                "low": f"{low:.2f}",
                "high": f"{high:.2f}",
                "mean_train_mse": f"{errors.mean():.3g}",
                "median_train_mse": f"{errors.median():.3g}",
                "published_of_100": SOLVED.get(name, ""),
            }
            rows.append(row)
            out.print("  ".join(str(value) for value in row.values()), markup=False)
    if options.out is not None:
        write_file(options.out / "success.csv", as_csv(rows).encode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.point_cloud", description=__doc__)
    parser.add_argument(
        "--models", default=",".join(FAMILIES), help="families, separated by commas (all)"
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=100, help="runs of each family and set (100)"
    )
    parser.add_argument("--sets", type=at_least(0), default=4, help="fixed sets of points (4)")
    parser.add_argument("--steps", type=at_least(1), default=4, help="rk4 steps of a solve (4)")
    parser.add_argument("--out", type=Path, help="folder for success.csv (not written)")
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
