"""What an optimizer asks of the part that turns gradients into directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from snopt.curvature.kronecker import Factors
from snopt.curvature.processes import Processes
from snopt.curvature.stopwatch import Stopwatch
from snopt.layers.base import Layer
from snopt.ode.block import ODEBlock
from snopt.optim.rules import Rule


@dataclass(frozen=True)
class Parts:
    """What a core is told of a model.

    Attributes:
        layers: the layers by name.
        blocks: the ODE blocks by name.
        parameters: the parameters by name.
        settings: returns a layer's parameter group.
        processes: those that train the model together.
    """

    layers: Mapping[str, Layer]
    blocks: Mapping[str, ODEBlock]
    parameters: Mapping[str, nn.Parameter]
    settings: Callable[[Layer], Mapping[str, Any]]
    processes: Processes


class Core(ABC):
    """Directions for a set of layers; one step is :meth:`arm`, a backward pass, :meth:`directions`.

    Attributes:
        layers: the layers by name.
        blocks: the model's ODE blocks by name.
        processes: those that train the model together.
        steps: steps made so far.
        refresh_every: steps between two looks at a layer's curvature.
        stopwatch: time spent on curvature so far.
        plain: why layers take the plain update, by layer name, as of the last step.
        factors: Kronecker factors by layer name, as of their last refresh; empty without any.
        whole: whether directions hold the decay of weights and momentum already.
        asks: the setting for which it needs :meth:`look`, empty if none does.
        gradient_scale: what gradients are multiplied by before anything is made of them.
    """

    layers: dict[str, Layer]
    blocks: Mapping[str, ODEBlock]
    processes: Processes
    steps: int
    refresh_every: int
    stopwatch: Stopwatch
    factors: Mapping[str, Factors]
    plain: dict[str, str]
    whole: ClassVar[bool] = False
    asks: str = ""
    gradient_scale: float = 1.0

    @classmethod
    @abstractmethod
    def build(cls, parts: Parts, rule: Rule, options: Mapping[str, Any]) -> Core:
        """The core that an optimizer was asked for.

        Args:
            parts: of the model.
            rule: the update rule.
            options: what :func:`snopt.optim.options.complete` made of the optimizer's arguments.

        Raises:
            ValueError: the model or the options are not for this core.
        """

    @abstractmethod
    def due(self) -> list[str]:
        """Layers that look at their curvature in the coming step."""

    @abstractmethod
    def arm(self) -> None:
        """Begin anew for the coming step."""

    @abstractmethod
    def look(
        self,
        outputs: Tensor,
        likelihood: str,
        parameters: Sequence[Tensor],
        *,
        targets: Tensor | None = None,
        loss: Tensor | None = None,
        batch_dim: int = 0,
    ) -> None:
        """Learn what is to be known from the outputs, between forward and backward pass.

        Args:
            outputs: the model's outputs, with their graph.
            likelihood: one of :data:`snopt.curvature.likelihoods.LIKELIHOODS`.
            parameters: the model's parameters.
            targets: what the loss compares the outputs with.
            loss: the loss of the batch.
            batch_dim: the outputs' dimension of samples.
        """

    def told(self, loss: Any) -> None:  # noqa: B027 - most cores have no use for it
        """Hear what a closure returned."""

    @abstractmethod
    def close(self) -> None:
        """Take hooks and observers off the model, for good."""

    @property
    @abstractmethod
    def forgotten(self) -> bool:
        """Whether the coming step needs a :meth:`look` or a backward pass that did not come."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what was gathered since the last step."""

    @abstractmethod
    def directions(self) -> dict[str, Tensor]:
        """Directions by layer name, shaped like :meth:`snopt.layers.base.Layer.gradient`."""

    def extend(self, parts: Parts) -> None:
        """Take in the layers of a new parameter group.

        Args:
            parts: the new layers, all blocks, all parameters.
        """
        raise NotImplementedError

    def scaled(self, grad: Tensor) -> Tensor:
        """A gradient times :attr:`gradient_scale`."""
        return grad if self.gradient_scale == 1.0 else grad * self.gradient_scale

    def step_halved(self) -> bool:
        """Whether the coming step was spent on going back half of the last one."""
        return False

    def update(self) -> AbstractContextManager[None]:
        """What the parameters move in."""
        return nullcontext()

    @abstractmethod
    def diagnostics(self) -> dict[str, float]:
        """Counts and sizes, for logs."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything learned, by layer name."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, or raise an error and change nothing.

        Raises:
            ValueError: it belongs to a model with other layers.
        """
