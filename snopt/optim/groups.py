"""Parameter groups made of modules, and the ranges of their settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from snopt.arguments import choose, number_of
from snopt.optim.damping import damping_at

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

_BESIDE = (
    *("params", "name", "initial_lr", "max_lr", "min_lr", "swa_lr"),
    *("max_momentum", "base_momentum"),
)
"""What else may stand in a group: a name of the user's, and what torch's schedulers note there."""

_ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "l2": "weight_decay", "beta": "betas"}

Modules = nn.Module | Mapping[str, nn.Module] | Iterable[Any]

_PASS = (
    "pass the model itself, SNOpt(model), or groups of modules such as "
    "[{'params': model.field, 'lr': 1e-3}, {'params': model}]"
)


def listed(model: Any) -> list[Mapping[str, Any]]:
    """What was passed as the model, as a list of groups.

    Raises:
        TypeError: it is neither a module nor groups; the message says what to pass.
    """
    if isinstance(model, nn.Module):
        return [{"params": model}]
    what = f"a {type(model).__name__}"
    if isinstance(model, type) and issubclass(model, nn.Module):
        what = f"the class {model.__name__}, not a module made of it"
    elif isinstance(model, Mapping):
        what = "a single group (put it into a list)" if "params" in model else "a mapping"
        if model and all(isinstance(x, Tensor) for x in model.values()):
            what = "a state_dict"
    elif isinstance(model, Iterable) and not isinstance(model, Tensor | str):
        items = list(model)
        strange = [x for x in items if not isinstance(x, Mapping)]
        if not strange:
            return items
        first = strange[0]
        what = f"a list that holds a {type(first).__name__}"
        if isinstance(first, Tensor):
            what = "parameters (model.parameters())"
        elif isinstance(first, tuple) and isinstance(first[-1], Tensor):
            what = "named parameters (model.named_parameters())"
        elif isinstance(first, nn.Module):
            what = "a list of modules (one group of them is [{'params': [first, second]}])"
    raise TypeError(f"SNOpt needs modules to know its layers, but was given {what}; {_PASS}")


def named_groups(
    model: Iterable[Mapping[str, Any]], taken: Collection[int] = (), used: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[tuple[str, nn.Module]]]:
    """Torch parameter groups with names, and all modules by name.

    Args:
        model: groups whose ``"params"`` is a module, a list of modules, a mapping of names to
            modules, or (name, module) pairs. A parameter, frozen or not, belongs to the first
            group that has it.
        taken: ids of parameters that belong to other groups.
        used: names of those.

    Returns:
        Groups with ``"params"`` as (name, parameter) pairs, and (name, module) pairs.

    Raises:
        TypeError: a group is not made of modules.
        ValueError: there is nothing to optimise, or not yet.
    """
    groups: list[dict[str, Any]] = []
    named: list[tuple[str, nn.Module]] = []
    taken, model = set(taken), list(model)
    for group in model:
        _check_keys(group)
    # Names are those of the whole model where one group holds it, so that they survive regrouping.
    roots = [pair for group in model for pair in _roots(group)]
    whole = {
        id(m): name
        for prefix, root in sorted(roots, key=lambda pair: -sum(1 for _ in pair[1].modules()))[:1]
        for name, m in _prefixed(prefix, root)
    }
    names: dict[str, int] = dict.fromkeys(used, -1)
    for group in model:
        pairs = []
        for prefix, root in _roots(group):
            found = _prefixed(whole.get(id(root), prefix), root)
            if any(names.get(name, id(p)) != id(p) for name, p in _parameters(found)):
                # Modules of their own that would share names: the group's place comes first.
                place = str(len(groups) if not used else len(used))
                found = _prefixed(f"{place}.{prefix}" if prefix else place, root)
            named.extend(found)
            for name, p in _parameters(found):
                if id(p) not in taken:
                    taken.add(id(p))
                    names[name] = id(p)
                    pairs.append((name, p))
        if pairs:
            rest = {key: value for key, value in group.items() if key != "params"}
            groups.append({**rest, "params": pairs})
    if not groups:
        raise ValueError(
            "every parameter of it is in a group already" if used else "the model has no parameters"
        )
    return groups, named


def _parameters(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    found = []
    for name, module in modules:
        for key, p in module._parameters.items():
            full = f"{name}.{key}" if name else key
            if isinstance(p, UninitializedParameter):
                raise ValueError(
                    f"parameter {full!r} has no shape yet, as its layer is lazy: run one batch "
                    "through the model before making the optimizer"
                )
            if p is not None:
                found.append((full, p))
    return found


def _check_keys(group: Mapping[str, Any]) -> None:
    """Refuse what is no setting of a group."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a parameter group is a mapping with modules under 'params'")
    known = (*GROUP_SETTINGS, *_BESIDE)
    for key in group:
        if key not in known:
            near = difflib.get_close_matches(str(key), GROUP_SETTINGS, 1)
            meant = _ALIASES.get(str(key), near[0] if near else None)
            raise ValueError(
                f"a group has no setting {key!r}"
                + (f"; did you mean {meant!r}?" if meant else "")
                + f" Settings of groups are {', '.join(GROUP_SETTINGS)}; all others are "
                "arguments of SNOpt"
            )


