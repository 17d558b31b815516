"""What a run records: rows of measurements, the best of them, checkpoints, and totals."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from snopt.dynamics import learned_scalars
from snopt.ode.block import blocks
from tasks.engine.records.clock import Clock
from tasks.engine.records.metrics import Measurement
from tasks.engine.records.writer import Writer
from tasks.engine.training.learner import Learner
from tasks.engine.training.progress import Progress

logger = logging.getLogger(__name__)


@dataclass
class Counters:
    """Counters and latest measurements of a run; plain values that go into its checkpoint.

    Attributes:
        step: steps made, skipped ones included.
        skipped: steps left out because a solve failed.
        evaluated_at: step of the last evaluation, -1 before the first.
        evaluated_seconds: training clock at the last evaluation, as limits have it.
        final: latest values by split and metric.
        best: step, training seconds and values where the validation metric was best.
    """

    step: int = 0
    skipped: int = 0
    evaluated_at: int = -1
    evaluated_seconds: float = 0.0
    final: dict[str, dict[str, float]] = field(default_factory=dict)
    best: dict[str, Any] | None = None


class Recorder:
    """Writes down what a run does and measures, in its files and at the console.

    Args:
        learner: what is trained.
        clock: stamps the rows.
        writer: takes rows and checkpoints.
        progress: the console.
        log_every: steps between two rows of the batch's loss.
        identity: what tells this run from others, for its checkpoints.

    Attributes:
        counters: where the run stands.
        saved_wall: wall time of the last checkpoint.
    """

    def __init__(
        self,
        learner: Learner,
        clock: Clock,
        writer: Writer,
        progress: Progress,
        *,
        log_every: int = 10,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._learner, self._clock = learner, clock
        self._writer, self._progress = writer, progress
        self._log_every, self._identity = log_every, dict(identity or {})
        self._blocks = list(blocks(learner.model).values())
        self.counters = Counters()
        self.saved_wall = clock.wall
        self.begin_step()

    def begin_step(self) -> None:
        """Take note of what the next step will add to."""
        self._nfe_before = self.nfe()
        self._traced = 0 if self._learner.horizon is None else len(self._learner.horizon.trace)

    def step(self, loss: float | None, probed: Mapping[str, float], done: float) -> None:
        """Write down a step that was just made and counted.

        Args:
            loss: of its batch; ``None`` where it was left out.
            probed: what was measured of its gradient.
            done: fraction of the run that lies behind.
        """
        counters = self.counters
        values = [*probed.items(), *self._horizon_updates()]
        if loss is None:
            counters.skipped += 1
            values.append(("skipped_steps", counters.skipped))
            logger.warning("step %d left out: its solve failed", counters.step)
        elif counters.step % self._log_every == 0:
            values.append(("batch_loss", loss))
            values += [(f"optimizer/{k}", value) for k, value in self._diagnostics().items()]
        self._append(("train", *value) for value in values)
        if loss is not None and self._progress.due():
            (forward, backward), before = self.nfe(), self._nfe_before
            nfe = (forward - before[0], backward - before[1])
            epoch = self._learner.sampler.epoch
            self._progress.draw(counters.step, epoch, loss, nfe, done, self._clock.wall)

    def evaluation(self, values: dict[str, dict[str, float]]) -> None:
        """Write down what the model was measured at, by split and metric."""
        counters, horizon = self.counters, self._learner.horizon
        counters.final = values
        counters.evaluated_at = counters.step
        counters.evaluated_seconds = self._clock.elapsed
        self._note_best()
        rows = [(split, *value) for split, found in values.items() for value in found.items()]
        learned = learned_scalars(self._learner.model)
        rows += [("train", f"dynamics/{name}", value) for name, value in learned.items()]
        if horizon is not None and counters.step == 0:  # where its trace begins
            rows.append(("train", "horizon/T", horizon.T))
        self._append(rows)
        self._progress.measured(counters.step, values, self._learner.task.metric)

    def divergence(self) -> None:
        """Write down that the next step, or the evaluation before it, could not be made."""
        self._append([("train", "batch_loss", math.nan)], step=self.counters.step + 1)

    def reached(self, target: float, values: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the validation metric among values, by split, is as good as ``target``."""
        value = values["valid"][self._learner.task.metric]
        return value == target or self._better(value, target)

    def save(self, parts: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            parts: states by part, to which identity, counters and clock are added.
        """
        own = {
            "identity": self._identity,
            "state": asdict(self.counters),
            "clock": self._clock.buckets(),
            "cpu_seconds": self._clock.cpu_seconds,
        }
        self._writer.save({**parts, **own})
        self.saved_wall = self._clock.wall

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue counting where a checkpoint was written."""
        self.counters = Counters(**state["state"])
        self._clock.load(state["clock"], state.get("cpu_seconds", 0.0))
        self.saved_wall = self._clock.wall

    def totals(self) -> dict[str, Any]:
        """What ``run.json`` says of a run that has ended, but how it did."""
        counters, sampler, horizon = self.counters, self._learner.sampler, self._learner.horizon
        buckets, diagnostics = self._clock.buckets(), self._diagnostics()
        failures = ("refreshes", "refresh_failures")
        forward, backward = self.nfe()
        return {
            "seconds": self._clock.seconds,
            "cpu_seconds": self._clock.cpu_seconds,
            "buckets": buckets,
            "wall": sum(buckets.values()),
            **{key: int(diagnostics[key]) for key in failures if key in diagnostics},
            **({} if horizon is None else {"horizon": horizon.T}),
            "steps": counters.step,
            "epochs": sampler.epoch,
            "steps_per_epoch": sampler.steps_per_epoch,
            "skipped_steps": counters.skipped,
            "nfe_forward": forward,
            "nfe_backward": backward,
            "final": counters.final,
            "best": counters.best,
        }

    def nfe(self) -> tuple[int, int]:
        """Function evaluations of training so far, forward and backward."""
        forward = sum(block.nfe_forward for block in self._blocks)
        return forward, sum(block.nfe_backward for block in self._blocks)

    def _note_best(self) -> None:
        counters, metric = self.counters, self._learner.task.metric
        if "valid" not in counters.final:
            return
        best = math.nan if counters.best is None else counters.best["valid"]
        if math.isnan(best) or self._better(counters.final["valid"][metric], best):
            counters.best = {
                "step": counters.step,
                "seconds": self._clock.seconds,
                "metric": metric,
                **{split: values[metric] for split, values in counters.final.items()},
            }

    def _better(self, value: float, than: float) -> bool:
        return value > than if self._learner.task.higher_is_better else value < than

    def _diagnostics(self) -> Mapping[str, float]:
        found: Mapping[str, float] = getattr(self._learner.optimizer, "diagnostics", dict)()
        return found

    def _horizon_updates(self) -> Iterator[tuple[str, float]]:
        """What the step added to the horizon's trace."""
        horizon = self._learner.horizon
        for update in [] if horizon is None else horizon.trace[self._traced :]:
            for name, value in update._asdict().items():
                if name != "step":
                    yield f"horizon/{name}", value

    def _append(self, values: Iterable[tuple[str, str, float]], step: int | None = None) -> None:
        """Append a row for each split, metric and value, all with the same stamp."""
        epoch, clock = self._learner.sampler.epoch, self._clock
        seconds, cpu_seconds, wall = clock.seconds, clock.cpu_seconds, clock.wall
        forward, backward = self.nfe()
        self._writer.append(
            Measurement(
                step=self.counters.step if step is None else step,
                epoch=epoch,
                split=split,
                metric=metric,
                value=float(value),
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                wall=wall,
                nfe_forward=forward,
                nfe_backward=backward,
            )
            for split, metric, value in values
        )
