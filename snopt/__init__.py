"""Second-order optimisation of Neural ODEs on released torchdiffeq.

Source: Liu, Chen and Theodorou, Second-Order Neural ODE Optimizer, NeurIPS 2021.
"""

from snopt.block import ODEBlock, load_solver_state, solver_state
from snopt.check import Deviation, LayerDeviation, check
from snopt.coverage import Coverage
from snopt.damping import LevenbergMarquardt
from snopt.errors import FactorizationError, SolverError
from snopt.horizon import Horizon
from snopt.optimizer import SNOpt
from snopt.standalone import SNOptPreconditioner

__all__ = [
    "Coverage",
    "Deviation",
    "FactorizationError",
    "Horizon",
    "LayerDeviation",
    "LevenbergMarquardt",
    "ODEBlock",
    "SNOpt",
    "SNOptPreconditioner",
    "SolverError",
    "check",
    "load_solver_state",
    "solver_state",
]
