"""Functions compiled by ``torch.compile``, with the eager ones behind them; a Runge-Kutta step.

Time and step length are tensors, so new values compile nothing. Where no compiler works, one
warning is given and the eager function is used from then on.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from snopt.ode.runge_kutta import Field, Tableau, step

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class CompileClock:
    """Seconds spent in calls that compiled something, over the whole process."""

    seconds = 0.0


def compiled_step(field: Field, tableau: Tableau) -> Callable[[Tensor, Tensor], Tensor]:
    """One step ``(row of stage times, y) -> y(t + dt)``, compiled on first use per shape.

    Args:
        field: called as ``field(t, y)``, y one tensor.
        tableau: of an explicit Runge-Kutta method.
    """

    def eager(row: Tensor, y: Tensor) -> Tensor:
        return step(field, row, y, tableau)

    return Compiled(eager, "the step")


class Compiled(Generic[P, T]):
    """Calls the compiled function; after its first failure, the eager one.

    Args:
        eager: a pure function of tensors, given by position.
        what: its name in the warning.
        dynamic: as :func:`torch.compile` takes it; ``False`` compiles for every shape apart.
    """

    def __init__(self, eager: Callable[P, T], what: str, *, dynamic: bool | None = None) -> None:
        self.eager, self.what = eager, what
        self.compiled: Callable[P, T] | None = torch.compile(eager, dynamic=dynamic)
        self.seen: set[tuple[object, ...]] = set()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's value."""
        if self.compiled is None:
            return self.eager(*args, **kwargs)
        key = (torch.is_grad_enabled(), *(_kind(x) for x in args))
        if key in self.seen:
            return self.compiled(*args, **kwargs)
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                # The compiler asks every input for a gradient, which torch warns of.
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
                out = self.compiled(*args, **kwargs)
        except Exception as error:
            logger.warning(
                "torch.compile failed (%s: %s); %s runs uncompiled from here on",
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "no message",
                self.what,
            )
            self.compiled = None
            return self.eager(*args, **kwargs)
        finally:
            CompileClock.seconds += time.perf_counter() - begin
        self.seen.add(key)
        return out


def _kind(x: object) -> tuple[object, ...]:
    """What a graph is compiled for, of one argument."""
    if isinstance(x, Tensor):
        return (x.shape, x.dtype, x.device, x.requires_grad, x.is_leaf)
    return (type(x),)
