"""Gradients of single samples, gathered while an ordinary backward pass runs.

Every use of a layer adds an outer product to each sample's gradient. Forward hooks keep a use's
input, tensor hooks on its output the cotangent, wherever the backward pass goes through: outside
ODE blocks, inside backpropagated solves, and in the repeated steps of checkpointed ones. The
products of many uses are formed together, in one batched matrix product.

The layer's own gradient is the sum of these rows. So where a backward pass is known to be for rows,
autograd is spared the product, the sum over samples and the addition that it would make for every
use, which is most of what the rows cost. That holds for plain calls of a layer's own forward, whose
outputs are differentiated once; whatever else is seen leaves the gradient to autograd.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snopt.curvature.check_steps import CheckSteps
from snopt.curvature.hooks import UncopiedHook, hookable
from snopt.curvature.samples import Samples
from snopt.curvature.stopwatch import Stopwatch
from snopt.layers.base import Layer, Products, input_of
from snopt.layers.kinds import KINDS
from snopt.ode.block import ODEBlock
from snopt.ode.gradients import GRADIENTS
from snopt.ode.passes import Pass, current_pass, kind_of_pass

_WAITING = 1 << 20
"""Elements buffered before outer products are formed; larger buffers fall out of the cache."""

Use = tuple[Tensor, Tensor]
"""A layer's input and the cotangent of its output."""


def repeated_layers(layers: Mapping[str, Layer], blocks: Mapping[str, ODEBlock]) -> set[str]:
    """Names of the layers whose calls within a backward pass are a block's repeated steps."""
    repeating = [x for x in blocks.values() if GRADIENTS[x.gradient].repeats_steps]
    modules = {id(m) for block in repeating for m in block.field.modules()}
    return {name for name, layer in layers.items() if id(layer.module) in modules}


