"""From settings to a finished run: build what the configuration names, train it, write it down."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from snopt.ode.gradients import through_layers
from tasks.common.checks import ConfigError, require_keys, require_type
from tasks.common.seeding import stream_seed
from tasks.engine.config.identity import config_hash
from tasks.engine.config.settings import Settings
from tasks.engine.optimizers.build import (
    build_optimizer,
    call,
    check_keywords,
    check_optimizer,
    import_modules,
    resolve,
)
from tasks.engine.records import checkpoint
from tasks.engine.records.clock import Clock
from tasks.engine.records.environment import environment
from tasks.engine.records.record import FINISHED, Outcome
from tasks.engine.records.results import ResultsError, RunFolder, run_folder
from tasks.engine.records.resuming import require_fit
from tasks.engine.records.tensorboard_log import TensorBoardLog, require_tensorboard
from tasks.engine.records.writer import RowLog, Writer
from tasks.engine.training.batches import BatchSampler
from tasks.engine.training.dataset_cache import DatasetCache, Loaded
from tasks.engine.training.horizon import build_horizon, check_horizon
from tasks.engine.training.learner import Learner
from tasks.engine.training.parallel import World
from tasks.engine.training.progress import Progress
from tasks.engine.training.recorder import Counters, Recorder
from tasks.engine.training.runner import Runner, total_steps
from tasks.engine.training.trial_solve import check_solver
from tasks.models.families import FAMILIES, FUNCTIONS
from tasks.task import Splits, Task

logger = logging.getLogger(__name__)

NOT_CONSTRUCTOR = ("_target_", "name")


def build_task(settings: Settings) -> Task:
    """Construct the task, and try optimizer and solver on something tiny; no data are touched.

    Raises:
        ConfigError: a key or a value that cannot be.
    """
    import_modules(settings.imports)
    config = settings.config
    target = resolve("task", config["task"]["_target_"])
    keywords = {k: v for k, v in config["task"].items() if k not in NOT_CONSTRUCTOR}
    check_keywords("task", target, keywords, own=NOT_CONSTRUCTOR)
    task = call("task", target, **keywords)
    if not isinstance(task, Task):
        raise ConfigError(f"task._target_={config['task']['_target_']}: not a tasks.task.Task.")
    check_optimizer(config["optim"])
    if config["optim"].get("curvature") in ("fisher", "ggn") and task.likelihood is None:
        raise ConfigError(
            f"optim.curvature={config['optim']['curvature']}: this task has no likelihood to "
            "sample from. Use optim.curvature=empirical."
        )
    if config["optim"].get("rule") == "gauss_newton":
        _check_gauss_newton(settings, task)
    solver = config["solver"]
    if config["optim"].get("create_graph") and (
        solver["gradient"] != "direct" or solver.get("compile")
    ):
        raise ConfigError(
            f"optim={settings.names[2]}: differentiates the gradient again, which "
            f"solver.gradient={solver['gradient']}, solver.compile={solver.get('compile', False)} "
            "cannot. Use solver.gradient=direct solver.compile=false."
        )
    check_solver(settings)
    check_horizon(settings.horizon, task)
    check_model(settings, task)
    return task


def check_model(settings: Settings, task: Task) -> None:
    """Build the model once, before any data are touched.

    Raises:
        ConfigError: an unknown family, or a setting that it does not take or refuses.
    """
    config = settings.config["model"]
    family = FAMILIES.get(config.get("name", ""))
    if family is not None:
        require_keys("model", config, ("name", *family.scalars, *family.options))
        numbers = {k: config[k] for k in family.scalars if k in config}
        named = {k: v for k, v in numbers.items() if v is not None and k not in FUNCTIONS}
        check_keywords("model", family.system, named)
        for key in family.options:
            require_type(f"model.{key}", config.get(key), bool | None)
        for key in FUNCTIONS:
            require_type(f"model.{key}", config.get(key), str | None)
    with suppress(AttributeError):  # a task may know its sizes only once it has loaded its data
        build_model(settings, task, World(0, 1, torch.device("cpu")))


def _check_gauss_newton(settings: Settings, task: Task) -> None:
    optim, gradient = settings.names[2], settings.config["solver"]["gradient"]
    rows = settings.config["optim"].get("rows", "samples")
    if task.likelihood is None:
        raise ConfigError(
            f"optim={optim}, optim.rule=gauss_newton: needs the samples' losses, which this task "
            "has no likelihood to tell by. Use optim=snopt."
        )
    if rows == "samples" and gradient not in through_layers():
        raise ConfigError(
            f"solver.gradient={gradient}: optim.rule=gauss_newton with optim.rows=samples needs "
            f"gradients of single samples. Use solver.gradient={' or '.join(through_layers())}, or "
            "optim=gauss_newton."
        )


def build_model(settings: Settings, task: Task, world: World) -> nn.Module:
    """Build the model from its own random stream; the same weights for every optimizer."""
    torch.manual_seed(stream_seed(settings.seed, "init"))
    try:
        model = task.build_model(settings.config["model"], settings.solver())
    except ConfigError:  # names its setting
        raise
    except (ValueError, TypeError, OverflowError) as error:
        model_settings = settings.config["model"].items()
        given = [f"{k}={v}" for k, v in model_settings if k != "name" and v is not None]
        also = f" Given: {', '.join(given)}." if given else ""
        raise ConfigError(f"model: {error}{also}") from error
    return model.to(world.device, getattr(torch, settings.dtype))


def load_splits(settings: Settings, task: Task, world: World) -> Splits:
    """Load the data, on rank 0 first, so that one process downloads what is missing."""
    root = settings.config["data"]["root"]
    folder = Path(root).expanduser() if root else default_data_root()

    def load() -> Splits:
        return task.load(folder, settings.seed, world.device, getattr(torch, settings.dtype))

    splits = world.first(load)
    if splits is None:
        splits = load()
    if task.batch_size % world.size:
        raise ConfigError(
            f"{world.size} processes cannot share batches of {task.batch_size} equally: choose a "
            f"task.batch_size divisible by {world.size}."
        )
    require_workload(settings.config.get("workload") or {}, task.name, len(splits.train[0]))
    return splits


def require_workload(workload: Mapping[str, Any], task: str, found: int) -> None:
    """Raise a :class:`ConfigError` where a workload's data are not those that it was sized for.

    Args:
        workload: of the configuration, empty where no ``target=`` was given.
        task: its name.
        found: samples of the training split.
    """
    wanted = workload.get("train_samples")
    if wanted is not None and found != wanted:
        raise ConfigError(
            f"target: this workload has {wanted} training samples of {task}, and data.root holds "
            f"{found}. Its target means nothing on other data: put the whole data set below "
            "data.root (an empty one is filled by a download), or leave target out and train "
            f"task={task} itself."
        )


def default_data_root() -> Path:
    """The user's cache folder for data sets."""
    from platformdirs import user_cache_path

    return user_cache_path("snopt", appauthor=False)


