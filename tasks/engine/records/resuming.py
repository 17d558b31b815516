"""Whether a checkpoint is one of this very run: looked at before anything of it is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import snopt
from tasks.engine.records import checkpoint
from tasks.engine.records.clock import BUCKETS
from tasks.engine.records.results import ResultsError

#: Counters that every checkpoint has.
COUNTERS = ("step", "skipped", "evaluated_at", "evaluated_seconds", "final", "best")


class MisfitError(ValueError):
    """Part of a checkpoint that does not belong to the run; the message says which."""


def require_fit(
    state: Mapping[str, Any],
    *,
    path: Path,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    horizon: snopt.Horizon | None,
    counters: object,
) -> None:
    """Raise unless a checkpoint can be loaded into what the configuration has built.

    Args:
        state: the checkpoint's content.
        path: its file, for the message.
        identity: what the run is, as its own checkpoints have it; ``processes`` among it.
        model: freshly built.
        optimizer: freshly built.
        horizon: freshly built, or None.
        counters: an instance of the dataclass whose fields the checkpoint has as ``state``.

    Raises:
        ResultsError: something is missing, of another type, shape or dtype, or of another run.
    """
    try:
        _require_fit(state, identity, model, optimizer, horizon, counters)
    except Exception as error:  # MisfitError, or whatever comparing strange values raises
        raise ResultsError(
            f"the checkpoint {path} is not one of this run: {error}. {checkpoint.remedy(path)}"
        ) from error


def _require_fit(
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    horizon: snopt.Horizon | None,
    counters: object,
) -> None:
    _require_identity(state, identity)
    parts = ("model", "optimizer", "solver", "horizon", "order", "random", "state", "clock")
    for part in (*parts, "metrics_bytes"):
        if part not in state:
            raise MisfitError(f"it has no {part}")
    _require_like("model", state["model"], model.state_dict())
    _require_groups(state["optimizer"], optimizer)
    if type(optimizer).__module__.startswith("torch.optim"):
        _require_buffers(state, optimizer)
    _require_like("solver", _times(state["solver"]), _times(snopt.solver_state(model)))
    if horizon is None or state["horizon"] is None:
        _require((state["horizon"] is None) == (horizon is None), "horizon", "of another run")
    else:
        _require_keys("horizon", state["horizon"], horizon.state_dict())
    _require_random(state["random"], int(identity["processes"]))
    _require_counters(state["state"], counters)
    _require_keys("clock", state["clock"], dict.fromkeys(BUCKETS))
    for name, seconds in state["clock"].items():
        _require(_is_number(seconds) and seconds >= 0, f"clock.{name}", f"is {seconds!r}")
    _require_keys("order", state["order"], dict.fromkeys(("epoch", "position", "generator")))
    _require_random_tensor("order.generator", state["order"]["generator"])
    for name in ("epoch", "position"):
        _require(_is_count(state["order"][name]), f"order.{name}", "is no whole number")
    _require(_is_count(state["metrics_bytes"]), "metrics_bytes", "is no whole number")
    digest = state.get("metrics_sha256")
    _require(digest is None or isinstance(digest, str), "metrics_sha256", "is no digest")


def _require_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    found = state.get("identity")
    if found is None and state["format"] == 1:
        return
    if not isinstance(found, Mapping):
        raise MisfitError("it does not say of which run it is")
    for key, wanted in identity.items():
        if type(found.get(key)) is not type(wanted) or found[key] != wanted:
            raise MisfitError(f"{key} is {found.get(key)!r} there, and {wanted!r} here")


def _require(holds: bool, where: str, problem: str) -> None:
    if not holds:
        raise MisfitError(f"{where} {problem}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_keys(where: str, found: object, wanted: Mapping[Any, Any]) -> None:
    if not isinstance(found, Mapping):
        raise MisfitError(f"{where} is {type(found).__name__}, not a mapping")
    missing = [str(key) for key in wanted if key not in found]
    further = [str(key) for key in found if key not in wanted]
    if missing or further:
        text = [f"lacks {', '.join(missing[:3])}"] if missing else []
        text += [f"has {', '.join(further[:3])}, which this run has not"] if further else []
        raise MisfitError(f"{where} {' and '.join(text)}")


def _require_like(where: str, found: object, wanted: object) -> None:
    """Raise unless a nested value has the keys, types, shapes and dtypes of another."""
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor):
            raise MisfitError(f"{where} is {type(found).__name__}, not a tensor")
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise MisfitError(
                f"{where} is {found.dtype} of shape {tuple(found.shape)} there, and "
                f"{wanted.dtype} of shape {tuple(wanted.shape)} here"
            )
    elif isinstance(wanted, Mapping):
        _require_keys(where, found, wanted)
        for key, part in wanted.items():
            _require_like(f"{where}.{key}", found[key], part)  # type: ignore[index]  # has the keys
    elif isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            raise MisfitError(f"{where} is not a sequence of {len(wanted)}")
        for index, (left, right) in enumerate(zip(found, wanted, strict=True)):
            _require_like(f"{where}[{index}]", left, right)
    elif isinstance(wanted, int | float) and not isinstance(wanted, bool):
        _require(_is_number(found), where, f"is {found!r}, not a number")
    elif wanted is not None and type(found) is not type(wanted):
        raise MisfitError(f"{where} is {type(found).__name__}, not {type(wanted).__name__}")


def _times(state: Any) -> Any:
    """A solver state without the lengths of solves, whose names depend on what was solved."""
    if not isinstance(state, Mapping):
        return state
    kept: dict[Any, Any] = {}
    for name, block in state.items():
        if not isinstance(block, Mapping):
            raise MisfitError(f"solver.{name} is {type(block).__name__}, not a mapping")
        longest = block.get("longest")
        _require(
            isinstance(longest, Mapping) and all(_is_number(x) for x in longest.values()),
            f"solver.{name}.longest",
            "does not hold numbers",
        )
        # Checkpoints of earlier versions lack what was False in them.
        rest = {key: value for key, value in block.items() if key != "longest"}
        kept[name] = {"one_sample": False, **rest}
    return kept


def _require_groups(found: object, optimizer: torch.optim.Optimizer) -> None:
    wanted = optimizer.state_dict()
    if "parts" in wanted:  # of ByPart
        parts: Any = optimizer
        states = found.get("parts") if isinstance(found, Mapping) else None
        fits = isinstance(states, list) and len(states) == len(parts.parts)
        _require(fits, "optimizer", f"has not the states of {len(parts.parts)} optimizers")
        for part, state in zip(parts.parts, states or [], strict=True):
            _require_groups(state, part)
        return
    if not isinstance(found, Mapping) or not {"state", "param_groups"} <= found.keys():
        raise MisfitError("optimizer holds no state of an optimizer")
    # What else an optimizer keeps, it looks at itself.
    builtin = type(optimizer).__module__.startswith("torch.optim")
    groups = found["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(wanted["param_groups"]):
        raise MisfitError(f"optimizer has not {len(wanted['param_groups'])} groups of parameters")
    for index, (group, own) in enumerate(zip(groups, wanted["param_groups"], strict=True)):
        where = f"optimizer.param_groups[{index}]"
        _require(isinstance(group, Mapping), where, "is no mapping")
        _require(group.get("params") == own["params"], where, "is of other parameters")
        if not builtin:
            continue
        # Later versions of torch know further settings, and fill them in.
        unknown = [str(key) for key in group if key not in own and key != "initial_lr"]
        _require(not unknown, where, f"has {', '.join(unknown)}, which this run has not")
        for key, value in group.items():
            if key != "params":
                _require_setting(f"{where}.{key}", value, own.get(key))
    _require(isinstance(found["state"], Mapping), "optimizer.state", "is no mapping")
    names = {name for group in groups for name in group["params"]}
    for name, entry in found["state"].items():
        where = f"optimizer.state.{name}"
        _require(name in names, where, "is of no parameter")
        _require(isinstance(entry, Mapping), where, "is no mapping")


def _require_setting(where: str, found: object, wanted: object) -> None:
    """Raise unless a group's setting is that of the run; a schedule moves the learning rate."""
    if where.endswith(".lr"):
        fits = _is_number(found)
    elif isinstance(wanted, list | tuple):
        fits = isinstance(found, list | tuple) and repr(list(found)) == repr(list(wanted))
    else:
        fits = repr(found) == repr(wanted)  # strange values need not be comparable
    _require(fits, where, f"is {found!r} there, and {wanted!r} here")


