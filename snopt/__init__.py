"""Second-order optimisation of Neural ODEs on released torchdiffeq.

Source: Liu, Chen and Theodorou, Second-Order Neural ODE Optimizer, NeurIPS 2021.
"""

from snopt.check import Deviation, LayerDeviation, check
from snopt.errors import FactorizationError, SolverError
from snopt.ode.block import ODEBlock, load_solver_state, solver_state
from snopt.optim.coverage import Coverage
from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.horizon import Horizon
from snopt.optim.optimizer import SNOpt
from snopt.optim.standalone import SNOptPreconditioner

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
