"""Which solver and which way to the gradient suit a block, and how wrong its gradient is."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snopt.arguments import instance_of
from snopt.copies import require_apart
from snopt.errors import SolverError
from snopt.ode.block import ODEBlock
from snopt.ode.gradients.held import tensors_in
from snopt.ode.packing import State, as_tuple
from snopt.ode.times import times_of
from snopt.random_streams import random_streams_kept
from snopt.real_numbers import as_real

#: Tolerance of the reference solve, in float64.
TIGHT = 1e-10
#: Passes that are timed.
ROUNDS = 5

Times = Tensor | Sequence[float] | None
"""As :meth:`ODEBlock.forward` takes them."""

#: Gradient error that is good enough even where the block's own is smaller.
GOOD_ENOUGH = 1e-3


@dataclass(frozen=True)
class GradientError:
    """A block's gradient compared with that of an accurate solve in float64.

    Attributes:
        parameters: |g - r| / |r| over the field's parameters.
        state: the same with respect to the initial state.
        output: |x(t1) - reference| / |reference|.
        cosine: of the angle between the parameters' gradients.
    """

    parameters: float
    state: float
    output: float
    cosine: float


@dataclass(frozen=True)
class Candidate:
    """A way to solve, and what it costs.

    Attributes:
        arguments: of :class:`ODEBlock`.
        evaluations: of the field, forward and backward.
        seconds: of a forward and a backward pass, the fastest of :data:`ROUNDS`.
        memory: bytes kept between the two, without parameters and the initial state.
        error: of its gradient; ``None`` where the solve failed.
        reason: why the solve failed.
    """

    arguments: Mapping[str, Any]
    evaluations: tuple[int, int] = (0, 0)
    seconds: float = float("inf")
    memory: int = 0
    error: GradientError | None = None
    reason: str = ""

    @property
    def line(self) -> str:
        """The code to write."""
        parts = [f"{key}={value!r}" for key, value in self.arguments.items()]
        return f"ODEBlock(field, {', '.join(parts)})"


@dataclass(frozen=True)
class Advice:
    """Candidates, the fastest first; ``print`` shows them as a table.

    Attributes:
        own: the block as it is.
        candidates: all others.
        tolerance: the gradient error that a candidate may have.
    """

    own: Candidate
    candidates: tuple[Candidate, ...]
    tolerance: float

    @property
    def best(self) -> Candidate:
        """The fastest whose gradient is good enough; the block's own if none is."""
        good = [c for c in (self.own, *self.candidates) if self._good(c)]
        return min(good, key=lambda c: c.seconds, default=self.own)

    def _good(self, candidate: Candidate) -> bool:
        error = candidate.error
        return error is not None and max(error.parameters, error.output) <= self.tolerance

    def __str__(self) -> str:
        lines = [f"{'NFE f/b':>11}  {'seconds':>8}  {'memory':>8}  {'gradient error':>14}  "]
        for c in (self.own, *self.candidates):
            mark = " <- best" if c is self.best else ""
            own = " (as it is)" if c is self.own else ""
            said = f"{c.line}{own}{mark}"
            if c.error is None:
                lines.append(f"{'':>11}  {'':>8}  {'':>8}  {'failed':>14}  {said}: {c.reason}")
                continue
            evaluations = "{}/{}".format(*c.evaluations)
            megabytes = f"{c.memory / 2**20:.1f} MB"
            lines.append(
                f"{evaluations:>11}  {c.seconds:8.2g}  {megabytes:>8}  "
                f"{c.error.parameters:14.1e}  {said}"
            )
        return "\n".join(lines)


def gradient_error(block: ODEBlock, x: State, t: Times = None, *, seed: int = 0) -> GradientError:
    """How far a block's gradient is from that of an accurate solve, in float64 at 1e-10.

    The scalar that is differentiated is the product of the block's output with fixed random
    numbers. The block, its counters, its gradients and torch's random numbers stay as they are. For
    a field that draws random numbers the result means nothing.

    Args:
        block: in the mode it has in training.
        x: initial state, as for the block.
        t: times, as for the block.
        seed: of the fixed random numbers.

    Raises:
        SolverError: the block's solve failed, or the tight one.
        ValueError: a copy of the block would go on using the block's parameters.
    """
    instance_of(ODEBlock, block)
    with random_streams_kept(block):
        reference = _reference(block, x, t, seed)
        return _compared(_pass(_twin(block), x, t, seed), reference)


