"""A run's solvers tried on something tiny, before any data are touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import snopt
from tasks.common.checks import ConfigError
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.build import call


def check_solver(settings: Settings) -> None:
    """Try the solvers on something tiny: torchdiffeq looks at its options when it solves.

    Raises:
        ConfigError: one refuses a value.
    """
    config = settings.config["solver"]
    _try_solver("solver", settings.solver(), config)
    if (evaluation := settings.evaluation_solver()) is not None:
        _try_solver("solver.evaluation", evaluation, config["evaluation"])


@torch.enable_grad()
def _try_solver(where: str, solver: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    options = dict(solver["options"] or {})
    call(where, snopt.ODEBlock, _Decay(), (0.0, 1.0), **solver)
    quick = {**solver, "options": {k: v for k, v in options.items() if k != "compile"}}
    block = snopt.ODEBlock(_Decay(), (0.0, 0.01), **quick)
    try:
        block(torch.ones(1, 1)).sum().backward()
    except snopt.SolverError:  # that one solve fails says nothing of the next
        pass
    except Exception as error:  # whatever a method makes of options of another type
        given = ", ".join(f"{key}={value}" for key, value in config.items())
        raise ConfigError(
            f"{where}: a solve with these settings cannot be made: {error}. Given: {given}"
        ) from error


class _Decay(nn.Module):
    """Exponential decay, which every solver can solve."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1, 1))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -self.rate * x
