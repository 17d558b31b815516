"""What a preconditioner has learned of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snopt.curvature.averages import Average
from snopt.curvature.kronecker import Basis, Factors, not_finite
from snopt.layers.base import Layer
from snopt.optim.rule import State
from snopt.optim.saving import copied


class Learned:
    """Factors and basis as of the last refresh, running averages, and the rule's state.

    Args:
        layer: the layer.

    Attributes:
        factors: Kronecker factors, ``None`` before the first refresh.
        basis: their eigenbasis.
        average: running averages of G G^T and G^T G, where the basis needs them.
        state: the rule's.
        absent: whether the layer took no part when it was last watched; then it is not asked again
            within a period.
    """

    factors: Factors | None
    basis: Basis | None
    average: Average | None
    state: State
    absent: bool

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.forget()

    def forget(self) -> None:
        """Begin from nothing."""
        self.factors = self.basis = self.average = None
        self.state, self.absent = {}, False
        self._biased = self.layer.bias is not None

    def follow_bias(self) -> None:
        """Begin from nothing if the bias has been frozen or thawed: the matrix has changed."""
        if self._biased != (self.layer.bias is not None):
            self.forget()

    def follow(self, grad: Tensor) -> None:
        """Move to the gradient's device and precision."""
        known = None if self.average is None else self.average.left[0][0]
        known = known if self.basis is None else self.basis.values_b
        if known is None or (known.dtype == grad.dtype and known.device == grad.device):
            return
        for name in ("state", "factors", "basis", "average"):
            setattr(self, name, copied(getattr(self, name), grad.device, grad.dtype))

    def drop_broken(self) -> None:
        """Drop a running average that is not finite: it would stay so."""
        average = self.average
        if average is not None and not_finite({"": [x for (x,) in average.left]}):
            self.average = None

    @property
    def state_tensors(self) -> list[Tensor]:
        """The tensors of the rule's state."""
        return [x for x in self.state.values() if isinstance(x, Tensor)]

    def state_dict(self) -> dict[str, Any]:
        """Everything, tensors in tuples."""
        return {
            "factors": None if self.factors is None else tuple(self.factors),
            "basis": None if self.basis is None else tuple(self.basis),
            "rule": dict(self.state),
            "averages": None if self.average is None else tuple(self.average),
        }

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Restore what :func:`snopt.optim.saving.read_layer` made of a state."""
        self.forget()
        if saved is None:
            return
        if saved["factors"] is not None:
            self.factors, self.basis = Factors(*saved["factors"]), Basis(*saved["basis"])
        if saved["averages"] is not None:
            self.average = Average(*saved["averages"])
        self.state = saved["rule"]
