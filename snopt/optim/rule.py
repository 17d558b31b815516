"""What a rule is: settings of its own, and what it makes of gradients.

A rule is a frozen dataclass. Its fields are its settings, each with its default and its range; its
methods are the mathematics. What it learns while training is no part of it: that is a dictionary of
tensors (and a count) for each layer, so that it can be saved as it is.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from snopt.optim.method import Method, ModelView
from snopt.optim.settings import LIMIT, Count, Number, kinds, setting, validate

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """One way to turn gradients into steps.

    Args:
        kl_clip: trust region: bound on lr^2 times the direction's product with the gradient;
            ``None`` for no bound.
        trust: bound on the norm of a group's update over that of its parameters; ``None`` for no
            bound.
        warmup_steps: steps over which the learning rate rises linearly.
        averaging: weights are averaged over about the last 1 / (averaging + 1) of all steps, for
            evaluation (:meth:`snopt.SNOpt.eval`); ``None`` for no averages. Training is the same.

    Attributes:
        name: what it is called by.
        scales_with_loss: whether steps shrink as the loss is multiplied by a constant.
        weight_decay: of groups that name none.

    Raises:
        ValueError: a setting is outside its range.
    """

    name: ClassVar[str]
    scales_with_loss: ClassVar[bool] = False
    weight_decay: ClassVar[float] = 0.0

    kl_clip: float | None = setting(None, LIMIT, group=True)
    trust: float | None = setting(None, LIMIT, group=True)
    warmup_steps: int = setting(0, Count(0))
    averaging: float | None = setting(None, Number(optional=True))

    def __post_init__(self) -> None:
        validate(vars(self), kinds(self))

    @abstractmethod
    def method(self, parts: ModelView) -> Method:
        """What applies the rule to a model."""

    def fallback(self, state: State, grad: Tensor, settings: Mapping[str, Any]) -> Tensor:
        """The direction for a parameter that is not preconditioned: the gradient, as in SGD.

        Args:
            state: the parameter's state, updated in place.
            grad: its gradient.
            settings: of its group.
        """
        return grad

    @property
    def cautious_decay(self) -> bool:
        """Whether only those entries of a weight decay that their step brings closer to zero."""
        return False

    @property
    def gradient_power(self) -> float:
        """Power of the whole gradient's norm that gradients are divided by, 0 for none."""
        return 0.0

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The settings and their defaults, by name."""
        return {field.name: field.default for field in dataclasses.fields(cls)}
