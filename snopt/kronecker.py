"""Kronecker factors and their eigenbases: pure tensor functions.

A layer's curvature block is approximated by A (x) B, A over its inputs and B over its output
cotangents. All matrices have a leading dimension of groups.

Source: Martens and Grosse 2015; George et al. 2018 (second moments in the eigenbasis).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snopt.errors import FactorizationError


class Factors(NamedTuple):
    """Curvature factors of one layer.

    Attributes:
        a: E[z z^T] averaged over time, summed over locations; (groups, in, in), bias last.
        b: T times the time integral of E[g g^T], averaged over locations; (groups, out, out).
    """

    a: Tensor
    b: Tensor


class Basis(NamedTuple):
    """Eigenbases of both factors: columns of ``u_a`` and ``u_b``, ascending eigenvalues."""

    values_a: Tensor
    u_a: Tensor
    values_b: Tensor
    u_b: Tensor

    def to(self, matrix: Tensor) -> Tensor:
        """A gradient (groups, out, in) in this basis: U_B^T G U_A."""
        return self.u_b.mT @ matrix @ self.u_a

    def back(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to`."""
        return self.u_b @ matrix @ self.u_a.mT

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of A (x) B, shaped like the gradient in this basis."""
        return self.values_b.unsqueeze(2) * self.values_a.unsqueeze(1)


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (clipped at zero) and eigenvectors of positive semi-definite matrices.

    Symmetrises first; tries the given precision (at least float32), then float64.

    Args:
        matrix: shape (groups, d, d).

    Raises:
        FactorizationError: not finite, or no decomposition in float64 either.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise FactorizationError("the factor is not finite")
    symmetric = (matrix + matrix.mT) / 2
    for dtype in (torch.promote_types(matrix.dtype, torch.float32), torch.float64):
        try:
            values, vectors = torch.linalg.eigh(symmetric.to(dtype))
        except RuntimeError:  # torch.linalg.LinAlgError is one
            continue
        if bool(torch.isfinite(vectors).all()):
            return values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype)
    raise FactorizationError(f"no eigendecomposition of a {tuple(matrix.shape)} factor")


def eigenbasis(factors: Factors) -> Basis:
    """The eigenbases of both factors.

    Raises:
        FactorizationError: a factor has no eigendecomposition.
    """
    return Basis(*symmetric_eigen(factors.a), *symmetric_eigen(factors.b))


def rotation(old: Basis, new: Basis) -> tuple[Tensor, Tensor]:
    """R_B and R_A with ``new.to(old.back(X)) = R_B X R_A^T``."""
    return new.u_b.mT @ old.u_b, new.u_a.mT @ old.u_a


def rotate_mean(moment: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """A first moment in the new basis, exactly."""
    return turn[0] @ moment @ turn[1].mT


def rotate_square(moment: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """A second moment in the new basis: the diagonal of the rotated diagonal matrix."""
    return turn[0].square() @ moment @ turn[1].square().mT


def gradient_factors(left: Tensor, right: Tensor, samples: float) -> Factors:
    """Factors from running averages of G G^T and G^T G, scaled so that tr(A (x) B) = N E|G|^2.

    Args:
        left: E[G G^T], shape (groups, out, out).
        right: E[G^T G], shape (groups, in, in).
        samples: N, the samples behind one gradient.

    Source: Gupta et al., Shampoo, 2018; Vyas et al., SOAP, 2024.
    """
    root = _trace(right).clamp_min(torch.finfo(right.dtype).tiny).sqrt()
    return Factors(right / root, samples * left / root)


def combined_factors(curvature: Factors, gradient: Factors) -> Factors:
    """The mean of both kinds of factors, the gradient's scaled to the curvature's traces."""
    mixed = []
    for c, g in zip(curvature, gradient, strict=True):
        scale = _trace(c) / _trace(g).clamp_min(torch.finfo(g.dtype).tiny)
        mixed.append((c + g * scale) / 2)
    return Factors(*mixed)


def damped_inverse(basis: Basis, damping: float) -> Tensor:
    """The entries of ((A + pi sqrt(d) I) (x) (B + sqrt(d)/pi I))^-1 in the eigenbasis.

    pi balances the damping by the factors' mean eigenvalues (Martens and Grosse 2015, 6.3).
    """
    tiny = torch.finfo(basis.values_a.dtype).tiny
    mean_a = basis.values_a.mean(dim=1).clamp_min(tiny)
    mean_b = basis.values_b.mean(dim=1).clamp_min(tiny)
    pi = (mean_a / mean_b).sqrt()
    root = damping**0.5
    a = basis.values_a + (pi * root).unsqueeze(1)
    b = basis.values_b + (root / pi).unsqueeze(1)
    return torch.reciprocal(b.unsqueeze(2) * a.unsqueeze(1))


def condition_number(values: Tensor) -> float:
    """Largest over smallest eigenvalue of the worst group; ``inf`` for a singular factor."""
    small, large = values[:, 0], values[:, -1]
    ratio = torch.where(small > 0, large / small, torch.inf)
    return float(ratio.max())


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
