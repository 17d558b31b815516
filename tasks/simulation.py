"""Identifying a driven system: its measured output simulated from its input alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from tasks.classification import require_positive
from tasks.data.measurements import read_silverbox
from tasks.dynamics import RegressionTask
from tasks.models.forced import DrivenNet
from tasks.task import Batch, Splits

MILLIVOLTS = 1000.0


class SilverboxSimulation(RegressionTask):
    """The Silverbox benchmark: simulate the circuit's output voltage from its input voltage.

    Training sees windows of the multisine part. The test is the arrow, one free run of 40475
    samples that grows beyond the training's amplitudes, and starts from its first 50; ``rmse`` is
    its error in mV, and ``rmse_no_extrapolation`` that of the first 32000 samples. Validation is
    free runs through the last part of the multisines that training may use. The benchmark's other
    test part, further multisines, is left alone.

    A batch is (past (B, 2 lags), input (B, L + 1), targets (B, L, 1)), normalised by mean and
    deviation of the training part: ``past`` has the last inputs and outputs up to time 0, the
    window's start, ``input`` the voltage at times 0 to L, in sampling intervals, and the targets
    are the output at times 1 to L.

    Args:
        window: samples that training simulates at once.
        stride: samples from the start of a training window to that of the next.
        lags: samples before a window that its initial state is told by.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        batch_size: windows of a training step.
        eval_batch_size: windows of an evaluation step.

    Raises:
        ValueError: a number below 1.

    Source: Wigren and Schoukens 2013; the parts are those of nonlinearbenchmark.org.
    """

    metric = "rmse"
    terminal_time = False
    MULTISINE, ARROW = slice(40650, 105712), slice(100, 40575)
    VALID, RECORD = 10_000, 1_000
    """Samples to validate with, and those of each of their free runs."""
    START, WITHIN = 50, 32_000
    """Samples of the arrow that a state may be told by, and those without extrapolation."""

    def __init__(
        self,
        *,
        window: int = 64,
        stride: int = 32,
        lags: int = 10,
        hidden: int = 32,
        layers: int = 1,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
    ) -> None:
        require_positive(window=window, stride=stride, lags=lags, hidden=hidden, layers=layers)
        if lags > self.START:
            raise ValueError(f"lags={lags}: must be at most {self.START}, the benchmark's.")
        super().__init__("silverbox_simulation", batch_size, eval_batch_size)
        self.window, self.stride, self.lags = window, stride, lags
        self.hidden, self.layers = hidden, layers
        self.millivolts = MILLIVOLTS

    @override
    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """The benchmark's parts, the same for every seed."""
        values = read_silverbox(root)
        known, arrow = values[self.MULTISINE], values[self.ARROW]
        train, valid = known[: -self.VALID], known[-self.VALID :]
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        self.millivolts = MILLIVOLTS * float(deviation[1])

        def part(rows: np.ndarray[Any, Any], length: int, stride: int, skip: int) -> Batch:
            scaled = (rows - mean) / deviation
            starts = np.arange(skip, len(rows) - length, stride)[:, None]
            past = scaled[starts + np.arange(1 - self.lags, 1)].reshape(len(starts), -1)
            ahead = scaled[starts + np.arange(length + 1)]
            arrays = past, ahead[..., 0], ahead[:, 1:, 1:]
            return tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)

        free = len(arrow) - self.START
        return Splits(
            part(train, self.window, self.stride, self.lags - 1),
            part(valid, self.RECORD - self.lags, self.RECORD, self.lags - 1),
            part(arrow, free, free, self.START - 1),
        )

    @override
    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """A field of two states and the input."""
        return DrivenNet(
            2 * self.lags, hidden=self.hidden, layers=self.layers, family=family, solver=solver
        )

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared error in normalised units, and the root of its mean over a run in mV."""
        squares = (outputs - batch[-1]).square().flatten(1)
        values = {"loss": squares.mean(dim=1)}
        values["rmse"] = self.millivolts * values["loss"].sqrt()
        if squares.shape[1] > self.WITHIN:
            within = squares[:, : self.WITHIN - self.START].mean(dim=1)
            values["rmse_no_extrapolation"] = self.millivolts * within.sqrt()
        return values
