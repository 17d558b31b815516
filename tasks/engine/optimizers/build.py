"""Any optimizer from its ``_target_``, a learning rate of its own for ODE fields, and schedules."""

from __future__ import annotations

import importlib
import inspect
import math
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from torch import Tensor, nn

from snopt import LevenbergMarquardt, ODEBlock, SNOpt
from snopt.optim.rules import without_defaults_of_others
from tasks.common.checks import ConfigError, require_keys, require_type
from tasks.engine.config.identity import MOVED
from tasks.engine.config.schedule import ScheduleSettings
from tasks.engine.optimizers.about import About
from tasks.engine.optimizers.averaging import training_mode

#: Keys of ``conf/optim`` that are ours, not the constructor's.
OWN_KEYS = ("_target_", "name", "about", "field_lr", "create_graph")
_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
#: Settings that infinity switches off.
UNBOUNDED = ("backtrack",)


class _TinyField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def check_optimizer(config: Mapping[str, Any]) -> None:
    """Try the optimizer's configuration on a tiny model, before any data are touched.

    Raises:
        ConfigError: an unknown key, or a value that the constructor or a step refuses.
    """
    for key, annotation in (("field_lr", float | None), ("create_graph", bool)):
        if key in config:
            require_type(f"optim.{key}", config[key], annotation)
    if (config.get("field_lr") or 0.0) < 0:
        raise ConfigError(f"optim.field_lr={config['field_lr']}: must be at least 0, or null.")
    About.read(config.get("about") or {})  # kept with the run, where every report would stumble
    tiny = nn.Sequential(
        ODEBlock(_TinyField(), method="euler", gradient="direct", options={"steps": 1}),
        nn.Linear(2, 2),
    )
    optimizer = build_optimizer(config, tiny)
    if hasattr(optimizer, "curvature_pass"):  # SNOpt checks all of its settings when built
        return
    try:
        _two_steps(optimizer, tiny, bool(config.get("create_graph")))
    except Exception as error:  # whatever an optimizer raises
        given = ", ".join(f"{key}={value}" for key, value in config.items() if key not in OWN_KEYS)
        raise ConfigError(
            f"optim: {type(optimizer).__name__} cannot make a step with its settings: "
            f"{str(error).rstrip('.') or type(error).__name__}. Given: {given}"
        ) from error


@torch.enable_grad()
def _two_steps(optimizer: torch.optim.Optimizer, model: nn.Module, create_graph: bool) -> None:
    """What some optimizers look at no sooner than in a step."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.tensor([[1.0, -1.0]])).square().mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of create_graph
            loss.backward(create_graph=create_graph)
        return loss

    training_mode(optimizer)
    for _ in range(2):
        if needs_closure(optimizer):
            optimizer.step(closure)  # type: ignore[arg-type]  # a tensor, as L-BFGS wants it
        else:
            closure()
            optimizer.step()
    optimizer.zero_grad()


def build_optimizer(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a configuration.

    Optimizers whose first parameter is named ``model`` are given modules, all others parameters.
    With ``field_lr``, the parameters of ODE fields make a group with that learning rate.

    Args:
        config: ``_target_``, the constructor's keyword arguments, and optionally ``name``,
            ``field_lr`` and ``create_graph``.
        model: the model to train.

    Raises:
        ConfigError: an unknown key, a value that the constructor refuses, or ``field_lr`` for a
            model without ODE blocks.
    """
    target = resolve("optim", config["_target_"])
    if inspect.isclass(target) and not issubclass(target, torch.optim.Optimizer):
        raise ConfigError(f"optim._target_={config['_target_']}: not a torch.optim.Optimizer.")
    keywords = {key: value for key, value in config.items() if key not in OWN_KEYS}
    if target is SNOpt and isinstance(keywords.get("rule"), str):
        keywords = without_defaults_of_others(keywords["rule"], keywords)
    check_keywords("optim", target, keywords, own=OWN_KEYS)
    takes_model = next(iter(inspect.signature(target).parameters), "").startswith("model")
    field_lr = config.get("field_lr")
    groups: Any
    if field_lr is None:
        groups = model if takes_model else [p for p in model.parameters() if p.requires_grad]
    else:
        groups = _groups(model, float(field_lr), takes_model)
    optimizer = call("optim", target, groups, **keywords)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optim._target_={config['_target_']}: not a torch.optim.Optimizer.")
    return optimizer


def _groups(model: nn.Module, field_lr: float, takes_model: bool) -> list[dict[str, Any]]:
    fields = ode_fields(model)
    if not fields:
        raise ConfigError(
            f"optim.field_lr={field_lr}: the model has no ODE field. Set optim.field_lr=null."
        )
    if takes_model:  # a parameter of an earlier group is skipped in later ones
        return [{"params": fields, "lr": field_lr}, {"params": model}]
    owned = {id(p) for field in fields.values() for p in field.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in owned], "lr": field_lr},
        {"params": [p for p in trained if id(p) not in owned]},
    ]


