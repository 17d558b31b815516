"""Validated settings of a run, read from its configuration before any data are touched.

The configuration itself stays a plain mapping; here are the parts that the runner reads, each as a
frozen dataclass whose field types are enforced and whose ranges are checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from tasks.common.checks import (
    ConfigError,
    Section,
    choices,
    fits,
    require_choice,
    require_keys,
)
from tasks.engine.config.schedule import ScheduleSettings
from tasks.engine.config.solver import GRADIENTS, EvaluationSolver, SolverSettings, block_arguments
from tasks.engine.config.tuned_for import TunedFor

Style = Literal["auto", "bar", "plain", "off"]
"""Ways to show progress at the console."""

ClockKind = Literal["wall", "cpu"]
"""Seconds on the wall, or those of the process on processors."""

CLOCKS: tuple[ClockKind, ...] = get_args(ClockKind)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")
HORIZONS = ("feedback", "first_order", "fixed")
SPLITS = ("train", "valid", "test")
LOGGERS = ("local", "wandb", "tensorboard")
WANDB_MODES = ("online", "offline", "disabled")
#: More threads than that no machine has, and some cannot start.
MOST_THREADS = 1024

#: Names of tasks, models and optimizers, which folders are called by.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

#: Parts of the configuration that are mappings, and a key of each.
_SECTIONS = {
    "data": "root",
    "results": "root",
    "train": "max_steps",
    "schedule": "name",
    "task": "batch_size",
    "model": "name",
    "optim": "lr",
    "solver": "method",
    "logger": "progress",
    "probe": "every",
    "horizon": "rule",
    "tuned_for": "steps",
}
#: All parts, and those that every configuration has; the others came later.
PARTS = ("seed", "device", "dtype", "threads", "imports", "workload", *_SECTIONS)
_LATER = ("threads", "imports", "workload", "probe", "horizon", "tuned_for")
NEEDED = tuple(part for part in PARTS if part not in _LATER)


@dataclass(frozen=True)
class TrainSettings(Section):
    """When training ends, and when it is measured and saved; ``conf/config.yaml`` explains each."""

    max_epochs: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    clock: ClockKind = "wall"
    target: float | None = None
    drop_last: bool = False
    eval_every_epochs: int | None = 1
    eval_every_steps: int | None = None
    eval_every_seconds: float | None = None
    eval_at_start: bool = True
    eval_train_samples: int | None = 1000
    eval_valid_samples: int | None = None
    eval_test_samples: int | None = None
    eval_splits: tuple[str, ...] = SPLITS
    log_every_steps: int = 10
    checkpoint_every_seconds: float | None = 60.0
    checkpoint_every_steps: int | None = None

    def __post_init__(self) -> None:
        self._at_least(1, "max_epochs", "max_steps", "eval_every_epochs", "eval_every_steps")
        self._at_least(1, "eval_train_samples", "eval_valid_samples", "eval_test_samples")
        self._at_least(1, "log_every_steps", "checkpoint_every_steps")
        self._at_least(0, "max_seconds", "eval_every_seconds", strictly=True)
        self._at_least(0, "checkpoint_every_seconds")
        if self.max_epochs is None and self.max_steps is None and self.max_seconds is None:
            raise ValueError(
                "max_epochs=None: one of train.max_epochs, train.max_steps and train.max_seconds "
                "must be set, or training never ends."
            )
        require_choice("clock", self.clock, CLOCKS)
        for split in self.eval_splits:
            require_choice("eval_splits", split, SPLITS)
        if not self.eval_splits:
            raise ValueError(f"eval_splits=[]: name one at least, of {', '.join(SPLITS)}.")
        if self.target is not None and (
            "valid" not in self.eval_splits or self.eval_valid_samples or self.eval_test_samples
        ):
            raise ValueError(
                f"target={self.target:g}: is looked for on the whole validation split. Leave "
                "train.eval_valid_samples and train.eval_test_samples at null, and valid in "
                "train.eval_splits."
            )


@dataclass(frozen=True)
class ProbeSettings(Section):
    """How often the gradient's quality is measured; ``conf/config.yaml`` explains each key."""

    every: int | None = None

    def __post_init__(self) -> None:
        self._at_least(1, "every")


@dataclass(frozen=True)
class HorizonSettings(Section):
    """How the integration time moves; ``conf/horizon/feedback.yaml`` explains each key."""

    #: Those of :class:`snopt.Horizon`, which checks their ranges.
    ARGUMENTS: ClassVar = ("rule", "lr", "penalty", "every", "average", "floor", "max_change")

    rule: str = "fixed"
    T0: float | None = None
    lr: float = 0.1
    penalty: float = 4e-4
    every: int = 50
    average: float = 0.99
    floor: float = 0.01
    max_change: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in HORIZONS:
            raise ValueError(choices("rule", self.rule, HORIZONS))
        self._at_least(0, "T0", strictly=True)

    @property
    def asked_for(self) -> bool:
        """Whether there is anything to do: a rule that moves T, or a T to begin with."""
        return self.rule != "fixed" or self.T0 is not None


