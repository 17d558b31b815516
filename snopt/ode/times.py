"""Times as a caller gives them, checked: a block's span, and the output times of one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from snopt.arguments import number_of

_WITHOUT_FLOAT64 = {"mps"}
"""Kinds of device on which no float64 tensor can be made."""


def time_dtype(device: torch.device) -> torch.dtype:
    """What times on this device are kept in: float64 where it has it (Apple's GPUs do not)."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def span_of(t_span: Any) -> tuple[float, float]:
    """Start and end time as numbers.

    Args:
        t_span: two different finite times.

    Raises:
        TypeError: ``t_span`` is no pair of numbers.
        ValueError: the times are equal or not finite, or want a gradient.
    """
    if isinstance(t_span, str | bytes | Mapping | Set):
        raise TypeError(
            f"t_span={t_span!r} is a {type(t_span).__name__}; expected start and end time, "
            "e.g. (0.0, 1.0)"
        )
    try:
        times = tuple(t_span)
    except TypeError:
        one = number_of(t_span) or 1.0
        raise TypeError(
            f"t_span={t_span!r}; expected start and end time, e.g. (0.0, {one!r})"
        ) from None
    if _wants_gradient(t_span) or any(_wants_gradient(t) for t in times):
        raise ValueError(
            "t_span holds a tensor that requires a gradient, but times are not trained by "
            "backpropagation: pass numbers, and let snopt.Horizon(block, optimizer) move the end"
        )
    if len(times) != 2:
        raise ValueError(
            f"t_span={times}; expected two different finite times: for states at times in between "
            "call block(x, t)"
        )
    try:
        if any(isinstance(t, str | bytes | bool) for t in times):
            raise TypeError
        start, end = (float(t) for t in times)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"t_span={times}; expected two numbers, e.g. (0.0, 1.0)") from None
    if not (math.isfinite(start) and math.isfinite(end)) or start == end:
        raise ValueError(f"t_span={times}; expected two different finite times")
    return start, end


def times_of(t: Tensor | Sequence[float]) -> Tensor:
    """Output times, float64 on the CPU.

    Args:
        t: strictly monotone finite times of shape (T,), T >= 2, on any device.

    Raises:
        TypeError: ``t`` holds no real numbers.
        ValueError: shape, order or values are not those, or a gradient is wanted.
    """
    if _wants_gradient(t) or (
        isinstance(t, list | tuple) and any(_wants_gradient(time) for time in t)
    ):
        raise ValueError("gradients with respect to times are not computed; detach t")
    try:
        given = torch.as_tensor(t)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            "t must be a tensor or a sequence of times, e.g. [0.0, 1.0], got a "
            f"{type(t).__name__}: {_shown(t)}"
        ) from None
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"t must hold real numbers, got {given.dtype}")
    # Read again from what was given: numbers of Python have more digits than the default dtype.
    times = (
        given if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device="cpu")
    )
    times = times.detach().cpu().to(torch.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"t must have shape (T,) with T >= 2, got {tuple(times.shape)}: the first entry is the "
            "time of x itself, e.g. block(x, [0.0, 1.0]), and all samples share the times; for "
            "times of their own, solve over (0, 1) and multiply the field by each sample's interval"
        )
    if not bool(torch.isfinite(times).all()):
        raise ValueError(f"t must be finite, got {times.tolist()}")
    gaps = times.diff()
    if not (bool((gaps > 0).all()) or bool((gaps < 0).all())):
        raise ValueError("t must be strictly increasing or strictly decreasing")
    return times


def _shown(t: object) -> str:
    text = repr(t)
    return text if len(text) <= 60 else text[:57] + "..."


def _wants_gradient(t: object) -> bool:
    return isinstance(t, Tensor) and t.requires_grad
