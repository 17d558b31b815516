"""Which layers of a model are preconditioned, and why the other parameters are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn
from torch.nn.utils import parametrize

from snopt.layers.base import Layer
from snopt.layers.kinds import KINDS, layer_of

FROZEN = "its layer's weight is frozen"


def select_layers(
    modules: Iterable[tuple[str, nn.Module]],
    owned: Mapping[int, str],
    wanted: Callable[[str, nn.Module], str | None],
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers to precondition, and the reason for every parameter that is left out.

    Args:
        modules: modules by name.
        owned: names of the optimizer's parameters by ``id``.
        wanted: the reason why a module is left out although it could be handled, or ``None``.
    """
    layers: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    taken: set[int] = set()
    seen: set[int] = set()
    for name, module in modules:
        if id(module) in seen:
            continue
        seen.add(id(module))
        own = {id(p): p for p in module._parameters.values() if p is not None}
        mine = [i for i in own if i in owned]
        if not mine:
            continue
        layer = layer_of(name, module)
        reason = _foreign(module) if layer is None else wanted(name, module)
        if layer is not None and reason is None:
            if id(layer.weight) not in owned:
                reason = "its weight is in no parameter group"
            elif taken & own.keys():
                reason = "the parameter is shared with another module"
            elif not layer.weight.numel():
                reason = "its layer's weight has no elements"
        if layer is None or reason is not None:
            for i in mine:
                reasons.setdefault(owned[i], reason or "")
            continue
        layers[name] = layer
        taken.update(own)
    return layers, reasons


def _foreign(module: nn.Module) -> str:
    """Why no kind of layer handles a module."""
    kind = type(module).__name__
    if isinstance(module, parametrize.ParametrizationList):
        makers = ", ".join(type(made).__name__ for made in module)
        return f"a layer's weight is made of it by a parametrization ({makers})"
    if not isinstance(module, tuple(KINDS)):
        return f"{kind} is neither linear nor a convolution"
    weight = module._parameters.get("weight")
    if weight is not None:
        return "its layer's weight is complex"
    made_of = [key for key in module._parameters if key.startswith("weight_")]
    how = f"of {' and '.join(made_of)} " if made_of else ""
    return (
        f"its layer's weight is no parameter but made again {how}in every call (weight_norm, "
        "spectral_norm, pruning or another parametrization)"
    )


def uncalled(modules: Iterable[tuple[str, nn.Module]]) -> set[int]:
    """Ids of layers whose weights another module uses without calling them: no hook hears those."""
    return {id(m.out_proj) for _, m in modules if isinstance(m, nn.MultiheadAttention)}
