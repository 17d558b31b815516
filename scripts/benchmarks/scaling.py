"""How seconds and peak memory of a step grow: batch, width, observations, solver steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from scripts.benchmarks.memory import peak_bytes
from scripts.benchmarks.tables import Cell, present
from scripts.benchmarks.timing import interleave
from snopt.ode.gradients import GRADIENTS
from tasks.common.figures import new_figure, png
from tasks.engine.records.results import write_file
from tasks.engine.report.palette import BUCKETS
from tasks.models.convnet import ConvNet
from tasks.models.ode_rnn import ODERNN

CHANNELS, CLASSES = 25, 9
"""Of the ODE-RNN's inputs and outputs, as japanese_vowels has them."""


@dataclass(frozen=True)
class Size:
    """What a measured step consists of; made-up inputs, random weights.

    Attributes:
        net: ``ode-rnn`` (a solve between every two observations) or ``image net`` (one solve).
        observations: points of each series; the image net has none.
        steps: rk4 steps of each solve.
    """

    net: str
    batch: int
    hidden: int
    observations: int
    steps: int
    gradient: str


_SERIES = Size("ode-rnn", batch=32, hidden=32, observations=16, steps=2, gradient="direct")
_IMAGES = Size("image net", batch=16, hidden=32, observations=1, steps=2, gradient="direct")
SWEEPS: tuple[tuple[Size, str, tuple[int, ...]], ...] = (
    (_SERIES, "batch", (64, 128, 256, 512, 1024)),
    (_SERIES, "hidden", (32, 64, 128, 256, 512)),
    (_SERIES, "observations", (8, 16, 32, 64, 128)),
    (_SERIES, "steps", (2, 4, 8, 16, 32)),
    (_IMAGES, "batch", (8, 16, 32, 64)),
    (_IMAGES, "hidden", (16, 32, 64, 128)),
    (_IMAGES, "steps", (2, 4, 8, 16, 32)),
)
"""From where, along what, and to which values."""


@dataclass(frozen=True)
class Growth:
    """One sweep with one gradient.

    Attributes:
        seconds: of a step at every value, medians.
        megabytes: peak memory of a step at every value.
    """

    net: str
    axis: str
    gradient: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...]


def run(
    rounds: int, gradients: Sequence[str], out: Console, folder: Path | None, short: bool = False
) -> None:
    """Measure every sweep; ``short`` takes the first three values of each."""
    grown = []
    for base, axis, values in SWEEPS:
        kept = values[:3] if short else values
        grown.extend(grow(base, axis, kept, gradients, rounds))
    rows: list[list[Cell]] = [
        [
            g.net,
            g.axis,
            g.gradient,
            f"{g.values[0]}-{g.values[-1]}",
            f"{g.seconds[0]:.3g}-{g.seconds[-1]:.3g}",
            f"{exponent(g.values, g.seconds):.2f}",
            f"{g.megabytes[0]:.3g}-{g.megabytes[-1]:.3g}",
            f"{exponent(g.values, g.megabytes):.2f}",
        ]
        for g in grown
    ]
    present(
        "Growth of a step (rk4, made-up inputs): cost ~ value ** exponent over the larger half",
        ("net", "along", "gradient", "values", "s/step", "exponent", "peak MB", "exponent"),
        rows,
        out,
        folder,
        "scaling",
    )
    if folder is not None:
        write_file(folder / "scaling.png", draw(grown))
        out.print(f"wrote {folder / 'scaling.png'}")


def grow(
    base: Size, axis: str, values: Sequence[int], gradients: Sequence[str], rounds: int
) -> list[Growth]:
    """One sweep, all its sizes and gradients side by side."""
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for gradient in gradients:
        for value in values:
            calls[gradient, value] = step_of(_changed(base, axis, value, gradient))
    times = interleave({f"{g} {v}": call for (g, v), call in calls.items()}, rounds, warm_up=1)
    return [
        Growth(
            base.net,
            axis,
            gradient,
            tuple(values),
            tuple(times.seconds(f"{gradient} {value}") for value in values),
            tuple(peak_bytes(calls[gradient, value]) / 1e6 for value in values),
        )
        for gradient in gradients
    ]


def _changed(base: Size, axis: str, value: int, gradient: str) -> Size:
    return Size(**{**vars(base), axis: value, "gradient": gradient})


def step_of(size: Size) -> Callable[[], object]:
    """A training step of a net of that size."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (size.batch,), generator=generator)
    solver = {
        "method": "rk4",
        "gradient": size.gradient,
        "options": {"steps": size.steps},
    }
    model: nn.Module
    inputs: tuple[Tensor, ...]
    if size.net == "ode-rnn":
        model = ODERNN(CHANNELS, size.hidden, CLASSES, solver=solver)
        shape = (size.batch, size.observations)
        series = torch.randn(*shape, CHANNELS, generator=generator)
        last = torch.full((size.batch,), size.observations - 1)
        inputs = (series, torch.ones(shape, dtype=torch.bool), last)
    else:
        model = ConvNet(1, size.hidden, CLASSES, solver=solver)
        inputs = (torch.randn(size.batch, 1, 28, 28, generator=generator),)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(*inputs), labels)
        loss.backward()
        optimizer.step()

    return step


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost over log value in the larger half, where fixed costs matter least."""
    half = max(2, math.ceil(len(values) / 2))
    x, y = np.log(np.array(values[-half:], float)), np.log(np.array(costs[-half:], float))
    return float(np.polyfit(x, y, 1)[0])


def draw(grown: Sequence[Growth]) -> bytes:
    """Seconds and memory of each net, a column for each axis; above each panel its exponents."""
    nets = list(dict.fromkeys(g.net for g in grown))
    columns = list(dict.fromkeys(g.axis for g in grown))
    colours = dict(zip(GRADIENTS, list(BUCKETS.values())[1:], strict=False))
    figure = new_figure(3.2 * len(columns), 2.7 * 2 * len(nets))
    grid = figure.subplots(2 * len(nets), len(columns), sharey="row", squeeze=False)
    for row, (net, quantity) in enumerate((n, q) for n in nets for q in ("seconds", "MB")):
        grid[row, 0].set_ylabel(f"{net}: {quantity} a step", fontsize=9)
        for column, axis in enumerate(columns):
            sweeps = [g for g in grown if (g.net, g.axis) == (net, axis)]
            axes = grid[row, column]
            if not sweeps:
                axes.set_axis_off()
                continue
            for g in sweeps:
                costs = g.seconds if quantity == "seconds" else g.megabytes
                label = f"{g.gradient}: {exponent(g.values, costs):.2f}"
                axes.loglog(
                    g.values, costs, marker="o", ms=4, label=label, color=colours[g.gradient]
                )
            axes.set_xscale("log", base=2)
            ticks = sweeps[0].values
            axes.set_xticks(ticks, [str(v) for v in ticks], fontsize=8)
            axes.minorticks_off()
            axes.legend(
                fontsize=7, ncols=2, frameon=False, loc="lower left", bbox_to_anchor=(-0.05, 1.0),
                handlelength=1.0, columnspacing=0.8, borderpad=0.0,
            )  # fmt: skip
            axes.grid(visible=True, color="#E4E4E4")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(axis, fontsize=9)
    return png(figure)