@dataclass(frozen=True)
class LoggerSettings(Section):
    """Where measurements go beside the run's folder; ``conf/logger`` explains each key."""

    name: str
    progress: str = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: str | None = None

    def __post_init__(self) -> None:
        require_choice("name", self.name, LOGGERS)
        require_choice("progress", self.progress, get_args(Style))
        if self.mode is not None:
            require_choice("mode", self.mode, WANDB_MODES)
        for name in ("project", "entity", "group"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}='': is empty; null leaves it to wandb.")

    @classmethod
    def read(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Read the section; what belongs to wandb is refused where nothing is sent there."""
        settings = super().read(where, values)
        idle = sorted(values.keys() - {"name", "progress"})
        if settings.name != "wandb" and idle:
            raise ConfigError(f"{where}.{idle[0]}: is for wandb. Choose logger=wandb, or drop it.")
        return settings


@dataclass(frozen=True)
class DataSettings(Section):
    """Where data sets lie; null: a cache folder of the user."""

    root: str | None = None


@dataclass(frozen=True)
class ResultsSettings(Section):
    """Where runs are kept."""

    root: str

    @classmethod
    def read(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Read the section; numbers and the like are no folder, unless written as one."""
        root = values.get("root")
        if not isinstance(root, str):
            raise ConfigError(
                f"{where}.root={'null' if root is None else root}: must name a folder; one that "
                f"is called so is written {where}.root=./{root}."
            )
        if not root.strip() or "\0" in root:
            raise ConfigError(f"{where}.root={root!r}: must name a folder, such as results or '.'.")
        return super().read(where, values)


@dataclass(frozen=True)
class Settings:
    """What the runner reads of a configuration.

    Attributes:
        config: the whole resolved configuration, as plain mappings and lists.
        train: limits and intervals.
        schedule: the learning rate's course.
        seed: root of all random streams.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``float64``.
        threads: of torch on the CPU; ``None`` leaves torch its own choice.
        imports: modules that register something, such as a solver; imported when a run is built.
        probe: measurements of the gradient's quality.
        horizon: how the integration time moves.
        tuned_for: length of the runs that tuned settings were found in.
    """

    config: Mapping[str, Any]
    train: TrainSettings
    schedule: ScheduleSettings
    seed: int
    device: str
    dtype: str
    threads: int | None = None
    imports: tuple[str, ...] = ()
    probe: ProbeSettings = ProbeSettings()
    horizon: HorizonSettings = HorizonSettings()
    tuned_for: TunedFor = field(default_factory=TunedFor)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Check a resolved configuration and read it.

        Raises:
            ConfigError: the first thing found that cannot be.
        """
        _check_parts(config)
        seed = config["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"seed={seed!r}: must be an integer, at least 0.")
        threads = config.get("threads")
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        if threads is not None and not (whole and 1 <= threads <= MOST_THREADS):
            raise ConfigError(
                f"threads={threads!r}: must be an integer, at least 1, or null; at most "
                f"{MOST_THREADS}."
            )
        imports = config.get("imports", [])
        if not fits(imports, list[str]):
            raise ConfigError(f"imports={imports}: must be a list of modules, imports=[my_solver].")
        require_choice("device", config["device"], DEVICES)
        require_choice("dtype", config["dtype"], DTYPES)
        DataSettings.read("data", config["data"])
        ResultsSettings.read("results", config["results"])
        solver = SolverSettings.read("solver", config["solver"])
        if not imports:  # which may register others; the library will know
            require_choice("solver.gradient", solver.gradient, GRADIENTS)
        LoggerSettings.read("logger", config["logger"])
        return cls(
            config=config,
            train=TrainSettings.read("train", config["train"]),
            schedule=ScheduleSettings.read("schedule", config["schedule"]),
            seed=seed,
            device=config["device"],
            dtype=config["dtype"],
            threads=threads,
            imports=tuple(imports),
            probe=ProbeSettings.read("probe", config.get("probe", {})),
            horizon=HorizonSettings.read("horizon", config.get("horizon", {})),
            tuned_for=TunedFor.read("tuned_for", config.get("tuned_for", {})),
        )

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of task, model and optimizer, as the results folder has them."""
        parts = (self.config[part] for part in ("task", "model", "optim"))
        task, model, optim = (
            _short(part.get("_target_", "")) if part.get("name") is None else part["name"]
            for part in parts
        )
        return task, model, optim

    @property
    def on_failure(self) -> str:
        """What a failed solve does: ``raise``, ``partial`` or ``skip_step``."""
        return str(self.config["solver"].get("on_failure", "raise"))

    def solver(self) -> dict[str, Any]:
        """Keyword arguments of :class:`snopt.ODEBlock`, our options merged with torchdiffeq's."""
        return block_arguments(self.config["solver"])

    def evaluation_solver(self) -> dict[str, Any] | None:
        """Those of the solver for evaluations alone, where there is one."""
        given = self.config["solver"].get("evaluation")
        return None if given is None else block_arguments(asdict(EvaluationSolver(**given)))


def _check_parts(config: Mapping[str, Any]) -> None:
    """Raise a :class:`ConfigError` for a part that is missing, unknown or of no good name."""
    require_keys("", config, PARTS)
    for part in NEEDED:
        if part not in config:
            raise ConfigError(f"{part}: is missing, and no run can do without.")
    for part, key in _SECTIONS.items():
        given = config.get(part, {})
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"{part}={given}: {part} is a section; set one of its keys, {part}.{key}=..."
            )
    for part in ("task", "optim"):
        if not isinstance(config[part].get("_target_"), str):
            raise ConfigError(
                f"{part}._target_ is missing: conf/{part}/*.yaml must name it, or "
                f"{part}._target_=my_module.MyClass."
            )
    for part in ("task", "model", "optim"):
        name = config[part].get("name")
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ConfigError(
                f"{part}.name={name!r}: names the folder of the run, and is made of letters, "
                "digits, '_', '-' and '.', the first no '-' or '.', 100 at most."
            )


def _short(target: str) -> str:
    return target.rsplit(".", 1)[-1].lower()
