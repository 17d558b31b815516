"""Parameter groups made of modules, and the ranges of their settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from snopt.damping import LevenbergMarquardt

GROUP_SETTINGS = (
    "lr",
    "momentum",
    "weight_decay",
    "damping",
    "alpha",
    "betas",
    "eps",
    "nesterov",
    "kl_clip",
    "trust",
    "precondition",
    "plain",
)
"""What every parameter group may have its own of."""

Modules = nn.Module | Mapping[str, nn.Module] | Iterable[Any]


def named_groups(
    model: nn.Module | Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[tuple[str, nn.Module]]]:
    """Torch parameter groups with names, and all modules by name.

    Args:
        model: a module, or groups whose ``"params"`` is a module, a list of modules, a mapping of
            names to modules, or (name, module) pairs. A parameter belongs to the first group that
            has it.

    Returns:
        Groups with ``"params"`` as (name, parameter) pairs, and (name, module) pairs.

    Raises:
        TypeError: a group is not made of modules.
        ValueError: there is nothing to optimise.
    """
    if isinstance(model, nn.Module):
        model = [{"params": model}]
    groups: list[dict[str, Any]] = []
    named: list[tuple[str, nn.Module]] = []
    taken: set[int] = set()
    # Names are those of the whole model where one group holds it, so that they survive regrouping.
    roots = [pair for group in model for pair in _roots(group)]
    whole = {
        id(m): name
        for prefix, root in sorted(roots, key=lambda pair: -sum(1 for _ in pair[1].modules()))[:1]
        for name, m in _prefixed(prefix, root)
    }
    for group in model:
        pairs = []
        for prefix, root in _roots(group):
            for name, module in _prefixed(whole.get(id(root), prefix), root):
                named.append((name, module))
                for key, p in module._parameters.items():
                    if p is not None and p.requires_grad and id(p) not in taken:
                        taken.add(id(p))
                        pairs.append((f"{name}.{key}" if name else key, p))
        if pairs:
            rest = {key: value for key, value in group.items() if key != "params"}
            groups.append({**rest, "params": pairs})
    if not groups:
        raise ValueError("the model has no trainable parameters")
    return groups, named


def _roots(group: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a parameter group is a mapping with modules under 'params'")
    modules: Modules = group["params"]
    if isinstance(modules, nn.Module):
        pairs: list[tuple[str, Any]] = [("", modules)]
    elif isinstance(modules, Mapping):
        pairs = list(modules.items())
    else:
        listed = list(modules)
        pairs = [x if isinstance(x, tuple) else (str(i), x) for i, x in enumerate(listed)]
        if len(listed) == 1 and not isinstance(listed[0], tuple):
            pairs = [("", listed[0])]
    found: list[tuple[str, nn.Module]] = []
    for name, module in pairs:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"SNOpt needs modules to know its layers, but a group's 'params' holds a "
                f"{type(module).__name__}; pass the model, or groups such as "
                "[{'params': model.field, 'lr': 1e-3}, {'params': model}]"
            )
        found.append((name, module))
    return found


def _prefixed(prefix: str, root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules below ``root`` by name, without the wrapper of data-parallel training."""
    if isinstance(root, nn.parallel.DistributedDataParallel):
        root = root.module
    return [
        (".".join(part for part in (prefix, name) if part), module)
        for name, module in root.named_modules()
    ]


def choose(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ``ValueError`` that lists the choices unless ``value`` is one of them."""
    listed = list(choices)
    if value not in listed:
        raise ValueError(f"{name}={value!r}; choose one of {', '.join(listed)}")


def whole_number(name: str, value: Any, low: int) -> None:
    """Raise a ``ValueError`` unless ``value`` is a whole number, at least ``low``."""
    if isinstance(value, bool) or value != int(value) or value < low:
        raise ValueError(f"{name}={value!r}; expected a whole number >= {low}")


def validate(settings: Mapping[str, Any]) -> None:
    """Check one group's settings.

    Raises:
        ValueError: a value is outside its range; the message names both.
    """
    ranges = {
        "lr": (0.0, math.inf, "a number >= 0"),
        "momentum": (0.0, 1.0, "a number in [0, 1)"),
        "weight_decay": (0.0, math.inf, "a number >= 0"),
        "alpha": (0.0, 1.0, "a number in [0, 1)"),
        "eps": (0.0, math.inf, "a number >= 0"),
    }
    numbers = {name: settings[name] for name in ranges}
    for i, beta in enumerate(settings["betas"]):
        numbers[f"betas[{i}]"] = beta
        ranges[f"betas[{i}]"] = ranges["momentum"]
    damping = settings["damping"]
    if not callable(damping) and not isinstance(damping, LevenbergMarquardt):
        numbers["damping"], ranges["damping"] = damping, ranges["lr"]
    for bound in ("kl_clip", "trust"):
        if settings[bound] is not None:
            numbers[bound], ranges[bound] = settings[bound], ranges["lr"]
    for name, value in numbers.items():
        low, high, text = ranges[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
            raise ValueError(f"{name}={value!r}; expected {text}")
    if not isinstance(settings["nesterov"], bool):
        raise ValueError(f"nesterov={settings['nesterov']!r}; expected True or False")
    choose("precondition", settings["precondition"], ("all", "ode"))
    choose("plain", settings["plain"], ("rule", "adam"))
