"""What a gradient method is, for those who choose one: how it solves, and what it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snopt.ode.gradients.context import SolveContext
from snopt.ode.methods import Method
from snopt.ode.runge_kutta import TABLEAUS


@dataclass(frozen=True)
class Gradient:
    """A gradient method, a row of :data:`snopt.ode.gradients.GRADIENTS`.

    Attributes:
        solve: takes (context, y0, t), t of shape (T,) in float64 on the CPU; returns the states at
            these times, (T, *y0.shape), differentiable in y0 and the parameters.
            :func:`snopt.ode.gradients.detached.detached` makes one of a forward and a backward
            function.
        through_layers: the backward pass goes through every use of a layer, so that there are
            per-sample gradients.
        through_solver: the graph is that of the solver's operations and nothing else, so that equal
            steps may be unrolled by whoever compiles or exports them.
        repeats_steps: the backward pass takes single steps once more, so that they must be
            functions of (t, dt, y) alone.
    """

    solve: Callable[[SolveContext, Tensor, Tensor], Tensor]
    through_layers: bool = False
    through_solver: bool = False
    repeats_steps: bool = False

    def check(self, name: str, method: Method, passed: Mapping[str, Any]) -> None:
        """Refuse a method, or options of its, that this gradient does not go with.

        Args:
            name: of this gradient.
            method: the solver's.
            passed: options that are the method's.

        Raises:
            ValueError: it does not; the message names what does.
        """
        if self.repeats_steps and method.tableau is None:
            raise ValueError(
                f"gradient={name!r} repeats single steps, which {method.name!r} does not allow; "
                f"choose method from {', '.join(TABLEAUS)}, or another gradient"
            )
        if self.repeats_steps and (exposed := sorted({"jump_t", "perturb"} & passed.keys())):
            raise ValueError(
                f"options: {', '.join(exposed)}: gradient={name!r} repeats steps without "
                "them, which is another solve; choose gradient='direct' or 'adjoint'"
            )
        if self.through_solver and not method.differentiable:
            raise ValueError(
                f"gradient={name!r} goes through the solver's operations, and {method.name!r} does "
                "not work on tensors with a graph: choose gradient='adjoint', or another method"
            )
