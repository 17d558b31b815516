"""Exact second-order quantities of small Neural ODEs, by integrating them backwards in time.

For x' = F(t, x, θ) and a loss Φ(x(t1)), :func:`second_order` integrates the first- and second-order
sensitivities Q_x, Q_θ, Q_xx, Q_θx, Q_θθ of the accumulated loss from t1 back to t0, and
:func:`low_rank` a factor of them. One sample, dense matrices, a few hundred parameters: what the
approximations of this library are checked against, not what trains a network.

Source: Liu, Chen, Theodorou, "Second-Order Neural ODE Optimizer", NeurIPS 2021, Theorem 1 and
Proposition 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap
from torchdiffeq import odeint

from snopt.errors import SolverError

_Dynamics = Callable[[Tensor, Tensor, Tensor], Tensor]
_State = tuple[Tensor, ...]


class SecondOrder(NamedTuple):
    """Derivatives of the loss with respect to the state x(t0) and the parameters θ.

    Attributes:
        q_x: gradient in the state, shape (m,): the adjoint.
        q_theta: gradient in the parameters, shape (n,).
        q_xx: curvature in the state, shape (m, m).
        q_theta_x: mixed curvature, shape (n, m).
        q_theta_theta: curvature in the parameters, shape (n, n).
    """

    q_x: Tensor
    q_theta: Tensor
    q_xx: Tensor
    q_theta_x: Tensor
    q_theta_theta: Tensor


class LowRank(NamedTuple):
    """Factors at t0: Q_xx = Σ q qᵀ, Q_xθ = Σ q pᵀ, Q_θθ = Σ p pᵀ.

    Attributes:
        q: state factors, shape (R, m).
        p: parameter factors, shape (R, n).
    """

    q: Tensor
    p: Tensor


def second_order(
    field: nn.Module,
    x1: Float[Tensor, " m"],
    t_span: Sequence[float],
    phi_x: Float[Tensor, " m"],
    phi_xx: Float[Tensor, "m m"],
    *,
    hessian: bool = False,
    rtol: float = 1e-9,
    atol: float = 1e-9,
) -> SecondOrder:
    """First and second derivatives of Φ(x(t1)) at t0, by one solve from t1 back to t0.

    The state x is reconstructed backwards from ``x1`` in the same solve, so a field that contracts
    strongly forwards in time wants tighter tolerances here.

    Args:
        field: x' = field(t, x) for t of shape () and x of shape (m,), built from functions that
            ``torch.func`` can differentiate. All its parameters count, frozen ones too.
        x1: terminal state x(t1), shape (m,), one sample without a batch dimension; its dtype
            (float64 advised) is the dtype of everything, the field's parameters included.
        t_span: (t0, t1), two different finite times; t1 < t0 is a solve backwards in time.
        phi_x: gradient of Φ at ``x1``, shape (m,).
        phi_xx: symmetric curvature of Φ at ``x1``, shape (m, m): a Hessian or Gauss-Newton matrix.
        hessian: False linearises the dynamics, as the paper does: ``q_theta_theta`` = Jᵀ Φ_xx J
            with J = dx(t1)/dθ. True adds the curvature of the dynamics, for the full Hessian of
            Φ(x(t1; θ)).
        rtol: relative tolerance of the solver (dopri8).
        atol: absolute tolerance of the solver.

    Returns:
        The derivatives at t0, θ flattened in the order of ``field.parameters()``.

    Raises:
        ValueError: shapes, dtypes or times do not fit.
        SolverError: the solver gave up, or the result is not finite.

    Source: Theorem 1 (``hessian=False``); the curvature terms of ``hessian=True`` are those of
    differential dynamic programming in continuous time (Sun et al. 2014).
    """
    dynamics, theta, times = _problem(field, x1, t_span)
    m, n = x1.numel(), theta.numel()
    _check("phi_x", phi_x, (m,), x1)
    _check("phi_xx", phi_xx, (m, m), x1)
    if not torch.allclose(phi_xx, phi_xx.mT):
        raise ValueError(
            "phi_xx is not symmetric; pass a Hessian or a Gauss-Newton matrix, e.g. (H + H.T) / 2"
        )

    def rhs(t: Tensor, state: _State) -> _State:
        x, q_x, _, q_xx, q_theta_x, _ = state
        f_x, f_theta = jacrev(dynamics, argnums=(1, 2))(t, x, theta)
        # Time derivatives; each matrix line of the theorem is the sum of a product and, on the
        # diagonal blocks, that product's transpose.
        d_xx = -(f_x.mT @ q_xx + q_xx @ f_x)
        d_theta_x = -(f_theta.mT @ q_xx + q_theta_x @ f_x)
        d_theta_theta = -(f_theta.mT @ q_theta_x.mT + q_theta_x @ f_theta)
        if hessian:
            curvature = _curvature(dynamics, t, x, theta, q_x)
            d_xx = d_xx - curvature[:m, :m]
            d_theta_x = d_theta_x - curvature[m:, :m]
            d_theta_theta = d_theta_theta - curvature[m:, m:]
        d_x, d_theta = -(f_x.mT @ q_x), -(f_theta.mT @ q_x)
        return dynamics(t, x, theta), d_x, d_theta, d_xx, d_theta_x, d_theta_theta

    zeros = x1.new_zeros
    terminal = (x1, phi_x, zeros(n), phi_xx, zeros(n, m), zeros(n, n))
    return SecondOrder(*_solve(rhs, terminal, times, rtol, atol)[1:])


def low_rank(
    field: nn.Module,
    x1: Float[Tensor, " m"],
    t_span: Sequence[float],
    ys: Float[Tensor, "R m"],
    *,
    rtol: float = 1e-9,
    atol: float = 1e-9,
) -> LowRank:
    """Factors at t0 of the curvature Φ_xx = Σ y yᵀ at t1: R adjoint solves stacked into one.

    Args:
        field: as in :func:`second_order`.
        x1: terminal state x(t1), shape (m,).
        t_span: (t0, t1).
        ys: terminal factors, shape (R, m). With R = 1 and y = Φ_x, q is the adjoint itself.
        rtol: relative tolerance of the solver (dopri8).
        atol: absolute tolerance of the solver.

    Returns:
        q of shape (R, m) and p of shape (R, n), θ flattened in the order of ``field.parameters()``.

    Raises:
        ValueError: shapes, dtypes or times do not fit.
        SolverError: the solver gave up, or the result is not finite.

    Source: Proposition 2.
    """
    dynamics, theta, times = _problem(field, x1, t_span)
    if ys.ndim != 2 or len(ys) == 0:
        raise ValueError(
            f"ys has shape {tuple(ys.shape)}; pass R >= 1 factors as rows, (R, {x1.numel()}), "
            "e.g. y[None] for a single one"
        )
    _check("ys", ys, (len(ys), x1.numel()), x1)

    def rhs(t: Tensor, state: _State) -> _State:
        x, q, _ = state
        derivative, pull_back, *_ = vjp(lambda x, theta: dynamics(t, x, theta), x, theta)
        d_q, d_p = vmap(pull_back)(q)
        return derivative, -d_q, -d_p

    terminal = (x1, ys, x1.new_zeros(len(ys), theta.numel()))
    return LowRank(*_solve(rhs, terminal, times, rtol, atol)[1:])


def _curvature(dynamics: _Dynamics, t: Tensor, x: Tensor, theta: Tensor, q_x: Tensor) -> Tensor:
    """Σ_k a_k ∂²F_k over z = (x, θ), the curvature of the dynamics seen by the adjoint a = q_x."""
    m = x.numel()

    def scalar(z: Tensor) -> Tensor:
        return dynamics(t, z[:m], z[m:]) @ q_x

    # Reverse over reverse: unlike forward over reverse it needs no forward-mode rules.
    curvature: Tensor = jacrev(jacrev(scalar))(torch.cat([x, theta]))
    return curvature


def _problem(
    field: nn.Module, x1: Tensor, t_span: Sequence[float]
) -> tuple[_Dynamics, Tensor, Tensor]:
    """The field as a function of (t, x, flat θ), the flat θ, and the times (t1, t0)."""
    if x1.ndim != 1 or x1.numel() == 0:
        raise ValueError(
            f"x1 has shape {tuple(x1.shape)}; pass one sample of shape (m,), e.g. x1[0] of a batch"
        )
    if not x1.dtype.is_floating_point:
        raise ValueError(f"x1 has dtype {x1.dtype}; pass a floating-point tensor")
    if len(t_span) != 2 or not all(math.isfinite(t) for t in t_span) or t_span[0] == t_span[1]:
        raise ValueError(f"t_span is {t_span}; pass two different finite times (t0, t1)")

    named = dict(field.named_parameters())
    for name, parameter in named.items():
        if parameter.dtype != x1.dtype or parameter.device != x1.device:
            raise ValueError(
                f"parameter {name} is {parameter.dtype} on {parameter.device}, x1 is {x1.dtype} on "
                f"{x1.device}; convert the field first, e.g. field.to(x1)"
            )
    theta = torch.cat([x1.new_zeros(0), *(p.detach().reshape(-1) for p in named.values())])

    def dynamics(t: Tensor, x: Tensor, theta: Tensor) -> Tensor:
        parts = torch.split(theta, [p.numel() for p in named.values()])
        values = {k: part.view_as(p) for (k, p), part in zip(named.items(), parts, strict=True)}
        derivative: Tensor = functional_call(field, values, (t, x))
        return derivative

    times = torch.tensor([t_span[1], t_span[0]], dtype=torch.float64, device=x1.device)
    with torch.no_grad():
        shape = dynamics(times[0].to(x1), x1.detach(), theta).shape
    if shape != x1.shape:
        raise ValueError(
            f"field returns shape {tuple(shape)} for a state of shape {tuple(x1.shape)}; it must "
            "accept one sample without a batch dimension and return its time derivative"
        )
    return dynamics, theta, times


def _check(name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {shape} to fit x1")
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{name} is {value.dtype} on {value.device}, x1 is {like.dtype} on {like.device}; "
            "they must agree"
        )


class _Watched:
    """A right-hand side that knows how far its solve has come (torchdiffeq calls the callback)."""

    def __init__(self, rhs: Callable[[Tensor, _State], _State], start: float) -> None:
        self.rhs, self.nfe, self.time = rhs, 0, start
        self.dt: float | None = None

    def __call__(self, t: Tensor, state: _State) -> _State:
        self.nfe += 1
        derivative = self.rhs(t, state)
        # torchdiffeq would shrink its step to nothing and report that instead.
        if not all(bool(part.isfinite().all()) for part in derivative):
            raise self.error("non-finite state")
        return derivative

    def callback_step(self, t: Tensor, state: _State, dt: Tensor) -> None:
        self.time, self.dt = float(t), float(dt)

    def error(self, reason: str, detail: str = "") -> SolverError:
        return SolverError(reason, self.time, self.dt, self.nfe, detail)


def _solve(
    rhs: Callable[[Tensor, _State], _State],
    terminal: _State,
    times: Tensor,
    rtol: float,
    atol: float,
) -> _State:
    """Integrate from ``times[0]`` to ``times[1]`` and return the state there."""
    watched = _Watched(rhs, float(times[0]))
    start = tuple(part.detach() for part in terminal)
    # Step exactly onto the end: torchdiffeq's dense output is of a lower order than dopri8.
    options = {"step_t": times[1:]}
    with torch.no_grad():
        try:
            solution = odeint(
                watched, start, times, rtol=rtol, atol=atol, method="dopri8", options=options
            )
        except AssertionError as error:  # how torchdiffeq reports a failed solve
            raise watched.error("step underflow", str(error)) from error
    return tuple(part[-1] for part in solution)
