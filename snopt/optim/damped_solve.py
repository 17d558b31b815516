"""Solutions of (R^T R + damping) y = b: Cholesky in the smaller space, or conjugate gradients.

Source: Hestenes and Stiefel 1952 (conjugate gradients); Woodbury 1950 (between the two spaces).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_STRIP = 128
"""Columns below which a product is not worth splitting."""


def cholesky_solution(gram: Tensor, target: Tensor, damping: float) -> tuple[Tensor, int]:
    """(gram + damping)^-1 target, with more damping where rounding makes the sum indefinite.

    Args:
        gram: shape (n, n), finite.
        target: shape (n,).
        damping: >= 0.

    Returns:
        The solution, and how often the damping was raised.
    """
    least = torch.finfo(torch.float32).eps * float(gram.diagonal().mean())
    damping = max(damping, torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    failures = 0
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + damping * eye)
        if not failed.item():
            return torch.cholesky_solve(target.unsqueeze(1), factor).squeeze(1), failures
        failures += 1
        damping = max(10.0 * damping, least, torch.finfo(torch.float32).tiny)
        logger.warning("Gauss-Newton matrix is indefinite by rounding: damping %g", damping)


def exact_solution(
    rows: Tensor, values: Tensor, rest: Tensor | None, damping: float
) -> tuple[Tensor, int]:
    """(R^T R + damping)^-1 (R^T values + rest), in the space that is smaller.

    Args:
        rows: R, shape (M, P).
        values: shape (M,).
        rest: what of b is no combination of rows, shape (P,), if anything.
        damping: >= 0.

    Returns:
        y of shape (P,), and how often the damping was raised.
    """
    if rows.shape[0] > rows.shape[1]:
        b = rows.mT @ values
        return cholesky_solution(_gram(rows.mT), b if rest is None else b + rest, damping)
    gram = _gram(rows)
    u, failures = cholesky_solution(gram, values, damping)
    y = rows.mT @ u
    if rest is not None:
        u, more = cholesky_solution(gram, rows @ rest, damping)
        y += (rest - rows.mT @ u) / max(damping, torch.finfo(torch.float32).tiny)
        failures += more
    return y, failures


def _gram(rows: Tensor) -> Tensor:
    """R R^T, most of whose upper half is not computed."""
    count = len(rows)
    strip = max(_STRIP, -(-count // 8))
    found = rows.new_zeros(count, count)
    for start in range(0, count, strip):
        end = start + strip
        found[start:, start:end] = rows[start:] @ rows[start:end].mT
    return found.tril() + found.tril(-1).mT


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int
) -> tuple[Tensor, int]:
    """The solution of A y = b for a positive definite A that is known by its products.

    Args:
        product: A x for x.
        b: shape (P,).
        iterations: at most so many products; fewer where the residual has come to rounding.

    Returns:
        y, and the iterations made. Each of them is a better step than the one before.
    """
    y, r = torch.zeros_like(b), b.clone()
    direction, square = r.clone(), float(r @ r)
    enough = square * (10 * torch.finfo(b.dtype).eps) ** 2
    made = 0
    while made < iterations and square > enough:
        moved = product(direction)
        along = float(direction @ moved)
        if not (along > 0 and math.isfinite(along)):
            break
        y.add_(direction, alpha=square / along)
        r.add_(moved, alpha=-square / along)
        before, square = square, float(r @ r)
        direction = r + (square / before) * direction
        made += 1
    return y, made
