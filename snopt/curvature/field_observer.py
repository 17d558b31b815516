"""The layers of a field, evaluated at the quadrature nodes of the backward solve."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from snopt.curvature.hooks import hookable
from snopt.curvature.stopwatch import Stopwatch
from snopt.layers.base import Layer, input_of
from snopt.ode.block import ODEBlock
from snopt.ode.gradients import SolveContext, vjp
from snopt.ode.joining import Passes
from snopt.ode.methods.base import Time
from snopt.ode.passes import Pass, kind_of_pass
from snopt.ode.quadrature import MidpointRule, Quadrature, TrapezoidalRule
from snopt.ode.tracing import transformed

DIFFERENTIATED = "only a derivative that the model takes of itself reaches it"
UNCALLED = "the field uses its weight without calling the layer"
TRANSFORMED = (
    "it is called within a transform of torch.func (vmap, grad, jvp), where no hook hears it"
)


class Gathering(Protocol):
    """What takes in the uses of layers: :class:`~snopt.curvature.capture.Capture`."""

    active: bool
    replaying: bool
    grid: int | None
    stopwatch: Stopwatch
    why: dict[str, str]
    starts: list[Tensor]

    @property
    def armed(self) -> bool:
        """Whether the next backward pass is watched."""

    def decided(self, layer: Layer) -> bool:
        """Whether the backward pass that runs now was found to count for a layer already."""

    def counts(self, layer: Layer, passes: Passes, inside: bool = False) -> bool:
        """Whether the backward pass that runs now counts for a layer."""

    def count(self, passes: Passes, batch: int) -> None:
        """Count the samples of the backward pass that runs now."""

    def add(
        self, layer: Layer, z: Tensor, g: Tensor, *, batch: int, weight: Time, first: bool
    ) -> None:
        """Take in one use of a layer."""


class FieldObserver:
    """Visits one block's field at the nodes of its backward solves.

    A solve keeps it, and it keeps no capture alive: without one it is not active.
    """

    def __init__(
        self, capture: Gathering, block: ODEBlock, layers: list[Layer], passes: Passes
    ) -> None:
        self.block, self.layers, self.passes = block, layers, passes
        self._capture = weakref.ref(capture)

    @property
    def capture(self) -> Gathering:
        """What the uses of layers are for; asked while active alone."""
        capture = self._capture()
        assert capture is not None
        return capture

    @property
    def active(self) -> bool:
        """Whether the backward pass that runs now counts."""
        capture = self._capture()
        if capture is None or not capture.armed or not (capture.active or capture.replaying):
            return False
        known = any(capture.decided(x) for x in self.layers)
        if not known and kind_of_pass(x.weight for x in self.layers) is Pass.INNER:
            return False
        counting = [capture.counts(x, self.passes) for x in self.layers]  # every one hears of it
        return any(counting)

    def start(self, y0: Tensor) -> None:
        """See :class:`~snopt.curvature.capture.Capture`, ``starts``."""
        capture = self._capture()
        if capture is not None and not capture.active:  # a replay will ask for it
            capture.starts.append(y0)

    def counted(self) -> list[Passes]:
        """See :class:`snopt.ode.gradients.Observer`."""
        return [] if self.capture.replaying else [self.passes]

    def nodes(self, solve: SolveContext, start: float, end: float) -> Quadrature:
        """The quadrature rule for one interval of one solve."""

        def evaluate_node(t: Time, y: Tensor, a: Tensor, weight: Time) -> None:
            with self.capture.stopwatch.running(y.device), solve.as_called():
                self._evaluate_node(solve, t, y, a, solve.sign * weight)

        if self.capture.grid is None:
            return MidpointRule(evaluate_node)

        def slopes(t: float, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad(), solve.as_called():
                y = y.detach().requires_grad_(True)
                slope = solve.field(torch.tensor(t, dtype=y.dtype, device=y.device), y)
            self.block.nfe_curvature += 1
            return slope.detach(), vjp([slope], (y,), [-a])[0]

        return TrapezoidalRule(evaluate_node, slopes, start, end, self.capture.grid)

    def _evaluate_node(
        self, solve: SolveContext, t: Time, y: Tensor, a: Tensor, weight: Time
    ) -> None:
        if not isinstance(weight, Tensor) and weight == 0.0:
            return
        uses: list[tuple[Layer, Tensor, GradientEdge]] = []

        def watch(
            layer: Layer,
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            output: Tensor,
        ) -> Tensor | None:
            if transformed():
                self.capture.why.setdefault(layer.name, TRANSFORMED)
                return None
            if not output.requires_grad:  # the field may call layers under no_grad
                return None
            # The place in the graph rather than the tensor: an in-place activation changes that.
            output = hookable(output)
            uses.append((layer, input_of(args, kwargs).detach(), get_gradient_edge(output)))
            return output

        handles = [
            x.module.register_forward_hook(partial(watch, x), with_kwargs=True) for x in self.layers
        ]
        try:
            with torch.enable_grad():
                y = y.detach().requires_grad_(True)
                slope = solve.field(torch.as_tensor(t, dtype=y.dtype, device=y.device), y)
        finally:
            for handle in handles:
                handle.remove()
        self.block.nfe_curvature += 1
        whole = bool(uses) and all(layer.unbatched(z) for layer, z, _ in uses)
        batch = self.block.samples_of(solve.layout.unpack(y), whole)
        counted = {x.name for x in self.layers if self.capture.counts(x, self.passes)}
        for x in self.layers:
            called = any(layer is x for layer, _, _ in uses)
            self.capture.why.setdefault(x.name, DIFFERENTIATED if called else UNCALLED)
        self.capture.count(self.passes, batch)
        if not uses:
            return
        # One derivative, that of the slope: those a field takes itself (a divergence) are part of
        # the graph, but no cotangents of theirs are counted.
        cotangents = torch.autograd.grad(slope, [edge for _, _, edge in uses], a, allow_unused=True)
        seen: set[str] = set()
        for (layer, z, _), g in zip(uses, cotangents, strict=True):
            if g is not None and layer.name in counted:
                first = layer.name not in seen
                seen.add(layer.name)
                self.capture.add(layer, z, g, batch=batch, weight=weight, first=first)
