"""Interface of the methods that turn gradients into steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from snopt.curvature.kronecker import Factors
from snopt.curvature.processes import Processes
from snopt.curvature.stopwatch import Stopwatch
from snopt.layers.base import Layer
from snopt.ode.block import ODEBlock

Closure = Callable[[], Any]


@dataclass(frozen=True)
class ModelView:
    """The parts of a model that a method needs.

    Attributes:
        layers: the layers by name.
        blocks: the ODE blocks by name.
        parameters: the parameters by name.
        modules: all modules, those without parameters too.
        settings: returns a layer's parameter group, as plain numbers.
        groups: the parameter groups as they stand.
        processes: those that train the model together.
        loss_scale: returns the factor on the loss while a backward pass runs (GradScaler), if any.
        seed: of whatever is drawn.
    """

    layers: Mapping[str, Layer]
    blocks: Mapping[str, ODEBlock]
    parameters: Mapping[str, nn.Parameter]
    modules: Sequence[nn.Module]
    settings: Callable[[Layer], Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]
    processes: Processes
    loss_scale: Callable[[], float] | None = None
    seed: int = 0


_TENSORS = {
    "outputs": "what the loss compares with the targets; join several with torch.cat",
    "targets": "torch.as_tensor(y); join several with torch.cat",
    "loss": "the one that backward() will be called on, not its item()",
}
"""What a pass is told that must be a tensor, and how to have one."""


@dataclass(frozen=True)
class Seen:
    """The outputs of a forward pass, and what its loss is.

    Attributes:
        outputs: the model's outputs, with their graph.
        likelihood: one of :data:`snopt.curvature.likelihoods.LIKELIHOODS`.
        targets: what the loss compares the outputs with.
        loss: the loss of the batch.
        batch_dim: the outputs' dimension of samples.
    """

    outputs: Tensor
    likelihood: str
    targets: Tensor | None = None
    loss: Tensor | None = None
    batch_dim: int = 0

    def __post_init__(self) -> None:
        for name, advice in _TENSORS.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (name == "outputs" or value is not None):
                raise TypeError(
                    f"curvature_pass() was given {name} of type {type(value).__name__}, expected "
                    f"a tensor: {advice}"
                )
        if not self.outputs.numel():
            raise ValueError(
                f"curvature_pass() was given outputs of shape {tuple(self.outputs.shape)}, which "
                "have no curvature: leave out empty batches, if not len(x): continue"
            )


@dataclass(frozen=True)
class Step:
    """What a method makes of gradients, shaped like :meth:`snopt.layers.base.Layer.gradient`.

    Attributes:
        layers: by layer name.
        complete: whether that is subtracted from the parameters as it is; else these are
            directions, which learning rate, momentum and weight decay come on top of.
        parameters: by parameter, whether a layer has it or not.
    """

    layers: Mapping[str, Tensor]
    complete: bool = False
    parameters: Mapping[nn.Parameter, Tensor] = field(default_factory=dict)


class Method(ABC):
    """Steps for a set of layers.

    One step is :meth:`prepare_next`, a forward and a backward pass, :meth:`before_update`,
    :meth:`step`, the change of the parameters and :meth:`after_update`.

    Attributes:
        layers: the layers by name.
        blocks: the model's ODE blocks by name.
        processes: those that train the model together.
        steps: steps made so far.
        refresh_every: steps between two looks at a layer's curvature.
        stopwatch: time spent on curvature so far.
        left_to_fallback: why layers take the fallback update, by layer name, as of the last step.
        needs_curvature_pass: the setting for which it needs :meth:`observe_outputs`, empty if none
            does.
        whole: whether all parameters take part, whatever layers they belong to.
        gradient_scale: what gradients are multiplied by before anything is made of them.
        closed: whether its optimizer was closed, for good.
    """

    layers: dict[str, Layer]
    blocks: Mapping[str, ODEBlock]
    processes: Processes
    steps: int
    refresh_every: int
    stopwatch: Stopwatch
    left_to_fallback: dict[str, str]
    needs_curvature_pass: str = ""
    whole: bool = False
    gradient_scale: float = 1.0
    closed: bool = False

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Kronecker factors by layer name, as of their last refresh; empty without any."""
        return {}

    @abstractmethod
    def layers_to_refresh(self) -> list[str]:
        """Layers that look at their curvature in the coming step."""

    @abstractmethod
    def prepare_next(self) -> None:
        """Get ready for the coming step's forward pass."""

    @abstractmethod
    def observe_outputs(self, seen: Seen) -> None:
        """Learn what is to be known from the outputs, between forward and backward pass.

        Args:
            seen: what the loop has passed to :meth:`snopt.SNOpt.curvature_pass`.
        """

    @property
    @abstractmethod
    def missing_curvature_pass(self) -> bool:
        """Whether the step needs :meth:`observe_outputs`, or a backward pass, that did not come."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what was gathered since the last step."""

    def before_update(self, loss: Any, closure: Closure | None) -> bool:
        """Judge the last step, and get ready to judge this one.

        Args:
            loss: what the closure returned, ``None`` without one.
            closure: computes the loss and its gradient.

        Returns:
            Whether to make a step; if not, part of the last one was taken back instead.
        """
        return True

    @abstractmethod
    def step(self) -> Step:
        """The step for the layers' gradients."""

    def after_update(self, loss: Any, closure: Closure | None) -> None:  # noqa: B027
        """The parameters have moved; arguments as for :meth:`before_update`."""

    @abstractmethod
    def close(self) -> None:
        """Take hooks and observers off the model, for good."""

    def require_extensible(self) -> None:
        """Refuse a new parameter group before there is one.

        Raises:
            ValueError: the method is made for a model as a whole.
        """
        rule = self.needs_curvature_pass or "this rule"
        raise ValueError(f"{rule} takes no more groups: build the optimizer again on all modules")

    def extend(self, parts: ModelView) -> None:  # noqa: B027
        """Take in the layers of a new parameter group.

        Args:
            parts: the new layers, all blocks, all parameters.
        """

    def scaled(self, grad: Tensor) -> Tensor:
        """A gradient times :attr:`gradient_scale`."""
        return grad if self.gradient_scale == 1.0 else grad * self.gradient_scale

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
