import itertools

import pytest
import torch

from tasks.engine.training.batches import BatchSampler, evenly_spaced
from tasks.task import Batch


def data(samples: int) -> Batch:
    return torch.arange(samples), torch.arange(samples) * 10


def batches(order: BatchSampler, count: int) -> list[list[int]]:
    return [order.next()[0].tolist() for _ in range(count)]


def test_an_epoch_sees_every_sample_once() -> None:
    order = BatchSampler(data(10), batch_size=4, seed=0)
    seen = batches(order, 3)
    assert [len(batch) for batch in seen] == [4, 4, 2]
    assert sorted(itertools.chain(*seen)) == list(range(10))
    assert (order.epoch, order.steps_per_epoch) == (1, 3)


def test_tensors_stay_together() -> None:
    x, y = BatchSampler(data(10), batch_size=10, seed=0).next()
    assert torch.equal(y, x * 10)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = batches(BatchSampler(data(8), 8, seed=0), 2)
    assert first[0] != first[1]
    assert first == batches(BatchSampler(data(8), 8, seed=0), 2)
    assert first != batches(BatchSampler(data(8), 8, seed=1), 2)


@pytest.mark.parametrize("made", range(8))
def test_resumes_anywhere(made) -> None:
    order = BatchSampler(data(10), batch_size=4, seed=3)
    batches(order, made)
    state = order.state_dict()
    resumed = BatchSampler(data(10), batch_size=4, seed=3)
    batches(resumed, 2)
    resumed.load_state_dict(state)
    assert resumed.epoch == order.epoch
    assert batches(resumed, 7) == batches(order, 7)


def test_batch_larger_than_the_data() -> None:
    order = BatchSampler(data(3), batch_size=128, seed=0)
    assert order.steps_per_epoch == 1
    assert len(order.next()[0]) == 3


def test_processes_share_the_batches_of_one() -> None:
    alone = batches(BatchSampler(data(11), batch_size=4, seed=0), 3)
    shares = [BatchSampler(data(11), batch_size=4, seed=0, rank=rank, world=2) for rank in range(2)]
    parts = [batches(share, 3) for share in shares]
    for whole, left, right in zip(alone, *parts, strict=True):
        assert len(left) == len(right)
        assert sorted(left + right) == sorted(whole[: len(whole) // 2 * 2])


@pytest.mark.parametrize(("samples", "steps"), [(8, 2), (9, 2), (10, 3)])
def test_rest_too_small_to_share_is_no_batch(samples, steps) -> None:
    order = BatchSampler(data(samples), batch_size=4, seed=0, rank=1, world=2)
    assert order.steps_per_epoch == steps
    assert all(len(batch) > 0 for batch in batches(order, 2 * steps))


@pytest.mark.parametrize(("samples", "steps"), [(8, 2), (9, 2), (11, 2), (3, 1)])
def test_rest_is_left_out(samples, steps) -> None:
    order = BatchSampler(data(samples), batch_size=4, seed=0, drop_last=True)
    assert order.steps_per_epoch == steps
    epochs = [batches(order, steps) for _ in range(2)]
    for epoch in epochs:
        seen = [sample for batch in epoch for sample in batch]
        assert [len(batch) for batch in epoch] == [min(samples, 4)] * steps
        assert len(set(seen)) == len(seen)
    assert order.epoch == 2
    assert epochs[0] != epochs[1]


def test_evenly_spaced() -> None:
    assert evenly_spaced(data(10), 5)[0].tolist() == [0, 2, 4, 6, 8]
    assert len(evenly_spaced(data(10), None)[0]) == len(evenly_spaced(data(10), 99)[0]) == 10
