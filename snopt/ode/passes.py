"""Whose backward pass it is: the loss's, which adds to gradients, or a derivative of another kind.

Hooks fire in every backward pass that comes by: in ``loss.backward()``, but also in derivatives
that a model takes of itself (Hamiltonian fields, divergences, gradient penalties) and in the
solves that an adjoint method makes on its own. What is to be counted goes where gradients go.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import torch
from torch import Tensor
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
            if torch._C._will_engine_execute_node(get_gradient_edge(p).node):
                return Pass.LOSS
        except RuntimeError:  # what torch answers about parameters whose gradients are returned
            return Pass.INNER if torch.is_grad_enabled() else Pass.GRADIENTS
    return Pass.INNER


def cleared(parameters: Iterable[Tensor]) -> bool:
    """Whether no parameter holds a gradient."""
    return all(p.grad is None for p in parameters)
