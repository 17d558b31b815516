"""Identifying a driven system: its measured outputs simulated from its input alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from tasks.classification import require_positive
from tasks.data.measurements import Floats, read_plane_vibration, read_silverbox
from tasks.dynamics import RegressionTask
from tasks.models.forced import DrivenNet
from tasks.task import Batch, Splits, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Simulation(RegressionTask):
    """Free runs of a field that is driven by the measured input, over parts of one record.

    A batch is (past (B, lags (1 + K)), input (B, L + 1), targets (B, L, K)), normalised by mean and
    deviation of the training part: ``past`` has the last inputs and outputs up to time 0, the
    window's start, ``input`` the input at times 0 to L, in sampling intervals, and the targets are
    the K outputs at times 1 to L. ``rmse`` is a run's error in physical units, over all outputs.

    Args:
        window: samples that training simulates at once.
        stride: rows of the record from the start of a training window to that of the next.
        lags: samples before a window that its initial state is told by.
        every: rows of the record from a sample to the next.
        width: of the state.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        batch_size: windows of a training step.
        eval_batch_size: windows of an evaluation step.

    Attributes:
        scale: of each output, the unit of the normalised error in physical units.

    Raises:
        ValueError: a number below 1, or a window that does not fit the training part.
    """

    metric = "rmse"
    terminal_time = False
    picture_name = "simulation"
    picture_caption = "The test's free run at the end of training"

    TRAIN: ClassVar[slice]
    VALID: ClassVar[slice]
    TEST: ClassVar[slice]
    RUN: ClassVar[int]
    """Rows of each of the validation part's free runs."""
    START = 50
    """Samples of the test part that a state may be told by."""
    OUTPUTS: ClassVar[tuple[str, ...]]
    """What they are."""
    UNITS = 1.0
    """Physical units of outputs in one of the record's."""
    FEEDTHROUGH = False
    """Whether outputs are a linear map of state and input, not the state's first entry."""

    def __init__(
        self,
        *,
        window: int = 64,
        stride: int = 32,
        lags: int = 10,
        every: int = 1,
        width: int = 2,
        hidden: int = 32,
        layers: int = 1,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
    ) -> None:
        require_positive(window=window, stride=stride, lags=lags, every=every)
        require_positive(width=width, hidden=hidden, layers=layers)
        rows, tested = (part.stop - part.start for part in (self.TRAIN, self.TEST))
        for key, value, most in (
            ("lags", lags, self.START),
            ("every", every, min(tested // (self.START + 1), self.RUN // (lags + 1))),
            ("window", window, (rows - 1) // every - lags + 1),
        ):
            if value > most:
                raise ValueError(f"{key}={value}: must be at most {most}, or no run fits a part.")
        super().__init__(self.name, batch_size, eval_batch_size)
        self.window, self.stride, self.lags, self.every = window, stride, lags, every
        self.width, self.hidden, self.layers = width, hidden, layers
        self.scale = np.full(len(self.OUTPUTS), self.UNITS)

    @abstractmethod
    def read(self, root: Path) -> Floats:
        """The record (rows, 1 + K), the input first.

        Raises:
            DataError: the file is missing, damaged, or not what it should be.
        """

    @override
    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """The record's parts, the same for every seed."""
        values, every = self.read(root), self.every
        train, valid, test = values[self.TRAIN], values[self.VALID], values[self.TEST]
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        self.scale = self.UNITS * deviation[1:]

        def part(rows: Floats, length: int, stride: int, skip: int) -> Batch:
            scaled = (rows - mean) / deviation
            starts = np.arange(every * skip, len(rows) - every * length, stride)[:, None]
            past = scaled[starts + every * np.arange(1 - self.lags, 1)].reshape(len(starts), -1)
            ahead = scaled[starts + every * np.arange(length + 1)]
            arrays = past, ahead[..., 0], ahead[:, 1:, 1:]
            return tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)

        free = len(test) // every - self.START
        return Splits(
            part(train, self.window, self.stride, self.lags - 1),
            part(valid, self.RUN // every - self.lags, self.RUN, self.lags - 1),
            part(test, free, every * free, self.START - 1),
        )

    @override
    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """A field of some states and the input."""
        return DrivenNet(
            self.lags * (1 + len(self.OUTPUTS)),
            hidden=self.hidden,
            layers=self.layers,
            family=family,
            solver=solver,
            width=self.width,
            outputs=len(self.OUTPUTS) if self.FEEDTHROUGH else None,
        )

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared error in normalised units, and a run's root mean square in physical ones."""
        squares = (outputs - batch[-1]).square()
        return {"loss": squares.flatten(1).mean(dim=1), "rmse": self._root_mean(squares)}

    def _root_mean(self, squares: Tensor) -> Tensor:
        """In physical units, of normalised squares (B, L, K)."""
        scale = squares.new_tensor(self.scale)
        return (squares * scale.square()).flatten(1).mean(dim=1).sqrt()

    @override
    def picture(self, title: str, trained: Sequence[Trained]) -> Figure | None:
        """The end of the test's free run beside what was measured, and the error along it."""
        from tasks.free_runs import free_run_figure  # training draws nothing

        return free_run_figure(title, trained, self.OUTPUTS)


class SilverboxSimulation(Simulation):
    """The Silverbox benchmark: simulate the circuit's output voltage from its input voltage.

    Training sees windows of the multisine part. The test is the arrow, one free run of 40475
    samples that grows beyond the training's amplitudes, and starts from its first 50; ``rmse`` is
    its error in mV, and ``rmse_no_extrapolation`` that of the first 32000 samples. Validation is
    free runs through the last part of the multisines that training may use. The benchmark's other
    test part, further multisines, is left alone.

    Source: Wigren and Schoukens 2013; the parts are those of nonlinearbenchmark.org.
    """

    name = "silverbox_simulation"
    TRAIN, VALID, TEST = slice(40650, 95712), slice(95712, 105712), slice(100, 40575)
    RUN = 1_000
    OUTPUTS, UNITS = ("output voltage",), 1000.0
    WITHIN = 32_000
    """Samples of the arrow without extrapolation."""

    @override
    def read(self, root: Path) -> Floats:
        """Input and output voltage."""
        return read_silverbox(root)

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """As every simulation's, and without the arrow's extrapolation."""
        values = super().measure(outputs, batch)
        squares = (outputs - batch[-1]).square()
        if squares.shape[1] > self.WITHIN:
            within = squares[:, : self.WITHIN - self.START]
            values["rmse_no_extrapolation"] = self._root_mean(within)
        return values


class F16Simulation(Simulation):
    """An F-16's ground vibration: simulate three accelerations from the shaker's force.

    Of the benchmark's records this reads one, nine periods of the same multisine of 20.48 s at its
    lowest level, and so **it is not the benchmark's own test**, whose records have another input.
    A part of the period is held out instead: training sees the first 12.8 s of the first period,
    validation is a free run through the 2.56 s after them, and the test one through the last 5.12 s
    of the last period, with an input that training has not seen. ``rmse`` is over the three
    accelerations, in the record's unit, ``rmse_1`` to ``rmse_3`` those of each.

    Source: Noël and Schoukens 2017, F-16 aircraft benchmark based on ground vibration test data.
    """

    provenance = "one record, not the benchmark's test"
    name = "f16_simulation"
    TRAIN, VALID, TEST = slice(0, 5120), slice(5120, 6144), slice(71_680, 73_728)
    RUN = 1024
    OUTPUTS = ("acceleration 1", "acceleration 2", "acceleration 3")
    FEEDTHROUGH = True

    @override
    def read(self, root: Path) -> Floats:
        """Force and accelerations, without the voltage that made the force."""
        return np.delete(read_plane_vibration(root), 1, axis=1)

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """As every simulation's, and the error of each acceleration."""
        values = super().measure(outputs, batch)
        roots = (outputs - batch[-1]).square().mean(dim=1).sqrt() * outputs.new_tensor(self.scale)
        return {**values, **{f"rmse_{k}": root for k, root in enumerate(roots.unbind(1), 1)}}
