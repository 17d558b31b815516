"""Validated settings of a run, read from its configuration before any data are touched.

The configuration itself stays a plain mapping; here are the parts that the runner reads, each as a
frozen dataclass whose field types are enforced and whose ranges are checked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

#: Parts of the configuration that do not change what is computed, and so not a run's identity.
NOT_IDENTITY = ("data", "results", "seed", "logger")

SCHEDULES = ("constant", "linear", "cosine", "multistep")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")
ON_FAILURE = ("raise", "partial", "skip_step")
HORIZONS = ("feedback", "first_order", "fixed")
SPLITS = ("train", "valid", "test")


#: Parts that are not chosen from a folder of ``conf``, and a key of each.
_SECTIONS = {
    "data": "root",
    "results": "root",
    "train": "max_steps",
    "schedule": "name",
    "probe": "every",
}

#: Values of later keys of ``train`` that leave everything as it was, identities included.
_ADDED_LATER = (
    ("eval_valid_samples", None),
    ("eval_test_samples", None),
    ("eval_splits", list(SPLITS)),
)


class ConfigError(ValueError):
    """A setting that cannot be; the message names it, its value and what may stand there."""


def choices(name: str, value: object, valid: Iterable[str]) -> str:
    """A sentence that lists the valid choices and the one that was probably meant."""
    options = sorted(valid)
    close = difflib.get_close_matches(str(value), options, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{name}={value}: no such choice.{meant} Choices: {', '.join(options)}."


def require_choice(name: str, value: object, valid: Collection[str]) -> None:
    """Raise a :class:`ConfigError` unless ``value`` is one of ``valid``."""
    if value not in valid:
        raise ConfigError(choices(name, value, valid))


def require_keys(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise a :class:`ConfigError` for the first key of ``given`` that is not in ``valid``."""
    options = sorted(valid)
    for key in given:
        if key not in options:
            close = difflib.get_close_matches(key, options, n=1)
            meant = f" Did you mean {where}.{close[0]}?" if close else ""
            raise ConfigError(
                f"{where}.{key}: no such key.{meant} Keys of {where}: {', '.join(options)}."
            )


def _fits(value: object, annotation: Any) -> bool:
    """Whether a value read from YAML has the annotated type; an int passes for a float."""
    if isinstance(annotation, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        part = typing.get_args(annotation)[0]
        return isinstance(value, list | tuple) and all(_fits(item, part) for item in value)
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, annotation)


