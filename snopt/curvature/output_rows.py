"""Rows of R = S^T J: what every output of every sample, seen through S, has for a gradient.

Samples that do not act on one another share backward passes: one brings an output of every sample
back, to the calls of the layers, where input and cotangent give every sample its own row. There are
as many as a sample has outputs that count, so that what a loss leaves out costs nothing.
The passes of several outputs are one batched pass, but where a block repeats its steps on the way
back. Whether samples keep apart is found out: a pass of the ordinary kind is compared with the
rows, parameter by parameter, in the first steps of a mode and then once in so many. Where they
differ, and for parameters that no layer has, every row takes a pass of its own, which is right for
any model.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from snopt.curvature.check_steps import CheckSteps
from snopt.curvature.hooks import UncopiedHook, hookable
from snopt.curvature.per_sample import PerSampleGradients, repeated_layers
from snopt.curvature.residuals import Residuals
from snopt.curvature.samples import Samples
from snopt.layers.base import Layer, input_of
from snopt.ode.block import ODEBlock
from snopt.ode.gradients import GRADIENTS
from snopt.ode.passes import current_pass
from snopt.real_numbers import as_real, count, flattened

logger = logging.getLogger(__name__)

_PASSES = 64
"""Rows that take a pass of their own, in one batch."""


class _Call(NamedTuple):
    layer: Layer
    z: Tensor
    output: GradientEdge
    size: int


class OutputRows:
    """Hears the layers' calls, and makes rows of them.

    Args:
        layers: the layers by name.
        blocks: the model's ODE blocks by name.
        checks: the steps in which rows are compared.

    Attributes:
        active: whether calls are heard.
        first_input: of the first layer that was called, if no parameters are behind it.
        alone: parameters whose every row takes a pass of its own.
    """

    def __init__(
        self, layers: Mapping[str, Layer], blocks: Mapping[str, ODEBlock], checks: CheckSteps
    ) -> None:
        self.blocks, self.checks = blocks, checks
        self.active = True
        self.alone: set[Tensor] = set()
        self.first_input: Tensor | None = None
        self._calls: list[_Call] = []
        self._layouts: dict[str, dict[int, int]] = {name: {} for name in layers}
        self._batched = True
        self._told = False
        names = repeated_layers(layers, blocks)
        self._replayed = PerSampleGradients(layers, checks, names) if names else None
        self._layers = dict(layers)
        handles: list[RemovableHandle] = []
        for layer in layers.values():
            hook = UncopiedHook(_heard_by(weakref.ref(self), layer))
            handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        self.close = weakref.finalize(self, _remove, handles, self._replayed)
        self.close.atexit = False

    def clear(self) -> None:
        """Forget the calls so far."""
        self._calls, self.first_input = [], None

    def hear(self, layer: Layer, z: Tensor, output: Tensor) -> Tensor | None:
        """A layer was called.

        Returns:
            What is to take the place of the output, if anything.
        """
        if not (self.active and layer.module.training and output.requires_grad):
            return None
        if current_pass() >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        kept = hookable(output)
        if not self._calls and z.is_leaf and not isinstance(z, nn.Parameter):
            self.first_input = z.detach()
        self._calls.append(_Call(layer, z.detach(), get_gradient_edge(kept), kept.numel()))
        return kept

    def rows(
        self,
        outputs: Tensor,
        seen: Residuals,
        parameters: Sequence[nn.Parameter],
        memory: float,
        batch_dim: int = 0,
    ) -> list[Tensor]:
        """R, parameter by parameter.

        Args:
            outputs: (N, L, C), with their graph, which stays.
            seen: knows S.
            parameters: those wanted.
            memory: bytes that cotangents of calls may take at a time.
            batch_dim: the samples' dimension in what the model returned.

        Returns:
            Shapes (M, numbers), with a row for each of the M outputs that count.
        """
        if not bool(seen.counted.any()):
            return [as_real(p).new_zeros(0, count(p)) for p in parameters]
        wanted: set[Tensor] = {p for p in parameters if p not in self.alone}
        try:
            samples = Samples(len(outputs), batch_dim)
            if self._replayed is None:
                found = self._shared(outputs, seen, wanted, memory, samples)
            else:
                found = self._replays(self._replayed, outputs, seen, wanted, samples)
        except (RuntimeError, ValueError):  # no batched derivative, no dimension of samples
            found = {}
            self.alone.update(wanted)
        self.checks.look()
        if self.checks.due:
            self._compare(outputs, seen, found)
        self.checks.count()
        rest = [p for p in parameters if p not in found]
        self._tell(len(rest), len(parameters), len(outputs))
        found.update(zip(rest, self._one_by_one(outputs, seen, rest), strict=True))
        return [found[p] for p in parameters]

    def _tell(self, rest: int, parameters: int, samples: int) -> None:
        """Say once that passes are not shared."""
        if rest and samples > 1 and not self._told:
            self._told = True
            logger.warning(
                "%d of %d parameters need a backward pass for each output of each sample: they are "
                "no weights of linear layers or convolutions alone, a block's gradient comes from "
                "the adjoint equation, samples act on one another, or curvature_pass(batch_dim=) "
                "is not the dimension of samples",
                rest,
                parameters,
            )

    def _shared(
        self,
        outputs: Tensor,
        seen: Residuals,
        wanted: set[Tensor],
        memory: float,
        samples: Samples,
    ) -> dict[Tensor, Tensor]:
        """Rows of the parameters of layers that keep the samples apart."""
        calls = [
            call
            for call in self._calls
            if not call.layer.unbatched(call.z) and wanted.intersection(call.layer.parameters)
        ]
        # What all samples share has no rows of single ones.
        sharing = {p for x in self._calls if x.layer.unbatched(x.z) for p in x.layer.parameters}
        if not calls:
            return {}
        bytes_each = sum(call.size for call in calls) * outputs.element_size()
        numbers = _most(seen)
        chunk = max(1, min(numbers, int(memory / max(1, bytes_each))))
        parts: dict[Tensor, list[Tensor]] = {}
        for start in range(0, numbers, chunk):
            columns = _columns(seen, start, min(numbers, start + chunk))
            cotangents = torch.autograd.grad(
                outputs,
                [call.output for call in calls],
                columns.to(outputs.dtype),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            for p, rows in self._products(calls, cotangents, samples).items():
                if p in wanted and p not in sharing:
                    parts.setdefault(p, []).append(rows)
        return _joined(parts, seen)

    def _products(
        self, calls: Sequence[_Call], cotangents: Sequence[Tensor | None], samples: Samples
    ) -> dict[Tensor, Tensor]:
        """Rows (N, k, numel) of cotangents (k, ...) of calls."""
        uses: dict[Layer, dict[torch.Size, list[tuple[Tensor, Tensor]]]] = {}
        for call, g in zip(calls, cotangents, strict=True):
            if g is None:
                continue
            known, own = self._layouts[call.layer.name], uses.setdefault(call.layer, {})
            for z, part in samples.first(call.layer, call.z, g.movedim(0, -1), known):
                own.setdefault(z.shape, []).append((z, part.movedim(-1, 1)))
        matrices = {}
        for layer, alike in uses.items():
            products = None
            for some in alike.values():
                products = layer.per_sample_outer_products(some, products)
            if products is not None:
                matrices[layer] = layer.per_sample_gradients(products)
        return {p: x.unflatten(0, (samples.count, -1)) for p, x in _split(matrices).items()}

    def _replays(
        self,
        replayed: PerSampleGradients,
        outputs: Tensor,
        seen: Residuals,
        wanted: set[Tensor],
        samples: Samples,
    ) -> dict[Tensor, Tensor]:
        """As :meth:`_shared`, a pass for every output: repeated steps are heard as they run."""
        parts: dict[Tensor, list[Tensor]] = {}
        replayed.clear()
        for k in range(_most(seen)):
            columns = _columns(seen, k, k + 1)[0].to(outputs.dtype)
            replayed.expect(samples)
            replayed.counting = True
            try:
                torch.autograd.grad(
                    outputs, list(wanted), columns, retain_graph=True, allow_unused=True
                )
            finally:
                replayed.counting = False
            collected = replayed.collect().items()
            matrices = {self._layers[n]: x for n, x in collected if n not in replayed.unbatched}
            for p, rows in _split(matrices).items():
                if p in wanted:
                    parts.setdefault(p, []).append(rows.unsqueeze(1))
        return _joined(parts, seen)

    def _compare(self, outputs: Tensor, seen: Residuals, found: dict[Tensor, Tensor]) -> None:
        """Leave out what is not what an ordinary backward pass says."""
        if not found:
            return
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(seen.values.shape, generator=generator).to(seen.values)
        true = torch.autograd.grad(
            outputs,
            list(found),
            seen.cotangents(u).to(outputs.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        bound = min(0.1, 1e2 * max(torch.finfo(x.dtype).eps for x in (outputs, *found)) ** 0.75)
        for p, g in zip(tuple(found), true, strict=True):
            made = u.flatten(1)[seen.counted].to(found[p]) @ found[p]
            g = torch.zeros_like(p) if g is None else g
            size = float(found[p].norm() + g.norm())
            if not float((made - g.flatten()).norm()) <= bound * size:
                self.alone.add(p)
                del found[p]

    def _one_by_one(
        self, outputs: Tensor, seen: Residuals, parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """A backward pass for every row, which no model contradicts."""
        if not parameters:
            return []
        entries = seen.counted.flatten().nonzero().flatten()
        count = len(entries)
        parts: list[list[Tensor]] = [[] for _ in parameters]
        start = 0
        while start < count:
            end = min(count, start + (_PASSES if self._batched else 1))
            u = seen.scale.new_zeros(end - start, outputs.numel())
            u[range(end - start), entries[start:end]] = 1.0
            columns = seen.cotangents(u.view(-1, *outputs.shape)).to(outputs.dtype)
            try:
                found = torch.autograd.grad(
                    outputs,
                    parameters,
                    columns if self._batched else columns[0],
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=self._batched,
                )
            except RuntimeError:
                if not self._batched:
                    raise
                self._batched = False  # an adaptive backward solve decides by its numbers
                if any(not GRADIENTS[b.gradient].through_layers for b in self.blocks.values()):
                    logger.warning(
                        "each of the %d outputs takes a backward solve of its own; blocks with "
                        "gradient='direct' or 'checkpoint' share them between samples",
                        count,
                    )
                continue
            for p, g, made in zip(parameters, found, parts, strict=True):
                if g is None:
                    g = p.new_zeros(end - start, *p.shape)
                elif not self._batched:
                    g = g.unsqueeze(0)
                made.append(flattened(g, leading=1))
            start = end
        return [torch.cat(rows) for rows in parts]


def _split(matrices: Mapping[Layer, Tensor]) -> dict[Tensor, Tensor]:
    """Matrices (S, groups, out, in) as rows (S, numel) of the layers' parameters."""

    def split(one: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(matrices, one, strict=True)
        return [part.flatten() for layer, matrix in pairs for _, part in layer.split(matrix)]

    rows = torch.func.vmap(split)([*matrices.values()]) if matrices else []
    return dict(zip((p for layer in matrices for p in layer.parameters), rows, strict=True))


def _remove(handles: Sequence[RemovableHandle], replayed: PerSampleGradients | None) -> None:
    if replayed is not None:
        replayed.close()
    for handle in handles:
        handle.remove()


def _heard_by(rows: weakref.ref[OutputRows], layer: Layer) -> Callable[..., Tensor | None]:
    def heard(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        owner = rows()
        if owner is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        return owner.hear(layer, input_of(args, kwargs), output)

    return heard


def _most(seen: Residuals) -> int:
    """How many outputs of a sample count, at most."""
    return int(seen.counted.sum(dim=1).max())


def _columns(seen: Residuals, start: int, end: int) -> Tensor:
    """S times unit vectors: of every sample the outputs from start to end of those that count.

    Returns:
        Shape (end - start, N, L, C), zero for samples that have no more of them.
    """
    place = torch.where(seen.counted, seen.counted.cumsum(dim=1) - 1, -1)
    wanted = torch.arange(start, end, device=place.device).view(-1, 1, 1)
    return seen.cotangents((place == wanted).to(seen.scale).view(-1, *seen.scale.shape))


def _joined(parts: Mapping[Tensor, list[Tensor]], seen: Residuals) -> dict[Tensor, Tensor]:
    """Rows (N, passes, numel) as (M, numel)."""
    counts = seen.counted.sum(dim=1, keepdim=True)
    used = torch.arange(_most(seen), device=counts.device) < counts
    everything = bool(used.all())
    found = {}
    for p, rows in parts.items():
        joined = torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
        found[p] = joined.flatten(0, 1) if everything else joined[used]
    return found