def train(settings: Settings, cache: DatasetCache | None = None) -> Mapping[str, Any]:
    """Train what the settings describe, or say that it has been done.

    Args:
        settings: the validated configuration.
        cache: keeps the data for the next run of this process.

    Returns:
        The content of ``run.json``.

    Raises:
        ConfigError: a setting that cannot be.
        ResultsError: the run's files cannot be written or read.
        DataError: the data are missing or not what they should be.
    """
    threads = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    world = World.join(settings.device)
    try:
        clock = Clock(world.device, settings.train.clock)
        task = build_task(settings)
        if world.size > 1 and settings.config["optim"].get("rule") == "gauss_newton":
            raise ConfigError(
                f"optim={settings.names[2]}: optim.rule=gauss_newton runs in one process, not "
                f"{world.size}. Start it without torchrun, or use optim=snopt."
            )
        if settings.config["logger"]["name"] == "tensorboard":
            require_tensorboard()
        folder = world.first(lambda: RunFolder(run_folder(settings)))
        try:
            done = world.gather(world.first(lambda: _finished(folder, settings)))[0]
            if done is not None:
                logger.info("already finished: %s", done["message"])
                return cast(Mapping[str, Any], done)
            return _train(settings, task, world, clock, folder, cache or DatasetCache())
        finally:
            if folder is not None:
                folder.close()
    finally:
        world.leave()
        if settings.threads is not None:  # the next run of this process has its own
            torch.set_num_threads(threads)


def _finished(folder: RunFolder | None, settings: Settings) -> dict[str, Any] | None:
    summary = folder.summary() if folder is not None else None
    if folder is None or summary is None:
        return None
    for key, wanted in _names(settings).items():
        if summary[key] != wanted:
            raise ResultsError(
                f"{folder.path}: run.json is of another run ({key} is {summary[key]!r} there, and "
                f"{wanted!r} here). Remove the folder to start the run from scratch."
            )
    return summary if summary.get("outcome") in FINISHED else None


def _names(settings: Settings) -> dict[str, Any]:
    """What tells a run from all others."""
    names = dict(zip(("task", "model", "optim"), settings.names, strict=True))
    return {**names, "seed": settings.seed, "config_hash": config_hash(settings.config)}


