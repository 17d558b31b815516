"""The training loop: steps, measurements, checkpoints, and how a run ends.

Whatever a run computes is decided by its configuration and seed; time decides only when something
is measured or saved, where the settings ask for intervals in seconds. A run that is killed and
resumed therefore writes the same rows as one that was not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

import snopt
from snopt.dynamics import traces
from tasks.common.seeding import stream, stream_seed
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.build import Schedule
from tasks.engine.records import checkpoint
from tasks.engine.records.clock import Clock
from tasks.engine.records.metrics import Measurement
from tasks.engine.records.record import Outcome
from tasks.engine.records.results import ResultsError
from tasks.engine.records.writer import Writer
from tasks.engine.training.batches import Order, evenly_spaced
from tasks.engine.training.evaluation import evaluate, untouched
from tasks.engine.training.parallel import World
from tasks.engine.training.probe import GradientProbe
from tasks.engine.training.progress import Progress
from tasks.engine.training.signals import StopSignals
from tasks.engine.training.step import DivergedError, Inspect, Step
from tasks.task import Batch, Splits, Task

logger = logging.getLogger(__name__)


@dataclass
class State:
    """Counters and latest measurements of a run; plain values that go into its checkpoint.

    Attributes:
        step: steps made, skipped ones included.
        skipped: steps left out because a solve failed.
        evaluated_at: step of the last evaluation, -1 before the first.
        evaluated_seconds: training clock at the last evaluation.
        final: latest values by split and metric.
        best: step, training seconds and values where the validation metric was best.
    """

    step: int = 0
    skipped: int = 0
    evaluated_at: int = -1
    evaluated_seconds: float = 0.0
    final: dict[str, dict[str, float]] = field(default_factory=dict)
    best: dict[str, Any] | None = None


class Runner:
    """Trains one model from where its checkpoint left it to where its settings end.

    Args:
        settings: limits, intervals, schedule and seed.
        task: the task, its data loaded.
        splits: train, validation and test data on the training device.
        model: the model to train, on the training device.
        optimizer: an optimizer of the model's parameters.
        world: the processes that train together.
        clock: already running, so that what came before counts as ``other``.
        writer: takes rows, checkpoints and the summary.
        progress: the console.
        horizon: what moves the integration time along with the optimizer, if anything does.
        identity: what tells this run from others, for its checkpoints.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        splits: Splits,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        world: World,
        clock: Clock,
        writer: Writer,
        progress: Progress,
        horizon: snopt.Horizon | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = identity or {}
        self.settings, self.task, self.model, self.optimizer = settings, task, model, optimizer
        self.world, self.clock, self.writer, self.progress = world, clock, writer, progress
        self.horizon = horizon
        self.state = State()
        self.order = Order(
            splits.train, task.batch_size, settings.seed, rank=world.rank, world=world.size
        )
        train = settings.train
        self._measured = {
            "train": evenly_spaced(splits.train, train.eval_train_samples),
            "valid": evenly_spaced(splits.valid, train.eval_valid_samples),
            "test": evenly_spaced(splits.test, train.eval_test_samples),
        }
        self._test = splits.test
        self.total_steps = self._total_steps()
        self.schedule = Schedule(
            optimizer,
            settings.schedule,
            self.order.steps_per_epoch,
            ends=self.total_steps is not None or settings.train.max_seconds is not None,
        )
        # Each process draws noise of its own.
        self._noise = stream(settings.seed + 1_000_003 * world.rank, "noise", world.device)
        checkpoint.seed_globally(stream_seed(settings.seed, "noise"))
        self._step = Step(
            task,
            world.wrap(model),
            optimizer,
            clock,
            self._noise,
            world,
            skip_failures=settings.on_failure == "skip_step",
            create_graph=bool(settings.config["optim"].get("create_graph", False)),
        )
        self._probe = GradientProbe(task, model, self._noise, world)
        self._blocks = [m for m in model.modules() if isinstance(m, snopt.ODEBlock)]
        self._time_is_up = False
        self._saved_wall = clock.wall

    def _total_steps(self) -> int | None:
        """Steps after which training is complete, where that is known."""
        train = self.settings.train
        limits = [train.max_steps]
        if train.max_epochs is not None:
            limits.append(train.max_epochs * self.order.steps_per_epoch)
        return min((limit for limit in limits if limit is not None), default=None)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content.

        Raises:
            ResultsError: it does not fit the run in a way that only loading it shows.
        """
        try:
            self._load(state)
        except Exception as error:  # whatever an optimizer makes of a state that is not its own
            name = type(error).__name__
            raise ResultsError(
                f"the checkpoint cannot be taken up ({name}: {error}). Restore it from a copy, or "
                "remove the run's folder to begin the run anew."
            ) from error

    def _load(self, state: Mapping[str, Any]) -> None:
        own = [group.keys() for group in self.optimizer.param_groups]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for keys, group in zip(own, self.optimizer.param_groups, strict=True):
            if missing := [key for key in keys if key not in group]:
                raise ValueError(f"the optimizer's groups lack {', '.join(missing)}")
        if self.horizon is not None:
            self.horizon.load_state_dict(state["horizon"])
        snopt.load_solver_state(self.model, state["solver"])  # has t_span to the last bit
        self.order.load_state_dict(state["order"])
        checkpoint.load_random_state(state["random"][self.world.rank], self._noise)
        self.state = State(**state["state"])
        self.clock.load(state["clock"])
        self._saved_wall = self.clock.wall

    def run(self) -> tuple[Outcome, str]:
        """Train to the end.

        Returns:
            How it ended, and a sentence on it.
        """
        self.model.train()
        try:
            with StopSignals() as signals:
                ended = self._loop(signals)
        except DivergedError as error:
            step = self.state.step + 1
            self.clock.switch("logging")
            self.writer.append([self._row("train", "batch_loss", float("nan"), step=step)])
            ended = Outcome.DIVERGED, f"Step {step} failed: {str(error).rstrip('.')}."
        self.save()
        self.clock.switch("other")
        return ended

    def _loop(self, signals: StopSignals) -> tuple[Outcome, str]:
        train, state = self.settings.train, self.state
        (self._time_is_up,) = self.world.any([_due(train.max_seconds, self.clock.seconds)])
        if train.eval_at_start and state.evaluated_at < 0:
            self.evaluate()
        while (ended := self._ended()) is None:
            epoch = self.order.epoch
            self._train()
            epoch_done = self.order.epoch > epoch
            leads = self.world.rank == 0
            self._time_is_up, measure, save, stop = self.world.any(
                [
                    leads and _due(train.max_seconds, self.clock.seconds),
                    leads and _due(train.eval_every_seconds, self._since_evaluation()),
                    leads and _due(train.checkpoint_every_seconds, self._since_save()),
                    signals.received is not None,
                ]
            )
            if (
                measure
                or _every(train.eval_every_steps, state.step)
                or (epoch_done and _every(train.eval_every_epochs, self.order.epoch))
            ):
                self.evaluate()
            if save or _every(train.checkpoint_every_steps, state.step):
                self.save()
            if stop:
                name = signals.received or "another process"
                return Outcome.INTERRUPTED, (
                    f"Stopped by {name} after step {state.step}; the same command resumes."
                )
        if state.evaluated_at != state.step:
            self.evaluate()
            ended = self._ended() or ended
        return ended

    def _ended(self) -> tuple[Outcome, str] | None:
        train, state = self.settings.train, self.state
        if train.target is not None and state.evaluated_at == state.step:
            value = state.final["valid"][self.task.metric]
            if self._better(value, train.target) or value == train.target:
                return Outcome.TARGET_REACHED, (
                    f"Validation {self.task.metric} reached {value:.4g} at step {state.step} "
                    f"(train.target={train.target:g})."
                )
        return self._at_limit()

    def _at_limit(self) -> tuple[Outcome, str] | None:
        train, state = self.settings.train, self.state
        if self.total_steps is not None and state.step >= self.total_steps:
            return Outcome.COMPLETED, (
                f"Made all {state.step} steps, {self.order.epoch} whole epochs."
            )
        if self._time_is_up:
            return Outcome.BUDGET, (
                f"The training clock passed {train.max_seconds:g} s at step {state.step} "
                "(train.max_seconds)."
            )
        return None

    def _train(self) -> None:
        """Make one step and log it where that is due."""
        clock, state = self.clock, self.state
        clock.switch("data")
        batch = self.order.next()
        done = self._done()
        if self.settings.train.max_seconds is not None:  # every process has a clock of its own
            done = self.world.first(done)
        self.schedule.set(state.step, done)
        before = self.nfe()
        probed: dict[str, float] = {}
        inspect: Inspect | None = None
        if _every(self.settings.probe.every, state.step + 1):

            def inspect(batch: Batch, randomness: dict[str, Any]) -> None:
                probed.update(self._probe.measure(batch, randomness))

        trace = [] if self.horizon is None else self.horizon.trace
        traced = len(trace)
        loss = self._step.make(batch, inspect)
        clock.switch("logging")
        state.step += 1
        self.writer.append(self._row("train", name, value) for name, value in probed.items())
        self.writer.append(
            self._row("train", f"horizon/{name}", value)
            for update in trace[traced:]
            for name, value in update._asdict().items()
            if name != "step"
        )
        if loss is None:
            if self.horizon is not None:
                self.horizon.discard()
            state.skipped += 1
            self.writer.append([self._row("train", "skipped_steps", state.skipped)])
            logger.warning("step %d left out: its solve failed", state.step)
        elif state.step % self.settings.train.log_every_steps == 0:
            diagnostics: Mapping[str, float] = getattr(self.optimizer, "diagnostics", dict)()
            rows = [self._row("train", "batch_loss", loss)]
            rows += [self._row("train", f"optimizer/{k}", v) for k, v in diagnostics.items()]
            self.writer.append(rows)
        if loss is not None and self.progress.due():
            after = self.nfe()
            nfe = (after[0] - before[0], after[1] - before[1])
            self.progress.draw(state.step, self.order.epoch, loss, nfe, self._done(), clock.seconds)
        clock.switch("data")

    def evaluate(self) -> None:
        """Measure the splits, and write it down; the last time, the whole test split."""
        state, metric = self.state, self.task.metric
        parts = dict(self._measured)
        if self._at_limit() is not None:
            parts["test"] = self._test
        with self.clock.during("evaluation"), untouched(self.model, self.world.device):
            try:
                state.final = {
                    split: evaluate(self.task, self.model, parts[split], self.settings.seed)
                    for split in self.settings.train.eval_splits
                }
            except snopt.SolverError as error:
                raise DivergedError(f"a solve of the evaluation failed: {error}") from error
        with self.clock.during("logging"):
            state.evaluated_at = state.step
            state.evaluated_seconds = self.clock.seconds
            self._note_best()
            self.writer.append(
                self._row(split, name, number)
                for split, values in state.final.items()
                for name, number in values.items()
            )
            learned = {f"dynamics/{k}": v for k, v in traces(self.model).items()}
            if self.horizon is not None and state.step == 0:  # where its trace begins
                learned["horizon/T"] = self.horizon.T
            self.writer.append(self._row("train", name, x) for name, x in learned.items())
            self.progress.measured(state.step, state.final, metric)

    def _note_best(self) -> None:
        state, metric = self.state, self.task.metric
        if "valid" not in state.final:
            return
        best = math.nan if state.best is None else state.best["valid"]
        if math.isnan(best) or self._better(state.final["valid"][metric], best):
            state.best = {
                "step": state.step,
                "seconds": state.evaluated_seconds,
                "metric": metric,
                **{split: values[metric] for split, values in state.final.items()},
            }

    def save(self) -> None:
        """Write a checkpoint."""
        with self.clock.during("logging"):
            randoms = self.world.gather(checkpoint.random_state(self._noise))
            self.writer.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "solver": snopt.solver_state(self.model),
                    "horizon": None if self.horizon is None else self.horizon.state_dict(),
                    "order": self.order.state_dict(),
                    "identity": dict(self.identity),
                    "random": randoms,
                    "state": asdict(self.state),
                    "clock": self.clock.buckets(),
                }
            )
            self._saved_wall = self.clock.wall

    def nfe(self) -> tuple[int, int]:
        """Function evaluations of training so far, forward and backward."""
        forward = sum(block.nfe_forward for block in self._blocks)
        return forward, sum(block.nfe_backward for block in self._blocks)

    def _row(self, split: str, metric: str, value: float, step: int | None = None) -> Measurement:
        forward, backward = self.nfe()
        return Measurement(
            step=self.state.step if step is None else step,
            epoch=self.order.epoch,
            split=split,
            metric=metric,
            value=float(value),
            seconds=self.clock.seconds,
            wall=self.clock.wall,
            nfe_forward=forward,
            nfe_backward=backward,
        )

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.task.higher_is_better else value < than

    def _done(self) -> float:
        parts = [0.0]
        if self.total_steps is not None:
            parts.append(self.state.step / self.total_steps)
        if self.settings.train.max_seconds is not None:
            parts.append(self.clock.seconds / self.settings.train.max_seconds)
        return min(1.0, max(parts))

    def _since_evaluation(self) -> float:
        return self.clock.seconds - self.state.evaluated_seconds

    def _since_save(self) -> float:
        return self.clock.wall - self._saved_wall


def _every(interval: int | None, count: int) -> bool:
    return interval is not None and count % interval == 0


def _due(interval: float | None, passed: float) -> bool:
    return interval is not None and passed >= interval