def advise(
    block: ODEBlock,
    x: State,
    t: Times = None,
    *,
    tolerance: float | None = None,
    seed: int = 0,
) -> Advice:
    """Measure other solvers and gradient methods on a block.

    Seconds belong to this machine at this moment; evaluations and errors are repeatable. Errors
    belong to these weights: training makes fields stiffer, so measure again after some steps.

    Args:
        block: the block, which stays as it is, as torch's random numbers do.
        x: a batch of initial states like those of training.
        t: times, as for the block.
        tolerance: gradient error that is good enough. Default: that of the block itself, but at
            least 1e-3.
        seed: of the random numbers that the output is multiplied with.

    Raises:
        ValueError: ``tolerance`` is not positive, or a copy of the block would go on using the
            block's parameters.
        SolverError: the tight solve failed, so that there is nothing to compare with.
    """
    instance_of(ODEBlock, block)
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: must be positive, such as 1e-3")
    with random_streams_kept(block):
        reference = _reference(block, x, t, seed)
        own = _measured(block, _arguments(block), x, t, reference, seed)
        others = [
            _measured(block, arguments, x, t, reference, seed)
            for arguments in _candidates(block)
            if arguments != own.arguments
        ]
    if tolerance is None:
        tolerance = GOOD_ENOUGH
        if own.error is not None:
            tolerance = max(tolerance, own.error.parameters, own.error.output)
    ranked = sorted(others, key=lambda c: (c.error is None, c.seconds))
    return Advice(own, tuple(ranked), tolerance)


def _candidates(block: ODEBlock) -> Iterator[dict[str, Any]]:
    """Arguments that are worth a try, at the block's own tolerances where they matter."""
    solver = block.solver
    span = {"t_span": block.t_span}
    adaptive = {**span, "method": "dopri5", "rtol": solver.rtol, "atol": solver.atol}
    for gradient in ("adjoint", "adjoint-seminorm", "checkpoint", "direct"):
        yield {**adaptive, "gradient": gradient}
    for gradient in ("checkpoint", "direct"):
        yield {**adaptive, "gradient": gradient, "options": {"warm_start": True}}
    for method, counts in (("dopri5", (1, 2, 4)), ("rk4", (1, 2, 4, 8)), ("midpoint", (4, 16))):
        for steps in counts:
            fixed = {**span, "method": method, "options": {"steps": steps}}
            yield {**fixed, "gradient": "direct"}


def _arguments(block: ODEBlock) -> dict[str, Any]:
    solver = block.solver
    options: dict[str, Any] = dict(solver.options or {})
    for name, value in (("steps", solver.steps), ("max_steps", solver.max_steps)):
        options |= {} if value is None else {name: value}
    options |= {"warm_start": True} if block.warm_start else {}
    options |= {"compile": True} if block.compile_step else {}
    tolerances = {} if solver.steps is not None else {"rtol": solver.rtol, "atol": solver.atol}
    found = {"t_span": block.t_span, "method": solver.method, **tolerances}
    found |= {"gradient": block.gradient}
    return {**found, "options": options} if options else found


def _measured(
    block: ODEBlock,
    arguments: Mapping[str, Any],
    x: State,
    t: Times,
    reference: _Pass,
    seed: int,
) -> Candidate:
    twin = ODEBlock(_twin(block).field, **arguments).train(block.training)
    try:
        _pass(twin, x, t, seed)  # a warm start has something to start from
        before = twin.nfe_forward, twin.nfe_backward
        found = _pass(twin, x, t, seed, weigh=True)
        counts = twin.nfe_forward - before[0], twin.nfe_backward - before[1]
        seconds = min(_pass(twin, x, t, seed).seconds for _ in range(ROUNDS))
    except (SolverError, RuntimeError) as error:
        return Candidate(arguments, reason=str(error).splitlines()[0])
    return Candidate(arguments, counts, seconds, found.memory, _compared(found, reference))


@dataclass(frozen=True)
class _Pass:
    """A forward and a backward pass: output and gradients as flat float64 tensors, and its cost."""

    output: Tensor
    parameters: Tensor
    state: Tensor
    seconds: float
    memory: int


