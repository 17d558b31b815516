"""Levenberg-Marquardt control: a step is kept if the loss falls, how it was predicted sets damping.

Source: Levenberg 1944; Marquardt 1963; Nocedal and Wright 2006, section 10.3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor, nn

from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.displacement import length_since, written_since
from snopt.optim.saving import copied, reading
from snopt.real_numbers import as_real

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3
"""Relative difference below which targets, or inputs, are the same."""


@dataclass(frozen=True)
class Quadratic:
    """The model of a loss along a step d that is subtracted.

    Attributes:
        slope: product of the loss' gradient and d.
        curvature: |R d|^2.
    """

    slope: float
    curvature: float

    def change(self, share: float) -> float:
        """By how much the loss is to change where ``share`` of the step is taken."""
        return -share * self.slope + share**2 * self.curvature / 2


class GainRatio:
    """Judges steps by the loss of the same batch after them.

    Args:
        parameters: the parameters by name.

    Attributes:
        rejections: steps that were taken back.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.rejections = 0
        self._told = False
        self.clear()

    @property
    def waiting(self) -> bool:
        """Whether there is a step to judge."""
        return self._model is not None

    def clear(self) -> None:
        """There is no step to judge."""
        self._before: dict[nn.Parameter, Tensor] = {}
        self._step: dict[nn.Parameter, Tensor] = {}
        self._model: Quadratic | None = None
        self._loss = self._length = 0.0
        self._batch: Tensor | None = None
        self._inputs: Tensor | None = None

    def expect(
        self,
        step: Mapping[nn.Parameter, Tensor],
        model: Quadratic,
        loss: float,
        batch: Tensor | None,
        inputs: Tensor | None = None,
    ) -> None:
        """Before a step.

        Args:
            step: by parameter, up to a factor.
            model: of the loss along it.
            loss: as it is now.
            batch: targets, to know the batch again.
            inputs: likewise, where they are known.
        """
        self._before = {p: p.detach().clone() for p in step}
        self._step, self._model, self._loss = dict(step), model, loss
        self._batch = None if batch is None else batch.clone()
        self._inputs = None if inputs is None else inputs.clone()

    def made(self) -> None:
        """After a step: the parameters have moved."""
        if self.waiting:
            self._length = length_since(self._before)

    def judge(self, controller: LevenbergMarquardt, loss: float) -> bool:
        """After a step: set the damping, and take the step back if the loss has not fallen.

        Args:
            controller: of the damping.
            loss: of the same batch, now.

        Returns:
            Whether the step was kept.
        """
        if self._model is None:
            return True
        if written_since(self._before, self._length):
            self.clear()
            return True
        along = sum(float(as_real(d).square().sum()) for d in self._step.values())
        moved = sum(
            float((as_real(self._before[p].to(p) - p.detach()) * as_real(d.to(p))).sum())
            for p, d in self._step.items()
        )
        share = moved / along if along > 0 else 0.0
        controller.observe(loss - self._loss, self._model.change(share))
        kept = loss <= self._loss
        if not kept:  # a loss that is no number compares false
            for p, old in self._before.items():
                p.detach().copy_(old)
            self.rejections += 1
        self.clear()
        return kept

    def knows(self, batch: Tensor | None, inputs: Tensor | None = None) -> bool:
        """Whether a batch is the last step's, so that its loss judges the step; said once if not.

        Args:
            batch: targets.
            inputs: where they are known: targets alone do not tell where they are all zero, say.
        """
        if self._model is None:
            return True
        told = batch is not None and self._batch is not None and _same(self._batch, batch)
        if told and (inputs is None or self._inputs is None or _same(self._inputs, inputs)):
            return True
        self.clear()
        if not self._told:
            self._told = True
            logger.warning(
                "Levenberg-Marquardt damping compares losses of one batch before and after a step, "
                "and it is another one now: it stays as it is, and steps are judged by the "
                "next batch's losses; call step(closure) to have it adapted"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs."""
        names = {p: name for name, p in self.parameters.items()}
        return {
            "rejections": self.rejections,
            "model": None if self._model is None else astuple(self._model),
            "before": {names[p]: x for p, x in self._before.items()},
            "step": {names[p]: x for p, x in self._step.items()},
            "loss": self._loss,
            "length": self._length,
            "batch": self._batch,
            "inputs": self._inputs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it was saved for another model.
        """
        with reading():
            found = []
            for entry in (state["before"], state["step"]):
                named = {self.parameters[name]: (name, x) for name, x in entry.items()}
                for p, (name, x) in named.items():
                    if x.shape != p.shape:
                        raise ValueError(f"the state was saved for another model: see {name!r}")
                found.append({p: copied(x, p.device) for p, (_, x) in named.items()})
            model, batch, inputs = state["model"], state["batch"], state["inputs"]
            model = None if model is None else Quadratic(*map(float, model))
            batch = None if batch is None else batch.clone()
            inputs = None if inputs is None else inputs.clone()
            rejections, loss, length = (state[name] for name in ("rejections", "loss", "length"))
            self.rejections, self._loss, self._length = int(rejections), float(loss), float(length)
        self._model, self._batch, self._inputs = model, batch, inputs
        self._before, self._step = found


def _same(known: Tensor, now: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, by way of which targets are inferred."""
    if known.shape != now.shape:
        return False
    apart = (now - known.to(now)).nan_to_num(0.0).double().norm()
    return float(apart) <= _ROUNDING * float(known.nan_to_num(0.0).double().norm())