def _roots(group: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    modules: Modules = group["params"]
    if isinstance(modules, nn.Module):
        pairs: list[tuple[str, Any]] = [("", modules)]
    elif isinstance(modules, Mapping):
        pairs = list(modules.items())
    else:
        several = list(modules) if isinstance(modules, Iterable) else [modules]
        pairs = [x if isinstance(x, tuple) else (str(i), x) for i, x in enumerate(several)]
        if len(several) == 1 and not isinstance(several[0], tuple):
            pairs = [("", several[0])]
    found: list[tuple[str, nn.Module]] = []
    for name, module in pairs:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"SNOpt needs modules to know its layers, but a group's 'params' holds a "
                f"{type(module).__name__}; {_PASS}"
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


def validate(settings: Mapping[str, Any]) -> None:
    """Check one group's settings.

    Raises:
        ValueError: a value is outside its range; the message names both.
    """
    for name, allowed in _RANGES.items():
        if name != "damping" or not callable(settings[name]):
            _in_range(name, settings[name], allowed)
    for name in ("kl_clip", "trust"):
        if settings[name] is not None:
            _in_range(name, settings[name], _POSITIVE)
    for i, beta in enumerate(_pair(settings["betas"])):
        _in_range(f"betas[{i}]", beta, _DECAY)
    if not isinstance(settings["nesterov"], bool):
        raise ValueError(f"nesterov={settings['nesterov']!r}; expected True or False")
    choose("precondition", settings["precondition"], ("all", "ode"))
    choose("plain", settings["plain"], ("rule", "adam"))


def in_force(group: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A group whose settings are plain numbers: those of one step.

    Args:
        group: as it stands; a damping may be a function of the step or a controller, and any
            number a tensor of one element.
        step: steps made so far.

    Raises:
        ValueError: what was written into the group is no number, or not two.
    """
    found = dict(group)
    for name in (*_RANGES, "kl_clip", "trust"):
        value = damping_at(group[name], step) if name == "damping" else group[name]
        # A float, as nearly always, is taken as it is.
        found[name] = value if type(value) is float else _plain(name, value)
    found["betas"] = tuple(_plain("betas", beta) for beta in _pair(group["betas"]))
    return found


_POSITIVE = (math.inf, "a number >= 0")
_DECAY = (1.0, "a number in [0, 1)")
_RANGES = {
    "lr": _POSITIVE,
    "momentum": _DECAY,
    "weight_decay": _POSITIVE,
    "alpha": _DECAY,
    "eps": _POSITIVE,
    "damping": _POSITIVE,
}


def _plain(name: str, value: Any) -> float | None:
    if value is None and name in ("kl_clip", "trust"):
        return None
    found = None if isinstance(value, bool) else number_of(value)
    if found is None:
        raise ValueError(f"a group's {name} is {value!r}; expected a number")
    return found


def _in_range(name: str, value: Any, allowed: tuple[float, str]) -> None:
    found = None if isinstance(value, bool) else number_of(value)
    if found is None or not 0.0 <= found < allowed[0]:
        raise ValueError(f"{name}={value!r}; expected {allowed[1]}")


def _pair(betas: Any) -> tuple[Any, Any]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        raise ValueError(f"betas={betas!r}; expected two numbers in [0, 1)") from None
    return first, second