class PerSampleGradients:
    """One row for each sample and layer: the gradient of the sample's share of the loss.

    The hooks hold this object weakly: they end with it, or with :meth:`close`.

    Args:
        layers: the layers by name.
        checks: told of the mode of forward passes; none is spared in a step that compares.
        repeated: what :func:`repeated_layers` has found.

    Attributes:
        sparing: whether passes that begin now leave the layers' gradients to :meth:`finish`.
        counting: whether the loss' backward pass is running.
        loss_pass: its number, where others may run within it.
        ignoring: whether the pass that runs now is nobody's.
        samples: the samples of the coming pass.
        stopwatch: time spent so far.
        unbatched: layers that were used on an input that all samples share; they have no rows.
        inner: layers that were differentiated in another pass than the loss'.
        inside: layers that were called within a backward pass.
        replaced: layers that were called with another weight than their own.
        evaluated: layers that were called in eval mode.
        types: of the cotangents seen so far.
        first_input: of the first layer called since the last backward pass.
    """

    def __init__(
        self, layers: Mapping[str, Layer], checks: CheckSteps, repeated: Collection[str] = ()
    ) -> None:
        self.checks, self._looked = checks, False
        self.sparing = self.counting = self.ignoring = False
        self.loss_pass: int | None = None
        self.samples: Samples | None = None
        self.stopwatch = Stopwatch()
        self.unbatched: set[str] = set()
        self.inner: set[str] = set()
        self.inside: set[str] = set()
        self.replaced: set[str] = set()
        self.evaluated: set[str] = set()
        self.types: set[torch.dtype] = set()
        self.first_input: Tensor | None = None
        self._before: dict[nn.Parameter, tuple[Tensor | None, int]] = {}
        self._after: dict[nn.Parameter, tuple[Tensor | None, int]] = {}
        self._added_to = False
        handles: list[RemovableHandle] = []
        self._uses = {
            name: _LayerCalls(layer, self, name in repeated, handles)
            for name, layer in layers.items()
        }
        self.close = weakref.finalize(self, _remove, handles)
        self.close.atexit = False

    def clear(self) -> None:
        """Forget what was gathered."""
        self.counting = self._added_to = self._looked = False
        self.loss_pass = None
        self._before, self._after = {}, {}
        for known in (self.replaced, self.evaluated, self.inside):
            known.clear()
        for uses in self._uses.values():
            uses.clear()

    def look(self) -> None:
        """A forward pass in training mode begins."""
        if not self._looked:
            self._looked = True
            self.checks.look()
            self.sparing = self.sparing and not self.checks.due

    def expect(self, samples: Samples) -> None:
        """Before the loss' backward pass: what the gradients are now."""
        self.samples = samples
        self._before = self._gradients()

    def finish(self) -> None:
        """At the end of a backward pass: give the layers the gradients that autograd left out."""
        self.counting = self.sparing = False
        self.loss_pass = self.first_input = None
        now = self._gradients()
        for uses in self._uses.values():
            uses.add_up()
            if True in uses.sums:
                layer = uses.layer
                total = [x.unflatten(0, (layer.groups, -1)).sum(dim=1) for x in uses.sums[True]]
                for p, gradient in layer.split(layer.per_sample_gradients(total)[0]):
                    if not p.requires_grad:
                        continue
                    self._added_to = self._added_to or not _same(now[p], self._before.get(p))
                    gradient = gradient.to(p.dtype)
                    p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)
        self._after = self._gradients()

    @property
    def touched(self) -> bool:
        """Whether gradients hold, or may hold, something else than this pass' rows."""
        begun = any(grad is not None for grad, _ in self._before.values())
        return begun or self.changed or self._added_to or bool(self.replaced)

    @property
    def changed(self) -> bool:
        """Whether gradients were changed after the backward pass."""
        return any(not _same(_mark(p), mark) for p, mark in self._after.items())

    def _gradients(self) -> dict[nn.Parameter, tuple[Tensor | None, int]]:
        return {p: _mark(p) for uses in self._uses.values() for p in uses.layer.parameters}

    def collect(self) -> dict[str, Tensor]:
        """Sums over uses of cotangent times input, and forget them.

        Returns:
            By layer name, shape (samples, groups, out, in), a bias last in ``in``. Layers that took
            no part are left out.
        """
        found = {}
        for name, uses in self._uses.items():
            uses.add_up()
            parts = [uses.layer.per_sample_gradients(products) for products in uses.sums.values()]
            if parts:
                found[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            uses.clear()
        return found


class _LayerCalls:
    """One layer's uses.

    Attributes:
        sums: their products, by whether autograd was spared the layer's gradient.
    """

    def __init__(
        self, layer: Layer, rows: PerSampleGradients, repeated: bool, handles: list[RemovableHandle]
    ) -> None:
        self.layer, self._rows, self._repeated = layer, weakref.ref(rows), repeated
        self._weight, self._places = layer.weight, layer.module._parameters
        self._parameters = [p for p in (layer.weight, self._places.get("bias")) if p is not None]
        self._unbatched = layer.unbatched
        _, out, width = layer.shape
        self._numbers = (out + width) / out
        # A subclass may make something else of its weight: its gradient is autograd's.
        base = next(kind for kind in KINDS if isinstance(layer.module, kind))
        self._known = type(layer.module).forward is base.forward
        self._frozen: list[nn.Parameter] = []
        self._layouts: dict[int, int] = {}
        self.clear()
        module = layer.module
        enter, leave = _Weak(self._enter), _Weak(self._leave)
        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        ]

    def clear(self) -> None:
        self.sums: dict[bool, Products] = {}
        self._waiting: dict[bool, list[Use]] = {True: [], False: []}
        self._size = 0.0

    @property
    def rows(self) -> PerSampleGradients:
        rows = self._rows()
        assert rows is not None  # it owns this object
        return rows

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = self._rows()
        if rows is None or rows.ignoring or not (module.training and torch.is_grad_enabled()):
            return
        rows.look()
        if not (rows.sparing and self._known and self._weight.requires_grad):
            return
        if not self._unbatched(input_of(args, kwargs)) and self._own() and _plain(self._repeated):
            self._frozen = [p for p in self._parameters if p.requires_grad]
            for p in self._frozen:
                p.requires_grad = False

    def _own(self) -> bool:
        """Whether the module holds the weight that is trained (``functional_call`` swaps it)."""
        return self._places.get("weight") is self._weight

    def _leave(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor | None,
    ) -> Tensor | None:
        rows, spared = self._rows(), bool(self._frozen)
        for p in self._frozen:
            p.requires_grad = True
        self._frozen = []
        if rows is None or output is None:  # None: it raised an error
            return None
        if not spared and not (output.requires_grad and self._listening(rows, module)):
            return None
        z = input_of(args, kwargs).detach()
        if rows.first_input is None:
            rows.first_input = z
        if not spared and not self._counts(rows, z):
            return None
        # An input that needs no gradient under frozen weights makes a leaf: a clone can be hooked.
        heard = hookable(output) if output.requires_grad else output.requires_grad_(True).clone()
        node = heard.grad_fn
        if node is not None:
            # On the node rather than the tensor, which an activation may change in place.
            share = not spared and self._unbatched(z)
            node.register_prehook(
                self._share if share else partial(self._record, z, z._version, spared)
            )
        return heard

    def _listening(self, rows: PerSampleGradients, module: nn.Module) -> bool:
        """Whether a call is one for the loss, and the layer is trained."""
        if not module.training:
            rows.evaluated.add(self.layer.name)
            return False
        return any(p.requires_grad for p in self.layer.parameters)

    def _counts(self, rows: PerSampleGradients, z: Tensor) -> bool:
        """Whether a call that autograd takes care of is heard; what is strange about it."""
        if rows.ignoring or torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        if not self._unbatched(z):
            if not self._own():
                rows.replaced.add(self.layer.name)
            if not self._repeated and torch._C._current_graph_task_id() >= 0:
                rows.inside.add(self.layer.name)
        return True

    def _share(self, cotangents: tuple[Tensor | None, ...]) -> None:
        """A call on what all samples share has come up in a backward pass."""
        rows = self._rows()
        if rows is not None and rows.counting and not rows.ignoring:
            rows.unbatched.add(self.layer.name)

    def _record(
        self, z: Tensor, version: int, spared: bool, cotangents: tuple[Tensor | None, ...]
    ) -> None:
        rows, g = self._rows(), cotangents[0]
        if rows is None or not rows.counting or torch.is_grad_enabled():
            self._of_another_pass(rows, g, spared)
            return
        if rows.ignoring or g is None or self._within(rows):
            return
        if z._version != version:
            raise RuntimeError(
                f"the input of layer {self.layer.name!r} was changed in place after its use; "
                "its gradient needs the old one"
            )
        self._waiting[spared].append((z, g.detach()))
        self._size += g.numel() * self._numbers
        if self._size > _WAITING:
            self.add_up()

    def _within(self, rows: PerSampleGradients) -> bool:
        """Whether a pass within the loss' asks for something else, as those of implicit layers."""
        if rows.loss_pass in (None, current_pass()):
            return False
        inner = kind_of_pass(self._parameters) is Pass.INNER
        if inner:
            rows.inner.add(self.layer.name)
        return inner

    def _of_another_pass(
        self, rows: PerSampleGradients | None, g: Tensor | None, spared: bool
    ) -> None:
        if rows is not None and (rows.ignoring or g is None):
            return
        if spared:
            raise RuntimeError(_not_the_loss(self.layer.name))
        if rows is not None:
            rows.inner.add(self.layer.name)

    def add_up(self) -> None:
        """Form the products of the uses that wait."""
        self._size = 0.0
        samples = self.rows.samples
        for spared, uses in self._waiting.items():
            if not uses:
                continue
            assert samples is not None  # nothing is counted before they are known
            self._waiting[spared] = []
            self.rows.types.add(uses[0][1].dtype)
            with self.rows.stopwatch.running(uses[0][0].device):
                alike: dict[torch.Size, list[Use]] = {}
                for use in uses:
                    for z, g in samples.first(self.layer, *use, self._layouts):
                        alike.setdefault(z.shape, []).append((z, g))
                for some in alike.values():
                    self.sums[spared] = self.layer.per_sample_outer_products(
                        some, self.sums.get(spared)
                    )


