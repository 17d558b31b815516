"""The families' own regression tasks: point cloud, Silverbox, plane vibration, Walker2d."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.classification import require_positive
from tasks.common.checks import choices
from tasks.common.seeding import stream_seed
from tasks.data.measurements import read_plane_vibration, read_silverbox, read_walker2d
from tasks.data.nested_spheres import make_nested_spheres
from tasks.data.windows import Windows, vibration_windows, walker_windows
from tasks.models.family_nets import PointNet
from tasks.models.forced import FORCINGS, ForcedNet
from tasks.models.sequences import VibrationNet, WalkerNet
from tasks.task import Batch, Likelihood, Splits, Task


class RegressionTask(Task):
    """A task whose outputs are compared with targets, the last tensor of a batch.

    Args:
        name: the task's name on the command line.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.

    Raises:
        ValueError: a number below 1.
    """

    metric = "loss"
    higher_is_better = False
    likelihood: Likelihood | None = "gaussian"

    def __init__(self, name: str, batch_size: int, eval_batch_size: int) -> None:
        require_positive(batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.name = name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Predictions, sample first."""
        outputs: Tensor = model(*batch[:-1])
        return outputs

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean of the samples' losses."""
        return self.measure(outputs, batch)["loss"].mean()

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of every sample."""
        return {"loss": _mse(outputs, batch[-1])}


class NestedSpheres(RegressionTask):
    """A disc against the ring around it, from 50 points of the plane.

    Args:
        batch_size: samples of a training step; all 50 by default, as published.
        eval_batch_size: samples of an evaluation step.
    """

    provenance = "synthetic by nature: generated from the seed by the published recipe"
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, *, batch_size: int = 50, eval_batch_size: int = 1000) -> None:
        super().__init__("nested_spheres", batch_size, eval_batch_size)

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Generate 22 + 28 points to train on, as many to validate, and 200 + 200 to test."""
        base = stream_seed(seed, "data")

        def part(index: int, inner: int, outer: int) -> Batch:
            arrays = make_nested_spheres(inner, outer, base + index)
            return tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)

        return Splits(part(0, 22, 28), part(1, 22, 28), part(2, 200, 200))

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The families' network on points."""
        return PointNet(family, solver)

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared error of every point, and 1 where the sign is right."""
        right = (outputs[:, 0] > 0) == (batch[-1][:, 0] > 0)
        return {**super().measure(outputs, batch), "accuracy": right.to(outputs.dtype)}


class WindowTask(RegressionTask):
    """A regression on windows of a measured series.

    Args:
        name: the task's name on the command line.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        train_samples: use only the first so many training windows; None: all.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self, name: str, batch_size: int, eval_batch_size: int, train_samples: int | None
    ) -> None:
        super().__init__(name, batch_size, eval_batch_size)
        require_positive(train_samples=train_samples)
        self.train_samples = train_samples

    def _splits(
        self, parts: tuple[Windows, Windows, Windows], device: torch.device, dtype: torch.dtype
    ) -> Splits:
        train, valid, test = parts
        if self.train_samples is not None and self.train_samples < len(train[0]):
            self.provenance = f"complete; only the first {self.train_samples} training windows"
            train = tuple(array[: self.train_samples] for array in train)

        def tensors(arrays: Windows) -> Batch:
            return tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)

        return Splits(tensors(train), tensors(valid), tensors(test))


