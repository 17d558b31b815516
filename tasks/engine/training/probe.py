"""How good the training gradient is: its distance from a float64 one at tight tolerances.

The reference is computed beside training, on a copy of the model, with the same batch and the same
random numbers. Nothing of it stays: parameters, gradients, random streams, evaluation counters and
warm starts are afterwards what they were, and the hooks of an optimizer are not called.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import snopt
from snopt.ode.block import blocks
from snopt.ode.integrate import Solver
from tasks.engine.records import checkpoint
from tasks.engine.training.parallel import World
from tasks.task import Batch, Task

logger = logging.getLogger(__name__)

#: Of the reference; a solve of more steps than this counts as failed.
TIGHT = Solver("dopri5", rtol=1e-9, atol=1e-9, max_steps=20_000)


class GradientProbe:
    """Compares gradients that training has just computed with tight ones.

    Args:
        task: runs the model and says what its loss is.
        model: the model that trains, not its data-parallel wrapper.
        noise: the task's own random stream.
        world: the processes that train together; they must measure together.
    """

    def __init__(self, task: Task, model: nn.Module, noise: torch.Generator, world: World) -> None:
        self._task, self._model, self._noise, self._world = task, model, noise, world

    def measure(self, batch: Batch, randomness: dict[str, Any]) -> dict[str, float]:
        """Compare the gradients that the model's parameters hold now.

        Args:
            batch: what the gradients were computed on.
            randomness: :func:`~tasks.engine.records.checkpoint.random_state` from before their
                forward pass.

        Returns:
            ``probe/error``, |g - r| / |r| for the gradient g and the reference r, and
            ``probe/cosine`` of the angle between them; the same of the ODE fields' part as
            ``probe/field_error`` and ``probe/field_cosine``. Where no reference could be computed
            ``probe/failed`` alone, with the value 1.
        """
        reference = self._reference(batch, randomness)
        if reference is None:
            return {"probe/failed": 1.0}
        pairs = {
            name: (torch.zeros_like(r) if p.grad is None else p.grad.detach().double(), r)
            for (name, p), r in zip(self._model.named_parameters(), reference, strict=True)
        }
        inside = {id(p) for block in blocks(self._model).values() for p in block.field.parameters()}
        of_fields = [pairs[name] for name, p in self._model.named_parameters() if id(p) in inside]
        error, cosine = compare(pairs.values())
        values = {"probe/error": error, "probe/cosine": cosine}
        if of_fields:
            values["probe/field_error"], values["probe/field_cosine"] = compare(of_fields)
        return values

    def _reference(self, batch: Batch, randomness: dict[str, Any]) -> list[Tensor] | None:
        """The mean of the processes' tight gradients, or ``None`` where one of them has none."""
        now = checkpoint.random_state(self._noise)
        gradients: list[Tensor] | None = None
        try:
            checkpoint.load_random_state(randomness, self._noise)
            gradients = self._tight_gradient(batch)
        except RuntimeError as error:  # SolverError, and whatever else torch cannot do, memory too
            logger.warning("no reference for the gradient: %s: %s", type(error).__name__, error)
        finally:
            checkpoint.load_random_state(now, self._noise)
        (failed,) = self._world.any([gradients is None])
        if failed or gradients is None:
            return None
        return self._world.average(gradients)

    def _tight_gradient(self, batch: Batch) -> list[Tensor]:
        dtype = next(self._model.parameters()).dtype
        model = _copy_without_hooks(self._model).double()
        for block in blocks(model).values():
            block.solver, block.gradient = TIGHT, "adjoint"
            block.warm_start = block.compile_step = False
            block.on_failure = "raise"
        model.zero_grad()
        double = tuple(x.double() if x.is_floating_point() else x for x in batch)
        with DrawnIn(dtype):
            outputs = self._task.forward(model, double, self._noise)
        self._task.loss(outputs, double).backward()
        parameters = list(model.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise snopt.SolverError("non-finite state", float("nan"), None, 0, "in its gradient")
        return gradients


def _copy_without_hooks(model: nn.Module) -> nn.Module:
    """A copy without hooks; what they belong to is not copied along with it either."""
    nothing: dict[int, Any] = {}
    for module in model.modules():
        for name in ("_forward_hooks", "_backward_hooks"):
            nothing[id(getattr(module, name))] = OrderedDict()
    return copy.deepcopy(model, nothing)


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Relative error and cosine of a gradient given in parts.

    Args:
        pairs: found part and reference part, float64, of equal shapes.

    Returns:
        |g - r| / |r| and g.r / |g| |r|; not a number where r (or g) is zero.
    """
    difference = found = wanted = product = torch.zeros((), dtype=torch.float64)
    for g, r in pairs:
        difference = difference + (g - r).square().sum().cpu()
        found = found + g.square().sum().cpu()
        wanted = wanted + r.square().sum().cpu()
        product = product + (g * r).sum().cpu()
    return float((difference / wanted).sqrt()), float(product / (found * wanted).sqrt())


class DrawnIn(TorchDispatchMode):
    """Draws random numbers in another dtype than they are asked for in, and converts them.

    A generator gives other numbers in float64 than in float32; the reference needs those that
    training had.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        drawn = func(*tree_map(self._lower, args), **tree_map(self._lower, kwargs))
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return tree_map(self._raise, drawn)

    def _lower(self, x: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return x.to(self.dtype)
        return self.dtype if x is torch.float64 else x

    def _raise(self, x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.dtype == self.dtype else x
