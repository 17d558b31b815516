"""Image and series tasks: data divided honestly, networks as in the paper, one step that learns."""

from __future__ import annotations

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from torch import nn

from tasks.data.splits import stratified_thirds
from tasks.data.uea import TimeSeries, read_uea
from tasks.images import ImageClassification
from tasks.models.ode_rnn import ODERNN, GatedCell
from tasks.series import SeriesClassification, network_inputs, thinned
from tests.support.task_cases import NODE, SOLVER, make

pytestmark = pytest.mark.usefixtures("checked_shapes")
CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
LEARNED = {"digits", "japanese_vowels", "basic_motions"}


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Counted by hand from the paper's description: weights, then biases where a layer has them.
STEM = {1: 9 * 64, 3: 3 * 9 * 64}
FIELD = 2 * (65 * 9 * 64 + 64)
CELL = {
    (i, h): 3 * (i + h) * h + 4 * h for i, h in ((27, 32), (19, 64), (7, 32), (25, 32), (13, 32))
}


@pytest.mark.parametrize(
    ("name", "whole", "field"),
    [
        ("mnist", STEM[1] + 2 * 16 * 64 * 64 + FIELD + 650, FIELD),
        ("svhn", STEM[3] + 2 * 16 * 64 * 64 + FIELD + 650, FIELD),
        ("cifar10", STEM[3] + 2 * 16 * 64 * 64 + FIELD + 650, FIELD),
        ("digits", 9 * 32 + 16 * 32 * 32 + 2 * (33 * 9 * 32 + 32) + 330, 2 * (33 * 9 * 32 + 32)),
        ("spoken_arabic_digits", 4 * 33 * 32 + CELL[27, 32] + 33 * 10, 4 * 33 * 32),
        ("articulary_word_recognition", 4 * 65 * 64 + CELL[19, 64] + 65 * 25, 4 * 65 * 64),
        ("character_trajectories", 4 * 33 * 32 + CELL[7, 32] + 33 * 20, 4 * 33 * 32),
        ("japanese_vowels", 4 * 33 * 32 + CELL[25, 32] + 33 * 9, 4 * 33 * 32),
        ("basic_motions", 4 * 33 * 32 + CELL[13, 32] + 33 * 4, 4 * 33 * 32),
    ],
)
def test_parameter_count(name: str, whole: int, field: int) -> None:
    model = make(name).build_model(NODE, SOLVER)
    assert parameters(model) == whole
    assert parameters(model.block.field) == field  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", (1377, 150, 270)),
        ("japanese_vowels", (448, 96, 96)),
        ("basic_motions", (56, 12, 12)),
    ],
)
def test_splits_are_disjoint_complete_and_stratified(
    tmp_path: Path, name: str, sizes: tuple[int, ...]
) -> None:
    task = make(name)
    splits = task.load(tmp_path, 0, CPU, F64)
    parts = (splits.train, splits.valid, splits.test)
    assert tuple(len(part[0]) for part in parts) == sizes
    rows = torch.cat([part[0].flatten(1).to(F64) for part in parts])
    original = len(torch.unique(rows, dim=0))
    assert original >= len(rows) - 1  # at most one pair of equal samples in the source
    shares = torch.stack([torch.bincount(part[-1]) / len(part[-1]) for part in parts])
    assert (shares - shares[0]).abs().max() < 0.03
    for other in (task.load(tmp_path, 1, CPU, F64), make(name).load(tmp_path, 0, CPU, F64)):
        for first, second in zip(splits.test, other.test, strict=True):
            assert torch.equal(first, second)


def test_mnist_holds_out_5000_training_images(real_data: Path) -> None:
    splits = make("mnist").load(real_data, 0, CPU, F32)
    assert [len(p[0]) for p in (splits.train, splits.valid, splits.test)] == [55000, 5000, 10000]
    assert splits.train[0].dtype == torch.uint8


def test_first_training_images_only(real_data: Path) -> None:
    task = make("mnist", train_samples=1000)
    splits = task.load(real_data, 0, CPU, F32)
    assert [len(p[0]) for p in (splits.train, splits.valid, splits.test)] == [900, 100, 10000]
    assert "only the first 1000 training images" in task.provenance


