"""Methods of integration: by name, those of torchdiffeq and of our own tableaus, or as objects."""

from __future__ import annotations

from snopt.ode.methods.base import Method, OnStep, Problem, Statistics
from snopt.ode.methods.equal_steps import EqualSteps
from snopt.ode.methods.torchdiffeq import NAMES, Torchdiffeq
from snopt.ode.methods.torchode import Torchode
from snopt.ode.runge_kutta import TABLEAUS

__all__ = [
    "EqualSteps",
    "Method",
    "OnStep",
    "Problem",
    "Statistics",
    "Torchdiffeq",
    "Torchode",
    "chosen",
    "options_of",
]


def chosen(method: str | Method, steps: int | None = None) -> Method:
    """The method that a block's arguments choose.

    Args:
        method: the name of a method of torchdiffeq or of a tableau, or a method.
        steps: that many equal steps per output interval instead of the method's own.

    Raises:
        ValueError: there is none of this name, or it cannot take such steps.
    """
    check_method(method)
    if steps is not None:
        if not isinstance(method, str) or method not in TABLEAUS:
            raise ValueError(
                f"steps={steps} needs an explicit Runge-Kutta method, not {str(method)!r}; "
                f"choose one of {', '.join(TABLEAUS)}"
            )
        return EqualSteps(method, TABLEAUS[method], steps)
    if isinstance(method, Method):
        return method
    if method not in NAMES:
        raise ValueError(
            f"method={method!r} is a tableau that torchdiffeq does not know, and takes equal steps "
            "alone: add options={'steps': ...}, their number"
        )
    return Torchdiffeq(method)


def check_method(method: object) -> None:
    """Refuse what is no method.

    Raises:
        ValueError: neither torchdiffeq nor the table of tableaus has one of this name.
    """
    known = {*NAMES, *TABLEAUS}
    if not isinstance(method, Method) and not (isinstance(method, str) and method in known):
        raise ValueError(
            f"method={method!r}; choose one of {', '.join(sorted(known))}, or pass an object of a "
            "subclass of snopt.ode.methods.Method"
        )


def options_of(method: str | Method) -> frozenset[str]:
    """Names of the options that a method takes, beside those of every block."""
    check_method(method)
    if isinstance(method, Method):
        return method.options
    return Torchdiffeq(method).options if method in NAMES else frozenset()
