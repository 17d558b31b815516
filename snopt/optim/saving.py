"""What a saved state is read with: everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from snopt.layers.base import WIDEST, Layer, Sizes
from snopt.optim.renamed import renamed
from snopt.optim.settings import Kind, in_force, validate


def copied(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A nest of mappings, lists and tuples, its tensors copied to a device.

    Args:
        value: the nest.
        device: of the copies.
        dtype: of the copies of floating-point tensors; theirs by default.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None).clone()
    if isinstance(value, Mapping):
        return {key: copied(entry, device, dtype) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        parts = [copied(entry, device, dtype) for entry in value]
        # A named tuple takes its entries one by one.
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@contextmanager
def reading() -> Iterator[None]:
    """Turn what damaged or foreign entries raise into one sentence.

    Raises:
        ValueError: an entry is missing or is something else than was saved.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            "the state is damaged or was not saved by this optimizer's state_dict(): "
            f"{type(error).__name__}: {error}"
        ) from error


def check_kind(state: Any, rule: str) -> None:
    """Refuse what was not saved by an SNOpt with this rule.

    Raises:
        ValueError: it was not; the message names what it seems to be.
    """
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise ValueError(
            f"expected what optimizer.state_dict() returned, got a {type(state).__name__} "
            "without 'state' and 'param_groups'"
        )
    if "preconditioner" not in state:
        raise ValueError(
            "the state was saved by another optimizer than SNOpt, as it has no 'preconditioner': "
            "begin without it, or load it into the optimizer that saved it"
        )
    saved = state.get("rule", rule)
    if saved != rule:
        raise ValueError(
            f"the state was saved with rule={saved!r} and cannot be continued with rule={rule!r}; "
            f"make the optimizer with rule={saved!r}, or begin without the state"
        )


def check_rows(state: Mapping[str, Any], rows: str) -> None:
    """Refuse what Gauss-Newton steps from other rows have saved.

    Raises:
        ValueError: they have; the message says what to do.
    """
    saved = state.get("rows", "samples")  # earlier versions had no others
    if saved != rows:
        raise ValueError(
            f"the state was saved with rows={saved!r} and cannot be continued with rows={rows!r}; "
            f"make the optimizer with rows={saved!r}, or begin without it"
        )


def saved_groups(
    groups: Sequence[Mapping[str, Any]], known: Mapping[str, Kind], step: int
) -> list[dict[str, Any]]:
    """Groups as they are saved: settings as plain numbers, parameters by their names."""
    found = []
    for group in groups:
        kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        found.append({**in_force(kept, known, step), "params": list(group["param_names"])})
    return found


