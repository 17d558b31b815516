"""Whose backward pass it is: the loss's, which adds to gradients, or a derivative of something else.

Hooks fire in every backward pass that comes by: in ``loss.backward()``, but also in derivatives
that a model takes of itself (Hamiltonian fields, divergences, gradient penalties) and in the
solves that an adjoint method makes on its own. What is to be counted goes where gradients go.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge


class Pass(Enum):
    """What a backward pass is for."""

    LOSS = "adds to the parameters' gradients, as backward() does"
    GRADIENTS = "returns gradients of the parameters, as autograd.grad(loss, parameters) does"
    INNER = "a derivative with respect to something else, or one to be differentiated again"


def current_pass() -> int:
    """The number of the backward pass that runs now in this thread, -1 if none does."""
    number: int = torch._C._current_graph_task_id()
    return number


def kind_of_pass(parameters: Iterable[Tensor]) -> Pass:
    """What the backward pass that runs now is for, as far as these parameters are concerned.

    Only for hooks and backward functions.
    """
    for p in parameters:
        if not p.requires_grad:
            continue
        try:
            if torch._C._will_engine_execute_node(get_gradient_edge(p).node):  # type: ignore[attr-defined]
                return Pass.LOSS
        except RuntimeError:  # what torch answers about parameters whose gradients are returned
            return Pass.INNER if torch.is_grad_enabled() else Pass.GRADIENTS
    return Pass.INNER


def cleared(parameters: Iterable[Tensor]) -> bool:
    """Whether no parameter holds a gradient."""
    return all(p.grad is None for p in parameters)


class SampleCount:
    """The samples behind the gradient that a module's parameters hold."""

    def __init__(self) -> None:
        self.value = 0
        self._number = -1
        self._kind = Pass.INNER
        self._settled = False

    def settle(self) -> None:
        """The gradient has been used or dropped: the next pass counts from nothing."""
        self._settled = True

    def answer(self, module: nn.Module, batch: int, made_in: int) -> None:
        """A backward pass comes by; further uses in the same pass count no more.

        Args:
            module: whose trainable parameters say whether the pass counts.
            batch: samples in the use that is answered.
            made_in: :func:`current_pass` when it was made: a recomputation belongs to that pass.
        """
        number = made_in if made_in >= 0 else current_pass()
        if number == self._number and not self._settled:
            return
        parameters = [p for p in module.parameters() if p.requires_grad]
        kind = kind_of_pass(parameters)
        holds = not self._settled and self._number >= 0
        if kind is Pass.INNER or (kind is Pass.GRADIENTS and holds and self._kind is Pass.LOSS):
            return
        goes_on = holds and kind is Pass.LOSS is self._kind and not cleared(parameters)
        self.value = self.value + batch if goes_on else batch
        self._number, self._kind, self._settled = number, kind, False
