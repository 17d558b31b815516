"""Recurrent networks around the families, for irregularly sampled sequences of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snopt import ODEBlock
from snopt.dynamics import ElapsedTime, LearnedScalar
from tasks.models.families import Family, build_system, find_family
from tasks.models.family_nets import Autonomous, Mlp

State = tuple[Tensor, ...]


class _Recurrent(nn.Module):
    """A family's system solved over one observation interval after the other.

    The parts h and m of a state take observations in; AdamNODE's third part v = m² at the start and
    then moves with the system only.
    """

    def __init__(
        self,
        record: Family,
        width: int,
        system: nn.Module,
        solver: Mapping[str, Any],
        as_published: bool,
    ) -> None:
        super().__init__()
        self.one_unit = as_published and record.ignores_gaps_as_published
        self.width, self.parts, self.open_parts = width, record.parts, record.open_parts
        self.block = ODEBlock(ElapsedTime(system), (0.0, 1.0), **solver)

    def evolve(self, state: State, elapsed: Tensor) -> State:
        """The state after ``elapsed``, one time for each sample."""
        if self.one_unit:
            elapsed = torch.ones_like(elapsed)
        return tuple(self.block((*state, elapsed))[:-1])

    def begin(self, joined: Tensor) -> State:
        """A state from h and m side by side, (N, open_parts · width)."""
        state = joined.chunk(self.open_parts, dim=1)
        return (*state, state[1].square()) if self.parts == 3 else state

    def join(self, state: State) -> Tensor:
        """Position and momentum side by side."""
        return torch.cat(state[: self.open_parts], dim=1)

    def replace(self, state: State, joined: Tensor) -> State:
        """The state with its h and m exchanged."""
        return (*joined.chunk(self.open_parts, dim=1), *state[self.open_parts :])


class VibrationNet(_Recurrent):
    """Follows a window of measurements and forecasts the points after it.

    A linear map of the whole window is the initial state. Every point is added to the state
    linearly, and the system carries it to the next point; at the end the system runs on alone.

    Args:
        family: the ``model`` configuration.
        channels: width of a point.
        window: points of a window.
        horizon: points of the forecast, one sampling interval apart, the first at the window's end.
        solver: keyword arguments of :class:`snopt.ODEBlock`.
        shrink: multiplies all weights at the start, but not the systems' learned scalars. The state
            passes 64 residual maps; from 0.1 on it is in the ten thousands at their end.
        as_published: SONODE takes every gap for one sampling interval, as in the released code.

    Source: Xia et al. 2021, plane vibration; AdamNODE's sizes are HBNODE's.
    """

    def __init__(
        self,
        family: Mapping[str, Any],
        *,
        channels: int = 5,
        window: int = 64,
        horizon: int = 8,
        solver: Mapping[str, Any],
        shrink: float = 0.01,
        as_published: bool = False,
    ) -> None:
        record = find_family(family)
        (n,), parts = record.size("vibration"), record.open_parts
        seen = record.inputs(n)
        inside = [3 * n, 4 * n] if record.parts == 1 else [seen, n]
        inner = Autonomous(Mlp([seen, *inside, n], nn.ReLU))
        system = build_system(family, inner, "vibration")
        super().__init__(record, n, system, solver, as_published)
        self.horizon = horizon
        self.encoder = nn.Linear(channels * window, channels if record.extra else parts * n)
        self.from_state = nn.ModuleList(nn.Linear(n, parts * n) for _ in range(parts))
        self.from_input = nn.Linear(channels, parts * n)
        self.head = nn.Linear(n, channels)
        _shrink(self, shrink)

    def forward(
        self, points: Float[Tensor, "n w c"], elapsed: Float[Tensor, "n w"]
    ) -> Float[Tensor, "n k c"]:
        """Three groups of points, one after the other along the second dimension.

        Args:
            points: the window.
            elapsed: time from each point to the next, in sampling intervals.

        Returns:
            What the head makes of the state after each point (w of them, to match ``points``),
            before each next point (w), and along the forecast (``horizon``).
        """
        start = self.encoder(points.flatten(1))
        further = start.new_zeros(len(start), self.open_parts * self.width - start.shape[1])
        state = self.begin(torch.cat([start, further], dim=1))
        from_input = self.from_input(points).unbind(dim=1)
        after, before = [], []
        for seen, gap in zip(from_input, elapsed.unbind(dim=1), strict=True):
            joined = self.join(state) + seen
            for layer, part in zip(self.from_state, state[: self.open_parts], strict=True):
                joined = joined + layer(part)
            state = self.replace(state, joined)
            after.append(state[0])
            state = self.evolve(state, gap)
            before.append(state[0])
        times = torch.arange(self.horizon, dtype=torch.float64)
        ahead = self.block((*state, torch.ones_like(elapsed[:, 0])), times)[0]
        read = [torch.stack(after, dim=1), torch.stack(before, dim=1), ahead.transpose(0, 1)]
        out: Tensor = self.head(torch.cat(read, dim=1))
        return out


class WalkerNet(_Recurrent):
    """Predicts the next frame of a simulated walker from the frames so far, some of them missing.

    Args:
        family: the ``model`` configuration.
        channels: width of a frame.
        solver: keyword arguments of :class:`snopt.ODEBlock`.
        as_published: what the released code lets each family see. There NODE and ANODE predict
            frame i + 1 from frames before i, the others from frames up to i, which then travel the
            gap before frame i instead of the one after it, and SONODE takes every gap for a whole
            unit, 64 frames. The default gives every family frames up to i: the state travels the
            gap before frame i, takes it in, and predicts.

    Source: Xia et al. 2021; data and splits of Lechner and Hasani, Learning Long-Term Dependencies
    in Irregularly-Sampled Time Series, 2020. AdamNODE's sizes are HBNODE's.
    """

    def __init__(
        self,
        family: Mapping[str, Any],
        *,
        channels: int = 17,
        solver: Mapping[str, Any],
        as_published: bool = False,
    ) -> None:
        record = find_family(family)
        (n,) = record.size("walker")
        inner = Autonomous(nn.Linear(record.inputs(n), n))
        system = build_system(family, inner, "walker")
        super().__init__(record, n, system, solver, as_published)
        first_order = self.parts == 1
        widths = [n, 3 * n, 2 * n, n] if first_order else [2 * n] * 4
        self.cell = Mlp([channels + widths[0], *widths[1:]], nn.Tanh)
        self.encoder = nn.Linear(channels, 5) if record.extra else None
        self.head = nn.Linear(n, channels)
        self.absorb_first = as_published and not first_order
        self.predict_first = as_published and first_order

    def forward(
        self, frames: Float[Tensor, "n t c"], elapsed: Float[Tensor, "n t"]
    ) -> Float[Tensor, "n t c"]:
        """For each frame a prediction of the one that follows it.

        Args:
            frames: the frames that are left.
            elapsed: time from the frame before, in the solver's unit.
        """
        start = frames.new_zeros(len(frames), self.open_parts * self.width)
        if self.encoder is not None:
            first = self.encoder(frames[:, 0])
            start = torch.cat([first, start[:, first.shape[1] :]], dim=1)
        state = self.begin(start)
        read = []
        for index, (frame, gap) in enumerate(
            zip(frames.unbind(dim=1), elapsed.unbind(dim=1), strict=True)
        ):
            if self.predict_first:
                read.append(state[0])
            if self.absorb_first:
                state = self.evolve(self._absorb(state, frame), gap)
            else:
                # Nothing has been seen before the first frame.
                state = self._absorb(self.evolve(state, gap) if index else state, frame)
            if not self.predict_first:
                read.append(state[0])
        out: Tensor = self.head(torch.stack(read, dim=1))
        return out

    def _absorb(self, state: State, frame: Tensor) -> State:
        joined = self.join(state)
        new = self.cell(torch.cat([frame, joined], dim=1))
        return self.replace(state, new if self.parts == 1 else joined + new)


def _shrink(model: nn.Module, factor: float) -> None:
    """Multiply all weights, but not the learned scalars, whose raw numbers are not weights."""
    if not 0.0 < factor <= 1.0:
        raise ValueError(f"shrink={factor!r}; expected a factor in (0, 1]")
    scalars = {
        id(p) for m in model.modules() if isinstance(m, LearnedScalar) for p in m.parameters()
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in scalars:
                parameter.mul_(factor)
