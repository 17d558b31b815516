"""Data parallelism under torchrun: who this process is, and decisions that all must share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tasks.common.checks import ConfigError

T = TypeVar("T")

_runs = count()


@cache
def _store() -> Store:
    """Where the processes that torchrun has started leave their addresses."""
    store: Store = next(iter(rendezvous("env://")))[0]
    return store


@dataclass(frozen=True)
class World:
    """The processes that train one model together.

    Attributes:
        rank: number of this process; rank 0 writes.
        size: how many there are; 1 without torchrun.
        device: where this process trains.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> World:
        """Read torchrun's environment and join the process group, where there is one.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            ConfigError: ``cuda`` without a CUDA device.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda: torch sees no CUDA device. Use device=cpu or auto.")
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if cuda:
            torch.cuda.set_device(local)
        here = torch.device("cuda", local) if cuda else torch.device("cpu")
        if size == 1:
            return cls(0, 1, here)
        if not dist.is_initialized():
            # In a group of the same name the next run of a sweep would find addresses of the last.
            store = PrefixStore(f"run {next(_runs)}", _store())
            backend = "nccl" if cuda else "gloo"
            rank = int(os.environ["RANK"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return cls(dist.get_rank(), size, here)

    def leave(self) -> None:
        """Leave the process group, after the wrapped model that talks through it is gone."""
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to run forward: it averages gradients over the processes."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)

    def first(self, do: Callable[[], T]) -> T | None:
        """Have the first process do something that can fail, while the others wait.

        Returns:
            What came of it, in the first process.

        Raises:
            ConfigError: in the others, where it failed; the first process raises its own error.
        """
        if self.size == 1:
            return do()
        found, failed = None, True
        try:
            if self.rank == 0:
                found = do()
            failed = False
        finally:
            (failed,) = self.any([failed])
        if failed:
            raise ConfigError(f"process {self.rank}: ends, as process 0 failed. It says why.")
        return found

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag, true where any process has it true."""
        if self.size == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def broadcast(self, value: float) -> float:
        """Rank 0's number, in all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def mean(self, value: float) -> float:
        """The mean of a number over the processes; not finite where one is not."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return float(shared) / self.size

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean of each tensor over the processes; the tensors may be overwritten."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.size
        return tensors

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
