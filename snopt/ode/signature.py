"""How a field is called, ``field(t, x)``, told to one that is written for another call.

Names are read when a block is built. Whatever else is wrong shows at the first evaluation, where
only a field that failed is looked at again.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from snopt.errors import SolverError
from snopt.ode.packing import State, as_tuple

_TIMES = {"t", "time"}
_STATES = {"x", "y", "z", "h", "u", "q", "state", "states", "input", "inputs", "hidden"}


def check_names(field: nn.Module) -> None:
    """Refuse a field whose arguments are named (x, t): time would be taken for the state.

    Raises:
        TypeError: they are.
    """
    first, second = _roles(field)
    # A hook before the call may turn the arguments round.
    if first in _STATES and second in _TIMES and not field._forward_pre_hooks:
        raise TypeError(_swapped(field))


def explain(field: nn.Module, error: Exception, t: Tensor, x: State) -> None:
    """Say what a field that failed in its first evaluation did not expect, where that is known.

    Args:
        field: the field.
        error: what it raised when it was called as ``field(t, x)``.
        t: a scalar.
        x: the state.

    Raises:
        TypeError: its forward takes other arguments, or these the other way round.
        ValueError: it is on the meta device.
    """
    if isinstance(error, SolverError | torch.OutOfMemoryError) or torch.compiler.is_compiling():
        return
    if isinstance(error, TypeError):
        _check_count(field)
    if any(p.device.type == "meta" for p in field.parameters()):
        raise ValueError(
            f"field {_name(field)} has parameters on the meta device, which hold no numbers: "
            "field.to_empty(device=x.device), then initialise or load them"
        ) from error
    if _works_swapped(field, t, x):
        raise TypeError(_swapped(field)) from error
    time = f"t of shape {tuple(t.shape)}, a time for each sample," if t.ndim else "a scalar t"
    shapes = ", ".join(f"{tuple(part.shape)} of {part.dtype}" for part in as_tuple(x))
    error.add_note(
        f"In the first evaluation of field {_name(field)}, called as field(t, x) with {time} "
        f"and x of shape {shapes} on {t.device}."
    )


def _works_swapped(field: nn.Module, t: Tensor, x: State) -> bool:
    first, second = _roles(field)
    if first in _TIMES or second in _STATES:
        return False
    try:
        with torch.no_grad():
            slopes: Any = field(x, t)
        return [part.shape for part in as_tuple(slopes)] == [part.shape for part in as_tuple(x)]
    except Exception:
        return False


def _roles(field: nn.Module) -> tuple[str, str]:
    """The names of the first two arguments without their decoration; empty where there are none."""
    names = [name.strip("_0123456789").lower() for name in _names(field)]
    first, second, *_ = [*names, "", ""]
    return first, second


def _check_count(field: nn.Module) -> None:
    try:
        signature = inspect.signature(field.forward)
    except (TypeError, ValueError):
        return  # compiled code may hide its arguments
    try:
        signature.bind(None, None)
    except TypeError:
        pass
    else:
        return
    wrapped = (
        f"`def forward(self, t, x): return self.net(x)`, self.net the {_name(field)}"
        if _takes_one(signature)
        else f"`def forward(self, t, x): return self.net(...)`, self.net the {_name(field)}, which "
        "also holds what the other arguments were"
    )
    raise TypeError(
        f"field {_name(field)} has forward{signature}, but a field is called as field(t, x): "
        f"wrap it in a module with {wrapped}"
    ) from None


def _takes_one(signature: inspect.Signature) -> bool:
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def _names(field: nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(field.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _swapped(field: nn.Module) -> str:
    names = _names(field)[:2]
    taken = f"has forward({', '.join(names)})" if len(names) == 2 else "works as field(x, t)"
    return (
        f"field {_name(field)} {taken}, state first, but a field is called as field(t, x), time "
        "first: write `def forward(self, t, x)`"
    )


def _name(field: nn.Module) -> str:
    return type(field).__name__
