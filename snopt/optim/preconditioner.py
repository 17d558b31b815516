"""The preconditioner: which layers, which basis, when it is refreshed, and the directions it gives.

:class:`~snopt.SNOpt` and :class:`~snopt.SNOptPreconditioner` share it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from snopt.curvature.averages import Average, averaged, gradient_average_factors
from snopt.curvature.capture import UNHEARD, Capture
from snopt.curvature.kronecker import (
    Basis,
    Factors,
    combined_factors,
    condition_number,
    eigenbasis,
    followed,
)
from snopt.curvature.loss_hessian import gather, loss_hessian_sqrt_columns
from snopt.curvature.processes import shared_basis
from snopt.errors import FactorizationError
from snopt.optim.damping import LevenbergMarquardt, controller_at
from snopt.optim.judging import judge
from snopt.optim.method import Closure, Method, ModelView, Step
from snopt.optim.rule import State
from snopt.optim.saving import copied, read_layer, reading
from snopt.optim.scaling import Scaling
from snopt.optim.tally import Tally

logger = logging.getLogger(__name__)

_SEEDS_APART = 1_000_003
"""Between the seeds of two processes."""


class Preconditioner(Method):
    """Kronecker factors, their bases and a rule for a set of layers.

    Args:
        parts: of the model; the rule's group settings are read of its groups.
        rule: the update rule, and how curvature is gathered for it.
    """

    def __init__(self, parts: ModelView, rule: Scaling) -> None:
        self.layers, self.blocks, self.settings = dict(parts.layers), parts.blocks, parts.settings
        self.groups, self.processes, self.rule = parts.groups, parts.processes, rule
        self.parameters = parts.parameters
        self.refresh_every, self.seed, self.draws = rule.refresh_every, parts.seed, 0
        self.capture = Capture(
            parts.layers,
            parts.blocks,
            samples=rule.curvature_samples,
            grid=rule.grid_points if rule.sampling == "grid" else None,
            loss_scale=parts.loss_scale,
        )
        self.capture.active = rule.curvature == "empirical"
        self.stopwatch, self.tally = self.capture.stopwatch, Tally()
        self.steps = 0
        self.samples = 1.0
        self._own = 0.0  # this process's part of them; 0 before the first step
        self.micro_batches = 1.0
        self._told_of_samples = False
        self.refreshes = 0
        self.failures = 0
        self.factors: dict[str, Factors] = {}
        self.bases: dict[str, Basis] = {}
        # Layers that took no part when they were last watched: not asked again within a period.
        self.absent: set[str] = set()
        self.plain = {}
        self._told: set[str] = set()
        self.states: dict[str, State] = {name: {} for name in self.layers}
        self.averages: dict[str, Average] = {}
        # Whether a layer's bias was trained when what is known of the layer was learned.
        self.biased = {name: layer.bias is not None for name, layer in self.layers.items()}
        if rule.curvature != "empirical":
            self.needs_curvature_pass = f"curvature={rule.curvature!r}"
        self._controller: LevenbergMarquardt | None = None
        self._before: dict[str, Tensor] = {}
        self.prepare_next()

    @override
    def layers_to_refresh(self) -> list[str]:
        """Layers whose basis is to be refreshed in the coming step."""
        names = [name for name, layer in self.layers.items() if layer.trains]
        period = self.refresh_every
        offsets = [i * period // len(names) if self.rule.stagger else 0 for i in range(len(names))]
        return [
            name
            for name, offset in zip(names, offsets, strict=True)
            if self.steps % period == offset or (name not in self.bases and name not in self.absent)
        ]

    @override
    def prepare_next(self) -> None:
        """Have the coming backward pass watched if a refresh is due."""
        names = self.layers_to_refresh() if self.layers else []
        if names and self.rule.basis != "gradient":
            self.capture.arm(names)
        elif names and self.rule.scales_with_loss:  # N matters to no other
            self.tally.start([*self.blocks.values()])

    @override
    def observe_outputs(
        self,
        outputs: Tensor,
        likelihood: str,
        parameters: Sequence[Tensor],
        *,
        targets: Tensor | None = None,
        loss: Tensor | None = None,
        batch_dim: int = 0,
    ) -> None:
        """Gather curvature from the model's predictive distribution, if a refresh asks for it."""
        if self.rule.curvature == "empirical" or not self.capture.armed:
            return
        outputs = outputs.movedim(batch_dim, 0)
        # Processes have samples of their own, and draw for themselves.
        seed = self.seed + self.draws + _SEEDS_APART * self.processes.rank
        columns = loss_hessian_sqrt_columns(outputs.detach(), likelihood, self.rule.curvature, seed)
        self.draws += 1
        gather(self.capture, self.blocks, parameters, outputs, columns)

    @property
    @override
    def missing_curvature_pass(self) -> bool:
        """Whether a refresh is due and no backward pass has brought curvature."""
        watched = any(self.layers[name].weight.requires_grad for name in self.capture.sums)
        return watched and not self.capture.batch

    @override
    def close(self) -> None:
        """Take hooks and observers off the model."""
        self.capture.disarm()
        self.tally.stop()

    @override
    def clear(self) -> None:
        """Forget the curvature gathered since the last step."""
        self._follow_biases()
        if set(self.layers_to_refresh()) - self.capture.sums.keys():
            self.prepare_next()  # a layer was thawed
        self.capture.clear()
        self.tally.clear()

    @override
    def extend(self, parts: ModelView) -> None:
        self.layers.update(parts.layers)
        self.blocks, self.processes = parts.blocks, parts.processes
        self.parameters = parts.parameters
        self.states.update({name: {} for name in parts.layers})
        self.biased.update({name: layer.bias is not None for name, layer in parts.layers.items()})
        self.capture.disarm()
        self.capture.watch(self.layers, self.blocks)
        self.prepare_next()

    @override
    def before_update(self, loss: Any, closure: Closure | None) -> bool:
        self._controller = controller_at(self.groups, self.steps, closure)
        if self._controller is not None:
            self._before = {
                name: p.detach().clone()
                for name, p in self.parameters.items()
                if p.grad is not None
            }
        return True

    @override
    def after_update(self, loss: Any, closure: Closure | None) -> None:
        if self._controller is not None and closure is not None:
            moves: dict[Tensor, Tensor] = {
                self.parameters[name]: self.parameters[name] - old
                for name, old in self._before.items()
            }
            self._before = {}
            judge(self._controller, self, moves, float(loss), closure)

    @override
    def step(self) -> Step:
        """Refresh what is due and give the direction of every layer that has a basis."""
        self._follow_biases()
        device = next(iter(self.layers.values())).weight.device if self.layers else None
        grads: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            grad = layer.gradient()
            if grad is not None:
                dtype = torch.promote_types(grad.dtype, torch.float32)
                grads[name] = self.scaled(grad.to(dtype))
                self._follow(name, grads[name])
        due = self.layers_to_refresh()
        if due or not self.steps:
            self.processes.warn_if_unsure()
        if due and device is not None:
            with self.stopwatch.running(device):
                self._refresh(due, grads, device)
        elif self.rule.basis != "curvature":
            self._average(grads)
        self._count_samples(device)
        self.steps += 1
        found = {}
        for name, grad in grads.items():
            basis = self.bases.get(name)
            if basis is not None:
                settings = self.settings(self.layers[name])
                direction = self.rule.direction(
                    self.states[name], basis.to(grad), basis, settings, self.samples
                )
                found[name] = basis.back(direction)
        return Step(found)

    def _follow_biases(self) -> None:
        """Begin anew with layers whose bias has been frozen or thawed: their matrix has changed."""
        for name, layer in self.layers.items():
            if self.biased[name] != (layer.bias is not None):
                self.biased[name] = layer.bias is not None
                for known in (self.factors, self.bases, self.averages):
                    known.pop(name, None)
                self.states[name] = {}
                self.absent.discard(name)

    def _follow(self, name: str, grad: Tensor) -> None:
        """Have what is known of a layer follow it to another device or precision."""
        known = self.averages[name][0] if name in self.averages else None
        known = self.bases[name].u_b if name in self.bases else known
        if known is None or (known.dtype == grad.dtype and known.device == grad.device):
            return
        self.states[name] = copied(self.states[name], grad.device, grad.dtype)
        everything: tuple[dict[str, Any], ...] = (self.factors, self.bases, self.averages)
        for entries in everything:
            if name in entries:
                entries[name] = copied(entries[name], grad.device, grad.dtype)

    def _refresh(
        self, due: Sequence[str], grads: Mapping[str, Tensor], device: torch.device
    ) -> None:
        captured: dict[str, Factors | None] = {}
        if self.rule.basis != "gradient":
            batch, last = self.capture.batch, self._last_batch()
            self._tell_of_samples()
            captured = self.capture.collect(self.processes)
            (total,) = self.processes.total([batch], device)
            if total:
                self.micro_batches = batch / last if batch and last else 1.0
                self._own, self.samples = float(batch), float(total)
                self.absent -= captured.keys()
                self.absent |= {name for name, factors in captured.items() if factors is None}
        else:
            batch, last = self.tally.samples, self._last_batch()
            self.tally.stop()
            self.micro_batches = batch / last if batch and last else 1.0
            self._own = float(batch or last)
            self._share_samples(device)
        if self.rule.basis != "curvature":
            self._average(grads)
        for i, name in enumerate(due):
            factors = self._factors(name, captured.get(name))
            if factors is None:
                if self.rule.basis != "gradient" and name in grads and name not in self.bases:
                    self._leave(name, self.capture.why.get(name, UNHEARD))
                continue
            try:
                old = self.bases.get(name)
                follows = self.rule.basis in self.rule.follows
                find = partial(followed, old=old) if follows else eigenbasis
                new = shared_basis(self.processes, i % self.processes.size, find, factors)
            except FactorizationError as error:
                self._discard(name, str(error))
                continue
            if not all(bool(torch.isfinite(x).all()) for x in _tensors(self.states[name])):
                old, self.states[name] = None, {}  # or it would be carried over for ever
            self.rule.refresh(self.states[name], old, new)
            self.factors[name], self.bases[name] = factors, new
            self.plain.pop(name, None)
            self.refreshes += 1

    def _tell_of_samples(self) -> None:
        counts = self.capture.disagreement
        if counts and not self._told_of_samples:
            self._told_of_samples = True
            logger.warning(
                "layers and blocks saw different numbers of samples in one step (%s). The first "
                "dimension of their inputs is taken for the sample. Where it is time, or a draw, "
                "or several of them flattened, their factors are off by a constant: put the "
                "sample first, x.transpose(0, 1), and leave further dimensions apart",
                counts,
            )

    def _factors(self, name: str, captured: Factors | None) -> Factors | None:
        if self.rule.basis == "curvature":
            return captured
        if name not in self.averages:
            return captured if self.rule.basis == "both" else None
        gradient = gradient_average_factors(self.averages[name], self.samples)
        if self.rule.basis == "gradient" or captured is None:
            return gradient if self.rule.basis == "gradient" else None
        return combined_factors(captured, gradient)

    def _discard(self, name: str, why: str) -> None:
        self.failures += 1
        # A running average that is not finite stays so.
        average = self.averages.get(name)
        if average is not None and not bool(torch.isfinite(average[0]).all()):
            del self.averages[name]
        if name not in self.bases:
            self._leave(name, f"its curvature was discarded: {why}")
        elif name not in self._told:
            self._told.add(name)
            logger.warning("curvature of layer %s discarded: %s; the old basis stays", name, why)

    def _leave(self, name: str, why: str) -> None:
        """A layer takes the plain update: :meth:`SNOpt.coverage` says why, and once the log."""
        self.plain[name] = why
        if name not in self._told:
            self._told.add(name)
            logger.warning("layer %s takes the plain update: %s", name, why)

    def _average(self, grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            # Factors of the backward solve are whole, and what is added to them must be too.
            modes = (
                self.layers[name].input_factor_sizes
                if self.rule.basis == "gradient"
                else ((grad.shape[2],),)
            )
            self.averages[name] = averaged(self.averages.get(name), grad, modes)

    def _last_batch(self) -> int:
        return max((block.samples for block in self.blocks.values()), default=0)

    def _count_samples(self, device: torch.device | None) -> None:
        """N of this step: what the blocks saw, times the micro-batches counted at a refresh."""
        last = self._last_batch()
        if last:
            self._own = last * self.micro_batches
        if device is not None and (self.rule.counts or self.processes.size == 1):
            self._share_samples(device)

    def _share_samples(self, device: torch.device) -> None:
        (total,) = self.processes.total([self._own], device)
        self.samples = total or self.samples

    @override
    def diagnostics(self) -> dict[str, float]:
        """Counts and condition numbers, for logs."""
        conditions = [
            max(condition_number(basis.values_a), condition_number(basis.values_b))
            for basis in self.bases.values()
        ]
        return {
            "refreshes": float(self.refreshes),
            "refresh_failures": float(self.failures),
            "condition_number": max(conditions, default=float("nan")),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """Everything learned, by layer name."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "micro_batches": self.micro_batches,
            "refreshes": self.refreshes,
            "failures": self.failures,
            "draws": self.draws,
            "absent": sorted(self.absent),
            "layers": {
                name: {
                    "factors": _pack(self.factors.get(name)),
                    "basis": _pack(self.bases.get(name)),
                    "rule": dict(self.states[name]),
                    "averages": _pack(self.averages.get(name)),
                }
                for name in self.layers
            },
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it belongs to a model with other layers.
        """
        with reading():
            keeps, modes = self.rule.keeps, self.rule.basis == "gradient"
            saved = {
                name: read_layer(name, entry, self.layers.get(name), keeps, modes)
                for name, entry in state["layers"].items()
            }
            missing = {n for n in self.layers.keys() - saved.keys() if self.layers[n].trains}
            # Of what an earlier version took for a layer without ever hearing it nothing is lost.
            foreign = {n for n, x in saved.items() if n not in self.layers and x is not None}
            if missing or foreign:
                raise ValueError(
                    f"the state has layers {sorted(saved)}, the model has {sorted(self.layers)}"
                )
            names = ("steps", "refreshes", "failures", "draws")
            counts = {name: int(state[name]) for name in names}
            sizes = {name: float(state[name]) for name in ("samples", "micro_batches")}
            absent = set(state["absent"]) & self.layers.keys()
        vars(self).update({**counts, **sizes, "absent": absent})
        self._own = 0.0
        self.factors, self.bases, self.averages = {}, {}, {}
        self.states = {name: {} for name in self.layers}
        self.biased = {name: layer.bias is not None for name, layer in self.layers.items()}
        for name, own in saved.items():
            if own is None:
                continue
            if own["factors"] is not None:
                self.factors[name] = Factors(*own["factors"])
                self.bases[name] = Basis(*own["basis"])
            if own["averages"] is not None:
                self.averages[name] = Average(*own["averages"])
            self.states[name] = own["rule"]
        self.capture.disarm()
        self.prepare_next()


def _pack(values: Any) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    return [x for x in state.values() if isinstance(x, Tensor)]
