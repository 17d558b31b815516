"""Systems of ODEs over an inner vector field f(t, h): how a Neural ODE's state moves.

The systems are fields for :class:`snopt.ODEBlock`. Signs are those of the papers; the docstrings
say how the released code writes the same system. An example::

    block = ODEBlock(HBNODE(f), t_span=(0.0, 1.0))
    model = nn.Sequential(InitialState(encoder, parts=2), block, FirstPart(), head)
"""

import warnings
from typing import Any

from snopt.dynamics.adaptive import AdamNODE
from snopt.dynamics.elapsed import ElapsedTime
from snopt.dynamics.first_order import ANODE, NODE
from snopt.dynamics.initial import (
    AdamInitialState,
    Augment,
    Constant,
    FirstPart,
    InitialState,
)
from snopt.dynamics.learned_scalars import learned_scalars
from snopt.dynamics.momentum import GHBNODE, HBNODE, SONODE
from snopt.dynamics.nesterov import NesterovNODE
from snopt.dynamics.scalar import LearnedScalar

__all__ = [
    "ANODE",
    "GHBNODE",
    "HBNODE",
    "NODE",
    "SONODE",
    "AdamInitialState",
    "AdamNODE",
    "Augment",
    "Constant",
    "ElapsedTime",
    "FirstPart",
    "InitialState",
    "LearnedScalar",
    "NesterovNODE",
    "learned_scalars",
]


def __getattr__(name: str) -> Any:
    """What had another name in earlier versions."""
    if name == "traces":
        warnings.warn(
            "snopt.dynamics.traces is called snopt.dynamics.learned_scalars now.",
            DeprecationWarning,
            stacklevel=2,
        )
        return learned_scalars
    raise AttributeError(f"module 'snopt.dynamics' has no attribute {name!r}")
