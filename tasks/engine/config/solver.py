"""Settings of the solver of every ODE block, and of the one that evaluations may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tasks.common.checks import Section, require_choice

DEFAULT_MAX_STEPS = 1000
"""Steps tried per output interval where a run does not say how many; the library's own default is
a million, which an exploding field takes hours for."""

GRADIENTS = ("adjoint", "adjoint-seminorm", "checkpoint", "direct")
ON_FAILURE = ("raise", "partial", "skip_step")


@dataclass(frozen=True)
class Solver(Section):
    """How to solve; ``conf/solver/default.yaml`` explains each key."""

    #: Those that are options of :class:`snopt.ODEBlock`.
    OPTIONS: ClassVar = ("steps", "max_steps", "warm_start", "compile", "on_failure")

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    steps: int | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._at_least(0, "rtol", "atol")
        self._at_least(1, "steps", "max_steps")
        for key in self.options or {}:
            if key in self.OPTIONS:
                raise ValueError(f"options.{key}: is a key of the solver; write solver.{key}=...")


@dataclass(frozen=True)
class EvaluationSolver(Solver):
    """The solver of evaluations alone, tight where it says no more."""

    rtol: float = 1e-6
    atol: float = 1e-6


@dataclass(frozen=True)
class SolverSettings(Solver):
    """The solver of every ODE block."""

    gradient: str = "adjoint"
    warm_start: bool = False
    compile: bool = False
    on_failure: str = "raise"
    evaluation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("on_failure", self.on_failure, ON_FAILURE)

    @classmethod
    def read(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Read the section, and that of the evaluations in it."""
        settings = super().read(where, values)
        if settings.evaluation is not None:
            EvaluationSolver.read(f"{where}.evaluation", settings.evaluation)
        return settings


def block_arguments(solver: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of :class:`snopt.ODEBlock`, our options merged with torchdiffeq's.

    Args:
        solver: the section, checked before.
    """
    kept = {key: value for key, value in solver.items() if key != "evaluation"}
    options = dict(kept.pop("options", None) or {})
    # Skipping a step is the training loop's business: to the block it is a failure like any.
    if kept.pop("on_failure", "raise") == "partial":
        options["on_failure"] = "partial"
    for key in ("steps", "max_steps", "warm_start", "compile"):
        value = kept.pop(key, None)
        if value is not None and value is not False:
            options[key] = value
    if "max_steps" not in options and _may_never_end(kept.get("method"), options.get("steps")):
        options["max_steps"] = DEFAULT_MAX_STEPS
    return {**kept, "options": options or None}


def _may_never_end(method: Any, steps: int | None) -> bool:
    """Whether a solve chooses its steps and counts them."""
    from snopt.ode.methods import chosen  # checking a configuration needs no torch

    try:
        integrator = chosen(method or "dopri5", steps)
    except ValueError:  # which making the block says, with the key's name
        return False
    return integrator.adaptive and integrator.reports_steps
