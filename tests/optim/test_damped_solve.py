"""Damped solutions in both spaces, and by conjugate gradients, against dense algebra."""

from __future__ import annotations

import pytest
import torch

from snopt.optim.damped_solve import cholesky_solution, conjugate_gradients, exact_solution


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (300, 280), (280, 300)])
@pytest.mark.parametrize("beside", [True, False])
def test_both_spaces_give_the_dense_solution(shape: tuple[int, int], beside: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(shape, dtype=torch.float64)
    values = torch.randn(shape[0], dtype=torch.float64)
    rest = torch.randn(shape[1], dtype=torch.float64) if beside else None
    matrix = rows.T @ rows + 0.1 * torch.eye(shape[1], dtype=torch.float64)
    b = rows.T @ values + (0 if rest is None else rest)
    found, failures = exact_solution(rows, values, rest, 0.1)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b))
    assert failures == 0


def test_conjugate_gradients_end_at_the_solution_and_are_better_at_every_iteration() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6), torch.randn(6, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    errors = []
    for iterations in range(8):
        y, made = conjugate_gradients(lambda x: matrix @ x, b, iterations)
        assert made <= min(iterations, 7)
        errors.append(float((y - exact) @ matrix @ (y - exact)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20


def test_conjugate_gradients_of_nothing_are_nothing() -> None:
    y, made = conjugate_gradients(lambda x: x, torch.zeros(3), 5)
    assert made == 0
    assert torch.equal(y, torch.zeros(3))


def test_an_indefinite_matrix_gets_more_damping(caplog: pytest.LogCaptureFixture) -> None:
    gram = torch.ones(3, 3, dtype=torch.float64) - 1e-9 * torch.eye(3)
    y, failures = cholesky_solution(gram, torch.ones(3, dtype=torch.float64), 0.0)
    assert failures > 0
    assert torch.isfinite(y).all()
    assert "indefinite by rounding" in caplog.text
