"""Which samples a step sees: index permutations from a seeded stream of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.common.seeding import stream
from tasks.task import Batch


class BatchSampler:
    """Batches of a data set, a fresh permutation every epoch, resumable at any batch.

    The stream depends on the seed alone, so every optimizer sees the same batches. The last batch
    of an epoch holds what is left over, or is left out. Under data parallelism every process draws
    the same permutation and takes its own share of each batch.

    Args:
        data: tensors of shape (N, ...), sample first.
        batch_size: samples of a step, over all processes together.
        seed: the run's root seed.
        rank: number of this process.
        world: number of processes; divides ``batch_size``.
        drop_last: leave out the samples of an epoch that fill no whole batch.
    """

    def __init__(
        self,
        data: Batch,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        drop_last: bool = False,
    ) -> None:
        self._data = data
        self._samples = len(data[0])
        self._share = slice(rank, None, world)
        self._world = world
        self.batch_size = min(batch_size, self._samples)
        rest = self._samples % self.batch_size
        # Equal shares: what a rest batch has beyond a multiple of the processes is left out.
        usable = self._samples - (rest if drop_last else rest % world)
        self.steps_per_epoch = -(-usable // self.batch_size)
        self._generator = stream(seed, "order")
        self.epoch = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        # The state before the draw, so that a checkpoint needs no permutation of N indices.
        self._drawn_from = self._generator.get_state()
        self._permutation = torch.randperm(self._samples, generator=self._generator)
        self._permutation = self._permutation.to(self._data[0].device)
        self._position = 0

    def next(self) -> Batch:
        """The next batch; ``epoch`` counts up when it was an epoch's last."""
        start = self._position * self.batch_size
        indices = self._permutation[start : start + self.batch_size]
        if len(indices) % self._world:
            indices = indices[: -(len(indices) % self._world)]
        batch = take(self._data, indices[self._share])
        self._position += 1
        if self._position == self.steps_per_epoch:
            self.epoch += 1
            self._begin_epoch()
        return batch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch was an epoch's last; so it is before the first, too."""
        return self._position == 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position in it, and the generator that draws its permutation."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "generator": self._drawn_from.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ValueError: that is past the end of an epoch of this data and batch size.
        """
        if not 0 <= state["position"] < self.steps_per_epoch:
            raise ValueError(
                f"it stands at step {state['position']} of an epoch, which has "
                f"{self.steps_per_epoch} here"
            )
        self._generator.set_state(state["generator"])
        self._begin_epoch()
        self.epoch = state["epoch"]
        self._position = state["position"]


def take(data: Batch, indices: Tensor) -> Batch:
    """The samples at ``indices``, an int64 tensor of shape (B,)."""
    return tuple(tensor[indices] for tensor in data)


def evenly_spaced(data: Batch, count: int | None) -> Batch:
    """At most ``count`` samples spread evenly over the data, all of them for ``None``."""
    samples = len(data[0])
    if count is None or count >= samples:
        return data
    indices = torch.arange(count, device=data[0].device) * samples // count
    return take(data, indices)
