"""Kronecker factors and their eigenbases: pure tensor functions.

A layer's curvature block is approximated by A (x) B, A over its inputs and B over its output
cotangents. All matrices have a leading dimension of groups. A and B may themselves be direct sums
of Kronecker products, :data:`Sum`: a convolution's A is kept as small factors over channels and
over positions of the kernel, and wide factors are kept as blocks along their diagonal.

Source: Martens and Grosse 2015; George et al. 2018 (second moments in the eigenbasis).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from snopt.errors import FactorizationError

Sum = tuple[tuple[Tensor, ...], ...]
"""A square matrix: the direct sum of terms, each the Kronecker product of one or two matrices."""

Modes = Sequence[Sequence[int]]
"""Sizes of the matrices of a :data:`Sum`."""


class Factors(NamedTuple):
    """Curvature factors of one layer.

    Attributes:
        a: E[z z^T] averaged over time, summed over locations; over (groups, in, in), bias last.
        b: T times the time integral of E[g g^T], averaged over locations; over (groups, out, out).
    """

    a: Sum
    b: Sum


class Basis(NamedTuple):
    """Eigenbases of both factors: columns of ``u_a`` and ``u_b``, with their eigenvalues."""

    values_a: Tensor
    u_a: Sum
    values_b: Tensor
    u_b: Sum

    def to(self, matrix: Tensor) -> Tensor:
        """A gradient (groups, out, in) in this basis: U_B^T G U_A."""
        return times(left_times(_each(self.u_b, _transposed), matrix), self.u_a)

    def back(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to`."""
        return times(left_times(self.u_b, matrix), _each(self.u_a, _transposed))

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of A (x) B, shaped like the gradient in this basis."""
        return self.values_b.unsqueeze(2) * self.values_a.unsqueeze(1)


def times(matrix: Tensor, right: Sum) -> Tensor:
    """The product of (groups, rows, in) and a :data:`Sum` over (groups, in, in)."""
    parts = []
    sizes = [[factor.shape[-1] for factor in term] for term in right]
    for columns, term, shape in zip(
        matrix.split_with_sizes([prod(shape) for shape in sizes], dim=2), right, sizes, strict=True
    ):
        if len(term) == 1:
            parts.append(columns @ term[0])
        else:
            # One factor after the other, each as one product of large matrices.
            (outer, inner), (o, i), (groups, rows) = term, shape, matrix.shape[:2]
            mixed = columns.reshape(groups, rows, o, i).transpose(1, 2).reshape(groups, o, -1)
            mixed = (outer.mT @ mixed).reshape(groups, o, rows, i).transpose(1, 2)
            parts.append((mixed.reshape(groups, -1, i) @ inner).reshape(groups, rows, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def left_times(left: Sum, matrix: Tensor) -> Tensor:
    """The product of a :data:`Sum` of single matrices and (groups, out, in)."""
    blocks = [block for (block,) in left]
    if len(blocks) == 1:
        return blocks[0] @ matrix
    rows = matrix.split_with_sizes([block.shape[-1] for block in blocks], dim=1)
    return torch.cat([block @ part for block, part in zip(blocks, rows, strict=True)], dim=1)


def dense(matrix: Sum) -> Tensor:
    """A :data:`Sum` written out, (groups, d, d)."""
    like = matrix[0][0]
    if len(matrix) == len(matrix[0]) == 1:
        return like
    size = sum(prod(factor.shape[-1] for factor in term) for term in matrix)
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return times(eye.expand(like.shape[0], -1, -1), matrix)


def _each(matrix: Sum, change: Callable[[Tensor], Tensor]) -> Sum:
    return tuple(tuple(change(factor) for factor in term) for term in matrix)


def _transposed(factor: Tensor) -> Tensor:
    return factor.mT


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
    a, b = (
        _side([[symmetric_eigen(factor) for factor in term] for term in side]) for side in factors
    )
    return Basis(*a, *b)


def _side(found: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Sum]:
    """The spectrum and the basis of a :data:`Sum` from those of its matrices."""
    values = [_products([spectrum for spectrum, _ in term]) for term in found]
    return torch.cat(values, dim=1), tuple(tuple(u for _, u in term) for term in found)


def _products(spectra: Sequence[Tensor]) -> Tensor:
    """The spectrum of a Kronecker product from those of its matrices."""
    found = spectra[0]
    for inner in spectra[1:]:
        found = (found.unsqueeze(2) * inner.unsqueeze(1)).flatten(1)
    return found


_HELD = 3e-3
"""How firmly a basis that follows keeps to the one before, over the factor's largest diagonal."""


