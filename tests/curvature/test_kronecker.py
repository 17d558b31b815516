"""Factors, eigenbases and rotations as plain linear algebra."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snopt import FactorizationError
from snopt.curvature.kronecker import (
    Basis,
    Factors,
    Modes,
    Sum,
    by_cholesky,
    combined_factors,
    condition_number,
    damped_inverse,
    dense,
    eigenbasis,
    followed,
    gradient_factors,
    gradient_moments,
    not_finite,
    orthonormal,
    rotate_mean,
    rotate_square,
    rotation,
    symmetric_eigen,
)


def positive(groups: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, size, 2 * size, generator=generator, dtype=torch.float64)
    return x @ x.mT / size


def factors(seed: int = 0) -> Factors:
    return Factors(((positive(2, 4, seed),),), ((positive(2, 3, seed + 1),),))


def divided(seed: int = 0) -> Factors:
    """Over two channels at three positions and a bias, and over two blocks of three outputs."""
    terms = ((positive(2, 2, seed), positive(2, 3, seed + 2)), (positive(2, 1, seed + 3),))
    return Factors(terms, ((positive(2, 2, seed + 1),), (positive(2, 1, seed + 4),)))


def written_out(terms: Sum) -> Tensor:
    """A sum of products by ``torch.kron`` and ``torch.block_diag``, group by group."""
    groups = []
    for g in range(len(terms[0][0])):
        products = [functools.reduce(torch.kron, [factor[g] for factor in term]) for term in terms]
        groups.append(torch.block_diag(*products))
    return torch.stack(groups)


def block(pair: Factors) -> Tensor:
    """A (x) B over gradients flattened row by row (out, in), group by group."""
    whole = map(written_out, pair)
    return torch.stack([torch.kron(b, a) for a, b in zip(*whole, strict=True)])


@pytest.mark.parametrize("pair", [factors(), divided()], ids=["whole", "divided"])
def test_eigenbasis_diagonalises_the_block(pair: Factors) -> None:
    torch.testing.assert_close(dense(pair.a), written_out(pair.a))
    basis = eigenbasis(pair)
    grad = torch.randn(2, 3, dense(pair.a).shape[2], dtype=torch.float64)
    torch.testing.assert_close(basis.back(basis.to(grad)), grad)
    scaled = basis.back(basis.eigenvalues * basis.to(grad))
    expected = (block(pair) @ grad.flatten(1).unsqueeze(2)).view_as(grad)
    torch.testing.assert_close(scaled, expected)


def test_damped_inverse_is_the_factored_one() -> None:
    pair, damping = factors(), 0.03
    grad = torch.randn(2, 3, 4, dtype=torch.float64)
    basis = eigenbasis(pair)
    got = basis.back(damped_inverse(basis, damping) * basis.to(grad))
    for g in range(2):
        a, b = pair.a[0][0][g], pair.b[0][0][g]
        pi = math.sqrt((a.trace() / 4) / (b.trace() / 3))
        eye = torch.eye(4).double(), torch.eye(3).double()
        inverse_a = torch.linalg.inv(a + pi * math.sqrt(damping) * eye[0])
        inverse_b = torch.linalg.inv(b + math.sqrt(damping) / pi * eye[1])
        torch.testing.assert_close(got[g], inverse_b @ grad[g] @ inverse_a)


@pytest.mark.parametrize("make", [factors, divided])
def test_rotation_carries_moments_over(make: Callable[[int], Factors]) -> None:
    old, new = eigenbasis(make(0)), eigenbasis(make(5))
    turn = rotation(old, new)
    width = old.values_a.shape[1]
    x = torch.randn(2, 3, width, dtype=torch.float64)
    # First moments turn as gradients do, exactly.
    torch.testing.assert_close(rotate_mean(old.to(x), turn), new.to(x))
    # Second moments: the diagonal, in the new basis, of the matrix that is diagonal in the old.
    second = torch.rand(2, 3, width, dtype=torch.float64)
    got = rotate_square(second, turn)
    for g in range(2):
        into = torch.kron(written_out(turn[0])[g], written_out(turn[1])[g].T.contiguous())
        full = into @ torch.diag(second[g].reshape(-1)) @ into.T
        torch.testing.assert_close(got[g].reshape(-1), full.diagonal())
    torch.testing.assert_close(got.sum((1, 2)), second.sum((1, 2)))  # a trace stays
    torch.testing.assert_close(rotate_square(second, rotation(old, old)), second)


def test_eigenvalues_of_slightly_indefinite_factors_are_clipped() -> None:
    matrix = torch.diag(torch.tensor([-1e-9, 0.5, 2.0])).unsqueeze(0)
    values, vectors = symmetric_eigen(matrix)
    assert torch.equal(values, torch.tensor([[0.0, 0.5, 2.0]]))
    torch.testing.assert_close(vectors.abs(), torch.eye(3).unsqueeze(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.eye(3).unsqueeze(0)
    matrix[0, 1, 1] = bad
    with pytest.raises(FactorizationError, match="not finite"):
        symmetric_eigen(matrix)


def test_float64_is_tried_after_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = torch.linalg.eigh, []

    def only_double(matrix: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", only_double)
    values, vectors = symmetric_eigen(torch.eye(3).unsqueeze(0))
    assert tried == [torch.float32, torch.float64]
    assert values.dtype == vectors.dtype == torch.float32

    def never(matrix: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", never)
    with pytest.raises(FactorizationError, match="no eigendecomposition"):
        symmetric_eigen(torch.eye(3).unsqueeze(0))


def test_a_basis_that_follows_arrives_at_the_eigenbasis() -> None:
    pair, basis = divided(), None
    for _ in range(4000):
        basis = followed(pair, basis)
    exact = eigenbasis(pair)
    for got, want in ((basis.values_a, exact.values_a), (basis.values_b, exact.values_b)):
        torch.testing.assert_close(got.sort(dim=1).values, want.sort(dim=1).values)
    u_b = written_out(basis.u_b)
    inside = u_b.mT @ written_out(pair.b) @ u_b
    torch.testing.assert_close(inside, torch.diag_embed(basis.values_b))


def test_a_basis_that_follows_has_nothing_to_turn_in_one_dimension() -> None:
    one = torch.full((2, 1, 1), 3.0)
    basis = followed(Factors(((one,),), ((one,),)), None)
    assert torch.equal(basis.u_b[0][0], torch.ones_like(one))
    assert torch.equal(basis.values_b, one[:, 0])


def test_a_basis_that_follows_stays_where_eigenvalues_are_equal() -> None:
    """A change of a billionth moves it as little, where eigenvectors turn freely."""
    flat = torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    noise = 1e-9 * positive(1, 5, 3)

    def pair(b: Tensor) -> Factors:
        return Factors(((flat,),), ((b,),))

    first, second = (followed(pair(m), None) for m in (flat, flat + noise))
    assert float((first.u_b[0][0] - second.u_b[0][0]).norm()) < 1e-6
    turned = [eigenbasis(pair(m)).u_b[0][0].abs() for m in (flat, flat + noise)]
    assert float((turned[0] - turned[1]).norm()) > 0.1
    still = followed(pair(torch.zeros_like(flat)), first)
    torch.testing.assert_close(still.u_b, first.u_b)


@pytest.mark.parametrize("rank", [1, 40, 150])
@pytest.mark.parametrize("begins", ["identity", "converged"])
def test_a_gpu_finds_the_same_basis_by_the_cholesky_factor(rank: int, begins: str) -> None:
    """In float32, of the worst conditioned matrices that a basis follows."""
    size, generator = 150, torch.Generator().manual_seed(rank)
    x = torch.randn(2, size, rank, generator=generator) + 5  # the mean is far from zero
    matrix = x @ x.mT
    matrix /= matrix.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None]
    u = torch.eye(size).expand(2, size, size)
    if begins == "converged":
        u = symmetric_eigen(matrix)[1]
    columns = matrix @ u + 3e-3 * u
    q, diagonal = by_cholesky(columns)
    want, sizes = orthonormal(columns.double())
    assert q.dtype == diagonal.dtype == torch.float32
    torch.testing.assert_close(q, want.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(diagonal, sizes.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(q.mT @ q, torch.eye(size).expand_as(q), rtol=0, atol=2e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tensors_that_are_not_finite_are_named(value: float) -> None:
    good, bad = torch.ones(2, 3), torch.ones(1, dtype=torch.float64)
    bad[0] = value
    assert not_finite({"a": [good], "b": [good, bad], "c": []}) == {"b"}
    assert not_finite({"c": []}) == set()


@pytest.mark.parametrize("rows", [((3,),), ((2,), (1,))], ids=str)
@pytest.mark.parametrize("modes", [((7,),), ((4,), (3,)), ((2, 3), (1,)), ((7, 1),)], ids=str)
def test_gradient_factors_have_the_trace_of_the_gradient(rows: Modes, modes: Modes) -> None:
    grads = torch.randn(50, 2, 3, 7, dtype=torch.float64)
    found = [gradient_moments(grad, rows, modes) for grad in grads]
    left, right = (
        tuple(
            tuple(torch.stack(factors).mean(0) for factors in zip(*terms, strict=True))
            for terms in zip(*sides, strict=True)
        )
        for sides in zip(*found, strict=True)
    )
    pair = gradient_factors(left, right, samples=16)
    trace = block(pair).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, 16 * grads.square().mean(0).sum((1, 2)))


@pytest.mark.parametrize("modes", [((6,),), ((2, 3),)], ids=str)
def test_gradients_that_are_products_are_factored_exactly(modes: Modes) -> None:
    sides = [torch.randn(n, dtype=torch.float64) for n in (3, 2, 3)]
    flat = functools.reduce(torch.kron, sides)
    moments = gradient_moments(flat.reshape(1, 3, 6), ((3,),), modes)
    pair = gradient_factors(*moments, samples=1)
    torch.testing.assert_close(block(pair)[0], torch.outer(flat, flat))


def test_moments_of_modes_are_sums_over_the_others() -> None:
    grad = torch.randn(2, 4, 7, dtype=torch.float64)
    ((left,),), ((channels, positions), (bias,)) = gradient_moments(grad, ((4,),), ((2, 3), (1,)))
    weight = grad[:, :, :6].reshape(2, 4, 2, 3)
    torch.testing.assert_close(left, torch.einsum("goi,gpi->gop", grad, grad))
    torch.testing.assert_close(channels, torch.einsum("gock,godk->gcd", weight, weight))
    torch.testing.assert_close(positions, torch.einsum("gock,gocl->gkl", weight, weight))
    torch.testing.assert_close(bias[:, 0, 0], grad[:, :, 6].square().sum(1))


def test_combined_factors_have_the_curvature_s_scale() -> None:
    c, g = factors(0), factors(7)
    g = Factors(((1e6 * g.a[0][0],),), ((1e6 * g.b[0][0],),))
    both = combined_factors(c, g)
    for ((mixed,),), ((own,),) in zip(both, c, strict=True):
        torch.testing.assert_close(
            mixed.diagonal(dim1=1, dim2=2).sum(1), own.diagonal(dim1=1, dim2=2).sum(1)
        )


def test_condition_number() -> None:
    assert condition_number(torch.tensor([[1.0, 4.0], [2.0, 3.0]])) == 4.0
    assert condition_number(torch.tensor([[0.0, 4.0]])) == math.inf
    assert condition_number(torch.tensor([[0.0, 0.0]])) == math.inf


def test_basis_reads_like_a_tuple() -> None:
    basis = eigenbasis(factors())
    assert basis == Basis(*basis)
    assert basis.eigenvalues.shape == (2, 3, 4)
