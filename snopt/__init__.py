"""Second-order optimisation of Neural ODEs on released torchdiffeq.

Source: Liu, Chen and Theodorou, Second-Order Neural ODE Optimizer, NeurIPS 2021.
"""

import warnings
from typing import Any

from snopt import dynamics, exact
from snopt.advice import Advice, Candidate, GradientError, advise, gradient_error
from snopt.errors import FactorizationError, SolverError
from snopt.kronecker_error import KroneckerErrors, LayerError, kronecker_error
from snopt.ode.block import ODEBlock, load_solver_state, solver_state
from snopt.optim.coverage import Coverage
from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.horizon import Horizon
from snopt.optim.named import KFAC, GaussNewton
from snopt.optim.optimizer import SNOpt
from snopt.optim.standalone import SNOptPreconditioner

__version__ = "0.1.0"

__all__ = [
    "KFAC",
    "Advice",
    "Candidate",
    "Coverage",
    "FactorizationError",
    "GaussNewton",
    "GradientError",
    "Horizon",
    "KroneckerErrors",
    "LayerError",
    "LevenbergMarquardt",
    "ODEBlock",
    "SNOpt",
    "SNOptPreconditioner",
    "SolverError",
    "advise",
    "dynamics",
    "exact",
    "gradient_error",
    "kronecker_error",
    "load_solver_state",
    "solver_state",
]

_RENAMED = {
    "check": "kronecker_error",
    "Deviation": "KroneckerErrors",
    "LayerDeviation": "LayerError",
}


def __getattr__(name: str) -> Any:
    """What had another name in earlier versions."""
    if name in _RENAMED:
        warnings.warn(
            f"snopt.{name} is called snopt.{_RENAMED[name]} now.", DeprecationWarning, stacklevel=2
        )
        return globals()[_RENAMED[name]]
    raise AttributeError(f"module 'snopt' has no attribute {name!r}")