def followed(factors: Factors, old: Basis | None) -> Basis:
    """A basis that turns towards the eigenbases of both factors, from the last one.

    One step of orthogonal iteration on the factor plus a small multiple of the identity. Unlike
    the eigenvectors themselves the result is a smooth function of the factor: where eigenvalues
    are nearly equal, or zero, the old directions stay, and rounding decides nothing. It also
    costs a fraction of an eigendecomposition.

    Args:
        factors: as of now, all numbers finite.
        old: the basis to begin from; the identity without one.

    Returns:
        The basis; in place of eigenvalues it has estimates that the iteration gives of them.

    Source: Golub and Van Loan 2013, section 7.3.2 (orthogonal iteration); Vyas et al., SOAP, 2024
    (one step of it a refresh); the shift is ours.
    """
    known = (None, None) if old is None else (old.u_a, old.u_b)
    a, b = (
        _side(
            [
                [_turned(x, None if last is None else last[i][j]) for j, x in enumerate(term)]
                for i, term in enumerate(side)
            ]
        )
        for side, last in zip(factors, known, strict=True)
    )
    return Basis(*a, *b)


def _turned(matrix: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
    """Estimates of a matrix' (groups, d, d) eigenvalues, and the turned basis."""
    if matrix.shape[-1] == 1:
        return matrix[:, 0], torch.ones_like(matrix)
    if u is None:
        u = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        u = u.expand_as(matrix)
    largest = matrix.diagonal(dim1=1, dim2=2).amax(dim=1).clamp_min(torch.finfo(u.dtype).tiny)
    q, diagonal = orthonormal(torch.baddbmm(u, matrix / largest[:, None, None], u, beta=_HELD))
    values = (diagonal - _HELD).clamp_min_(0) * largest.unsqueeze(1)
    return values, q


def orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the QR decomposition of (groups, d, d), and the positive diagonal of R.

    On a GPU, float32 goes through the Cholesky factor of Y^T Y in float64: a few large operations
    where Householder's method has d small ones. It is accurate while the condition number is far
    below 1e8. Of what :func:`followed` gives it, that is at most d / 3e-3.

    Source: Golub and Van Loan 2013, sections 5.2 and 5.4.
    """
    if columns.is_cuda and columns.dtype == torch.float32:
        return by_cholesky(columns)
    q, r = torch.linalg.qr(columns)
    # QR is unique up to signs: those with a positive diagonal stay near the old directions.
    diagonal = r.diagonal(dim1=1, dim2=2)
    return torch.where((diagonal < 0).unsqueeze(1), -q, q), diagonal.abs()


def by_cholesky(columns: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`orthonormal` through the Cholesky factor, without a transfer from the device."""
    exact = columns.double()
    lower = torch.linalg.cholesky_ex(exact.mT @ exact).L
    q = torch.linalg.solve_triangular(lower.mT, exact, upper=True, left=False)
    return q.to(columns), lower.diagonal(dim1=1, dim2=2).to(columns)


def not_finite(tensors: Mapping[str, Sequence[Tensor]]) -> set[str]:
    """Which of several lists of tensors have numbers that are not finite, by one transfer."""
    names = [name for name, those in tensors.items() for _ in those]
    sums = [x.sum() for those in tensors.values() for x in those]
    if not sums:
        return set()
    device = sums[0].device  # layers may live on several
    sound = torch.isfinite(torch.stack([x.to(device) for x in sums])).tolist()
    return {name for name, fine in zip(names, sound, strict=True) if not fine}


def rotation(old: Basis, new: Basis) -> tuple[Sum, Sum]:
    """R_B, and R_A transposed, with ``new.to(old.back(X)) = R_B X R_A^T``."""
    return _turn(new.u_b, old.u_b), _turn(old.u_a, new.u_a)


def _turn(first: Sum, second: Sum) -> Sum:
    return tuple(
        tuple(x.mT @ y for x, y in zip(*term, strict=True))
        for term in zip(first, second, strict=True)
    )


def rotate_mean(moment: Tensor, turn: tuple[Sum, Sum]) -> Tensor:
    """A first moment in the new basis, exactly."""
    return times(left_times(turn[0], moment), turn[1])


def rotate_square(moment: Tensor, turn: tuple[Sum, Sum]) -> Tensor:
    """A second moment in the new basis: the diagonal of the rotated diagonal matrix."""
    return times(left_times(_each(turn[0], torch.square), moment), _each(turn[1], torch.square))


def gradient_moments(grad: Tensor, rows: Modes, columns: Modes) -> tuple[Sum, Sum]:
    """The parts of G G^T, and those of G^T G for every mode of the inputs.

    Args:
        grad: a layer's gradient, (groups, out, in).
        rows: how ``out`` divides, into terms of one size.
        columns: how ``in`` divides. A term of one size has G^T G of its columns; one of two sizes,
            the columns being their product, has the sums of it over the other.
    """
    parts = grad.split([size for (size,) in rows], dim=1)
    left = tuple((part @ part.mT,) for part in parts)
    terms: list[tuple[Tensor, ...]] = []
    for part, shape in zip(
        grad.split([prod(shape) for shape in columns], dim=2), columns, strict=True
    ):
        if len(shape) == 1:
            terms.append((part.mT @ part,))
        else:
            split = part.unflatten(2, shape)
            outer, inner = split.transpose(1, 2).flatten(2), split.flatten(1, 2)
            terms.append((outer @ outer.mT, inner.mT @ inner))
    return left, tuple(terms)


def gradient_factors(left: Sum, right: Sum, samples: float, seen: float = 1.0) -> Factors:
    """Factors from running averages of G G^T and G^T G, scaled so that tr(A (x) B) = N E|G|^2.

    Args:
        left: E[G G^T] as from :func:`gradient_moments`, over (groups, out, out).
        right: E[G^T G] likewise, over (groups, in, in).
        samples: N, the samples behind one gradient.
        seen: what both averages are to be divided by.

    Source: Gupta et al., Shampoo, 2018; Vyas et al., SOAP, 2024.
    """
    tiny = torch.finfo(left[0][0].dtype).tiny
    trace = torch.stack([_trace(block) for (block,) in left]).sum(dim=0)
    root = (seen * trace).clamp_min(tiny).sqrt()
    # Both matrices of a product have the trace of its term.
    terms = (
        (*(outer / _trace(outer).clamp_min(tiny) for outer in term[:-1]), term[-1] / root)
        for term in right
    )
    return Factors(tuple(terms), _each(left, lambda block: samples * block / root))


def combined_factors(curvature: Factors, gradient: Factors) -> Factors:
    """The mean of both kinds of factors, the gradient's scaled to the curvature's traces.

    A and B of both are single matrices.
    """

    def mean(c: Tensor, g: Tensor) -> Tensor:
        shape = g / _trace(g).clamp_min(torch.finfo(g.dtype).tiny)  # stays zero where g is zero
        return (c + shape * _trace(c)) / 2

    ((a,),), ((b,),) = curvature
    ((of_a,),), ((of_b,),) = gradient
    return Factors(((mean(a, of_a),),), ((mean(b, of_b),),))


def damped_inverse(basis: Basis, damping: float) -> Tensor:
    """The entries of ((A + pi sqrt(d) I) (x) (B + sqrt(d)/pi I))^-1 in the eigenbasis.

    pi balances the damping by the factors' mean eigenvalues (Martens and Grosse 2015, 6.3).
    """
    tiny = torch.finfo(basis.values_a.dtype).tiny
    mean_a = basis.values_a.mean(dim=1).clamp_min(tiny)
    mean_b = basis.values_b.mean(dim=1).clamp_min(tiny)
    pi = mean_a.sqrt() / mean_b.sqrt()  # the quotient may overflow: a layer may have no gradient
    root = damping**0.5
    a = basis.values_a + (pi * root).unsqueeze(1)
    b = basis.values_b + (root / pi).unsqueeze(1)
    return torch.reciprocal(b.unsqueeze(2) * a.unsqueeze(1))


def condition_number(values: Tensor) -> float:
    """Largest over smallest eigenvalue of the worst group; ``inf`` for a singular factor."""
    small, large = values.amin(dim=1), values.amax(dim=1)
    ratio = torch.where(small > 0, large / small, torch.inf)
    return float(ratio.max())


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