class _Weak(UncopiedHook):
    """A hook on a method whose object may go: then it is silent."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.owner: Callable[[], Any] = weakref.ref(method.__self__)  # type: ignore[attr-defined]
        self.function: Callable[..., Any] = method.__func__  # type: ignore[attr-defined]

    def __call__(self, *args: Any) -> Any:
        """Pass on what the hook was given."""
        if torch.compiler.is_compiling():
            return self._left(*args)
        owner = self.owner()
        return None if owner is None else self.function(owner, *args)

    # A compiled step is left for the hook, which would not be heard in it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch types it for no method
    def _left(self, *args: Any) -> Any:
        owner = self.owner()
        return None if owner is None else self.function(owner, *args)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _plain(repeated: bool) -> bool:
    """Whether a call is made in a way that lets a layer's gradient be left out.

    Others repeat the call (checkpoints, which compare what both saved), or differentiate it within
    a backward pass or a function transform.
    """
    within = torch._C._current_graph_task_id() >= 0
    return (
        (repeated or not within)
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _mark(p: nn.Parameter) -> tuple[Tensor | None, int]:
    """What shows that a gradient is another one, or was changed in place."""
    return p.grad, -1 if p.grad is None else p.grad._version


def _same(now: tuple[Tensor | None, int], then: tuple[Tensor | None, int] | None) -> bool:
    return then is not None and now[0] is then[0] and now[1] == then[1]


def _not_the_loss(name: str) -> str:
    return (
        f"layer {name!r} was differentiated in a backward pass that is not the one of the loss: "
        "rule='gauss_newton' needs optimizer.curvature_pass(outputs) between the forward pass and "
        "backward(), and derivatives that the model takes itself (torch.autograd.grad) need "
        "another rule, such as rule='adam'; for other backward passes between zero_grad() and "
        "step(), use model.eval() or a copy of the model; optimizer.close() ends this listening"
    )
