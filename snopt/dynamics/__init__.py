"""Systems of ODEs over an inner vector field f(t, h): how a Neural ODE's state moves.

Each class is a field for :class:`snopt.ODEBlock`. Signs are the papers'; the docstrings say how
the released code writes the same system.

    block = ODEBlock(HBNODE(f), t_span=(0.0, 1.0))
    model = nn.Sequential(InitialState(encoder, parts=2), block, FirstPart(), head)
"""

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
from snopt.dynamics.momentum import GHBNODE, HBNODE, SONODE
from snopt.dynamics.scalar import LearnedScalar
from snopt.dynamics.traces import traces

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
    "traces",
]
