"""Parameter groups made of modules, with names for the parameters."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

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
    model: Iterable[Mapping[str, Any]],
    settings: Collection[str],
    taken: Collection[int] = (),
    used: Collection[str] = (),
) -> tuple[list[dict[str, Any]], list[tuple[str, nn.Module]]]:
    """Torch parameter groups with names, and all modules by name.

    Args:
        model: groups whose ``"params"`` is a module, a list of modules, a mapping of names to
            modules, or (name, module) pairs. A parameter, frozen or not, belongs to the first
            group that has it.
        settings: names of what a group may have of its own.
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
        _check_keys(group, settings)
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
            if any(names.get(name, id(p)) != id(p) for name, p in whole_parameters(found)):
                # Modules of their own that would share names: the group's place comes first.
                place = str(len(groups) if not used else len(used))
                found = _prefixed(f"{place}.{prefix}" if prefix else place, root)
            named.extend(found)
            for name, p in whole_parameters(found):
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


def whole_parameters(
    modules: Iterable[tuple[str, nn.Module]],
) -> list[tuple[str, nn.Parameter]]:
    """The parameters of modules by name.

    Raises:
        ValueError: one has no shape yet, or this process has a part of it.
    """
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
                require_whole(full, p)
                found.append((full, p))
    return found


def require_whole(name: str, p: Tensor) -> None:
    """Refuse a parameter that is spread over processes.

    Raises:
        ValueError: it is.
    """
    distributed = sys.modules.get("torch.distributed.tensor")  # nobody has one without it
    spread = distributed is not None and isinstance(p, distributed.DTensor)
    if spread or getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            f"parameter {name!r} is spread over processes (FSDP, fully_shard, tensor parallelism), "
            "and SNOpt needs whole layers: wrap the model in DistributedDataParallel instead"
        )


def _check_keys(group: Mapping[str, Any], settings: Collection[str]) -> None:
    """Refuse what is no setting of a group."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a parameter group is a mapping with modules under 'params'")
    for key in group:
        if key not in settings and key not in _BESIDE:
            near = difflib.get_close_matches(str(key), settings, 1)
            meant = _ALIASES.get(str(key), near[0] if near else None)
            raise ValueError(
                f"a group has no setting {key!r} (here {group[key]!r})"
                + (f"; did you mean {meant!r}?" if meant in settings else "")
                + f" Settings of groups with this rule are {', '.join(settings)}; all others are "
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
