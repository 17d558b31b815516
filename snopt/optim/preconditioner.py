"""The preconditioner: which layers, which basis, when it is refreshed, and the directions it gives.

:class:`~snopt.SNOpt` and :class:`~snopt.SNOptPreconditioner` share it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from snopt.curvature.averages import averaged, gradient_average_factors
from snopt.curvature.capture import UNHEARD, Capture
from snopt.curvature.kronecker import (
    Factors,
    combined_factors,
    condition_number,
    eigenbasis,
    followed,
    not_finite,
)
from snopt.curvature.loss_hessian import gather, loss_hessian_sqrt_columns
from snopt.curvature.processes import shared_basis
from snopt.errors import FactorizationError
from snopt.layers.base import Sizes
from snopt.optim.damping import LevenbergMarquardt, controller_at
from snopt.optim.judging import judge
from snopt.optim.learned import Learned
from snopt.optim.method import Closure, Method, ModelView, Seen, Step
from snopt.optim.sample_count import SampleCount
from snopt.optim.saving import read_layer, reading
from snopt.optim.scaling import Scaling

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
            losses=rule.curvature == "empirical",
        )
        self.stopwatch = self.capture.stopwatch
        self.count = SampleCount(self.blocks, self.processes)
        self.steps = 0
        self.refreshes = 0
        self.failures = 0
        self.left_to_fallback = {}
        self._told: set[str] = set()
        self._untold: dict[tuple[bool, str], list[str]] = {}
        self.learned = {name: Learned(layer) for name, layer in self.layers.items()}
        if rule.curvature != "empirical":
            self.needs_curvature_pass = f"curvature={rule.curvature!r}"
        self._controller: LevenbergMarquardt | None = None
        self._before: dict[str, Tensor] = {}
        self.prepare_next()

    @property
    def samples(self) -> float:
        """N, the samples behind the last step."""
        return self.count.total

    @property
    @override
    def factors(self) -> dict[str, Factors]:
        return {n: x.factors for n, x in self.learned.items() if x.factors is not None}

    @override
    def layers_to_refresh(self) -> list[str]:
        """Layers whose basis is to be refreshed in the coming step."""
        names = [name for name, layer in self.layers.items() if layer.trains]
        period = self.refresh_every
        offsets = [i * period // len(names) if self.rule.stagger else 0 for i in range(len(names))]
        return [
            name
            for name, offset in zip(names, offsets, strict=True)
            if self.steps % period == offset or self._unknown(self.learned[name])
        ]

    @staticmethod
    def _unknown(learned: Learned) -> bool:
        return learned.basis is None and not learned.absent

    @override
    def prepare_next(self) -> None:
        """Have the coming backward pass watched if a refresh is due."""
        names = self.layers_to_refresh() if self.layers and not self.closed else []
        if self.rule.basis != "gradient":
            self.capture.arm(names)
        elif names and self.rule.scales_with_loss:  # N matters to no other
            self.count.start()

    @override
    def observe_outputs(self, seen: Seen) -> None:
        """Gather curvature from the model's predictive distribution, if a refresh asks for it."""
        if self.rule.curvature == "empirical" or not self.capture.armed:
            return
        outputs = seen.outputs.movedim(seen.batch_dim, 0)
        # Processes have samples of their own, and draw for themselves.
        seed = self.seed + self.draws + _SEEDS_APART * self.processes.rank
        columns = loss_hessian_sqrt_columns(
            outputs.detach(), seen.likelihood, self.rule.curvature, seed
        )
        self.draws += 1
        gather(self.capture, self.blocks, list(self.parameters.values()), outputs, columns)

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
        self.count.stop()

    @override
    def clear(self) -> None:
        """Forget the curvature gathered since the last step."""
        for learned in self.learned.values():
            learned.follow_bias()
        if set(self.layers_to_refresh()) - self.capture.sums.keys():
            self.prepare_next()  # a layer was thawed
        self.capture.clear()
        self.count.clear()

    @override
    def require_extensible(self) -> None:
        pass

    @override
    def extend(self, parts: ModelView) -> None:
        self.layers.update(parts.layers)
        self.blocks = self.count.blocks = parts.blocks
        self.processes = self.count.processes = parts.processes
        self.parameters = parts.parameters
        self.learned.update({name: Learned(layer) for name, layer in parts.layers.items()})
        self.capture.disarm()
        self.capture.watch(self.layers, self.blocks)
        self.prepare_next()

    @override
    def before_update(self, loss: Any, closure: Closure | None) -> bool:
        self._controller = controller_at(self.groups, self.steps, loss)
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
        device = next(iter(self.layers.values())).weight.device if self.layers else None
        grads: dict[str, Tensor] = {}
        for name, learned in self.learned.items():
            learned.follow_bias()
            grad = learned.layer.gradient()
            if grad is not None:
                dtype = torch.promote_types(grad.dtype, torch.float32)
                grads[name] = self.scaled(grad.to(dtype))
                learned.follow(grads[name])
        due = self.layers_to_refresh()
        if due or not self.steps:
            self.processes.warn_if_unsure()
        if due and device is not None:
            with self.stopwatch.running(device):
                self._refresh(due, grads, device)
        elif self.rule.basis != "curvature":
            self._average(grads)
        if device is not None and (self.rule.counts or self.processes.size == 1):
            self.count.follow(device)
        self.steps += 1
        found = {}
        for name, grad in grads.items():
            learned, settings = self.learned[name], self.settings(self.layers[name])
            basis = learned.basis
            if basis is not None:
                direction = self.rule.direction(
                    learned.state, basis.to(grad), basis, settings, self.samples
                )
                found[name] = basis.back(direction)
        return Step(found)

    def _refresh(
        self, due: Sequence[str], grads: Mapping[str, Tensor], device: torch.device
    ) -> None:
        captured: dict[str, Factors | None] = {}
        if self.rule.basis != "gradient":
            counts = self.capture.disagreement
            if counts:
                self.count.tell_of_disagreement(counts)
            batch = self.capture.batch
            captured = self.capture.collect(self.processes)
            if self.count.take(batch, device):
                for name, heard in captured.items():
                    self.learned[name].absent = heard is None
        elif not self.count.take_tally(device) and self.rule.scales_with_loss:
            self.count.warn_of_none(self.rule.name)
        if self.rule.basis != "curvature":
            self._average(grads)
        found = {name: self._factors(self.learned[name], captured.get(name)) for name in due}
        broken = not_finite({n: [*chain(*x.a, *x.b)] for n, x in found.items() if x is not None})
        lost = not_finite({n: self.learned[n].state_tensors for n in due})
        for i, (name, factors) in enumerate(found.items()):
            learned = self.learned[name]
            if factors is None:
                if self.rule.basis != "gradient" and name in grads and bool(grads[name].any()):
                    self._leave(name, self.capture.why.get(name, UNHEARD))
                continue
            if name in broken:
                self._discard(name, "the factor is not finite")
                continue
            try:
                follows = self.rule.basis in self.rule.follows
                find = partial(followed, old=learned.basis) if follows else eigenbasis
                new = shared_basis(self.processes, i % self.processes.size, find, factors)
            except FactorizationError as error:
                self._discard(name, str(error))
                continue
            old = learned.basis
            if name in lost:  # rotated, it would be carried over for ever
                old, learned.state = None, {}
            self.rule.refresh(learned.state, old, new)
            learned.factors, learned.basis = factors, new
            self.left_to_fallback.pop(name, None)
            self.refreshes += 1
        self._tell()

    def _factors(self, learned: Learned, captured: Factors | None) -> Factors | None:
        if self.rule.basis == "curvature":
            return captured
        if learned.average is None:
            return captured if self.rule.basis == "both" else None
        gradient = gradient_average_factors(learned.average, self.samples)
        if self.rule.basis == "gradient" or captured is None:
            return gradient if self.rule.basis == "gradient" else None
        return combined_factors(captured, gradient)

    def _discard(self, name: str, why: str) -> None:
        self.failures += 1
        self.learned[name].drop_broken()
        self._leave(name, f"its curvature was discarded: {why}")

    def _leave(self, name: str, why: str) -> None:
        """A layer found no new basis. :meth:`SNOpt.coverage` says why, and once the log."""
        kept = self.learned[name].basis is not None
        if not kept:
            self.left_to_fallback[name] = why
        if name not in self._told:
            self._told.add(name)
            self._untold.setdefault((kept, why), []).append(name)

    def _tell(self) -> None:
        """Log the layers that were left, those with one reason together."""
        for (kept, why), names in self._untold.items():
            more = f" and {len(names) - 3} others" if len(names) > 3 else ""
            logger.warning(
                "no new basis for %s%s, so %s: %s",
                ", ".join(map(repr, names[:3])),
                more,
                "the last one stays" if kept else "the fallback update is taken",
                why,
            )
        self._untold.clear()

    def _average(self, grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            learned = self.learned[name]
            # Captured factors are whole, and so is their mean with these.
            sizes = learned.layer.factor_sizes if self.rule.basis == "gradient" else _whole(grad)
            learned.average = averaged(learned.average, grad, *sizes)

    @override
    def diagnostics(self) -> dict[str, float]:
        """Counts and condition numbers, for logs."""
        conditions = [
            max(condition_number(x.basis.values_a), condition_number(x.basis.values_b))
            for x in self.learned.values()
            if x.basis is not None
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
            "samples": self.count.total,
            "micro_batches": self.count.micro_batches,
            "refreshes": self.refreshes,
            "failures": self.failures,
            "draws": self.draws,
            "absent": sorted(n for n, x in self.learned.items() if x.absent),
            "one_sample": sorted(n for n, x in self.blocks.items() if x.one_sample),
            "layers": {name: learned.state_dict() for name, learned in self.learned.items()},
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
            absent = set(state["absent"])
            alone = set(state.get("one_sample", ()))  # earlier versions had none
        vars(self).update(counts)
        self.count.load(sizes["samples"], sizes["micro_batches"])
        for name, learned in self.learned.items():
            learned.load(saved.get(name))
            learned.absent = name in absent
        for name in alone & self.blocks.keys():
            self.blocks[name].one_sample = True
        self.prepare_next()
        if self.rule.basis != "gradient" and not (self.capture.armed or self.closed):
            self.capture.expose()


def _whole(grad: Tensor) -> tuple[Sizes, Sizes]:
    _, out, width = grad.shape
    return ((out,),), ((width,),)
