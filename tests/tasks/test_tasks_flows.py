"""Flows: densities against closed forms, inverses, the divergence, and what is drawn for it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor

from tasks.data.checkerboard import ENTROPY
from tasks.models.cnf import DIVERGENCES, ContinuousFlow, FlowField
from tests.support.task_cases import NODE, SOLVER, make

pytestmark = pytest.mark.usefixtures("checked_shapes")
F64 = torch.float64
TIGHT = {**SOLVER, "rtol": 1e-9, "atol": 1e-9}


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_flow(
    matrix: Tensor, velocity: Tensor | None = None, divergence: str = "exact", blocks: int = 1
) -> ContinuousFlow:
    """A flow whose field is ``z' = matrix z + velocity``: one layer, its gate open."""
    dims = len(matrix)
    flow = ContinuousFlow(
        dims, 1, layers=1, blocks=blocks, divergence=divergence, solver=TIGHT
    ).double()
    with torch.no_grad():
        for block in flow.blocks:
            layer = block.field.layers[0]  # type: ignore[union-attr, index]
            layer.linear.weight.copy_(matrix)
            layer.linear.bias.copy_(torch.zeros(dims) if velocity is None else velocity)
            layer.gate.weight.zero_()
            layer.gate.bias.fill_(40.0)  # sigmoid(40) is 1 in double precision
            layer.shift.weight.zero_()
    return flow


def random_flow(
    divergence: str = "exact", activation: str = "tanh", **options: object
) -> ContinuousFlow:
    torch.manual_seed(0)
    settings = {"layers": 3, "solver": TIGHT, **options}
    return ContinuousFlow(
        3,
        8,
        activation=activation,
        divergence=divergence,
        **settings,  # type: ignore[arg-type]
    ).double()


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_linear_field_has_its_closed_form(divergence: str, blocks: int) -> None:
    # Of a diagonal matrix every Rademacher estimate is exact, of any matrix none is needed.
    matrix = torch.diag(torch.tensor([0.5, -0.3, 0.2], dtype=F64))
    if divergence == "exact":
        matrix = matrix + 0.4 * torch.randn(3, 3, dtype=F64, generator=noise())
    if divergence == "gaussian":
        matrix = torch.zeros(3, 3, dtype=F64)
    flow = linear_flow(matrix, divergence=divergence, blocks=blocks)
    x = torch.randn(20, 3, dtype=F64, generator=noise(1))
    # z(1) = exp(matrix) z(0) for each block: a normal with covariance exp(M) exp(M)^T.
    move = torch.linalg.matrix_exp(matrix * blocks)
    expected = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), move @ move.T)
    torch.testing.assert_close(flow(x, noise()), expected.log_prob(x), atol=1e-7, rtol=1e-7)