def read_groups(
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    known: Mapping[str, Kind],
    unsaid: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The settings that own groups take from saved ones, checked.

    Args:
        groups: the own ones.
        saved: what :func:`saved_groups` returned.
        known: settings of the groups.
        unsaid: settings that are not to be taken.

    Raises:
        ValueError: the groups have other parameters, or a setting is outside its range.
    """
    found = []
    for group, entry in zip(groups, _matched(groups, saved), strict=True):
        # Layers were chosen by the own precondition.
        left = {"params", "param_names", "precondition", *unsaid, *_NO_LONGER - known.keys()}
        settings = {
            key: value for key, value in renamed(entry or {}, warn=False).items() if key not in left
        }
        validate({**group, **settings}, known)
        now = in_force({**group, **settings}, known, 0)
        settings = {key: now[key] for key in settings}
        if isinstance(group["lr"], Tensor) and "lr" in settings:
            settings["lr"] = torch.full_like(group["lr"], settings["lr"])
        found.append(settings)
    return found


_NO_LONGER = {"momentum", "damping", "alpha", "betas", "eps", "nesterov"}
"""What groups had whatever the rule, in earlier versions."""


def _matched(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any] | None]:
    """The saved group of every own one, ``None`` for a group that was frozen and not saved.

    Earlier versions left frozen parameters out of the groups.

    Raises:
        ValueError: the groups have other parameters.
    """
    found: list[Mapping[str, Any] | None] = []
    rest = list(saved)
    for group in groups:
        names = list(group["param_names"])
        trained = [name for name, p in zip(names, group["params"], strict=True) if p.requires_grad]
        if rest and list(rest[0]["params"]) in (names, trained):
            found.append(rest.pop(0))
        elif not trained:
            found.append(None)
        else:
            theirs = {name for entry in saved for name in entry["params"]}
            ours = {name for entry in groups for name in entry["param_names"]}
            raise ValueError(
                "the state was saved for other parameters or other groups of them"
                + _differing(" only it has", theirs - ours)
                + _differing(" only this model has", ours - theirs)
            )
    if rest:
        raise ValueError("the state was saved for other parameters or more groups of them")
    return found


def _differing(text: str, names: set[Any]) -> str:
    some = ", ".join(map(repr, sorted(map(str, names))[:3]))
    return f";{text} {some}{' ...' if len(names) > 3 else ''}" if names else ""


def read_parameter(name: str, entry: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    """A parameter's own state, checked and copied to where the parameter is.

    Raises:
        ValueError: it was saved for a parameter of another shape.
    """
    real = (*p.shape, 2) if p.is_complex() else p.shape  # the fallback's numbers are real
    plain = entry.get("plain", {}).values()
    for value, shape in (*((x, p.shape) for x in entry.values()), *((x, real) for x in plain)):
        if isinstance(value, Tensor) and value.shape != shape:
            raise ValueError(
                f"the state was saved for another model: parameter {name!r} had shape "
                f"{tuple(value.shape)} and has {tuple(shape)} here"
            )
    found: dict[str, Any] = copied(entry, p.device)
    return found


def read_layer(
    name: str, entry: Mapping[str, Any], layer: Layer | None, keeps: Collection[str], modes: bool
) -> dict[str, Any] | None:
    """What was saved of a layer, checked and copied; ``None`` if that is nothing to go on from.

    Args:
        name: the layer's.
        entry: its factors, basis, averages and the rule's state, tuples as lists; earlier versions
            had a matrix of the outputs instead of a direct sum.
        layer: the layer, ``None`` if the model has none of that name.
        keeps: names of the entries of the rule's state.
        modes: whether factors are kept by modes of a convolution and by blocks of a wide layer.

    Raises:
        ValueError: it was saved for a layer, a basis or a rule of another kind.
    """
    entry = _as_sums(entry)
    basis, averages, state = entry["basis"], entry["averages"], entry["rule"]
    if basis is None and averages is None and not state:
        return None
    if layer is None:
        return dict(entry)
    if not state.keys() <= set(keeps):
        raise ValueError(f"the state of layer {name!r} was saved with another rule")
    groups, out, width = layer.shape
    sides = [] if basis is None else [(basis[3], basis[1])]
    sides += [] if averages is None else [(averages[0], averages[1])]
    widths = {_width(right) for _, right in sides}
    widths |= {x.shape[-1] for x in state.values() if isinstance(x, Tensor)}
    lefts = {(left[0][0].shape[0], _width(left)) for left, _ in sides}
    lefts |= {(x.shape[0], x.shape[1]) for x in state.values() if isinstance(x, Tensor)}
    weight = width - (layer.bias is not None)
    has_bias = layer.module._parameters.get("bias") is not None
    if lefts - {(groups, out)} or widths - {weight, weight + has_bias}:
        raise ValueError(
            f"the state was saved for another model: layer {name!r} has shape "
            f"{(groups, out, width)} here (groups, outputs, inputs with the bias)"
        )
    if widths != {width}:
        return None  # the bias was frozen then, or is now: the layer begins again
    whole = ((out,),), ((width,),)
    expected = layer.factor_sizes if modes else whole
    kept = {tuple(map(_sizes, side)) for side in sides} - {expected}
    if kept == {whole} and max(out, width) > WIDEST:
        return None  # an earlier version kept what is wide in one piece: the layer begins again
    if kept:
        raise ValueError(f"the state of layer {name!r} was saved with another basis")
    found: dict[str, Any] = copied(entry, layer.weight.device)
    return found


def _sizes(matrix: Sequence[Sequence[Tensor]]) -> Sizes:
    return tuple(tuple(factor.shape[-1] for factor in term) for term in matrix)


def _width(matrix: Sequence[Sequence[Tensor]]) -> int:
    return sum(map(prod, _sizes(matrix)))


def _as_sums(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's entry whose matrices of the outputs are direct sums."""
    found = dict(entry)
    for name, place in (("factors", 1), ("basis", 3), ("averages", 0)):
        if found[name] is not None and isinstance(found[name][place], Tensor):
            found[name] = list(found[name])
            found[name][place] = ((found[name][place],),)
    return found
