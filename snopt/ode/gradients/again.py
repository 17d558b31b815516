"""When the gradient of a solve without a graph is differentiated again.

A backward pass is linear in its cotangent, so that its derivative there is the product of the
states' Jacobian with a vector, which needs no graph of the pass. That is no derivative of the
gradient in anything else, so it is refused to all but those who ask for this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from snopt.ode.gradients.kept import Backward

Forth = Callable[..., Tensor]
"""From changes of a solve's inputs, one each, to that of its states."""

_asked = 0


@contextmanager
def linear_in_cotangents() -> Iterator[None]:
    """Gradients made inside can be differentiated again, in the cotangents they are made of."""
    global _asked  # not by thread: backward passes run in threads of their own
    _asked += 1
    try:
        yield
    finally:
        _asked -= 1


def first_order(products: Callable[[Any], Forth | None]) -> Callable[[Backward], Backward]:
    """Make a backward function whose gradients say what to do when they are differentiated.

    Args:
        products: from the node to what makes products with its Jacobian.
    """

    def made(backward: Backward) -> Backward:
        def wrapped(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            again = torch.is_grad_enabled()
            with torch.no_grad():
                found = backward(ctx, grad)
            if not again:
                return found
            forth = products(ctx) if _asked else None
            # Whoever asks for no more than the cotangent's share does not get the solve's refused.
            depends = () if _asked else ctx.saved_tensors
            wanted = [x for x in found if x is not None]
            gradients = iter(
                _Again.apply(forth, len(wanted), *wanted, grad, *depends)  # type: ignore[no-untyped-call]
            )
            return tuple(None if x is None else next(gradients) for x in found)

        return wrapped

    return made


class _Again(torch.autograd.Function):
    """Gradients, as a linear function of the cotangent that they were made of.

    Behind them stand the cotangent and what else they depend on, of which nothing is known.
    """

    @staticmethod
    def forward(ctx: Any, forth: Forth | None, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.forth, ctx.others = forth, len(tensors) - count - 1
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *moved: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.forth is None:
            raise RuntimeError(
                "gradients of gradient='adjoint', 'adjoint-seminorm' and 'checkpoint' cannot be "
                "differentiated again (create_graph=True): use gradient='direct'"
            )
        with torch.no_grad():
            change = ctx.forth(*moved)
        return (None, None, *[None] * len(moved), change, *[None] * ctx.others)
