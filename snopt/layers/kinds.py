"""Which kind handles which module: a new kind is a class of its own and one row here."""

from __future__ import annotations

from torch import nn

from snopt.layers.base import Layer
from snopt.layers.convolution import ConvLayer, ConvTransposeLayer
from snopt.layers.linear import LinearLayer

KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvLayer,
    nn.Conv2d: ConvLayer,
    nn.Conv3d: ConvLayer,
    nn.ConvTranspose1d: ConvTransposeLayer,
    nn.ConvTranspose2d: ConvTransposeLayer,
    nn.ConvTranspose3d: ConvTransposeLayer,
}
"""Module classes, subclasses included, and the kind that handles them."""


def layer_of(name: str, module: nn.Module) -> Layer | None:
    """The layer behind a module, or ``None`` if no kind handles it; it may be frozen."""
    for base, kind in KINDS.items():
        if isinstance(module, base):
            weight = module._parameters.get("weight")
            if weight is None or weight.is_complex():
                return None
            return kind(name, module)
    return None