class Silverbox(WindowTask):
    """How far the state of an untrained family travels, driven by a measured voltage.

    A batch is (input voltage (B, 64), output voltage (B, 64)) of windows at unit spacing. What the
    published study draws is ``log10_norm`` before training; training on the output voltage works
    too, where the state does not overflow.

    Args:
        forcing: ``interpolated``, or ``ramp_as_published``, whose input voltage is a straight line
            through its samples 1 and 2 (a fault of the released code).
        as_published: centre with the mean of the whole series, not of the training part.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        window: points of a window.
        train_samples: use only the first so many training windows; None: all 15.

    Raises:
        ValueError: an argument is outside its range.
    """

    metric = "log10_norm"
    likelihood = None  # beside the prediction, an output carries the state's norm
    terminal_time = False
    TRAIN, VALID, TEST = slice(0, 1000), slice(1000, 2000), slice(2000, 5000)

    def __init__(
        self,
        *,
        forcing: str = "interpolated",
        as_published: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        window: int = 64,
        train_samples: int | None = None,
    ) -> None:
        if forcing not in FORCINGS:
            raise ValueError(choices("forcing", forcing, FORCINGS))
        require_positive(window=window)
        if window > (most := self.TRAIN.stop):
            raise ValueError(f"window={window}: must be at most {most}, or no window fits a part.")
        super().__init__("silverbox", batch_size, eval_batch_size, train_samples)
        self.forcing, self.as_published, self.window = forcing, as_published, window

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Windows of the first 5000 points, one after the other, times 100."""
        values = read_silverbox(root)
        known = values if self.as_published else values[self.TRAIN]
        scaled = 100.0 * (values - known.mean(axis=0))

        def part(rows: slice) -> Windows:
            points = scaled[rows]
            count = len(points) // self.window
            windows = points[: count * self.window].reshape(count, self.window, 2)
            return windows[..., 0].copy(), windows[..., 1].copy()

        return self._splits((part(self.TRAIN), part(self.VALID), part(self.TEST)), device, dtype)

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """A family with a linear field."""
        return ForcedNet(family, forcing=self.forcing, solver=solver)

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Prediction and norm of the state, shape (B, 64, 2)."""
        outputs: Tensor = model(batch[0], batch[1][:, 0])
        return outputs

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared error, and log10 of the state's norm at the window's end."""
        norm = outputs[:, -1, 1].clamp_min(torch.finfo(outputs.dtype).tiny)
        return {"loss": _mse(outputs[..., 0], batch[-1]), "log10_norm": norm.log10()}


class PlaneVibration(WindowTask):
    """Follow 64 irregular points of an F-16's vibration, then forecast 8 regular ones.

    A batch is (points (B, 64, 5), gaps (B, 64), targets (B, 136, 5)); the targets are the points,
    the points shifted by one, and the forecast, whose first is the last of the points shifted.

    Args:
        as_published: standardise with the whole series, not with the training part, and let SONODE
            take every gap for one sampling interval.
        shrink: multiplies all weights at the start; 0.01 in the released code, which shrinks the
            raw number behind the damping as well (here it stays).
        train_samples: use only the first so many training windows; None: all 509.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
    """

    metric = "forecast"
    likelihood = None  # three groups of outputs with weights of their own
    terminal_time = False

    def __init__(
        self,
        *,
        as_published: bool = False,
        shrink: float = 0.01,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        train_samples: int | None = None,
    ) -> None:
        super().__init__("plane_vibration", batch_size, eval_batch_size, train_samples)
        self.as_published, self.shrink = as_published, shrink

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """509, 254 and 254 windows, the same for every seed."""
        parts = vibration_windows(read_plane_vibration(root), whole=self.as_published)
        return self._splits(parts, device, dtype)

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The families' recurrent network."""
        return VibrationNet(
            family, solver=solver, shrink=self.shrink, as_published=self.as_published
        )

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared errors: the training loss, the whole forecast and its last point."""
        targets, window = batch[-1], batch[0].shape[1]
        after = _mse(outputs[:, :window], targets[:, :window])
        before = _mse(outputs[:, window : 2 * window], targets[:, window : 2 * window])
        forecast = _mse(outputs[:, 2 * window :], targets[:, 2 * window :])
        return {
            "loss": forecast + 0.1 * (after + before),
            "forecast": forecast,
            "forecast_last": _mse(outputs[:, -1:], targets[:, -1:]),
        }


class Walker2d(WindowTask):
    """The next frame of a simulated walker, a tenth of whose frames are missing.

    A batch is (frames (B, 64, 17), gaps (B, 64) in units of 64 frames, next frames (B, 64, 17)).

    Args:
        as_published: give every family the frames that the released code gives it: up to i - 1 for
            NODE and ANODE, up to i for the others; and let SONODE take every gap for a whole unit.
            By default all see frames up to i, and travel the gaps that were measured.
        train_samples: use only the first so many training windows; None: all 9684.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
    """

    def __init__(
        self,
        *,
        as_published: bool = False,
        train_samples: int | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 1024,
    ) -> None:
        super().__init__("walker2d", batch_size, eval_batch_size, train_samples)
        self.as_published = as_published

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Windows of 64 frames at a stride of 16, split by roll-out, the same for every seed."""
        return self._splits(walker_windows(read_walker2d(root)), device, dtype)

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The families' recurrent network."""
        return WalkerNet(family, solver=solver, as_published=self.as_published)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of every sample, shape (N,)."""
    return (outputs - targets).square().flatten(1).mean(dim=1)
