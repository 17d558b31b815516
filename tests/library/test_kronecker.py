"""Factors, eigenbases and rotations as plain linear algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snopt import FactorizationError
from snopt.kronecker import (
    Basis,
    Factors,
    combined_factors,
    condition_number,
    damped_inverse,
    eigenbasis,
    gradient_factors,
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
    return Factors(positive(2, 4, seed), positive(2, 3, seed + 1))


def dense(pair: Factors) -> Tensor:
    """A (x) B over gradients flattened row by row (out, in), group by group."""
    return torch.stack([torch.kron(b, a) for a, b in zip(*pair, strict=True)])


def test_eigenbasis_diagonalises_the_block() -> None:
    pair = factors()
    basis = eigenbasis(pair)
    grad = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(basis.back(basis.to(grad)), grad)
    scaled = basis.back(basis.eigenvalues * basis.to(grad))
    expected = (dense(pair) @ grad.flatten(1).unsqueeze(2)).view_as(grad)
    torch.testing.assert_close(scaled, expected)


def test_damped_inverse_is_the_factored_one() -> None:
    pair, damping = factors(), 0.03
    grad = torch.randn(2, 3, 4, dtype=torch.float64)
    basis = eigenbasis(pair)
    got = basis.back(damped_inverse(basis, damping) * basis.to(grad))
    for g in range(2):
        a, b = pair.a[g], pair.b[g]
        pi = math.sqrt((a.trace() / 4) / (b.trace() / 3))
        eye = torch.eye(4).double(), torch.eye(3).double()
        inverse_a = torch.linalg.inv(a + pi * math.sqrt(damping) * eye[0])
        inverse_b = torch.linalg.inv(b + math.sqrt(damping) / pi * eye[1])
        torch.testing.assert_close(got[g], inverse_b @ grad[g] @ inverse_a)


def test_rotation_carries_moments_over() -> None:
    old, new = eigenbasis(factors(0)), eigenbasis(factors(5))
    turn = rotation(old, new)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    # First moments turn as gradients do, exactly.
    torch.testing.assert_close(rotate_mean(old.to(x), turn), new.to(x))
    # Second moments: the diagonal, in the new basis, of the matrix that is diagonal in the old.
    second = torch.rand(2, 3, 4, dtype=torch.float64)
    got = rotate_square(second, turn)
    for g in range(2):
        into = torch.kron(turn[0][g], turn[1][g])
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


def test_gradient_factors_have_the_trace_of_the_gradient() -> None:
    grads = torch.randn(50, 2, 3, 4, dtype=torch.float64)
    left, right = (grads @ grads.mT).mean(0), (grads.mT @ grads).mean(0)
    pair = gradient_factors(left, right, samples=16)
    trace = dense(pair).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, 16 * grads.square().mean(0).sum((1, 2)))
    # Rank-one gradients of independent sides are where the factoring is exact.
    u, v = torch.randn(3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    one = torch.outer(u, v)[None]
    pair = gradient_factors(one @ one.mT, one.mT @ one, samples=1)
    flat = one.reshape(-1)
    torch.testing.assert_close(dense(pair)[0], torch.outer(flat, flat))


def test_combined_factors_have_the_curvature_s_scale() -> None:
    c, g = factors(0), Factors(*(1e6 * x for x in factors(7)))
    both = combined_factors(c, g)
    for mixed, own in zip(both, c, strict=True):
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
