"""A solver's state is one tensor; a model's may be a tuple. This maps between the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.ode.tracing import numbers_are_hidden

State = Tensor | tuple[Tensor, ...]
"""What a field sees: one tensor, or a tuple of tensors."""


class Layout:
    """The shapes behind one flat tensor.

    Args:
        shapes: shape of every part, or ``None`` for a state that is one tensor and stays as it is.
    """

    def __init__(self, shapes: Sequence[torch.Size] | None) -> None:
        self.shapes = shapes
        self.sizes = None if shapes is None else [math.prod(shape) for shape in shapes]

    @classmethod
    def of(cls, state: State) -> Layout:
        """The layout of a given state."""
        return cls(None if isinstance(state, Tensor) else [part.shape for part in state])

    def pack(self, state: State) -> Tensor:
        """One tensor that holds all parts."""
        if isinstance(state, Tensor):
            return state
        return torch.cat([part.reshape(-1) for part in state])

    def unpack(self, flat: Tensor) -> State:
        """The state behind ``flat``; leading dimensions of ``flat`` (times) are kept."""
        if self.shapes is None or self.sizes is None:
            return flat
        lead = flat.shape[:-1]
        parts = torch.split(flat, self.sizes, dim=-1)
        return tuple(
            part.reshape((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)
        )

    def norm(self, flat: Tensor) -> Tensor:
        """The error norm of torchdiffeq: root mean square, the largest over a tuple's parts.

        It chooses steps, and a choice has no gradient: that of a root is infinite at zero, where a
        velocity or a log-density starts. Parts without elements have no error.
        """
        flat = flat.detach()
        if self.shapes is None and flat.numel():
            return _rms(flat)
        parts = self.unpack(flat)
        norms = [_rms(part) for part in as_tuple(parts) if part.numel()]
        if not norms:
            return torch.zeros((), dtype=flat.dtype, device=flat.device)
        return norms[0] if len(norms) == 1 else torch.stack(norms).max()


def _rms(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()


def as_tuple(state: State) -> tuple[Tensor, ...]:
    """The parts of a state."""
    return (state,) if isinstance(state, Tensor) else state


_SOLVED = {torch.float32, torch.float64}
"""Dtypes of a state that is solved as it is."""


def checked(state: Any) -> State:
    """An initial state as a solve can take it.

    Args:
        state: a tensor (N, ...), or a tuple or list of them.

    Returns:
        The same, a list as a tuple. Under autocast, half precision has become float32.

    Raises:
        TypeError: it is something else, or not of one floating-point dtype.
        ValueError: its parts are on several devices or have different numbers of samples.
    """
    if isinstance(state, Tensor) and state.dtype in _SOLVED and _is_plain(state):
        return state
    if isinstance(state, dict):
        raise TypeError("the state is a dict; pass a tuple of tensors, e.g. tuple(x.values())")
    parts = [state] if isinstance(state, Tensor) else state
    if not isinstance(parts, tuple | list) or not parts:
        raise TypeError(
            f"the state must be a tensor or a tuple of tensors, got {type(state).__name__}"
        )
    for i, part in enumerate(parts):
        which = "the state" if isinstance(state, Tensor) else f"part {i} of the state"
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{which} is a {type(part).__name__}; expected a flat tuple of tensors, "
                "e.g. (a, b, c) instead of (a, (b, c))"
            )
        _check_floating(which, part)
        _check_plain(which, part)
    parts = [_autocast(part) for part in parts]
    if isinstance(state, Tensor):
        return parts[0]
    _check_alike(parts)
    return tuple(parts)


def _check_floating(which: str, part: Tensor) -> None:
    if part.is_complex():
        raise TypeError(
            f"{which} must be floating point, got {part.dtype}: pass torch.view_as_real(x), "
            "whose last dimension holds real and imaginary part"
        )
    if not part.is_floating_point():
        raise TypeError(f"{which} must be floating point, got {part.dtype}: pass x.float()")


def _is_plain(part: Tensor) -> bool:
    """Whether it has a shape, and a number at every place."""
    return part.layout is torch.strided and not part.is_nested and part.device.type != "meta"


def _check_plain(which: str, part: Tensor) -> None:
    if _is_plain(part):
        return
    if part.is_nested:
        raise TypeError(
            f"{which} is a nested tensor, whose samples have several shapes: pass "
            "x.to_padded_tensor(0.0), and let the field leave the padding alone"
        )
    if part.device.type == "meta":
        raise TypeError(
            f"{which} is on the meta device, which holds no numbers, so that nothing can be "
            "solved: pass a tensor on a real device, and model.to_empty(device=...) first if the "
            "model is there too"
        )
    raise TypeError(
        f"{which} is of layout {part.layout}, but the slopes that are added to it are dense: pass "
        "x.to_dense()"
    )


def _autocast(part: Tensor) -> Tensor:
    """As autocast does for sums and norms: in float32."""
    low = part.element_size() < 4
    return part.float() if low and torch.is_autocast_enabled(part.device.type) else part


def _check_alike(parts: Sequence[Tensor]) -> None:
    for what, kinds in (
        ("dtypes", {str(part.dtype) for part in parts}),
        ("devices", {str(part.device) for part in parts}),
    ):
        if len(kinds) > 1:
            raise (TypeError if what == "dtypes" else ValueError)(
                f"the parts of the state have different {what}, {', '.join(sorted(kinds))}: "
                "convert them, e.g. part.to(x)"
            )
    sizes = {part.shape[0] for part in parts if part.ndim} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"the parts of the state have first dimensions {[p.shape[:1].numel() for p in parts]}; "
            "it is the sample in every part: for what all samples share, pass one row, "
            "c.unsqueeze(0), or one for each sample, c.expand(N, -1)"
        )


def all_finite(x: Tensor) -> bool:
    """Whether every element is finite; not looked at, and so True, where tensors hold no numbers.

    That is while a compiler or :func:`torch.export.export` traces, and under
    :func:`torch.func.vmap`.
    """
    if numbers_are_hidden():
        return True
    x = x.detach()
    # One pass over the elements instead of five; a sum of finite numbers may overflow, though.
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def is_vector(state: State) -> bool:
    """Whether no part has a second dimension: N samples of one number, or a single sample."""
    return all(part.ndim <= 1 for part in as_tuple(state))


def batch_size(state: State) -> int:
    """Samples in a state: the first dimension of its parts (1 if none has one).

    Parts with a single row, which all samples share, do not count beside others.
    """
    rows = [int(part.shape[0]) for part in as_tuple(state) if part.ndim]
    return next((n for n in rows if n != 1), 1)