def test_images_are_standardised(tmp_path: Path) -> None:
    task = make("digits")
    assert isinstance(task, ImageClassification)
    splits = task.load(tmp_path, 0, CPU, F32)
    pixels = splits.train[0].clone()
    standard = task.standardize(splits.train[0])
    assert standard.mean().abs() < 0.02
    assert (standard.std() - 1).abs() < 0.02
    assert torch.equal(splits.train[0], pixels)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_few_steps_lower_the_loss(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    task = make(name)
    splits = task.load(tmp_path, 0, CPU, F32)
    solver = {**SOLVER, "gradient": "direct", "method": "rk4", "options": {"steps": 1}}
    model = task.build_model(NODE, solver)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = tuple(tensor[:56] for tensor in splits.train)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = task.loss(task.forward(model, batch, noise()), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    outputs = task.forward(model, batch, noise())
    measured = task.measure(outputs, batch)
    torch.testing.assert_close(measured["loss"].mean(), task.loss(outputs, batch))
    assert measured["accuracy"].shape == batch[-1].shape
    assert set(measured["accuracy"].unique().tolist()) <= {0.0, 1.0}


def plain_cell(cell: GatedCell, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The gated unit gate by gate, as papers write it."""
    width = h.shape[-1]
    w, b, u = cell.inputs.weight, cell.inputs.bias, cell.gates.weight
    reset = torch.sigmoid(w[:width] @ x + b[:width] + u[:width] @ h)
    middle = slice(width, 2 * width)
    update = torch.sigmoid(w[middle] @ x + b[middle] + u[width:] @ h)
    candidate = torch.tanh(
        w[2 * width :] @ x
        + b[2 * width :]
        + reset * (cell.candidate.weight @ h + cell.candidate.bias)
    )
    return (1 - update) * candidate + update * h


def test_batched_series_equal_one_series_at_a_time() -> None:
    torch.manual_seed(0)
    solver = {**SOLVER, "method": "rk4", "gradient": "direct", "options": {"steps": 4}}
    model = ODERNN(3, 5, 2, elapsed=0.7, solver=solver).double()
    observations = torch.randn(6, 8, 3, dtype=F64)
    lengths = torch.tensor([1, 8, 3, 5, 8, 2])
    observed = (torch.rand(6, 8) < 0.7) & (torch.arange(8) < lengths[:, None])
    observed[torch.arange(6), lengths - 1] = True
    together = model(observations, observed, lengths - 1)
    for case in range(6):
        h = torch.zeros(5, dtype=F64)
        for point in range(int(lengths[case])):
            if point:
                h = model.block(h[None])[0]
            if observed[case, point]:
                h = plain_cell(model.cell, observations[case, point], h)
        torch.testing.assert_close(together[case], model.head(h))


def test_what_follows_the_end_of_a_series_is_not_read() -> None:
    torch.manual_seed(0)
    model = ODERNN(3, 5, 2, solver={**SOLVER, "gradient": "direct"}).double()
    observations = torch.randn(2, 6, 3, dtype=F64)
    last = torch.tensor([2, 5])
    observed = torch.arange(6) <= last[:, None]
    first = model(observations, observed, last)
    observations[0, 3:] = 1e6
    torch.testing.assert_close(
        model(observations, observed, last)[0], first[0], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("gradient", ["adjoint", "adjoint-seminorm", "checkpoint"])
def test_gradient_through_all_intervals(gradient: str) -> None:
    observations = torch.randn(4, 5, 3, dtype=F64, generator=noise())
    observed = torch.ones(4, 5, dtype=torch.bool)
    last = torch.tensor([4, 2, 4, 3])
    gradients = []
    for how in ("direct", gradient):
        torch.manual_seed(0)
        solver = {**SOLVER, "rtol": 1e-9, "atol": 1e-9, "gradient": how}
        model = ODERNN(3, 5, 2, solver=solver).double()
        model(observations, observed, last).square().sum().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-6)


def test_what_the_network_sees_of_a_series() -> None:
    nan = np.nan
    values = np.array(
        [
            [[1.0, 2.0], [3.0, nan], [nan, nan], [5.0, 4.0]],
            [[2.0, 2.0], [nan, 6.0], [nan, nan], [nan, nan]],
        ]
    )
    series = TimeSeries(values, np.array([4, 2]), np.array([0, 1]), 2, "made up")
    inputs, observed = network_inputs(series, np.array([0]))
    np.testing.assert_array_equal(inputs[0, :, 0], [0, 1, 1, 2])  # since the last observation
    np.testing.assert_array_equal(inputs[0, :, 1:3], [[1, 1], [1, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(observed, [[1, 1, 0, 1], [1, 1, 0, 0]])
    # Statistics of the first series alone: channel 0 has mean 3 and variance 8/3.
    scale = np.sqrt(8 / 3) + 1e-5
    np.testing.assert_allclose(inputs[0, [0, 1, 3], 3] * scale, [-2.0, 0.0, 2.0], atol=1e-9)
    np.testing.assert_allclose(inputs[1, 0, 3] * scale, -1.0, atol=1e-9)
    assert np.isfinite(inputs).all()


def test_statistics_are_the_training_part_alone(tmp_path: Path) -> None:
    series = read_uea("JapaneseVowels", tmp_path)
    train, valid, test = stratified_thirds(series.labels, "")
    changed = series.values.copy()
    changed[np.concatenate([valid, test])] *= 100.0
    other = TimeSeries(changed, series.lengths, series.labels, series.classes, "made up")
    np.testing.assert_array_equal(
        network_inputs(other, train)[0][train], network_inputs(series, train)[0][train]
    )


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("digits", {"hidden": 0}, "hidden=0: must be an integer, at least 1"),
        ("digits", {"batch_size": 1.5}, "batch_size=1.5"),
        ("digits", {"dataset": "digit"}, "Did you mean digits"),
        ("digits", {"train_samples": -1}, "train_samples=-1"),
        ("japanese_vowels", {"dataset": "vowels"}, "dataset=vowels: no such choice"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InstantiationException, match=said):
        make(name, **arguments)


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="model=node"):
        make("circle").build_model({"name": "sonode"}, SOLVER)


def test_wrong_shapes_are_noticed_in_tests() -> None:
    model = ODERNN(3, 5, 2, solver=SOLVER)
    with pytest.raises(jaxtyping.TypeCheckError):
        model(torch.zeros(2, 4, 3), torch.ones(2, 5, dtype=torch.bool), torch.tensor([1, 1]))


def test_a_stride_takes_every_so_many_points() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 7, 2))
    values[1, 5:] = np.nan
    lengths = np.array([7, 5, 6])
    series = TimeSeries(values, lengths, np.array([0, 1, 0]), 2, "made up")
    thin = thinned(series, 3)
    np.testing.assert_array_equal(thin.values, values[:, [0, 3, 6]])
    assert thin.lengths.tolist() == [3, 2, 2]  # points 0, 3, 6; 0, 3; 0, 3
    assert thin.provenance == "made up; one grid point of 3"
    assert thinned(series, 1) is series
    with pytest.raises(ValueError, match="stride"):
        SeriesClassification("japanese_vowels", hidden=4, batch_size=8, stride=0)
