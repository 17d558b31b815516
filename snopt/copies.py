"""Copies that diagnostics measure, so that the original stays as it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from snopt.ode.gradients.held import leaves


def require_apart(outputs: Iterable[Tensor], original: nn.Module) -> None:
    """Refuse a copy that goes on using the original's parameters.

    Args:
        outputs: the copy's, with their graph.
        original: what was copied.

    Raises:
        ValueError: a gradient would be the original's.
    """
    named = {id(p): name for name, p in original.named_parameters()}
    reached = {id(x) for output in outputs for x in leaves(output, ())} & named.keys()
    if reached:
        names = ", ".join(sorted(named[i] for i in reached))
        raise ValueError(
            f"a copy of {type(original).__name__} still uses parameters of the original ({names}), "
            "so that nothing can be measured on it: they are in a function that a module holds (a "
            "closure, a lambda, a method assigned from outside); make it a method of the module, "
            "which finds them by its self"
        )