@dataclass(frozen=True)
class _Section:
    """A part of the configuration: known keys, enforced types."""

    @classmethod
    def read(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Read the section from its mapping.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
        """
        require_keys(where, values, [field.name for field in fields(cls)])
        hints = typing.get_type_hints(cls)
        for key, value in values.items():
            if not _fits(value, hints[key]):
                expected = str(getattr(hints[key], "__name__", hints[key]))
                raise ConfigError(
                    f"{where}.{key}={value!r}: expected {expected.replace('None', 'null')}."
                )
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from None

    def _at_least(self, low: float, *names: str, strictly: bool = False) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and (value <= low if strictly else value < low):
                bound = f"greater than {low:g}" if strictly else f"at least {low:g}"
                raise ValueError(f"{name}={value}: must be {bound}.")


@dataclass(frozen=True)
class TrainSettings(_Section):
    """When training ends, and when it is measured and saved; ``conf/config.yaml`` explains each."""

    max_epochs: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    target: float | None = None
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
        for split in self.eval_splits:
            require_choice("eval_splits", split, SPLITS)
        if self.target is not None and (
            "valid" not in self.eval_splits or self.eval_valid_samples or self.eval_test_samples
        ):
            raise ValueError(
                f"target={self.target:g}: is looked for on the whole validation split. Leave "
                "train.eval_valid_samples and train.eval_test_samples at null, and valid in "
                "train.eval_splits."
            )


@dataclass(frozen=True)
class ScheduleSettings(_Section):
    """How the learning rate moves over a run; ``conf/config.yaml`` explains each key."""

    name: str = "constant"
    warmup_steps: int = 0
    warmup: float = 0.0
    total_steps: int | None = None
    end: float = 1.0
    final_factor: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(choices("name", self.name, SCHEDULES))
        self._at_least(0, "warmup_steps", "warmup", "final_factor")
        if self.warmup >= 1 or (self.warmup and self.warmup_steps):
            raise ValueError(
                f"warmup={self.warmup!r}: must be a share of the run below 1, and not beside "
                "warmup_steps."
            )
        if not self.warmup < self.end <= 1 or (self.end < 1 and self.total_steps is not None):
            raise ValueError(
                f"end={self.end!r}: must be a share of the run above warmup={self.warmup:g}, at "
                "most 1, and not beside total_steps."
            )
        self._at_least(1, "total_steps")
        self._at_least(0, "gamma", strictly=True)


@dataclass(frozen=True)
class ProbeSettings(_Section):
    """How often the gradient's quality is measured; ``conf/config.yaml`` explains each key."""

    every: int | None = None

    def __post_init__(self) -> None:
        self._at_least(1, "every")


@dataclass(frozen=True)
class HorizonSettings(_Section):
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
        probe: measurements of the gradient's quality.
        horizon: how the integration time moves.
    """

    config: Mapping[str, Any]
    train: TrainSettings
    schedule: ScheduleSettings
    seed: int
    device: str
    dtype: str
    threads: int | None = None
    probe: ProbeSettings = ProbeSettings()
    horizon: HorizonSettings = HorizonSettings()

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Check a resolved configuration and read it.

        Raises:
            ConfigError: the first thing found that cannot be.
        """
        for part, key in _SECTIONS.items():
            given = config.get(part, {})
            if not isinstance(given, Mapping):
                raise ConfigError(
                    f"{part}={given}: {part} is a section; set one of its keys, {part}.{key}=..."
                )
        seed = config["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"seed={seed!r}: must be an integer, at least 0.")
        threads = config.get("threads")
        if threads is not None and not (_fits(threads, int) and threads >= 1):
            raise ConfigError(f"threads={threads!r}: must be an integer, at least 1, or null.")
        require_choice("device", config["device"], DEVICES)
        require_choice("dtype", config["dtype"], DTYPES)
        require_choice("solver.on_failure", config["solver"].get("on_failure", "raise"), ON_FAILURE)
        for part in ("task", "optim"):
            if not isinstance(config[part].get("_target_"), str):
                raise ConfigError(f"{part}._target_ is missing: conf/{part}/*.yaml must name it.")
        return cls(
            config=config,
            train=TrainSettings.read("train", config["train"]),
            schedule=ScheduleSettings.read("schedule", config["schedule"]),
            seed=seed,
            device=config["device"],
            dtype=config["dtype"],
            threads=threads,
            probe=ProbeSettings.read("probe", config.get("probe", {})),
            horizon=HorizonSettings.read("horizon", config.get("horizon", {})),
        )

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of task, model and optimizer, as the results folder has them."""
        parts = (self.config[part] for part in ("task", "model", "optim"))
        task, model, optim = (
            part.get("name") or _short(part.get("_target_", "")) for part in parts
        )
        return task, model, optim

    @property
    def on_failure(self) -> str:
        """What a failed solve does: ``raise``, ``partial`` or ``skip_step``."""
        return str(self.config["solver"].get("on_failure", "raise"))

    def solver(self) -> dict[str, Any]:
        """Keyword arguments of :class:`snopt.ODEBlock`, our options merged with torchdiffeq's."""
        solver = dict(self.config["solver"])
        options = dict(solver.pop("options", None) or {})
        # Skipping a step is the training loop's business: to the block it is a failure like any.
        if solver.pop("on_failure", "raise") == "partial":
            options["on_failure"] = "partial"
        for key in ("steps", "max_steps", "warm_start", "compile"):
            value = solver.pop(key, None)
            if value not in (None, False):
                options[key] = value
        return {**solver, "options": options or None}


def _short(target: str) -> str:
    return target.rsplit(".", 1)[-1].lower()


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that identify what is computed, apart from the seed."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    kept["train"] = {k: v for k, v in kept["train"].items() if (k, v) not in _ADDED_LATER}
    if kept.get("probe") == {"every": None}:  # as if there were no such part
        del kept["probe"]
    if not HorizonSettings(**kept.get("horizon", {})).asked_for:
        kept.pop("horizon", None)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
