"""The processes whose gradients are averaged into one, and what they share.

Whether there are any is asked when it matters, not when an optimizer is built: models are wrapped
before or after that, whole or as a part of something larger. A group that is up proves nothing, as
each of its processes may train a model of its own; so the model must be found in a
``DistributedDataParallel``, or the user says which group averages the gradients.

All share one loss, the mean of the processes' losses, each over its own batch. Curvature is what
one process would gather of that loss, whether the batches are equal or not.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from math import nan, prod
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snopt.curvature.kronecker import Basis, Factors, Sum
from snopt.errors import FactorizationError

Group = Any
"""A ``torch.distributed.ProcessGroup``; builds of torch without distributed have no such name."""

_wrappers: WeakKeyDictionary[DistributedDataParallel, None] = WeakKeyDictionary()
"""The wrappers there are, in the order in which they were noticed."""

_listening = False


def _note(module: nn.Module, name: str, child: nn.Module) -> None:
    if isinstance(module, DistributedDataParallel):
        _wrappers[module] = None


def _listen() -> None:
    """Notice the wrappers that will be made."""
    global _listening
    if not _listening:
        _listening = True
        nn.modules.module.register_module_module_registration_hook(_note)


def _look() -> None:
    """Notice the wrappers that were made before, or as copies of others."""
    if _up() and dist.get_world_size() > 1:  # no wrapper can be made without a group
        for x in gc.get_objects():
            if issubclass(type(x), DistributedDataParallel):
                _wrappers.setdefault(x)


def _up() -> bool:
    return dist.is_available() and dist.is_initialized()


def _exists(group: Group) -> bool:
    """Whether a group has not been destroyed."""
    try:
        dist.get_global_rank(group, 0)
    except ValueError:
        return False
    return True


class Processes:
    """The processes that train one model together; by itself, one.

    Args:
        parameters: the model's.
        group: a process group whose gradients the training loop averages itself; ``False`` if
            none are, ``None`` to look for the wrapper that averages them.
    """

    def __init__(
        self, parameters: Iterable[Tensor], group: Group | Literal[False] | None = None
    ) -> None:
        if group is not None and group is not False and not hasattr(group, "size"):
            raise ValueError(
                f"process_group={group!r}; expected a torch.distributed.ProcessGroup, False if "
                "gradients are not averaged, or None to look for DistributedDataParallel"
            )
        self._ids = {id(p) for p in parameters}
        self._given = group
        self._holds: WeakKeyDictionary[DistributedDataParallel, bool] = WeakKeyDictionary()
        self._warned = False
        _listen()
        _look()

    @property
    def group(self) -> Group | None:
        """The group that averages the gradients now, ``None`` where there is just this process.

        Raises:
            RuntimeError: one of its processes may end before the others.
        """
        if self._given is False or not _up():
            return None
        group = self._given
        if group is None and (wrapper := self._found()) is not None:
            _require_all(wrapper)
            group = wrapper.process_group
        return group if group is not None and group.size() > 1 else None

    def _found(self) -> DistributedDataParallel | None:
        """The wrapper noticed last, of those that hold the model and whose group exists."""
        found = None
        for wrapper in list(_wrappers):
            if wrapper not in self._holds:
                parameters = map(id, wrapper.parameters())
                self._holds[wrapper] = not self._ids.isdisjoint(parameters)
            if self._holds[wrapper] and _exists(wrapper.process_group):
                found = wrapper
        return found

    @property
    def size(self) -> int:
        """How many they are."""
        group = self.group
        return 1 if group is None else int(group.size())

    @property
    def rank(self) -> int:
        """The number of this one."""
        group = self.group
        return 0 if group is None else int(group.rank())

    def require_one(self, rule: str) -> None:
        """Refuse to go on where several processes average the gradients.

        Raises:
            RuntimeError: they do.
        """
        self.warn_if_unsure()
        if self.size > 1:
            raise RuntimeError(
                f"{rule} runs in one process, and {self.size} average the gradients of this "
                "model; use rule='adam', or train in one process"
            )

    def warn_if_unsure(self) -> None:
        """Say once that a process group is up whose part in the gradients is unknown."""
        unsure = self._given is None and _up() and dist.get_world_size() > 1
        if not unsure or self._warned or self._found() is not None:
            return
        _look()
        if self._found() is None:
            self._warned = True
            warnings.warn(
                f"a group of {dist.get_world_size()} processes is up, but this model is in no "
                "DistributedDataParallel: it is taken for a model of this process alone, and its "
                "curvature is not shared. If the training loop averages the gradients itself, pass "
                "process_group=torch.distributed.group.WORLD; if not, process_group=False",
                stacklevel=4,
            )

    def add_up(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over the processes."""
        group = self.group
        if group is not None:
            for tensor in tensors:
                dist.all_reduce(tensor, group=group)

    def total(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """The sums of some numbers."""
        if self.group is None:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.add_up(shared)
        return [float(x) for x in shared.tolist()]

    def mean(self, number: float, device: torch.device) -> float:
        """The mean of a number."""
        return self.total([number], device)[0] / self.size

    def spread(self, tensors: Iterable[Tensor], source: int) -> None:
        """Fill tensors with those of one process.

        Args:
            tensors: contiguous, overwritten in place where this is another process.
            source: the number of that process.
        """
        group = self.group
        if group is not None:
            for tensor in tensors:
                dist.broadcast(tensor, dist.get_global_rank(group, source), group=group)

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes below each other, in order of rank.

        Args:
            rows: shape (N of this process, ...).
            sizes: N of every process.
        """
        group = self.group
        if group is None:
            return rows
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        all_rows = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(all_rows, padded, group=group)
        return torch.cat([x[:size] for x, size in zip(all_rows, sizes, strict=True)])


def _require_all(wrapper: DistributedDataParallel) -> None:
    """Refuse steps that some processes leave out, as what they share would wait for those."""
    config = wrapper._join_config
    if config.enable and not config.throw_on_early_termination:
        raise RuntimeError(
            "within join() a process may make fewer steps than the others, which wait for it as "
            "they share their curvature: give all the same number of batches (a "
            "DistributedSampler does; a batch may be empty), or pass "
            "throw_on_early_termination=True to join()"
        )


def shared_basis(
    processes: Processes, worker: int, find: Callable[[Factors], Basis], factors: Factors
) -> Basis:
    """A basis that one process finds for all: rounding in another might turn it differently.

    Args:
        processes: all of them, with the same factors.
        worker: the number of the one that finds it.
        find: makes a basis of factors.
        factors: one layer's.

    Raises:
        FactorizationError: it found none; all processes learn that.
    """
    if processes.size == 1:
        return find(factors)
    # Not a number until it is known, so that a failure is told by the same message.
    basis = Basis(*_unknown(factors.a), *_unknown(factors.b))
    tensors = _tensors(basis)
    if processes.rank == worker:
        with suppress(FactorizationError):
            for tensor, found in zip(tensors, _tensors(find(factors)), strict=True):
                tensor.copy_(found)
    processes.spread(tensors, worker)
    if not bool(torch.isfinite(basis.values_b).all()):
        raise FactorizationError(f"process {worker} found no eigendecomposition")
    return basis


def _tensors(basis: Basis) -> list[Tensor]:
    return [basis.values_a, *chain(*basis.u_a), basis.values_b, *chain(*basis.u_b)]


def _unknown(side: Sum) -> tuple[Tensor, Sum]:
    width = sum(prod(factor.shape[-1] for factor in term) for term in side)
    like = side[0][0]
    vectors = tuple(tuple(torch.full_like(x, nan) for x in term) for term in side)
    return like.new_full((len(like), width), nan), vectors
