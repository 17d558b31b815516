"""One optimizer for the ODE fields of a model, another for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.common.checks import ConfigError

Factory = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


class ByPart(torch.optim.Optimizer):
    """Two optimizers that share a model and step together.

    In YAML each part is a ``_target_`` with ``_partial_: true`` and settings of its own; see
    ``conf/optim/sgd_field.yaml``.

    Args:
        model: the model to train. One without ODE fields leaves all to ``rest``.
        field: makes the optimizer of the ODE fields' parameters.
        rest: makes the optimizer of all others.

    Attributes:
        parts: both optimizers; one without parameters is left out. Their groups, and so their
            learning rates, are those of this one.

    Raises:
        ConfigError: a part is no optimizer's factory, or there is no parameter to train.
    """

    def __init__(self, model: nn.Module, *, field: Factory, rest: Factory) -> None:
        from tasks.engine.optimizers.build import ode_fields

        if not isinstance(model, nn.Module):
            raise ConfigError("optim.field_lr: set optim.field.lr instead.")
        inside = {id(p) for part in ode_fields(model).values() for p in part.parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parts: list[torch.optim.Optimizer] = []
        for name, make, within in (("field", field, True), ("rest", rest, False)):
            if not callable(make):
                raise ConfigError(f"optim.{name}: needs a _target_ and _partial_: true.")
            parameters = [p for p in trained if (id(p) in inside) is within]
            if parameters:
                self.parts.append(make(parameters))
        if not self.parts:
            raise ConfigError("optim: the model has no parameter to train.")
        # The groups themselves, not copies: whoever sets a learning rate here sets it there.
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every part.

        Args:
            closure: clears gradients, computes the loss and its gradient, returns the loss.

        Returns:
            The closure's loss, ``None`` without one.
        """
        loss: Any = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
