"""Rules in the eigenbasis of a layer's curvature."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from snopt.optim.method import Method, ModelView
from snopt.optim.preconditioner import Preconditioner
from snopt.optim.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class EigenbasisRule(Scaling):
    """A :class:`~snopt.optim.scaling.Scaling` that a preconditioner applies."""

    @override
    def method(self, parts: ModelView) -> Method:
        return Preconditioner(parts, self)