def test_affine_field_has_its_closed_form() -> None:
    # z' = a z + b per dimension: z(1) = e^a z(0) + b (e^a - 1) / a.
    rate = torch.tensor([0.7, -0.4], dtype=F64)
    velocity = torch.tensor([1.0, -2.0], dtype=F64)
    flow = linear_flow(torch.diag(rate), velocity, "rademacher")
    x = torch.randn(20, 2, dtype=F64, generator=noise(1))
    mean = velocity * torch.expm1(rate) / rate
    expected = torch.distributions.Normal(mean, rate.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(flow(x, noise()), expected, atol=1e-7, rtol=1e-7)


def test_density_integrates_to_one() -> None:
    torch.manual_seed(1)
    flow = ContinuousFlow(2, 8, divergence="exact", solver={**SOLVER, "rtol": 1e-6, "atol": 1e-6})
    with torch.no_grad():
        for weight in flow.parameters():
            weight.mul_(2.0)
        axis = torch.linspace(-9.0, 9.0, 181)
        grid = torch.cartesian_prod(axis, axis)
        total = flow(grid, noise()).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_inverse_and_forward_agree(divergence: str) -> None:
    flow = random_flow(divergence, blocks=2)
    x = torch.randn(10, 3, dtype=F64, generator=noise())
    z, gained = flow.to_base(x, noise(1))
    back, lost = flow.to_data(z, noise(2))
    torch.testing.assert_close(back, x, atol=1e-6, rtol=1e-6)
    if divergence == "exact":
        torch.testing.assert_close(lost, -gained, atol=1e-6, rtol=1e-6)


def test_the_inverse_takes_the_interval_that_the_density_took() -> None:
    flow = random_flow("exact")
    (block,) = flow.blocks
    block.t_span = (1.0, 0.4)  # as an optimised integration time leaves it
    x = torch.randn(10, 3, dtype=F64, generator=noise())
    z, gained = flow.to_base(x, noise(2))
    back, lost = flow.to_data(z, noise(2))
    torch.testing.assert_close(back, x, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lost, -gained, atol=1e-6, rtol=1e-6)


def test_samples_have_the_density_they_say() -> None:
    flow = random_flow("exact")
    samples, density = flow.sample(50, noise())
    assert samples.shape == (50, 3)
    torch.testing.assert_close(flow(samples, noise()), density, atol=1e-6, rtol=1e-6)
    again, _ = flow.sample(50, noise())
    assert torch.equal(samples, again)


def test_samples_of_a_known_density() -> None:
    flow = linear_flow(torch.diag(torch.tensor([0.7, -0.4], dtype=F64)))
    samples, _ = flow.sample(20000, noise())
    torch.testing.assert_close(
        samples.std(0), torch.tensor([0.7, -0.4], dtype=F64).exp(), atol=0.0, rtol=0.03
    )


def jacobian_trace(field: FlowField, t: Tensor, z: Tensor) -> Tensor:
    def velocity(row: Tensor) -> Tensor:
        out, _ = field(t, (row[None], torch.zeros(1, dtype=row.dtype)))
        return out[0]

    return torch.stack([torch.autograd.functional.jacobian(velocity, row).trace() for row in z])


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_exact_divergence_is_the_jacobians_trace(activation: str) -> None:
    field = random_flow("exact", activation).blocks[0].field
    z = torch.randn(5, 3, dtype=F64, generator=noise())
    t = torch.tensor(0.3, dtype=F64)
    _, slope = field(t, (z, z.new_zeros(5)))
    torch.testing.assert_close(-slope, jacobian_trace(field, t, z))


@pytest.mark.parametrize("divergence", ["rademacher", "gaussian"])
def test_estimated_divergence_is_unbiased(divergence: str) -> None:
    field = random_flow(divergence).blocks[0].field
    z = torch.randn(1, 3, dtype=F64, generator=noise())
    t = torch.tensor(0.3, dtype=F64)
    repeated = z.expand(200_000, 3)
    field.draw(repeated, noise())
    assert (field.direction.mean(0).abs() < 0.01).all()
    assert ((field.direction.square().mean(0) - 1).abs() < 0.02).all()
    _, slope = field(t, (repeated, repeated.new_zeros(len(repeated))))
    error = slope.std() / math.sqrt(len(slope))
    exact = jacobian_trace(random_flow("exact").blocks[0].field, t, z)
    assert (-slope.mean() - exact[0]).abs() < 4 * error


def test_one_draw_for_each_solve() -> None:
    flow = random_flow("rademacher", blocks=2)
    directions: list[list[Tensor]] = [[], []]
    for kept, block in zip(directions, flow.blocks, strict=True):
        block.field.register_forward_pre_hook(
            lambda field, _, kept=kept: kept.append(field.direction)
        )
    generator = noise()
    for _ in range(2):
        flow(torch.randn(4, 3, dtype=F64), generator).sum().backward()
    for kept in directions:
        assert len(kept) > 20
        assert (
            len({id(direction) for direction in kept}) == 2
        )  # one per forward pass, kept in backward
    drawn = {tuple(d.flatten().tolist()) for kept in directions for d in kept}
    assert len(drawn) == 4


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_by_adjoint_equals_direct(divergence: str) -> None:
    gradients = []
    x = torch.randn(6, 3, dtype=F64, generator=noise())
    for how in ("direct", "adjoint"):
        flow = random_flow(divergence, solver={**TIGHT, "gradient": how})
        (-flow(x, noise(1)).mean()).backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def concat_squash(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs + 2 * outputs + outputs


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("circle", concat_squash(2, 64) + concat_squash(64, 64) + concat_squash(64, 2)),
        ("miniboone", concat_squash(43, 860) + concat_squash(860, 860) + concat_squash(860, 43)),
        ("gas", 5 * (concat_squash(8, 160) + 2 * concat_squash(160, 160) + concat_squash(160, 8))),
    ],
)
def test_parameter_count(name: str, count: int) -> None:
    model = make(name).build_model(NODE, SOLVER)
    assert sum(p.numel() for p in model.parameters()) == count