def _require_buffers(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise unless what one of torch's optimizers keeps of a parameter has its shape and dtype."""
    entries, groups = state["optimizer"]["state"], optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    names = [name for group in state["optimizer"]["param_groups"] for name in group["params"]]
    if isinstance(optimizer, torch.optim.LBFGS):
        for name, entry in entries.items():
            _require_history(f"optimizer.state.{name}", entry, parameters)
        return
    keys: dict[bool, list[Any]] = {}
    kinds: dict[tuple[bool, Any], str] = {}
    for name, parameter in zip(names, parameters, strict=True):
        if name not in entries:
            # A digest tells that what a checkpoint lacks was never there.
            whole = state["format"] > 1 or not entries
            _require(whole, f"optimizer.state.{name}", "is missing")
            continue
        matrix = parameter.dim() > 1  # some keep other things of vectors
        expected = keys.setdefault(matrix, list(entries[name]))
        _require_keys(f"optimizer.state.{name}", entries[name], dict.fromkeys(expected))
        for key, value in entries[name].items():
            where = f"optimizer.state.{name}.{key}"
            kind = _kind(where, value, parameter)
            if parameter.numel() > 1:
                known = kinds.setdefault((matrix, key), kind)
                _require(kind == known, where, f"is {kind}, and {known} for others")


def _kind(where: str, value: object, parameter: Tensor) -> str:
    """Whether a parameter's state is a number or has the parameter's shape; raise for any other."""
    if value is None:
        return "empty"
    if not isinstance(value, Tensor):
        _require(isinstance(value, int | float), where, f"is {type(value).__name__}")
        return "a number"
    if value.numel() == 1:
        return "a number"
    try:  # what is kept of rows or columns alone has dimensions of size 1
        fits = torch.broadcast_shapes(value.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        fits = False
    _require(
        fits and value.dtype == parameter.dtype,
        where,
        f"is {value.dtype} of shape {tuple(value.shape)} there, for a parameter that is "
        f"{parameter.dtype} of shape {tuple(parameter.shape)} here",
    )
    return "a tensor"


def _require_history(where: str, entry: Mapping[str, Any], parameters: list[Tensor]) -> None:
    """Raise unless L-BFGS's one state is of all parameters together."""
    total, dtype = sum(p.numel() for p in parameters), parameters[0].dtype

    def is_vector(value: object) -> bool:
        return isinstance(value, Tensor) and value.shape == (total,) and value.dtype == dtype

    def is_number(value: object) -> bool:
        one = isinstance(value, Tensor) and value.numel() == 1
        return one or (isinstance(value, int | float) and not isinstance(value, bool))

    lists = {"old_dirs": is_vector, "old_stps": is_vector, "ro": is_number}
    single = {"d": is_vector, "prev_flat_grad": is_vector}
    single |= dict.fromkeys(("t", "H_diag", "prev_loss", "func_evals", "n_iter"), is_number)
    for key, fits in single.items():
        _require(fits(entry.get(key)), f"{where}.{key}", "is missing or of another kind")
    lengths = set()
    for key, fits in lists.items():
        value = entry.get(key)
        whole = isinstance(value, list) and all(fits(item) for item in value)
        _require(whole, f"{where}.{key}", "is missing or of another kind")
        lengths.add(len(entry[key]))
    _require(len(lengths) == 1, where, "has a history whose parts differ in length")
    scratch = entry.get("al")
    _require(scratch is None or isinstance(scratch, list), f"{where}.al", "is no list")
    more = [key for key in entry if key not in {*lists, *single, "al"}]
    _require(not more, where, f"has {more}, which is not known")


def _require_random(found: object, processes: int) -> None:
    if not isinstance(found, list) or len(found) != processes:
        made = len(found) if isinstance(found, list) else "no"
        raise MisfitError(f"{made} processes have made it, and {processes} are here")
    own = checkpoint.random_state(torch.Generator())
    for rank, state in enumerate(found):
        where = f"random[{rank}]"
        _require_keys(where, state, own)
        for key in ("noise", "torch"):
            _require_random_tensor(f"{where}.{key}", state[key])
        _require(isinstance(state["cuda"], list), f"{where}.cuda", "is no list")
        for tensor in state["cuda"]:
            _require_random_tensor(f"{where}.cuda", tensor)
        for key in ("python", "numpy"):
            _require_like(f"{where}.{key}", state[key], own[key])


def _require_random_tensor(where: str, value: object) -> None:
    fits = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1
    _require(fits, where, "is no generator's state")


def _require_counters(found: object, own: object) -> None:
    wanted = dataclasses.asdict(own)  # type: ignore[call-overload]  # an instance, says the caller
    if not isinstance(found, Mapping):
        raise MisfitError("state is no mapping")
    # Counters that came later begin at their defaults.
    _require_keys("state", found, {k: v for k, v in wanted.items() if k in found or k in COUNTERS})
    for key in found:
        value = wanted[key]
        if key == "best":
            _require_best(found[key])
        elif key == "final":
            _require_final(found[key])
        else:
            _require_like(f"state.{key}", found[key], value)
            whole = not isinstance(value, int) or isinstance(found[key], int)
            _require(whole, f"state.{key}", f"is {found[key]!r}, not a whole number")


def _require_best(found: object) -> None:
    if found is None:
        return
    if not isinstance(found, Mapping) or not {"step", "seconds", "metric", "valid"} <= found.keys():
        raise MisfitError("state.best does not say where the run was best")
    for key, value in found.items():
        fits = isinstance(value, str) if key == "metric" else isinstance(value, int | float)
        _require(fits, f"state.best.{key}", f"is {type(value).__name__}")


def _require_final(found: object) -> None:
    fits = isinstance(found, Mapping) and all(
        isinstance(part, Mapping)
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in part.values())
        for part in found.values()
    )
    _require(fits, "state.final", "does not hold numbers by split and metric")
