"""Gauss-Newton steps from the gradients of single samples: no Kronecker factors, no eigenbases.

With l_i the loss of sample i and r_i = sqrt(2 l_i), the mean loss is (1/2N) sum r_i^2, and its
Gauss-Newton matrix is R^T R, where row i of R is the gradient of l_i divided by r_i sqrt(N). With
v_i = r_i / sqrt(N) the gradient is R^T v, and a step d, which is subtracted, solves

    min |R d - v|^2 + max(near, 0.1) damping (d - p)^T W^-1 (d - p),
    p = momentum d' + near decay W w,  near = min(1, |v|),

d' being the step before, w the parameters and W the groups' learning rates over the largest of
them. R has as many rows as the batch has samples, so the solution is a Cholesky factorisation of
that size:

    d = p + W R^T (R W R^T + max(near, 0.1) damping)^-1 (v - R p).

Weights decay where that leaves the batch's outputs alone, and less as the losses fall, so that
nothing holds the loss above zero. Rows are as small as roots, so damping falls with them, but not
without end: steps would stay as long at losses of nothing, and jump.

Source: Gauss-Newton on roots of losses is the textbook's (Nocedal and Wright 2006, section 10.3);
damping by |v| is Fan and Yuan's (2005), a decay that fades Bakushinskii's (1992, iteratively
regularised Gauss-Newton); the solution in the samples' space and the memory of the last step are
those of minSR (Chen and Heyl 2024) and SPRING (Goldshlager, Abrahamsen and Lin 2024).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from snopt.backtracking import Backtracking
from snopt.core import Core, Parts
from snopt.rows import Rows
from snopt.rules import Rule
from snopt.saving import copied, reading

logger = logging.getLogger(__name__)

GRADIENTS = ("direct", "checkpoint")
"""Ways to the gradient whose backward pass goes through every use of a layer."""

LEAST_NEAR = 0.1
"""The share of the damping that stays however small the losses are."""


class GaussNewton(Core):
    """Rows of a batch, and the step they give.

    Args:
        parts: of the model; lr, momentum (how much of the last step is kept), damping and
            weight_decay are read of its groups.
        backtracking: judges steps by the losses after them.
        loss_scale: returns the factor on the loss while a backward pass runs (GradScaler).

    Raises:
        ValueError: there are no layers, or a block's gradient comes from the adjoint equation,
            which has no uses to watch.
    """

    whole: ClassVar[bool] = True
    asks = "rule='gauss_newton'"

    def __init__(
        self,
        parts: Parts,
        backtracking: Backtracking,
        loss_scale: Callable[[], float] | None = None,
    ) -> None:
        if not parts.layers:
            raise ValueError(
                "rule='gauss_newton' needs a linear layer or a convolution to train, and the model "
                "has none"
            )
        for name, block in parts.blocks.items():
            if block.gradient not in GRADIENTS:
                raise ValueError(
                    f"rule='gauss_newton' needs gradients of single samples, which gradient="
                    f"{block.gradient!r} of block {name!r} does not have; choose one of "
                    f"{', '.join(GRADIENTS)}"
                )
        self.layers, self.blocks, self.settings = dict(parts.layers), parts.blocks, parts.settings
        self.processes = parts.processes
        self.backtracking, self.loss_scale = backtracking, loss_scale
        self.capture = Rows(self.layers)
        self.stopwatch = self.capture.stopwatch
        self.steps = self.failures = 0
        self.refresh_every = 1
        self.factors = {}
        self.last: dict[str, Tensor] = {}
        self._roots: Tensor | None = None
        self._measured: dict[str, float] = {}

    @classmethod
    @override
    def build(cls, parts: Parts, rule: Rule, options: Mapping[str, Any]) -> GaussNewton:
        search = Backtracking(parts.parameters, options["backtrack"])
        return cls(parts, search, options["loss_scale"])

    @override
    def look(self, outputs: Tensor, likelihood: str, parameters: Sequence[Tensor]) -> None:
        """Learn the samples' losses from the cotangent that the backward pass brings to outputs."""
        if self.processes.size > 1:
            raise RuntimeError(
                f"rule='gauss_newton' runs in one process, and {self.processes.size} average the "
                "gradients of this model; use rule='adam', or train in one process"
            )
        if self._roots is not None:
            raise RuntimeError(
                "rule='gauss_newton' takes one backward pass a step; call optimizer.step() or "
                "zero_grad() before the next curvature_pass()"
            )
        if not outputs.requires_grad:
            return
        values = outputs.detach()

        def at_outputs(cotangent: Tensor) -> None:
            scale = 1.0 if self.loss_scale is None else self.loss_scale()
            cotangents = cotangent.detach() * (len(values) / scale)
            self._roots = (2.0 * sample_losses(values, cotangents, likelihood)).sqrt()
            torch.autograd.Variable._execution_engine.queue_callback(self.capture.finish)

        outputs.register_hook(at_outputs)
        self.capture.expected = True

    @override
    def due(self) -> list[str]:
        """All layers."""
        return list(self.layers)

    @override
    def arm(self) -> None:
        """Begin anew for the coming step."""
        self.clear()
        self.capture.sparing = False

    @property
    @override
    def forgotten(self) -> bool:
        """Whether no backward pass has brought the samples' losses."""
        return self._roots is None

    @override
    def clear(self) -> None:
        """Forget rows and losses; until the step, training passes are taken to be for rows."""
        self.capture.clear()
        self.capture.sparing = True
        self._roots = None

    @override
    def step_halved(self) -> bool:
        if self._roots is None or not self.backtracking.halve(self._roots.square() / 2):
            return False
        self.last = {name: d / 2 for name, d in self.last.items()}
        self.steps += 1
        return True

    @override
    def update(self) -> AbstractContextManager[None]:
        return self.backtracking.update()

    @override
    def directions(self) -> dict[str, Tensor]:
        """The step d, over its group's part in W, by layer name.

        Returns:
            Matrices shaped like :meth:`snopt.layers.Layer.gradient`.

        Raises:
            ValueError: a layer has been used on inputs that do not come sample by sample.
        """
        assert self._roots is not None  # `forgotten` is asked first
        roots, self._roots = self._roots, None
        rows = self.capture.collect()
        self.steps += 1
        with self.stopwatch.running(roots.device):
            return self._solve(rows, roots)

    def _solve(self, rows: Mapping[str, Tensor], roots: Tensor) -> dict[str, Tensor]:
        samples = len(roots)
        scale = 1.0 if self.loss_scale is None else self.loss_scale()
        # Cotangents of a mean loss carry 1/N; a loss of zero has no gradient either.
        factors = samples**0.5 / scale / roots.clamp_min(torch.finfo(roots.dtype).tiny ** 0.5)
        weights = self._weights()
        gram = torch.zeros(samples, samples, dtype=torch.float64, device=roots.device)
        target = (roots / samples**0.5).double()
        near = min(1.0, float(target.norm()))
        scaled, priors = {}, {}
        for name, products in rows.items():
            if name in self.capture.unbatched:
                continue
            if len(products) != samples:
                raise ValueError(
                    f"layer {name!r} saw inputs whose first dimension is {len(products)} while the "
                    f"outputs' is {samples}; rule='gauss_newton' needs samples first everywhere"
                )
            r = scaled[name] = products.flatten(1) * factors.to(products.dtype).unsqueeze(1)
            gram += (r @ r.mT).double() * weights[name]
            prior = priors[name] = self._prior(name, near * weights[name]).to(r.dtype)
            target -= (r @ prior.flatten()).double()
        solution = self._solved(gram, target, max(near, LEAST_NEAR) * self.damping)
        if solution is None:
            return {name: torch.zeros_like(products[0]) for name, products in rows.items()}
        found = {}
        for name, r in scaled.items():
            d = ((solution.to(r.dtype) @ r) * weights[name]).view(rows[name].shape[1:])
            self.last[name] = d.add_(priors[name])
            # A group's rate is in d already, and the update multiplies by it again.
            found[name] = d / weights[name] if weights[name] > 0 else d
        return found

    def _prior(self, name: str, strength: float) -> Tensor:
        """The step that the solution stays near: what is left of the last one, and the decay."""
        layer = self.layers[name]
        decay = strength * float(self.settings(layer)["weight_decay"])
        prior = decay * layer.value()
        if name in self.last:
            last = self.last[name]
            if last.shape == prior.shape:  # else the bias was frozen or thawed in between
                prior = prior + float(self.settings(layer)["momentum"]) * last.to(prior)
        return prior

    def _solved(self, gram: Tensor, target: Tensor, damping: float) -> Tensor | None:
        """(gram + damping)^-1 target, more damping where rounding makes the sum indefinite.

        ``None`` where there is nothing to solve: gradients that are not finite.
        """
        self._measured["gram_mean"] = float(gram.diagonal().mean())
        if not math.isfinite(float(gram.sum() + target.sum())):
            self.failures += 1
            logger.warning("gradients of single samples are not finite: no step is taken")
            return None
        # Fitted samples have rows of zeros: any number above zero will do for them.
        least = torch.finfo(torch.float32).eps * self._measured["gram_mean"]
        damping = max(damping, torch.finfo(torch.float64).tiny)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        while True:
            factor, failed = torch.linalg.cholesky_ex(gram + damping * eye)
            if not failed.item():
                return torch.cholesky_solve(target.unsqueeze(1), factor).squeeze(1)
            self.failures += 1
            damping = max(10.0 * damping, least, torch.finfo(torch.float32).tiny)
            logger.warning("Gauss-Newton matrix is indefinite by rounding: damping %g", damping)

    @property
    def damping(self) -> float:
        """Damping of the coming step: that of the first layer's group."""
        return float(self.settings(next(iter(self.layers.values())))["damping"])

    def _weights(self) -> dict[str, float]:
        rates = {name: float(self.settings(x)["lr"]) for name, x in self.layers.items()}
        largest = max(rates.values(), default=0.0)
        return {name: rate / largest if largest > 0 else 1.0 for name, rate in rates.items()}

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
        self.arm()