def _train(
    settings: Settings,
    task: Task,
    world: World,
    clock: Clock,
    folder: RunFolder | None,
    cache: DatasetCache,
) -> Mapping[str, Any]:
    path = run_folder(settings)
    learner = _learner(settings, task, world, cache)
    state = checkpoint.load(path / "checkpoint.pt")
    about = _identity(settings, learner, world)
    identity = {
        **_names(settings),
        "batch_size": learner.task.batch_size,
        "samples": about["samples"],
        "processes": world.size,
    }
    if state is not None:
        require_fit(
            state,
            path=path / "checkpoint.pt",
            identity=identity,
            model=learner.model,
            optimizer=learner.optimizer,
            horizon=learner.horizon,
            counters=Counters(),
        )
    world.first(lambda: _begin(folder, settings, state, about))
    title = f"{'/'.join(settings.names)} seed {settings.seed}"
    logger.info("%s: %s in %s", title, "begins" if state is None else "resumes", path)
    steps = total_steps(settings, learner.sampler.steps_per_epoch)
    limits = (steps, settings.train.max_seconds, settings.train.clock)
    if warning := settings.tuned_for.other_length(*limits):
        logger.warning("%s: %s", title, warning)
    style: Any = settings.config["logger"].get("progress", "auto")
    progress = Progress(title, style if world.rank == 0 else "off")
    writer = Writer(folder, _logs(settings, path) if folder is not None else [])
    every = settings.train.log_every_steps
    recorder = Recorder(learner, clock, writer, progress, log_every=every, identity=identity)
    try:
        runner = Runner(settings, learner, recorder, world, clock)
        if state is not None:
            runner.resume(state)
        outcome, message = runner.run()
        summary = _summary(about, recorder, outcome, message)
        writer.write_summary(summary)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        outcome = Outcome.INTERRUPTED if stopped else Outcome.ERROR
        message = "Stopped at once." if stopped else f"{type(error).__name__}: {error}"
        summary = _summary(about, recorder, outcome, message)
        with suppress(ResultsError):  # a full disk may be what the error is about
            writer.write_summary(summary)
        raise
    finally:
        progress.close()
        writer.finish(summary)
    measured = {} if outcome is Outcome.DIVERGED else summary["final"].get("test", {})
    test = "".join(f" Test {name} {value:.4g}." for name, value in measured.items())
    if failed := summary.get("refresh_failures"):
        logger.warning(
            "%s: curvature could not be factorized %d times, and was left out or replaced",
            title,
            failed,
        )
    gap = max((v.get("solver_gap", 0.0) for v in summary["final"].values()), default=0.0)
    if gap > task.allowed_gap:
        logger.warning(
            "%s: the loss by solver.evaluation is %.2g off that by the training solver, more than "
            "%g: training solves too coarsely, and its own loss is not to be believed",
            title,
            gap,
            task.allowed_gap,
        )
    logger.info("%s: %s. %s%s", title, outcome, message, test)
    return summary


def _begin(
    folder: RunFolder | None,
    settings: Settings,
    state: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> None:
    assert folder is not None  # the first process has it
    seen = (0,) if state is None else (state["metrics_bytes"], state.get("metrics_sha256"))
    folder.open_metrics(*seen)
    folder.write_config(settings.config)
    running = "Running, or killed; the same command resumes it."
    folder.write_summary({**about, "outcome": Outcome.INTERRUPTED.value, "message": running})


def _learner(settings: Settings, task: Task, world: World, cache: DatasetCache) -> Learner:
    def load() -> Loaded:
        return task, load_splits(settings, task, world)

    task, splits = cache.get(settings.config, load)
    model = build_model(settings, task, world)
    optimizer = build_optimizer(settings.config["optim"], model)
    horizon = build_horizon(settings.horizon, model, optimizer)
    order = BatchSampler(
        splits.train,
        task.batch_size,
        settings.seed,
        rank=world.rank,
        world=world.size,
        drop_last=settings.train.drop_last,
    )
    return Learner(task, splits, order, model, optimizer, horizon)


def _identity(settings: Settings, learner: Learner, world: World) -> dict[str, Any]:
    """What ``run.json`` says of a run before it has begun."""
    task, splits = learner.task, learner.splits
    return {
        **_names(settings),
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "provenance": task.provenance,
        "batch_size": task.batch_size,
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "samples": {split: len(getattr(splits, split)[0]) for split in ("train", "valid", "test")},
        "environment": environment(world.device, world.size),
        "started": _now(),
    }


def _summary(
    about: Mapping[str, Any], recorder: Recorder, outcome: Outcome, message: str
) -> dict[str, Any]:
    """What ``run.json`` says of a run that has ended."""
    ended = {"outcome": outcome.value, "message": message}
    return {**about, "finished": _now(), **recorder.totals(), **ended}


def _logs(settings: Settings, path: Path) -> list[RowLog]:
    config = settings.config["logger"]
    if config["name"] == "wandb":
        from tasks.engine.records.wandb_log import WandbLog

        return [WandbLog(config, path, path.name, settings.names, settings.config)]
    if config["name"] == "tensorboard":
        return [TensorBoardLog(path / "tensorboard", settings.config)]
    return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
