"""Gauss-Newton steps from all outputs: the Jacobian of the residual vector, exact or by products.

With R and v of :mod:`snopt.curvature.residuals`, the loss' gradient is g = R^T v and its
generalised Gauss-Newton matrix R^T R. A step d, which is subtracted, solves

    min |R d - v|^2 + c damping (d - p)^T W^-1 (d - p),   p = momentum d' + c decay W w,

c = min(1, sqrt(2 loss)), but for the damping 1 where a controller steers it; d' is the step before,
w the parameters, W the groups' learning rates over the largest of them. All parameters take part;
what has no rate stays. What else is in their gradients (a penalty, a factor of clipping) joins
R^T v.

Source: as for :mod:`snopt.optim.least_squares`; Martens 2010 (conjugate gradients with products).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from snopt.curvature.check_steps import CheckSteps
from snopt.curvature.hearing import ONE_PASS
from snopt.curvature.output_rows import OutputRows
from snopt.curvature.residuals import Residuals, blocks_of, residuals, targets_of
from snopt.curvature.row_check import refuse_scaled
from snopt.curvature.stopwatch import Stopwatch
from snopt.curvature.vector_products import VectorProducts, flat
from snopt.layers.precision import without_autocast
from snopt.optim.backtracking import Backtracking
from snopt.optim.damped_solve import conjugate_gradients, exact_solution
from snopt.optim.damping import NO_LOSS, LevenbergMarquardt, damping_at
from snopt.optim.gain_ratio import GainRatio, Quadratic
from snopt.optim.method import Closure, Method, ModelView, Seen, Step
from snopt.optim.saving import check_rows, copied, reading
from snopt.optim.update import plain_gradient
from snopt.real_numbers import count, flattened, shaped

logger = logging.getLogger(__name__)


class _Batch(NamedTuple):
    """What a curvature pass has found: R, or the step that conjugate gradients made of products."""

    loss: float
    seen: Residuals | None
    parameters: list[nn.Parameter]
    rows: Tensor | None = None
    gradient: Tensor | None = None
    step: Tensor | None = None
    model: Quadratic | None = None
    inputs: Tensor | None = None

    @property
    def targets(self) -> Tensor | None:
        return None if self.seen is None else self.seen.targets


TOO_LATE = (
    "the loss has no graph any more, as backward() was called already: call "
    "optimizer.curvature_pass(outputs, ...) before loss.backward()"
)


class OutputLeastSquares(Method):
    """Steps of a model's parameters as a whole.

    Args:
        parts: of the model.
        backtrack: standard errors by which the loss may rise (:mod:`snopt.optim.backtracking`);
            a controller of the damping takes the place of that.
        memory: bytes of R, in double precision, up to which steps are exact.
        iterations: of conjugate gradients beyond.
    """

    needs_curvature_pass = "rule='gauss_newton'"
    whole = True

    def __init__(self, parts: ModelView, backtrack: float, memory: float, iterations: int) -> None:
        self.layers, self.blocks, self.processes = dict(parts.layers), parts.blocks, parts.processes
        self.parameters, self.groups = dict(parts.parameters), parts.groups
        self.memory, self.iterations = memory, iterations
        self.stopwatch = Stopwatch()
        checks = CheckSteps(parts.modules, self.parameters.values())
        self.rows = OutputRows(self.layers, self.blocks, checks)
        self.backtracking = Backtracking(self.parameters, backtrack)
        self.gain = GainRatio(self.parameters)
        self._steered = True
        self.steps = self.failures = 0
        self.refresh_every = 1
        self.left_to_fallback = {}
        self.last: dict[str, Tensor] = {}
        self._batch: _Batch | None = None
        self._measured: dict[str, float] = {}

    # -- what a pass tells ------------------------------------------------------------------------

    @override
    def observe_outputs(self, seen: Seen) -> None:
        """Make the rows of a forward pass, or with products the step itself."""
        if not self.rows.active:
            return
        self.processes.require_one("rule='gauss_newton'")
        if not seen.outputs.requires_grad:
            return
        if self._batch is not None and any(p.grad is not None for p in self._trained):
            raise RuntimeError(ONE_PASS)
        if seen.loss is None or seen.loss.numel() != 1:
            raise ValueError(
                "rule='gauss_newton' with rows='outputs' needs the loss before backward(): "
                "curvature_pass(outputs, 'gaussian', targets=y, loss=loss)"
            )
        with ExitStack() as stack:
            for block in self.blocks.values():
                stack.enter_context(block.measuring())
            stack.enter_context(self.stopwatch.running(seen.outputs.device))
            stack.enter_context(without_autocast(seen.outputs.device))
            stack.enter_context(torch.enable_grad())
            try:
                self._batch = self._observed(seen, seen.loss)
            except RuntimeError as error:
                if "backward through the graph a second time" not in str(error):
                    raise
                raise RuntimeError(TOO_LATE) from error
        self.rows.clear()

    def _observed(self, seen: Seen, loss: Tensor) -> _Batch:
        outputs = blocks_of(seen.outputs, seen.likelihood, seen.batch_dim)
        (cotangents,) = torch.autograd.grad(
            loss, seen.outputs, retain_graph=True, allow_unused=True
        )
        if cotangents is None:
            raise ValueError("the loss passed to curvature_pass() does not come from these outputs")
        targets = seen.targets
        if targets is not None:
            targets = targets_of(targets, seen.outputs, seen.likelihood, seen.batch_dim)
        found = residuals(
            outputs.detach(),
            blocks_of(cotangents, seen.likelihood, seen.batch_dim),
            seen.likelihood,
            targets,
            float(loss.detach()),
        )
        inputs = self.rows.first_input
        batch = _Batch(float(loss.detach()), found, self._trained, inputs=inputs)
        if found is None:
            return batch
        numbers = sum(count(p) for p in batch.parameters)
        if 8.0 * int(found.counted.sum()) * numbers > self.memory:
            return self._by_products(batch, found, outputs, loss)
        dim = seen.batch_dim % seen.outputs.ndim
        rows = self.rows.rows(outputs, found, batch.parameters, self.memory, dim)
        return batch._replace(rows=torch.cat([part.double() for part in rows], dim=1))

    def _by_products(self, batch: _Batch, seen: Residuals, outputs: Tensor, loss: Tensor) -> _Batch:
        """Conjugate gradients, while the graph is there."""
        gradient = flat(
            torch.autograd.grad(loss, batch.parameters, retain_graph=True, allow_unused=True),
            batch.parameters,
        )
        products = VectorProducts(outputs, seen, batch.parameters)
        prior, roots, damping = self._metric(batch)
        prior, roots = prior.to(gradient), roots.to(gradient)

        def product(y: Tensor) -> Tensor:
            return roots * products.back(products.forth(roots * y)) + damping * y

        b = roots * (gradient - products.back(products.forth(prior)))
        y, made = conjugate_gradients(product, b, self.iterations)
        d = prior + roots * y
        self._measured["cg_iterations"] = float(made)
        model = Quadratic(float(gradient @ d), float(products.forth(d).square().sum()))
        return batch._replace(gradient=gradient, step=d, model=model)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters.values() if p.requires_grad]

    # -- the step ---------------------------------------------------------------------------------

    @override
    def before_update(self, loss: Any, closure: Closure | None) -> bool:
        batch = self._batch
        if batch is None:  # what is missing is said by the step
            return True
        self._steered = closure is not None or self.gain.knows(batch.targets, batch.inputs)
        controller = self._controller
        if controller is not None and closure is not None:
            if loss is None:
                raise ValueError(NO_LOSS)
            self._batch = batch._replace(loss=float(loss))  # what is compared after the step
        if controller is None:
            kept = not self._halved(batch)
            share = 0.5
        else:
            kept = closure is not None or self.gain.judge(controller, batch.loss)
            share = 0.0
        if not kept:
            self.steps += 1
            self.last = {name: d * share for name, d in self.last.items()}
        return kept

    def _halved(self, batch: _Batch) -> bool:
        """Whether half of the last step was taken back, as this batch's losses have risen."""
        if batch.seen is None:
            losses = torch.tensor([math.nan])
        else:
            losses = batch.seen.losses
            mean = float(losses.mean())
            losses = losses * (batch.loss / mean) if mean > 0 else losses
        if self.backtracking.halve(losses):
            return True
        self.backtracking.remember()
        return False

    @override
    def step(self) -> Step:
        """The step d times the largest learning rate."""
        batch, self._batch = self._batch, None
        assert batch is not None  # `missing_curvature_pass` is asked first
        with self.stopwatch.running(batch.parameters[0].device):
            d, model = self._solved(batch)
        largest = max(float(group["lr"]) for group in self.groups)
        parts = d.split([count(p) for p in batch.parameters])
        found = {
            p: shaped(part, p)
            for p, part in zip(batch.parameters, parts, strict=True)
            if p.grad is not None
        }
        names = {p: name for name, p in self.parameters.items()}
        self.last = {names[p]: part.clone() for p, part in found.items()}
        controller = self._controller
        self.gain.clear()
        if controller is not None and model is not None and self.steps % controller.every == 0:
            self.gain.expect(found, model, batch.loss, batch.targets, batch.inputs)
        self.steps += 1
        return Step({}, complete=True, parameters={p: x * largest for p, x in found.items()})

    def _solved(self, batch: _Batch) -> tuple[Tensor, Quadratic | None]:
        names = {p: name for name, p in self.parameters.items()}
        grads = [None if p.grad is None else plain_gradient(p, names[p]) for p in batch.parameters]
        gradient = flat(grads, batch.parameters).double()
        if batch.seen is None or not bool(torch.isfinite(gradient).all()):
            self.failures += 1
            logger.warning("the loss or its gradient is not finite: no step is taken")
            return torch.zeros_like(gradient), None
        if batch.step is not None:
            assert batch.gradient is not None
            # Of a gradient that was clipped, as large a share of the step.
            factor, _ = _parts(batch.gradient.double(), gradient, batch.gradient.dtype)
            return batch.step * min(1.0, max(0.0, factor)), batch.model
        assert batch.rows is not None
        values = batch.seen.values.flatten(1)[batch.seen.counted].double()
        prior, roots, damping = self._metric(batch)
        factor, rest = _parts(batch.rows.mT @ values, gradient, batch.seen.values.dtype)
        target = factor * values - batch.rows @ prior
        rows = batch.rows if bool((roots == 1).all()) else batch.rows * roots
        y, failures = exact_solution(rows, target, None if rest is None else roots * rest, damping)
        self.failures += failures
        d = prior + roots * y
        return d, Quadratic(float(gradient @ d), float((batch.rows @ d).square().sum()))

    def _metric(self, batch: _Batch) -> tuple[Tensor, Tensor, float]:
        """What the step stays near, W^(1/2), and the damping in force."""
        controller, fade = self._controller, min(1.0, math.sqrt(2 * max(0.0, batch.loss)))
        largest = max(float(group["lr"]) for group in self.groups)
        groups = {p: group for group in self.groups for p in group["params"]}
        names = {p: name for name, p in self.parameters.items()}
        priors, roots = [], []
        for p in batch.parameters:
            weight = float(groups[p]["lr"]) / largest if largest > 0 else 0.0
            prior = fade * weight * float(groups[p]["weight_decay"]) * flattened(p).double()
            if names[p] in self.last and weight > 0:
                prior += float(groups[p]["momentum"]) * flattened(self.last[names[p]]).to(prior)
            priors.append(prior)
            roots.append(torch.full_like(prior, math.sqrt(weight)))
        damping = damping_at(self.groups[0]["damping"], self.steps)
        damping = float(damping) if controller is not None else fade * float(damping)
        return torch.cat(priors), torch.cat(roots), damping

    @override
    def after_update(self, loss: Any, closure: Closure | None) -> None:
        controller = self._controller
        self.gain.made()
        if controller is None:
            self.backtracking.shorten()
        elif closure is not None and self.gain.waiting:
            self.rows.active = False
            try:
                with torch.enable_grad():
                    again = closure()
            finally:
                self.rows.active = True
            if not self.gain.judge(controller, float(again)):
                self.last = {}

    @property
    def _controller(self) -> LevenbergMarquardt | None:
        """What steers the damping, where losses of one batch can be compared."""
        damping = self.groups[0]["damping"]
        return damping if self._steered and isinstance(damping, LevenbergMarquardt) else None

    # -- what every method has --------------------------------------------------------------------

    @override
    def layers_to_refresh(self) -> list[str]:
        """All layers."""
        return list(self.layers)

    @override
    def prepare_next(self) -> None:
        """Begin again for the coming step."""
        self.clear()

    @property
    @override
    def missing_curvature_pass(self) -> bool:
        """Whether no pass has brought a batch."""
        return self._batch is None

    @override
    def clear(self) -> None:
        """Forget the batch and the calls."""
        if self.rows.active:
            self._batch = None
            self.rows.clear()

    @override
    def close(self) -> None:
        """Take the hooks off the model."""
        self.clear()
        self.rows.close()

    @override
    def diagnostics(self) -> dict[str, float]:
        """Counts, for logs."""
        return {
            "refreshes": float(self.steps),
            "refresh_failures": float(self.failures),
            "steps_halved": float(self.backtracking.halvings),
            "steps_rejected": float(self.gain.rejections),
            **self._measured,
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """The last step by parameter name, what it is judged by, and counts."""
        return {
            "rows": "outputs",
            "steps": self.steps,
            "failures": self.failures,
            "last": dict(self.last),
            "backtracking": self.backtracking.state_dict(),
            "gain": self.gain.state_dict(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it belongs to another model, or to ``rows="samples"``.
        """
        with reading():
            saved: Mapping[str, Tensor] = state["last"]
            steps, failures = int(state["steps"]), int(state["failures"])
        check_rows(state, "outputs")
        for name, last in saved.items():
            if name not in self.parameters or last.shape != self.parameters[name].shape:
                raise ValueError(f"the state was saved for another model: see parameter {name!r}")
        gain = GainRatio(self.parameters)
        if "gain" in state:  # earlier versions left the last step unjudged
            gain.load_state_dict(state["gain"])
        self.backtracking.load_state_dict(state["backtracking"])
        self.steps, self.failures = steps, failures
        self.last = {n: copied(d, self.parameters[n].device) for n, d in saved.items()}
        self.gain = gain
        self.prepare_next()


def _parts(own: Tensor, gradient: Tensor, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """A gradient as a multiple of R^T v, and the rest of it where that is more than rounding."""
    rounding = 8 * torch.finfo(dtype).eps ** 0.5  # long solves round, and steps magnify the rest
    square = float(own @ own)
    factor = float(own @ gradient) / square if square > 0 else 0.0
    refuse_scaled(factor)
    rest = gradient - factor * own
    if float(rest.norm()) <= rounding * max(math.sqrt(square), float(gradient.norm())):
        return (1.0 if abs(factor - 1) <= rounding else factor), None
    return factor, rest