def ode_fields(model: nn.Module) -> dict[str, nn.Module]:
    """The fields of all ODE blocks of a model, by module name."""
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ODEBlock)}
    return {f"{name}.field" if name else "field": block.field for name, block in blocks.items()}


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` must be given a function that evaluates the loss again (L-BFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def compares_losses(optimizer: torch.optim.Optimizer) -> bool:
    """Whether damping is steered by a batch's losses before and after a step, by its closure."""
    dampings = (group.get("damping") for group in optimizer.param_groups)
    return any(isinstance(damping, LevenbergMarquardt) for damping in dampings)


def resolve(where: str, target: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names.

    Raises:
        ConfigError: there is none.
    """
    try:
        module, _, name = MOVED.get(target, target).rpartition(".")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever importing the module raises
        raise ConfigError(
            f"{where}._target_={target}: cannot be imported ({error}). Name module.Class, its "
            "folder on PYTHONPATH; an optional package may be missing: "
            "pip install -e '.[suite,launchers,optimizers]'."
        ) from error
    return found


def import_modules(names: Iterable[str]) -> None:
    """Import modules for what they register in the library's tables.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever importing the module raises
            raise ConfigError(
                f"imports=[{name}]: cannot be imported ({type(error).__name__}: {error}); name a "
                "module that lies in a folder of PYTHONPATH."
            ) from error


def check_keywords(
    where: str, target: Callable[..., Any], keywords: Mapping[str, Any], own: tuple[str, ...] = ()
) -> None:
    """Raise a :class:`ConfigError` for a keyword that ``target`` does not take.

    Values are compared with the annotations, those of nested ``_target_`` values too.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}._target_: cannot be called with settings ({error}).") from error
    kinds = {p.kind for p in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = [name for name, p in parameters.items() if p.kind in takes]
        require_keys(where, keywords, [*named, *(key for key in own if not key.startswith("_"))])
    hints = _annotations(target)
    for key, value in keywords.items():
        name = f"{where}.{key}"
        if isinstance(value, Mapping) and isinstance(value.get("_target_"), str):
            rest = {k: v for k, v in value.items() if k not in _HYDRA_KEYS}
            check_keywords(name, resolve(name, value["_target_"]), rest)
        elif isinstance(value, float) and not math.isfinite(value) and key not in UNBOUNDED:
            raise ConfigError(f"{name}={value}: must be finite.")
        elif key in parameters and value != parameters[key].default and key not in UNBOUNDED:
            require_type(name, value, hints.get(key, Any))


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of what ``target`` is called with; none where they cannot be evaluated."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # whatever evaluating somebody's annotations raises
        return {}


def call(where: str, target: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call ``target``; nested ``_target_`` values are built first.

    Raises:
        ConfigError: it refused a value.
    """
    try:
        return target(*args, **hydra.utils.instantiate(keywords, _convert_="all"))
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # whatever it raises, it refuses
        name = getattr(target, "__name__", target)
        message = f"{where}: {name} refuses its settings: {error}"
        if not isinstance(error, ValueError) and keywords:  # such errors seldom name the setting
            message += ". Given: " + ", ".join(f"{key}={value}" for key, value in keywords.items())
        raise ConfigError(message) from error


_FIRST = 0.1
"""Least factor of a warm-up that is a share of the run: its first step lies at 0."""


def factor(settings: ScheduleSettings, step: int, done: float | None, per_epoch: int) -> float:
    """What the learning rate of step ``step`` is multiplied by.

    Args:
        settings: the schedule.
        step: number of the step about to be made, from 0.
        done: how much of the run lies behind, in [0, 1], by steps or by the training clock; None
            for a run without an end. ``settings.total_steps`` goes first.
        per_epoch: steps of an epoch.
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.warmup == 0 and settings.name in ("constant", "multistep"):
        return _staircase(settings, step, per_epoch)
    if settings.total_steps is not None:
        done = min(1.0, step / settings.total_steps)
    if done is None:
        raise ConfigError(
            f"schedule.name={settings.name}, schedule.warmup={settings.warmup:g}: needs an end. "
            "Set schedule.total_steps, train.max_steps, train.max_epochs or train.max_seconds."
        )
    if done < settings.warmup:
        return max(_FIRST, done / settings.warmup)
    if settings.name in ("constant", "multistep"):
        return _staircase(settings, step, per_epoch)
    begin = settings.warmup
    if settings.warmup_steps:  # their share of the run, as it goes so far
        begin = max(begin, settings.warmup_steps * done / step)
    left = max(0.0, (settings.end - done) / (settings.end - begin)) if begin < settings.end else 0.0
    shape = left if settings.name == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return settings.final_factor + (1.0 - settings.final_factor) * shape


def _staircase(settings: ScheduleSettings, step: int, per_epoch: int) -> float:
    """The factor of schedules without an end: constant, or falling at the milestones."""
    if settings.name == "constant":
        return 1.0
    return settings.gamma ** sum(step >= epoch * per_epoch for epoch in settings.milestones)


@dataclass
class Schedule:
    """Sets the learning rate of every group before each step.

    Attributes:
        optimizer: its groups' learning rates at construction are what the factor multiplies.
        settings: the schedule.
        per_epoch: steps of an epoch.
        ends: whether the run has an end that is known.
    """

    optimizer: torch.optim.Optimizer
    settings: ScheduleSettings
    per_epoch: int
    ends: bool = True

    def __post_init__(self) -> None:
        self._base = [group["lr"] for group in self.optimizer.param_groups]
        # Says so where an end is missing.
        factor(self.settings, self.settings.warmup_steps, self._end(1.0), self.per_epoch)

    def set(self, step: int, done: float) -> None:
        """Set the learning rates of the step about to be made.

        Args:
            step: its number, from 0.
            done: how much of the run lies behind.
        """
        scale = factor(self.settings, step, self._end(done), self.per_epoch)
        for group, lr in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * scale

    def _end(self, done: float) -> float | None:
        return done if self.ends else None
