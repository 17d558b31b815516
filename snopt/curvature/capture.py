"""Layer inputs and output cotangents, gathered while a backward pass runs.

Layers outside ODE blocks are captured with a forward hook that registers a hook on the output's
node (so in-place activations are harmless). Layers inside a field are evaluated at the quadrature
nodes of the backward solve: the field is called once more at (t, y), its vector-Jacobian product
with the adjoint taken, and hooks exist only during that call. Compiled steps and the gradient never
see one.

With sums over nodes j (weight w_j), samples and locations,

    S_A = sum w z z^T,  S_B = sum w c c^T,  W = sum w (samples),  R = sum w (rows),

where c is autograd's cotangent of a mean loss, the factors of docs/method.md are
A = S_A / W and B = W^2 S_B / R: for one solve W is N T, R / W the locations per sample, and N c
the cotangent of one sample. Several solves, micro-batches and processes simply add up; backward
passes through one graph are one pass with the sum of their cotangents (:mod:`snopt.ode.joining`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snopt.curvature.field_observer import DIFFERENTIATED, TRANSFORMED, FieldObserver
from snopt.curvature.hooks import UncopiedHook, have_hooks_guarded, hookable
from snopt.curvature.kronecker import Factors
from snopt.curvature.processes import Processes
from snopt.curvature.stopwatch import Stopwatch
from snopt.curvature.sums import FactorSums
from snopt.layers.base import Layer, input_of
from snopt.ode.block import ODEBlock
from snopt.ode.joining import Passes, Place
from snopt.ode.methods.base import Time
from snopt.ode.passes import Pass, current_pass, kind_of_pass
from snopt.ode.tracing import transformed

UNHEARD = (
    "no backward pass went through the layer: it is used without being called, or the model, or "
    "another one of its class, ran compiled before the optimizer was built (build the optimizer "
    "first, or call torch.compiler.reset() after it)"
)
SOLVED_INSIDE = (
    "its gradient came from a solve inside backward() (torchdiffeq.odeint_adjoint, or an ODEBlock "
    "made in forward()); let an ODEBlock made in __init__() solve"
)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # traced, the weak reference breaks
def _heard(
    capture: weakref.ref[Capture], layer: Layer, passes: Passes, *args: Any
) -> Tensor | None:
    """A layer was called; nobody listens once the optimizer is gone."""
    listening = capture()
    if listening is None or layer.name not in listening.sums:
        return None
    if transformed():
        listening.why.setdefault(layer.name, TRANSFORMED)
        return None
    return _watch_output(capture, layer, passes, *args)


class Capture:
    """Gathers the statistics of armed layers during one or several backward passes.

    Args:
        layers: all layers by name.
        blocks: the ODE blocks by name.
        samples: samples per batch that enter the factors, the first ones; all by default.
        grid: equally spaced nodes per solve, or ``None`` for the solver's own steps.
        loss_scale: returns the factor on the loss while a backward pass runs (GradScaler).
        losses: whether the backward passes of losses count; those of :meth:`column` always do.

    Attributes:
        active: whether the backward passes of losses count now.
        replaying: whether passes count that return gradients instead of adding to them.
        replayed: samples whose cotangents such passes have brought, not divided by their number.
        why: for the layers that brought nothing when last asked, what was heard of them instead.
        with_inputs: whether the input side is counted too; off for further columns of one loss
            Hessian, whose inputs are the same.
        starts: initial states of backpropagated solves; a backward pass that asks for the gradients
            of chosen tensors must ask for these too, or it stops short of the first nodes.
        stopwatch: time spent gathering so far.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, ODEBlock],
        *,
        samples: int | None = None,
        grid: int | None = None,
        loss_scale: Callable[[], float] | None = None,
        losses: bool = True,
    ) -> None:
        self.samples, self.grid, self.loss_scale = samples, grid, loss_scale
        self.watch(layers, blocks)
        self.active = losses
        self.replaying = False
        self.replayed = 0
        self.why: dict[str, str] = {}
        self._observers: list[FieldObserver] = []
        self.with_inputs = True
        self.starts: list[Tensor] = []
        self.stopwatch = Stopwatch()
        self.sums: dict[str, FactorSums] = {}
        self._passes: dict[str, Passes] = {}
        self._origins: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles).atexit = False

    @property
    def armed(self) -> bool:
        """Whether the next backward pass is watched."""
        return bool(self.sums)

    @property
    def batch(self) -> int:
        """Samples seen since the capture was armed."""
        return max((p.samples for p in self._passes.values()), default=0)

    @property
    def disagreement(self) -> str:
        """Who saw how many samples, where that differs: somebody's first dimension is another."""
        # A single row stands for every sample.
        seen = {n: {p.smallest, p.samples} for n, p in self._passes.items() if p.samples > 1}
        if len(set[int]().union(*seen.values())) < 2:
            return ""
        told = {name: " to ".join(map(str, sorted(sizes))) for name, sizes in seen.items()}
        return ", ".join(f"{name or 'the model'} {sizes}" for name, sizes in told.items())

    def watch(self, layers: Mapping[str, Layer], blocks: Mapping[str, ODEBlock]) -> None:
        """Take these for the model's layers and blocks; nothing may be armed."""
        self.layers, self.blocks = dict(layers), dict(blocks)
        inside = {id(m) for block in self.blocks.values() for m in block.field.modules()}
        self.outside = [n for n, layer in self.layers.items() if id(layer.module) not in inside]

    def arm(self, names: Iterable[str]) -> None:
        """Watch these layers from the next forward pass on, starting from nothing."""
        self.disarm()
        have_hooks_guarded()
        self.why = {}
        self.sums = {name: FactorSums.zeros(self.layers[name]) for name in names}
        self._hook(name for name in self.outside if name in self.sums)
        for name, block in self.blocks.items():
            modules = {id(m) for m in block.field.modules()}
            inner = [self.layers[n] for n in self.sums if id(self.layers[n].module) in modules]
            if inner:
                passes = self._passes.setdefault(name, Passes(self._origins))
                observer = FieldObserver(self, block, inner, passes)
                self._observers.append(observer)  # the block itself does not keep it
                block.observers.add(observer)

    def expose(self) -> None:
        """Have the coming forward pass meet the hooks of armed layers, which do nothing.

        A compiler that first meets a model without hooks does not notice those that come later.
        """
        self.disarm()
        self._hook(self.outside)

    def _hook(self, names: Iterable[str]) -> None:
        for name in names:
            layer = self.layers[name]
            passes = self._passes.setdefault(name, Passes(self._origins))
            hook = UncopiedHook(partial(_heard, weakref.ref(self), layer, passes))
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))

    def clear(self) -> None:
        """Forget what was gathered; forward passes already made still count when answered."""
        self.sums = {name: FactorSums.zeros(self.layers[name]) for name in self.sums}
        self.replayed = 0
        self._origins.clear()
        for passes in self._passes.values():
            passes.clear()

    def disarm(self) -> None:
        """Remove every hook and observer; the sums are gone."""
        _remove(self._handles)
        self._handles.clear()
        for observer in self._observers:
            observer.block.observers.discard(observer)
        self._observers.clear()
        self.sums, self.starts = {}, []
        self.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Backward passes of losses inside do not count."""
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    @contextmanager
    def column(self, samples: int, *, first: bool) -> Iterator[None]:
        """The backward pass inside is that of a column of the loss Hessian's root, and counts.

        Args:
            samples: samples of the batch. The pass is gathered for single samples: how many are
                behind the step is known once all have come.
            first: whether it is the batch's first column; the inputs of further ones are the same.
        """
        scale = self.loss_scale
        self.replaying, self.with_inputs, self.loss_scale = True, first, lambda: 1.0 / samples
        self.replayed += samples if first else 0
        try:
            yield
        finally:
            self.replaying, self.with_inputs, self.loss_scale = False, True, scale

    def collect(self, processes: Processes | None = None) -> dict[str, Factors | None]:
        """The factors of every armed layer, summed over processes if given; then disarm."""
        found: dict[str, Factors | None] = {}
        for name, sums in self.sums.items():
            if name in self.outside:
                sums.samples = float(self._passes[name].samples)
            if self.replayed:
                sums.b /= self.replayed**2
            if processes is not None:
                sums.reduce(processes)
            # Uses beside such a solve are not all there is of the gradient.
            found[name] = None if self.why.get(name) == SOLVED_INSIDE else sums.factors()
            if found[name] is not None:
                self.why.pop(name, None)
        self.disarm()
        return found

    def counts(self, layer: Layer, passes: Passes, inside: bool = False) -> bool:
        """Whether the backward pass that runs now counts for a layer.

        What it holds of a pass whose gradient has been thrown away is forgotten.

        Args:
            layer: the layer; not armed, it counts for nothing.
            passes: the counter of its samples.
            inside: whether the layer was used by a backward pass, in a solve of its own say.
        """
        if layer.name not in self.sums:
            return False
        if self.decided(layer) and (not inside or self.sums[layer.name].kind is Pass.LOSS):
            return True
        if self.sums[layer.name].outdated(layer):
            self._restart(layer, passes)
        kind = kind_of_pass([layer.weight])
        if inside and kind is not Pass.LOSS:
            self.why[layer.name] = SOLVED_INSIDE  # says what to do, whatever else was heard
            return False
        if kind is Pass.INNER:
            self.why.setdefault(layer.name, DIFFERENTIATED)
            return False
        if self.replaying or not self.active:
            return self.replaying and kind is Pass.GRADIENTS
        sums, number = self.sums[layer.name], current_pass()
        if 0 <= sums.last_pass != number:
            if kind is Pass.GRADIENTS and sums.kind is Pass.LOSS:
                return False
            if kind is Pass.LOSS and (sums.kind is Pass.GRADIENTS or sums.thrown_away(layer)):
                sums = self._restart(layer, passes)
        sums.last_pass, sums.kind = number, kind
        return True

    def decided(self, layer: Layer) -> bool:
        """Whether the backward pass that runs now was found to count for a layer already."""
        sums = self.sums.get(layer.name)
        known = sums is not None and 0 <= sums.last_pass == current_pass()
        return known and self.active and not self.replaying

    def _restart(self, layer: Layer, passes: Passes) -> FactorSums:
        passes.clear()
        self.sums[layer.name] = FactorSums.zeros(layer)
        return self.sums[layer.name]

    def count(self, passes: Passes, batch: int) -> None:
        """Samples of the backward pass that runs now; those of further columns are the same."""
        if self.with_inputs:
            passes.count(batch)

    def add(
        self, layer: Layer, z: Tensor, g: Tensor, *, batch: int, weight: Time, first: bool
    ) -> None:
        """One use of a layer.

        Args:
            layer: the layer.
            z: its input.
            g: autograd's cotangent of its output.
            batch: samples behind this use.
            weight: quadrature weight, 1 outside blocks; negative to take back. A tensor (batch,)
                where every sample has its own.
            first: whether this is the layer's first use in this node. Outside blocks samples are
                counted by passes.
        """
        sums = self.sums[layer.name]
        entries = 1 if layer.unbatched(z) else z.shape[0]
        keep = None
        if self.samples is not None and entries > 1:
            keep = math.ceil(self.samples * entries / batch)
        if entries == 0:
            return
        weights = None
        if isinstance(weight, Tensor):
            mean = weight.mean()
            weight, weights = float(mean), _of_entries(weight / mean, entries, layer)
        a, b, rows, used = layer.moments(z, g, keep, self.with_inputs, weights)
        scale = weight * entries / used
        loss_scale = 1.0 if self.loss_scale is None else self.loss_scale()
        sums.b.add_(b, alpha=scale / loss_scale**2)
        if a is not None:
            # An input that the whole batch shares (a time, a constant) stands for every sample.
            shared = batch if entries == 1 else 1
            sums.a.add_(a, alpha=scale * shared)
            sums.rows += scale * shared * rows
            sums.samples += weight * batch if first else 0.0


def _watch_output(
    capture: weakref.ref[Capture],
    layer: Layer,
    passes: Passes,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Tensor,
) -> Tensor | None:
    """Have the cotangent of a layer's output recorded; the graph keeps no capture alive."""
    if not output.requires_grad:
        return None
    output = hookable(output)
    inside = current_pass() >= 0
    z = input_of(args, kwargs).detach()
    place = Place()

    def record(g: Tensor) -> None:
        listening = capture()
        if listening is not None and listening.counts(layer, passes, inside):
            with listening.stopwatch.running(g.device):
                batch = 1 if layer.unbatched(z) else z.shape[0]
                listening.count(passes, batch)
                for sign, c in place.answer(g, [] if listening.replaying else [passes]):
                    listening.add(layer, z, c, batch=batch, weight=sign, first=False)

    output.register_hook(record)
    return output


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _of_entries(weights: Tensor, entries: int, layer: Layer) -> Tensor | None:
    """The weights of samples as those of the entries of a layer's input."""
    if entries == 1:  # all samples share it
        return None
    if entries % len(weights):
        raise ValueError(
            f"layer {layer.name!r} was called with {entries} entries for {len(weights)} samples, "
            "whose steps are their own: keep the sample first in what layers of the field see, or "
            "choose a method by name, whose steps all samples share"
        )
    return weights.repeat_interleave(entries // len(weights))
