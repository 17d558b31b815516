"""Random numbers that are not torch's: a way back draws other ones, so a field's are told of.

Reading NumPy's and Python's states takes a few tenths of a millisecond, so a field is looked at
until one solve has drawn none.
"""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

_QUIET: WeakSet[nn.Module] = WeakSet()
"""Fields of which a solve was seen to draw none."""


def other_states(field: nn.Module) -> list[Any] | None:
    """States of the generators that a field may draw from beside torch's: global or held.

    Returns:
        Something to compare; ``None`` for a field that is known to draw none.
    """
    if field in _QUIET or torch.compiler.is_compiling():
        return None
    states: list[Any] = [random.getstate()]
    held = [x for m in field.modules() for x in vars(m).values()]
    states += [x.getstate() for x in held if isinstance(x, random.Random)]
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:  # nobody draws from what was not imported
        states.append(numpy.get_state(legacy=False))
        states += [x.get_state(legacy=False) for x in held if isinstance(x, numpy.RandomState)]
        states += [x.bit_generator.state for x in held if isinstance(x, numpy.Generator)]
    return [_comparable(state) for state in states]


def tell_of_draws(field: nn.Module, gradient: str, before: list[Any] | None) -> None:
    """Warn if a solve has drawn such numbers.

    Args:
        field: the module.
        gradient: how the solve is differentiated.
        before: what :func:`other_states` returned before the solve.
    """
    if before is None:
        return
    if before == other_states(field):
        _QUIET.add(field)
        return
    warnings.warn(
        f"field {type(field).__name__} draws random numbers of NumPy or Python, other ones on the "
        f"way back, so that gradient={gradient!r} is not the gradient of what was computed: choose "
        "gradient='direct', draw torch's with gradient='checkpoint', or draw them before each "
        "solve and set them on the field",
        stacklevel=2,
    )


def _comparable(state: Any) -> Any:
    """A state whose arrays are bytes."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state