def test_circle_is_two_rings_from_the_seed(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    task = make("circle")
    splits = task.load(tmp_path, 3, cpu, F64)
    assert "synthetic" in task.provenance
    points = torch.cat([splits.train[0], splits.valid[0], splits.test[0]])
    radius = points.norm(dim=1)
    outer = radius > 0.75
    assert outer.double().mean().item() == pytest.approx(0.5, abs=0.01)
    for ring, expected in ((radius[outer], 1.0), (radius[~outer], 0.5)):
        assert ring.mean().item() == pytest.approx(expected, abs=0.01)
        assert ring.std().item() == pytest.approx(0.06, abs=0.005)
    again, other = task.load(tmp_path, 3, cpu, F64), task.load(tmp_path, 4, cpu, F64)
    assert torch.equal(again.train[0], splits.train[0])
    assert not torch.equal(other.train[0], splits.train[0])


def test_checkerboard_fills_eight_squares_evenly(tmp_path: Path) -> None:
    task = make("checkerboard")
    points = task.load(tmp_path, 3, torch.device("cpu"), F64).train[0]
    squares = (points / 2).floor().long() + 2  # column and row, 0 to 3
    assert squares.min() == 0
    assert squares.max() == 3
    assert bool(((squares.sum(dim=1) % 2) == 0).all())  # of one colour
    counts = torch.bincount(4 * squares[:, 0] + squares[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    torch.testing.assert_close(
        counts[counts > 0] / len(points), torch.full((8,), 1 / 8), atol=0.012, rtol=0
    )
    inside = (points / 2) % 1  # uniform within each
    assert inside.mean(dim=0) == pytest.approx([0.5, 0.5], abs=0.01)
    assert inside.var(dim=0) == pytest.approx([1 / 12, 1 / 12], abs=0.003)
    assert math.exp(ENTROPY) == pytest.approx(32.0)


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = make("circle", hidden=16)
    splits = task.load(tmp_path, 0, torch.device("cpu"), torch.float32)
    model = task.build_model(NODE, SOLVER)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = (splits.train[0][:256],)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = task.loss(task.forward(model, batch, noise()), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    outputs = task.forward(model, batch, noise())
    measured = task.measure(outputs, batch)
    torch.testing.assert_close(measured["nll"].mean(), task.loss(outputs, batch))


def test_part_of_the_training_rows(tmp_path: Path) -> None:
    task = make("circle", train_fraction=0.25)
    splits = task.load(tmp_path, 0, torch.device("cpu"), torch.float32)
    assert len(splits.train[0]) == 4096
    assert len(splits.test[0]) == 8192
    assert "only the first 4096 training rows" in task.provenance


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"divergence": "exakt"}, "Did you mean exact"),
        ({"activation": "relu"}, "activation=relu: no such choice"),
        ({"layers": 0}, "layers=0"),
        ({"train_fraction": 0.0}, "train_fraction=0.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InstantiationException, match=said):
        make("circle", **arguments)


def test_field_without_a_direction_says_so() -> None:
    field = FlowField(2, 4, 2, "tanh", "rademacher")
    with pytest.raises(RuntimeError, match=r"call draw\(\)"):
        field(torch.tensor(0.0), (torch.zeros(1, 2), torch.zeros(1)))
