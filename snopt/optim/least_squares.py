"""Gauss-Newton steps from the gradients of single samples: no Kronecker factors, no eigenbases.

With l_i the loss of sample i and r_i = sqrt(2 l_i), the mean loss is (1/2N) sum r_i^2, and its
Gauss-Newton matrix is R^T R, where row i of R is the gradient of l_i divided by r_i sqrt(N). With
v_i = r_i / sqrt(N) the gradient is R^T v, and a step d, which is subtracted, solves

    min |R d - v|^2 + max(c, 0.1) damping (d - p)^T W^-1 (d - p),
    p = momentum d' + c decay W w,  c = min(1, |v|),

d' being the step before, w the parameters and W the groups' learning rates over the largest of
them. R has as many rows as the batch has samples, so the solution is a Cholesky factorisation of
that size:

    d = p + W R^T (R W R^T + max(c, 0.1) damping)^-1 (v - R p).

Weights decay where that leaves the batch's outputs alone, and less as the losses fall, so that
nothing holds the loss above zero. Rows of R scale with r_i, so the damping is scaled by |v| too,
but only down to a tenth: below that, steps would keep their length while the loss vanishes, and the
loss would jump.

Source: Gauss-Newton on roots of losses is the textbook's (Nocedal and Wright 2006, section 10.3);
damping by |v| is Fan and Yuan's (2005), a decay that fades Bakushinskii's (1992, iteratively
regularised Gauss-Newton); the solution in the samples' space and the memory of the last step are
those of minSR (Chen and Heyl 2024) and SPRING (Goldshlager, Abrahamsen and Lin 2024).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from snopt.curvature.check_steps import CheckSteps
from snopt.curvature.hearing import ONE_PASS, Hearing
from snopt.curvature.per_sample import PerSampleGradients, repeated_layers
from snopt.curvature.row_check import check_row, gradient_factor, tolerance
from snopt.layers.base import Layer
from snopt.ode.gradients import through_layers
from snopt.optim.backtracking import Backtracking
from snopt.optim.damped_solve import cholesky_solution
from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.method import Closure, Method, ModelView, Seen, Step
from snopt.optim.saving import check_rows, copied, reading

logger = logging.getLogger(__name__)

MIN_DAMPING_FRACTION = 0.1
"""The share of the damping that stays however small the losses are."""

SHARED_INPUT = (
    "its layer is called on an input without a dimension of samples, which has no gradients of "
    "single samples: call it on x.unsqueeze(0), or choose rows='outputs'"
)


def _moves(p: nn.Parameter) -> bool:
    return p.requires_grad and p.grad is not None


def _moving_part(layer: Layer, matrix: Tensor) -> Tensor:
    """A matrix (..., in), a bias last, with zeros for what does not move."""
    moves = [_moves(p) for p in layer.parameters]
    if all(moves):
        return matrix
    kept = torch.zeros_like(matrix)
    columns = slice(0, -1) if moves[0] else slice(-1, None)
    kept[..., columns] = matrix[..., columns]
    return kept


class LeastSquares(Method):
    """Rows of a batch, and the step they give.

    Args:
        parts: of the model; lr, momentum (how much of the last step is kept), damping and
            weight_decay are read of its groups.
        backtrack: standard errors by which the loss may rise (:mod:`snopt.optim.backtracking`).

    Raises:
        ValueError: there are no layers, or a block's gradient comes from the adjoint equation,
            which has no uses to watch.
    """

    needs_curvature_pass = "rule='gauss_newton'"

    def __init__(self, parts: ModelView, backtrack: float) -> None:
        if not parts.layers:
            raise ValueError(
                "rule='gauss_newton' needs a linear layer or a convolution to train, and the model "
                "has none"
            )
        for name, block in parts.blocks.items():
            if block.gradient not in through_layers():
                raise ValueError(
                    f"rule='gauss_newton' needs gradients of single samples, which gradient="
                    f"{block.gradient!r} of block {name!r} does not have; choose one of "
                    f"{', '.join(through_layers())}"
                )
        if any(isinstance(group["damping"], LevenbergMarquardt) for group in parts.groups):
            raise ValueError(
                "damping: this rule's damping has no controller with rows='samples'; pass a "
                "number, a function of the step, or rows='outputs'"
            )
        self.layers, self.blocks, self.settings = dict(parts.layers), parts.blocks, parts.settings
        self.processes = parts.processes
        self.backtracking = Backtracking(parts.parameters, backtrack)
        self.loss_scale = parts.loss_scale
        self.capture = PerSampleGradients(
            self.layers,
            CheckSteps(parts.modules, parts.parameters.values()),
            repeated_layers(self.layers, self.blocks),
        )
        self.stopwatch = self.capture.stopwatch
        self.steps = self.failures = 0
        self.refresh_every = 1
        self.left_to_fallback = {}
        self.last: dict[str, Tensor] = {}
        self.hearing = Hearing(self.capture, self.layers, self.blocks, parts.loss_scale)
        self._measured: dict[str, float] = {}

    @override
    def observe_outputs(self, seen: Seen) -> None:
        """Learn the samples' losses from the cotangent that the backward pass brings to outputs."""
        self.processes.require_one("rule='gauss_newton'")
        if self.hearing.roots is not None and not any(
            _moves(p) for layer in self.layers.values() for p in layer.parameters
        ):
            self.clear()  # that pass' gradients were thrown away
        if self.hearing.roots is not None:
            raise RuntimeError(ONE_PASS)
        if not seen.outputs.requires_grad:
            return
        if not any(layer.module.training for layer in self.layers.values()):
            raise RuntimeError(
                "rule='gauss_newton' listens in training mode only, and the model is in eval "
                "mode: call model.train() before the forward pass"
            )
        self.hearing.listen(seen.outputs, seen.likelihood, seen.targets, seen.loss, seen.batch_dim)

    @override
    def layers_to_refresh(self) -> list[str]:
        """All layers."""
        return list(self.layers)

    @override
    def prepare_next(self) -> None:
        """Begin again for the coming step."""
        self.clear()
        self.capture.sparing = False

    @property
    @override
    def missing_curvature_pass(self) -> bool:
        """Whether no backward pass has brought the samples' losses."""
        return self.hearing.roots is None

    @override
    def clear(self) -> None:
        """Forget rows and losses; until the step, training passes are taken to be for rows."""
        self.capture.clear()
        self.capture.sparing = not (self.capture.checks.due or self.capture.inner)
        self.hearing.clear()

    @override
    def close(self) -> None:
        """Take the hooks off the model."""
        self.clear()
        self.capture.close()

    @override
    def before_update(self, loss: Any, closure: Closure | None) -> bool:
        roots = self.hearing.roots
        if roots is None:  # what is missing is said by the step
            return True
        self._compare(loss, float(roots.square().mean() / 2))
        if self.backtracking.halve(roots.square() / 2):
            self.last = {name: d / 2 for name, d in self.last.items()}
            self.steps += 1
            return False
        self.backtracking.remember()
        return True

    def _compare(self, loss: Any, mean: float) -> None:
        """The closure's loss and the one that the backward pass told, in a step that checks."""
        if not self.capture.checks.due or not isinstance(loss, Tensor | float):
            return
        value = float(loss)
        if math.isfinite(value + mean) and abs(value - mean) > 0.01 * (abs(value) + 1e-4):
            raise ValueError(
                f"the closure's loss is {value:.6g}, but the gradient at the outputs belongs to "
                f"{mean:.6g}: pass targets= or loss= to curvature_pass(), and return the loss that "
                "backward() was called on; penalties are weight_decay= here"
            )

    @override
    def after_update(self, loss: Any, closure: Closure | None) -> None:
        self.backtracking.shorten()

    @override
    def step(self) -> Step:
        """The step d times the largest learning rate.

        Raises:
            ValueError: rows are not the gradients of the samples' losses.
        """
        assert self.hearing.roots is not None  # `missing_curvature_pass` is asked first
        roots, self.hearing.roots = self.hearing.roots, None
        alone, touched = self.hearing.alone, self.capture.touched
        # A bias, the last column, may have been frozen since.
        rows = {
            name: products[..., : self.layers[name].shape[2]]
            for name, products in self.capture.collect().items()
        }
        self.steps += 1
        with self.stopwatch.running(roots.device):
            factor = 1.0
            if self.capture.checks.due or touched or self._unheard(rows):
                factor = self._compared(rows, roots)
            if alone is not None:
                check_row(self.layers, rows, *alone, self.capture.unbatched)
            self.capture.checks.count()
            self._leave(self.capture.unbatched)
            rows = {n: r for n, r in rows.items() if n not in self.capture.unbatched}
            return Step(self._solve(self._moving(rows), roots, factor), complete=True)

    def _leave(self, names: set[str]) -> None:
        """Layers have no rows: :meth:`SNOpt.coverage` says why, and once the log."""
        new = sorted(names - self.left_to_fallback.keys())
        if new:
            logger.warning("%s: the fallback update is taken: %s", ", ".join(new), SHARED_INPUT)
        self.left_to_fallback.update(dict.fromkeys(new, SHARED_INPUT))

    def _unheard(self, rows: Mapping[str, Tensor]) -> bool:
        known = rows.keys() | self.capture.unbatched
        return any(
            _moves(p) for n, x in self.layers.items() if n not in known for p in x.parameters
        )

    def _compared(self, rows: Mapping[str, Tensor], roots: Tensor) -> float:
        types = {x.dtype for x in (roots, *rows.values())} | self.capture.types
        scale = 1.0 if self.loss_scale is None else self.loss_scale()
        return gradient_factor(
            self.layers, rows, scale, self.capture, tolerance(types, roots.device)
        )

    def _moving(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of what has a gradient and is not frozen: nothing else moves."""
        return {
            name: _moving_part(self.layers[name], products)
            for name, products in rows.items()
            if any(_moves(p) for p in self.layers[name].parameters)
        }

    def _solve(self, rows: Mapping[str, Tensor], roots: Tensor, factor: float) -> dict[str, Tensor]:
        samples = len(roots)
        scale = 1.0 if self.loss_scale is None else self.loss_scale()
        # Cotangents of a mean loss carry 1/N; a loss of zero has no gradient either.
        factors = samples**0.5 / scale / roots.clamp_min(torch.finfo(roots.dtype).tiny ** 0.5)
        weights, largest = self._weights()
        gram = torch.zeros(samples, samples, dtype=torch.float64, device=roots.device)
        target = (roots / samples**0.5).double()
        residual_norm = min(1.0, float(target.norm()))
        target = target * factor  # of a gradient that was clipped, by the same share
        scaled, priors = {}, {}
        for name, products in rows.items():
            r = scaled[name] = products.flatten(1) * factors.to(products.dtype).unsqueeze(1)
            gram += (r @ r.mT).double() * weights[name]
            prior = priors[name] = self._prior(name, residual_norm, weights[name]).to(r.dtype)
            target -= (r @ prior.flatten()).double()
        solution = self._solved(
            gram, target, max(residual_norm, MIN_DAMPING_FRACTION) * self.damping
        )
        if solution is None:
            return {name: torch.zeros_like(products[0]) for name, products in rows.items()}
        found = {}
        for name, r in scaled.items():
            d = ((solution.to(r.dtype) @ r) * weights[name]).view(rows[name].shape[1:])
            self.last[name] = d.add_(priors[name])
            found[name] = d * largest
        return found

    def _prior(self, name: str, fade: float, weight: float) -> Tensor:
        """The step that the solution stays near: what is left of the last one, and the decay."""
        layer = self.layers[name]
        prior = fade * weight * float(self.settings(layer)["weight_decay"]) * layer.value()
        if name in self.last and weight > 0:  # what has no rate stays
            last = self.last[name]
            if last.shape == prior.shape:  # else the bias was frozen or thawed in between
                prior = prior + float(self.settings(layer)["momentum"]) * last.to(prior)
        return _moving_part(layer, prior)

    def _solved(self, gram: Tensor, target: Tensor, damping: float) -> Tensor | None:
        """(gram + damping)^-1 target, ``None`` where gradients are not finite."""
        self._measured["gram_mean"] = float(gram.diagonal().mean())
        if not math.isfinite(float(gram.sum() + target.sum())):
            self.failures += 1
            logger.warning("gradients of single samples are not finite: no step is taken")
            return None
        # Samples that are fitted exactly have zero rows; any positive damping works.
        solution, failures = cholesky_solution(gram, target, damping)
        self.failures += failures
        return solution

    @property
    def damping(self) -> float:
        """Damping of the coming step: that of the first layer's group."""
        return float(self.settings(next(iter(self.layers.values())))["damping"])

    def _weights(self) -> tuple[dict[str, float], float]:
        """W by layer name, and the largest learning rate."""
        rates = {name: float(self.settings(x)["lr"]) for name, x in self.layers.items()}
        largest = max(rates.values(), default=0.0)
        return {n: rate / largest if largest > 0 else 1.0 for n, rate in rates.items()}, largest

    @override
    def diagnostics(self) -> dict[str, float]:
        """Counts and sizes, for logs."""
        return {
            "refreshes": float(self.steps),
            "refresh_failures": float(self.failures),
            "steps_halved": float(self.backtracking.halvings),
            **self._measured,
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """The last step by layer name, what it is judged by, and counts."""
        return {
            "steps": self.steps,
            "failures": self.failures,
            "last": dict(self.last),
            "backtracking": self.backtracking.state_dict(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it belongs to a model with other layers.
        """
        with reading():
            saved: Mapping[str, Tensor] = state["last"]
            steps, failures = int(state["steps"]), int(state["failures"])
        check_rows(state, "samples")
        if not saved.keys() <= self.layers.keys():
            raise ValueError(
                f"the state has layers {sorted(saved)}, the model has {sorted(self.layers)}"
            )
        for name, last in saved.items():
            shape = self.layers[name].shape
            if last.shape[:2] != shape[:2] or abs(last.shape[2] - shape[2]) > 1:
                raise ValueError(
                    f"the state was saved for another model: layer {name!r} has shape {shape} "
                    f"here, and had {tuple(last.shape)}"
                )
        self.backtracking.load_state_dict(state["backtracking"])
        self.steps, self.failures = steps, failures
        self.last = {n: copied(d, self.layers[n].weight.device) for n, d in saved.items()}
        self.prepare_next()
