"""Fitting a field to trajectories, and forecasting with it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from tasks.classification import require_positive
from tasks.common.checks import choices
from tasks.common.seeding import stream_seed
from tasks.data.hare_lynx import UNITS, hare_lynx
from tasks.data.systems import SYSTEMS, Units
from tasks.data.trajectories import HISTORY, Cuts, Sampling, Segments, cut, simulated
from tasks.dynamics import RegressionTask
from tasks.models.trajectory_net import ShootingNet, TrajectoryNet
from tasks.task import Batch, Splits, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Forecasting(RegressionTask):
    """A field fitted to measured segments: the mean squared error in normalised units.

    A batch is (initial states (B, D), times after them (B, L), targets (B, L, D), weights
    (B, L, D)), states and times in the normalised :class:`~tasks.data.systems.Units`. Weights are
    zero where nothing was measured and equal elsewhere, 1 on average over a split. With multiple
    shooting, rows of a training batch begin with the start's own, its targets and weights end
    with a row for the gap to the next segment, whose target is 0, and it has one tensor more:
    the segments' indices (B,) among those to train on.

    Args:
        name: the task's name on the command line.
        units: of the state.
        interval: time from the start that training sees at most.
        segment: rows of a segment, its start among them, that training fits at once; None: whole
            trajectories.
        shooting: weight of a gap between segments, over that of a measurement; their starts are
            then learned (multiple shooting). None: segments start from what was measured.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        initial_horizon: share of each segment's rows that training begins with; it grows evenly to
            the whole. Evaluations always see the whole.
        horizon_growth: share of training after which training sees the whole, too.
        batch_size: segments of a training step.
        eval_batch_size: segments of an evaluation step.

    Raises:
        ValueError: an argument is outside its range.
    """

    metric = "rmse"
    terminal_time = False
    picture_name = "forecasts"
    picture_caption = "Forecasts of the test trajectories at the end of training"

    def __init__(
        self,
        name: str,
        units: Units,
        interval: float,
        *,
        segment: int | None,
        shooting: float | None,
        hidden: int,
        layers: int,
        initial_horizon: float,
        horizon_growth: float,
        batch_size: int,
        eval_batch_size: int,
    ) -> None:
        require_positive(hidden=hidden, layers=layers)
        for key, share in (
            ("initial_horizon", initial_horizon),
            ("horizon_growth", horizon_growth),
        ):
            if not 0.0 < share <= 1.0:
                raise ValueError(f"{key}={share}: is a share, above 0 and at most 1.")
        if shooting is not None:
            if not 0.0 < shooting < math.inf:
                raise ValueError(f"shooting={shooting}: must be above 0, or null to go without.")
            if segment is None:
                raise ValueError(
                    f"shooting={shooting}: joins segments, and segment=null makes none; set "
                    "task.segment."
                )
            if initial_horizon < 1.0:
                raise ValueError(
                    f"shooting={shooting}, initial_horizon={initial_horizon}: the first part of a "
                    "segment does not reach the next; set one of them alone."
                )
        super().__init__(name, batch_size, eval_batch_size)
        self.units, self.interval = units, interval
        self.segment, self.shooting = segment, shooting
        self.cuts: Cuts = "overlapping" if shooting is None else "chained"
        self.hidden, self.layers = hidden, layers
        self.initial_horizon, self.horizon_growth = initial_horizon, horizon_growth

    @abstractmethod
    def segments(self, seed: int) -> tuple[Segments, Segments, Segments]:
        """To train on, to validate and to test, in physical units.

        Args:
            seed: of the data.
        """

    @override
    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Make the data and normalise them; no file is read."""

        def part(segments: Segments) -> Batch:
            arrays = _normalised(segments, self.units)
            batch = tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)
            if segments.linked is None:
                return batch
            return *batch, torch.arange(len(segments.linked), device=device)

        splits = Splits(*(part(one) for one in self.segments(stream_seed(seed, "data"))))
        self._starts = splits.train[0]
        return splits

    @override
    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The flow of an MLP, of any family; with starts to learn for multiple shooting."""
        settings: dict[str, Any] = {"hidden": self.hidden, "layers": self.layers, "family": family}
        if self.shooting is not None:
            return ShootingNet(self._starts, self.shooting, solver=solver, **settings)
        return TrajectoryNet(len(self.units.scale), solver=solver, **settings)

    @override
    def training_batch(self, batch: Batch, done: float) -> Batch:
        """The first rows of every segment, as many as the horizon has grown to."""
        if self.initial_horizon == 1.0:
            return batch
        start, *after = batch
        grown = min(1.0, done / self.horizon_growth)
        share = self.initial_horizon + (1.0 - self.initial_horizon) * grown
        rows = math.ceil(share * after[0].shape[1] - 1e-9)  # or rounding makes 0.55 of 20 rows 12
        return start, *(part[:, :rows] for part in after)

    @override
    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Normalised states after the starts, shape (B, L, D); of joined segments the gaps, too."""
        start, times, _, _, *index = batch
        states: Tensor = model(start, times, *index)
        return states

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted squared error, and each segment's root mean squared error in physical units.

        ``rmse_beyond`` is that of later times than training sees; only the test split has them.
        The loss includes gaps between segments.
        """
        _, times, targets, weights, *_ = batch
        squares = (outputs - targets).square()
        values = {"loss": (weights * squares).flatten(1).mean(dim=1)}
        squares, weights = squares[:, : times.shape[1]], weights[:, : times.shape[1]]
        physical = squares * outputs.new_tensor(self.units.scale).square()
        beyond = weights * (times * self.units.unit > self.interval * (1 + 1e-6)).unsqueeze(2)
        values["rmse"] = _root_mean(physical, weights)
        if bool(beyond.any()):
            values["rmse_beyond"] = _root_mean(physical, beyond)
        return values

    @override
    def picture(self, title: str, trained: Sequence[Trained]) -> Figure | None:
        """Phase portraits, forecasts beside the truth, and how errors grow."""
        from tasks.forecasts import forecast_figure  # training draws nothing

        return forecast_figure(title, trained, self.units, self.interval)


class SimulatedTrajectories(Forecasting):
    """Trajectories of a known system, from initial states of their own in every split.

    Validation is measured as training is. The test forecasts start from the true state, go beyond
    the interval that training saw, and are compared with the true flow, without noise. Of the
    pendulum only the angle is measured; the velocity, the rest of its state, is estimated from the
    last three angles, and enters no loss.

    Args:
        dataset: a key of :data:`tasks.data.systems.SYSTEMS`.
        trajectories: to train on.
        unseen: trajectories to validate, and as many to test.
        interval: time that a trajectory is measured for.
        points: measurements of a trajectory.
        times: ``regular``, or ``irregular``: drawn, for each trajectory its own.
        noise: standard deviation of the noise, in the system's scale.
        missing: share of the values that are not measured, below 1.
        segment: see :class:`Forecasting`.
        shooting: likewise.
        forecast: time that a test forecast lasts, over the interval.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        initial_horizon: see :class:`Forecasting`.
        horizon_growth: likewise.
        batch_size: segments of a training step.
        eval_batch_size: segments of an evaluation step.

    Raises:
        ValueError: an argument is outside its range.
    """

    provenance = "synthetic by nature: generated from the seed"

    def __init__(
        self,
        dataset: str,
        *,
        trajectories: int,
        interval: float,
        points: int,
        hidden: int,
        batch_size: int,
        layers: int = 2,
        unseen: int = 16,
        times: str = "regular",
        noise: float = 0.0,
        missing: float = 0.0,
        segment: int | None = None,
        shooting: float | None = None,
        forecast: float = 1.5,
        initial_horizon: float = 1.0,
        horizon_growth: float = 0.5,
        eval_batch_size: int = 10000,
    ) -> None:
        for name, value, valid in (
            ("dataset", dataset, SYSTEMS),
            ("times", times, ("regular", "irregular")),
        ):
            if value not in valid:
                raise ValueError(choices(name, value, valid))
        require_positive(trajectories=trajectories, unseen=unseen, points=points, segment=segment)
        if points <= HISTORY:
            raise ValueError(f"points={points}: must be more than {HISTORY}.")
        most = points - HISTORY + 1
        if segment is not None and not 2 <= segment <= most:
            raise ValueError(
                f"segment={segment}: must be from 2, a start and a target, to {most} (points="
                f"{points}), or null for whole trajectories."
            )
        for name, number in (("interval", interval), ("forecast", forecast)):
            if not 0.0 < number < np.inf:
                raise ValueError(f"{name}={number}: must be above 0.")
        if not 0.0 <= noise < np.inf:
            raise ValueError(f"noise={noise}: must be at least 0.")
        if not 0.0 <= missing < 1.0:
            raise ValueError(f"missing={missing}: must be at least 0 and below 1.")
        super().__init__(
            dataset,
            SYSTEMS[dataset].units,
            interval,
            segment=segment,
            shooting=shooting,
            hidden=hidden,
            layers=layers,
            initial_horizon=initial_horizon,
            horizon_growth=horizon_growth,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
        )
        self.trajectories, self.unseen = trajectories, unseen
        self.sampling = Sampling(
            interval,
            points,
            times == "irregular",
            noise,
            missing,
            segment,
            self.cuts,
        )
        rows = max(HISTORY + 1, round(forecast * (points - 1)) + 1)
        step = interval / (points - 1)
        self.forecasts = Sampling((rows - 1) * step, rows)

    @override
    def segments(self, seed: int) -> tuple[Segments, Segments, Segments]:
        """Every split draws from a stream of its own."""
        system = SYSTEMS[self.name]
        draws = [np.random.default_rng([seed, split]) for split in range(3)]
        apart = replace(self.sampling, cuts="apart")
        return (
            simulated(system, self.sampling, self.trajectories, draws[0], first=True),
            simulated(system, apart, self.unseen, draws[1]),
            simulated(system, self.forecasts, self.unseen, draws[2]),
        )


class HareLynx(Forecasting):
    """Hares and lynx of 1900 to 1920: fit the first years, forecast the last.

    Training sees the years to 1912; validation forecasts 1913 to 1916 from 1912, the test 1917 to
    1920 from 1916. Nobody knows the true flow: forecasts are compared with what was counted.

    Args:
        segment: years of a segment, its start among them, that training fits at once; None: all 13.
        shooting: see :class:`Forecasting`.
        hidden: width of the field's hidden layers.
        layers: hidden layers.
        initial_horizon: see :class:`Forecasting`.
        horizon_growth: likewise.
        batch_size: segments of a training step.
        eval_batch_size: segments of an evaluation step.

    Raises:
        ValueError: an argument is outside its range.
    """

    TRAIN, VALID, TEST = slice(0, 13), slice(12, 17), slice(16, 21)

    def __init__(
        self,
        *,
        hidden: int,
        batch_size: int,
        layers: int = 2,
        segment: int | None = None,
        shooting: float | None = None,
        initial_horizon: float = 1.0,
        horizon_growth: float = 0.5,
        eval_batch_size: int = 100,
    ) -> None:
        years = self.TRAIN.stop
        if segment is not None and not 2 <= segment <= years:
            raise ValueError(f"segment={segment}: must be from 2 to {years}, or null for {years}.")
        super().__init__(
            "hare_lynx",
            UNITS,
            interval=years - 1.0,
            segment=segment,
            shooting=shooting,
            hidden=hidden,
            layers=layers,
            initial_horizon=initial_horizon,
            horizon_growth=horizon_growth,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
        )

    @override
    def segments(self, seed: int) -> tuple[Segments, Segments, Segments]:
        """The same for every seed."""
        counted = hare_lynx()
        years = np.arange(float(len(counted)))
        return (
            cut(years[self.TRAIN], counted[self.TRAIN], self.segment, self.cuts),
            cut(years[self.VALID], counted[self.VALID], None),
            cut(years[self.TEST], counted[self.TEST], None),
        )


def _normalised(segments: Segments, units: Units) -> tuple[Any, Any, Any, Any]:
    """A batch's arrays: starts, times, targets and weights."""
    centre, scale = np.array(units.centre), np.array(units.scale)
    targets = np.nan_to_num((segments.targets - centre) / scale)
    measured = np.isfinite(segments.targets)
    measured[..., units.measured :] = False
    if segments.linked is not None:  # the gap to the next one
        row = np.broadcast_to(segments.linked[:, None, None], targets[:, :1].shape)
        targets = np.concatenate([targets, np.zeros_like(row)], axis=1)
        measured = np.concatenate([measured, row], axis=1)
    return (
        (segments.start - centre) / scale,
        segments.times / units.unit,
        targets,
        measured * (measured.size / measured.sum()),
    )


def _root_mean(squares: Tensor, weights: Tensor) -> Tensor:
    """The root of each sample's weighted mean, shape (N,); 0 where no weight is."""
    total = (weights * squares).flatten(1).sum(dim=1)
    return (total / weights.flatten(1).sum(dim=1).clamp_min(1e-12)).sqrt()
