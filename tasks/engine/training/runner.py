"""The training loop: steps, measurements, checkpoints, and how a run ends.

Whatever a run computes is decided by its configuration and seed. Time decides only when something
is measured or saved, where the settings ask for intervals in seconds, and how far a run of
``train.max_seconds`` has come, which schedules go by. Without such a limit, a run that is killed
and resumed therefore writes the same rows as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import snopt
from tasks.common.seeding import stream, stream_seed
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.averaging import training_mode
from tasks.engine.optimizers.build import Schedule
from tasks.engine.records import checkpoint
from tasks.engine.records.clock import Clock
from tasks.engine.records.record import Outcome
from tasks.engine.records.results import ResultsError
from tasks.engine.training.evaluation import Evaluator, Values
from tasks.engine.training.learner import Learner
from tasks.engine.training.parallel import World
from tasks.engine.training.probe import GradientProbe
from tasks.engine.training.recorder import Recorder
from tasks.engine.training.signals import StopSignals
from tasks.engine.training.step import DivergedError, Step
from tasks.task import Batch


class Due(NamedTuple):
    """What must follow a step."""

    evaluation: bool
    checkpoint: bool
    stop: bool


class Runner:
    """Trains a model from where its checkpoint left it to where its settings end.

    Args:
        settings: limits, intervals, schedule and seed.
        learner: what is trained.
        recorder: writes down what happens, and counts the steps.
        world: the processes that train together.
        clock: already running, so that what came before counts as ``other``.
    """

    def __init__(
        self, settings: Settings, learner: Learner, recorder: Recorder, world: World, clock: Clock
    ) -> None:
        self.settings, self.learner, self.recorder = settings, learner, recorder
        self.world, self.clock = world, clock
        self._total_steps = total_steps(settings, learner.sampler.steps_per_epoch)
        self._time_is_up = False
        self._schedule = Schedule(
            learner.optimizer,
            settings.schedule,
            learner.sampler.steps_per_epoch,
            ends=self._total_steps is not None or settings.train.max_seconds is not None,
        )
        # Each process draws noise of its own.
        self._noise = stream(settings.seed + 1_000_003 * world.rank, "noise", world.device)
        checkpoint.seed_globally(stream_seed(settings.seed, "noise"))
        self._step = Step(
            learner.task,
            world.wrap(learner.model),
            learner.optimizer,
            clock,
            self._noise,
            world,
            skip_failures=settings.on_failure == "skip_step",
            create_graph=bool(settings.config["optim"].get("create_graph", False)),
        )
        self._probe = GradientProbe(learner.task, learner.model, self._noise, world)
        self._evaluator = Evaluator(settings, learner, world.device)

    def run(self) -> tuple[Outcome, str]:
        """Train to the end.

        Returns:
            How it ended, and a sentence on it.
        """
        self.learner.model.train()
        training_mode(self.learner.optimizer)
        try:
            with StopSignals() as signals:
                ended = self._loop(signals)
        except DivergedError as error:
            self.clock.switch("logging")
            self.recorder.divergence()
            step = self.recorder.counters.step + 1
            ended = Outcome.DIVERGED, f"Step {step} failed: {str(error).rstrip('.')}."
        self.save()
        self.clock.switch("other")
        return ended

    def _loop(self, signals: StopSignals) -> tuple[Outcome, str]:
        train, counters = self.settings.train, self.recorder.counters
        (self._time_is_up,) = self.world.any([_passed(train.max_seconds, self.clock.elapsed)])
        if train.eval_at_start and counters.evaluated_at < 0:
            self.evaluate()
        while (ended := self._ended()) is None:
            self._train()
            due = self._due(signals)
            if due.evaluation:
                self.evaluate()
            if due.checkpoint:
                self.save()
            if due.stop:
                name = signals.received or "another process"
                return Outcome.INTERRUPTED, (
                    f"Stopped by {name} after step {counters.step}; the same command resumes."
                )
        if counters.evaluated_at != counters.step:
            self.evaluate()
            ended = self._ended() or ended
        return ended

    def _train(self) -> None:
        """Make one step."""
        learner, counters = self.learner, self.recorder.counters
        self.clock.switch("data")
        batch = learner.sampler.next()
        done = self._done()
        if self.settings.train.max_seconds is not None:  # every process has a clock of its own
            done = self.world.broadcast(done)
        self._schedule.set(counters.step, done)
        batch = learner.task.training_batch(batch, done)
        probed: dict[str, float] = {}

        def inspect(batch: Batch, randomness: dict[str, Any]) -> None:
            probed.update(self._probe.measure(batch, randomness))

        probes = _falls_on(self.settings.probe.every, counters.step + 1)
        self.recorder.begin_step()
        loss = self._step.make(batch, inspect if probes else None)
        self.clock.switch("logging")
        if loss is None and learner.horizon is not None:
            learner.horizon.discard()
        counters.step += 1
        self.recorder.step(loss, probed, self._done())
        self.clock.switch("data")

    def evaluate(self) -> None:
        """Measure the splits, and write it down; the last time, the whole test split."""
        with self.clock.during("evaluation"):
            try:
                last = self._at_limit() is not None
                values = self._evaluator.measure(last=last, reached=self._reached)
            except snopt.SolverError as error:
                raise DivergedError(f"a solve of the evaluation failed: {error}") from error
        with self.clock.during("logging"):
            self.recorder.evaluation(values)

    def save(self) -> None:
        """Write a checkpoint."""
        with self.clock.during("logging"):
            random = self.world.gather(checkpoint.random_state(self._noise))
            self.recorder.save({**self.learner.state_dict(), "random": random})

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content.

        Raises:
            ResultsError: it does not fit the run in a way that only loading it shows.
        """
        try:
            self.learner.load_state_dict(state)
            checkpoint.load_random_state(state["random"][self.world.rank], self._noise)
            self.recorder.load(state)
        except Exception as error:  # whatever an optimizer makes of a state that is not its own
            name = type(error).__name__
            raise ResultsError(
                f"the checkpoint cannot be loaded ({name}: {error}). Restore it from a copy, or "
                "remove the run's folder to start the run from scratch."
            ) from error

    def _due(self, signals: StopSignals) -> Due:
        """What is due after a step; rank 0's clock decides what goes by time."""
        train, counters, sampler = self.settings.train, self.recorder.counters, self.learner.sampler
        leads = self.world.rank == 0
        seconds, wall = self.clock.elapsed, self.clock.wall
        evaluated, saved = counters.evaluated_seconds, self.recorder.saved_wall
        self._time_is_up, measure, save, stop = self.world.any(
            [
                leads and _passed(train.max_seconds, seconds),
                leads and _passed(train.eval_every_seconds, seconds - evaluated),
                leads and _passed(train.checkpoint_every_seconds, wall - saved),
                signals.received is not None,
            ]
        )
        measure |= _falls_on(train.eval_every_steps, counters.step)
        measure |= sampler.at_epoch_end and _falls_on(train.eval_every_epochs, sampler.epoch)
        save |= _falls_on(train.checkpoint_every_steps, counters.step)
        return Due(measure, save, stop)

    def _ended(self) -> tuple[Outcome, str] | None:
        counters = self.recorder.counters
        if counters.evaluated_at == counters.step and self._reached(counters.final):
            metric = self.learner.task.metric
            return Outcome.TARGET_REACHED, (
                f"Validation {metric} reached {counters.final['valid'][metric]:.4g} at step "
                f"{counters.step} (train.target={self.settings.train.target:g})."
            )
        return self._at_limit()

    def _reached(self, values: Values) -> bool:
        target = self.settings.train.target
        return target is not None and self.recorder.reached(target, values)

    def _at_limit(self) -> tuple[Outcome, str] | None:
        step = self.recorder.counters.step
        if self._total_steps is not None and step >= self._total_steps:
            return Outcome.COMPLETED, (
                f"Made all {step} steps, {self.learner.sampler.epoch} whole epochs."
            )
        if self._time_is_up:
            return Outcome.BUDGET, (
                f"The training clock passed {self.settings.train.max_seconds:g} s at step {step} "
                "(train.max_seconds)."
            )
        return None

    def _done(self) -> float:
        """Fraction of the run that lies behind, by steps or by the training clock."""
        parts = [0.0]
        if self._total_steps is not None:
            parts.append(self.recorder.counters.step / self._total_steps)
        if self.settings.train.max_seconds is not None:
            parts.append(self.clock.elapsed / self.settings.train.max_seconds)
        return min(1.0, max(parts))


def total_steps(settings: Settings, steps_per_epoch: int) -> int | None:
    """Steps after which training is complete, where that is known."""
    train = settings.train
    limits = [train.max_steps]
    if train.max_epochs is not None:
        limits.append(train.max_epochs * steps_per_epoch)
    return min((limit for limit in limits if limit is not None), default=None)


def _falls_on(interval: int | None, count: int) -> bool:
    return interval is not None and count % interval == 0


def _passed(interval: float | None, seconds: float) -> bool:
    return interval is not None and seconds >= interval