def _reference(block: ODEBlock, x: State, t: Times, seed: int) -> _Pass:
    """A pass of the tight block, once a copy is known to use nothing of the original's."""
    tight = _tight(block)
    start, end = block.t_span if t is None else times_of(t)[:2].tolist()
    near = (start, start + 1e-3 * (end - start))
    step: dict[str, Any] = {"method": "euler", "gradient": "direct", "options": {"steps": 1}}
    with torch.enable_grad():
        require_apart(as_tuple(ODEBlock(_twin(block).field, near, **step)(x)), block)
    return _pass(tight, _doubled(x), t, seed)


def _pass(block: ODEBlock, x: State, t: Times, seed: int, *, weigh: bool = False) -> _Pass:
    """One pass; memory is looked at where it is asked for, since that takes time."""
    parts = [p.detach().requires_grad_(p.is_floating_point()) for p in as_tuple(x)]
    parameters = [p for p in block.field.parameters() if p.requires_grad]
    spare = {p.untyped_storage().data_ptr() for p in (*parameters, *parts)}
    watch: AbstractContextManager[dict[int, int]]
    watch = _kept_bytes(spare) if weigh else nullcontext({})
    with torch.enable_grad():
        start = _now(parts[0])
        with watch as kept:
            outputs = as_tuple(block(parts[0] if isinstance(x, Tensor) else tuple(parts), t))
        seconds = _now(parts[0]) - start
        draw = torch.Generator().manual_seed(seed)
        cotangents = [
            torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out) for out in outputs
        ]
        start = _now(parts[0])
        grads = torch.autograd.grad(outputs, [*parameters, *parts], cotangents, allow_unused=True)
        seconds += _now(parts[0]) - start
    leaves = [*parameters, *parts]
    whole = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]
    split = len(parameters)
    return _Pass(
        _flat(outputs), _flat(whole[:split]), _flat(whole[split:]), seconds, sum(kept.values())
    )


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()


@contextmanager
def _kept_bytes(spare: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps inside, by place, but for some places."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
    for place in spare & kept.keys():
        del kept[place]


def _compared(found: _Pass, reference: _Pass) -> GradientError:
    g, r = found.parameters, reference.parameters
    return GradientError(
        parameters=_relative(g, r),
        state=_relative(found.state, reference.state),
        output=_relative(found.output, reference.output),
        cosine=float(torch.nn.functional.cosine_similarity(g, r, dim=0)) if len(g) else 1.0,
    )


def _relative(found: Tensor, wanted: Tensor) -> float:
    size = float(wanted.norm())
    distance = float((found - wanted).norm())
    return distance / size if size > 0 else distance


def _flat(parts: Iterable[Tensor]) -> Tensor:
    flat = [as_real(p.detach()).double().flatten().cpu() for p in parts]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _twin(block: ODEBlock) -> ODEBlock:
    """A copy that nobody listens to, with gradients and counters of its own."""
    # What a model has computed for its field cannot be copied with its graph.
    known: dict[int, Any] = {
        id(x): x.detach().clone().requires_grad_(x.requires_grad) for x in _held(block)
    }
    twin = copy.deepcopy(block, known)
    twin.observers, twin.listeners = weakref.WeakSet(), weakref.WeakSet()
    return twin


def _tight(block: ODEBlock) -> ODEBlock:
    if block.solver.integrator.per_sample:
        raise ValueError(
            "the field takes a time for each sample, and what its block is compared with calls it "
            "with one for all: ask of a block with a method by name, e.g. method='dopri5'"
        )
    twin = _twin(block)
    for x in (*twin.parameters(), *_held(twin)):
        x.data = _accurate(x.data)
    tight = replace(
        block.solver, method="dopri5", rtol=TIGHT, atol=TIGHT, steps=None, max_steps=None
    )
    twin.solver, twin.gradient = replace(tight, options={}), "direct"
    twin.warm_start = twin.compile_step = False
    twin.on_failure = "raise"
    return twin


def _held(block: ODEBlock) -> list[Tensor]:
    """Tensors of a block's field that are no parameters: buffers, and what it was given."""
    values = [value for m in block.field.modules() for value in vars(m).values()]
    found = [x for value in values for x in tensors_in(value)]
    return [x for x in found if not isinstance(x, nn.Parameter)]


def _accurate(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128)
    return x.double() if x.is_floating_point() else x


def _doubled(x: State) -> State:
    parts = tuple(map(_accurate, as_tuple(x)))
    return parts[0] if isinstance(x, Tensor) else parts
