"""What the runner adds to the same training loop written by hand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from scripts.benchmarks.tables import Cell, present, range_text
from scripts.benchmarks.timing import Timings
from scripts.benchmarks.workloads import Workload, load
from tasks.common.seeding import stream
from tasks.engine.config.settings import Settings
from tasks.engine.experiment import train
from tasks.engine.optimizers.build import build_optimizer
from tasks.engine.training.batches import BatchSampler

HEADINGS = (
    "task", "steps", "s by hand", "s runner", "clock / hand", "with logging / hand",
)  # fmt: skip


def run(tasks: Sequence[str], rounds: int, steps: int, out: Console, folder: Path | None) -> None:
    """Train the same steps both ways, in turns."""
    rows = [row(task, rounds, steps) for task in tasks]
    title = "The runner against a loop by hand (SGD, default logging, checkpoint at the end)"
    present(title, HEADINGS, rows, out, folder, "runner")


def row(task: str, rounds: int, steps: int) -> list[Cell]:
    """One task's line."""
    limits = (
        "optim=sgd", "logger.progress=plain", "train.max_epochs=null", f"train.max_steps={steps}",
        "train.eval_at_start=false", "train.eval_every_epochs=null",
    )  # fmt: skip
    workload = load(task, *limits)
    seconds: dict[str, list[float]] = {"hand": [], "clock": [], "logged": []}
    for number in range(-1, rounds):
        found = {"hand": by_hand(workload, steps)} if number % 2 else {}
        found.update(by_runner(workload))
        if "hand" not in found:
            found["hand"] = by_hand(workload, steps)
        if number >= 0:
            for name, value in found.items():
                seconds[name].append(value)
    times = Timings({name: tuple(values) for name, values in seconds.items()})
    return [
        task,
        steps,
        times.seconds("hand"),
        times.seconds("clock"),
        range_text(times.ratio("clock", "hand")),
        range_text(times.ratio("logged", "hand")),
    ]


def by_hand(workload: Workload, steps: int) -> float:
    """Seconds of the loop as one would type it."""
    model = workload.model()
    optimizer = build_optimizer(workload.settings.config["optim"], model)
    order = BatchSampler(workload.splits.train, workload.task.batch_size, 0)
    noise = stream(0, "noise", workload.device)
    start = time.perf_counter()
    for _ in range(steps):
        batch = order.next()
        optimizer.zero_grad()
        loss = workload.task.loss(workload.task.forward(model, batch, noise), batch)
        loss.backward()
        optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def by_runner(workload: Workload) -> dict[str, float]:
    """The training clock of a real run, and the same with what logging and checkpoints took."""
    with tempfile.TemporaryDirectory() as folder:
        config = {**workload.settings.config, "results": {"root": folder}}
        record = train(Settings.read(config))
    clock = float(record["seconds"])
    return {"clock": clock, "logged": clock + float(record["buckets"]["logging"])}