def sample_losses(outputs: Tensor, cotangents: Tensor, likelihood: str) -> Tensor:
    """Each sample's loss, told by the outputs and by the gradient of that loss in them.

    Args:
        outputs: logits (N, K), or means (N, ...).
        cotangents: gradients of the samples' losses, shaped like ``outputs``.
        likelihood: ``"categorical"``: cross-entropy, whose gradient p - e_y names the class y;
            ``"gaussian"``: half the squared error, whose gradient is the error itself.

    Returns:
        Shape (N,), at least float32, never negative; NaN where nothing is finite. A small loss is
        as exact as the other classes' probabilities, which the gradient has: 1 - p_y rounds away.

    Raises:
        ValueError: the loss is not the mean cross-entropy of these logits.
    """
    dtype = torch.promote_types(torch.float32, outputs.dtype)
    outputs, cotangents = outputs.to(dtype), cotangents.to(dtype)
    if likelihood == "gaussian":
        return cotangents.reshape(len(cotangents), -1).square().sum(dim=1) / 2
    if not bool(torch.isfinite(cotangents).all()):
        return cotangents.new_full((len(cotangents),), torch.nan)
    if outputs.ndim != 2:
        raise ValueError(f"logits must have shape (N, K), got {tuple(outputs.shape)}")
    logs = outputs.log_softmax(dim=1)
    onehot = logs.exp() - cotangents
    label = onehot.argmax(dim=1, keepdim=True)
    expected = torch.zeros_like(onehot).scatter_(1, label, 1.0)
    if not bool(((onehot - expected).abs() < 0.01).all()):
        raise ValueError(
            "the gradient at the outputs is not that of the mean cross-entropy over the batch; "
            "rule='gauss_newton' needs nn.functional.cross_entropy(outputs, labels), without "
            "class weights, smoothing or other terms"
        )
    missed = cotangents.clamp_min(0.0).scatter(1, label, 0.0).sum(dim=1)
    small = -torch.log1p(-missed.clamp_max(0.5))
    return torch.where(missed < 0.5, small, -logs.gather(1, label).squeeze(1))
