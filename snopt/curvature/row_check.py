"""Whether rows are what Gauss-Newton steps take them for: the gradients of the samples' losses.

Two things are compared. The rows' sum with the layers' ``p.grad``: a weight that is used elsewhere
too, a penalty, a derivative inside the model, a changed gradient show there. And one row with its
definition, the gradient of that sample's loss alone by a backward pass of its own: samples that act
on one another, another dimension for the samples and losses beside the outputs' show there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from snopt.curvature.per_sample import PerSampleGradients
from snopt.layers.base import Layer

_SCALED = 1e3
"""A factor on gradients beyond which they are those of a scaled loss."""

_ROW_TOLERANCE = 0.05
"""Of one sample's row: an adaptive solver's steps depend, a little, on all samples."""


def refuse_scaled(factor: float) -> None:
    """Refuse gradients that a scaled loss has left.

    Raises:
        ValueError: they are so many times those of the loss that they must be.
    """
    if factor > _SCALED:
        raise ValueError(
            f"the gradients are {factor:.6g} times those of the loss: call "
            "scaler.unscale_(optimizer) or scaler.step(optimizer) before the step is taken"
        )


def tolerance(dtypes: Iterable[torch.dtype], device: torch.device) -> float:
    """Relative rounding that sums of products of these types may show."""
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    # Products of single precision are those of TF32 where a GPU is told so.
    return min(0.1, max(eps, 1e-6 if device.type == "cuda" else 1e-12) * 1e4)


def gradient_factor(
    layers: Mapping[str, Layer],
    found: Mapping[str, Tensor],
    scale: float,
    rows: PerSampleGradients,
    bound: float,
) -> float:
    """The one factor by which the layers' gradients differ from the sums of their rows.

    Args:
        layers: the layers by name.
        found: the rows by layer name, (N, groups, out, in); layers without are missing.
        scale: what the loss was multiplied by, and gradients divided by since.
        rows: knows what was seen on the way.
        bound: relative difference that is rounding.

    Returns:
        1, unless all gradients were scaled alike (``clip_grad_norm_``).

    Raises:
        ValueError: they differ by more than a factor.
    """
    for name in sorted(rows.replaced):
        raise ValueError(
            f"layer {name!r} {_cause(name, rows)}, whose gradients rule='gauss_newton' cannot "
            "take; build SNOpt after the layer has its final form, or choose another rule"
        )
    names, pairs, sizes = [], [], []
    for name, layer in layers.items():
        if name in rows.unbatched:
            continue
        some = found.get(name, layer.value().new_zeros(1, *layer.shape))
        total, size = some.sum(dim=0) / scale, some.norm().double() / scale
        for p, s in layer.split(total):
            if p.grad is not None and p.requires_grad:
                names.append(name)
                sizes.append(size)
                pairs.append((s.double(), p.grad.detach().double()))
    if not pairs:
        return 1.0
    stacked = [
        torch.stack([s.square().sum(), (s * g).sum(), g.square().sum(), size * size])
        for (s, g), size in zip(pairs, sizes, strict=True)
    ]
    products = torch.stack(stacked).tolist()
    if not all(math.isfinite(x) for row in products for x in row):
        return 1.0  # what is not finite is told of where it is solved
    largest = max(max(ss, gg) for ss, _, gg, _ in products)

    def off(factor: float) -> list[float]:
        """Squared differences over their bounds."""
        differences = torch.stack([(g - factor * s).square().sum() for s, g in pairs]).tolist()
        return [
            d / max(bound**2 * (factor**2 * ss + gg + 1e-2 * size + 1e-4 * largest), 1e-300)
            for d, (ss, _, gg, size) in zip(differences, products, strict=True)
        ]

    first = off(1.0)
    if max(first) <= 1:
        return 1.0
    bottom = sum(ss for ss, *_ in products)
    factor = sum(sg for _, sg, *_ in products) / bottom if bottom > 0 else 1.0
    if factor >= 0 and max(off(factor)) <= 1:
        refuse_scaled(factor)
        return factor
    worst = max(range(len(first)), key=lambda i: first[i])
    raise ValueError(_difference(layers[names[worst]], rows, products[worst]))


def _difference(layer: Layer, rows: PerSampleGradients, products: list[float]) -> str:
    name, (ss, _, gg, _) = layer.name, products
    return (
        f"the gradient of layer {name!r} (norm {gg**0.5:.4g}) is not the sum of its samples' "
        f"gradients (norm {ss**0.5:.4g}), which rule='gauss_newton' makes its step of: "
        f"{_cause(name, rows)}; or choose another rule, such as rule='adam'"
    )


def _cause(name: str, rows: PerSampleGradients) -> str:
    if name in rows.inner:
        return (
            "it is differentiated inside the model as well (torch.autograd.grad with "
            "create_graph, a gradient penalty) or by another loss or backward pass"
        )
    if name in rows.inside:
        return (
            "it runs within the backward pass. torchdiffeq.odeint_adjoint does that: use "
            "snopt.ODEBlock with gradient='direct' or 'checkpoint', or torchdiffeq.odeint"
        )
    if name in rows.replaced:
        return "was called with another weight (functional_call, a parametrization, pruning)"
    if name in rows.evaluated:
        return "it was called in eval mode; call model.train() before the forward pass"
    if rows.changed:
        return (
            "gradients were changed between backward() and step(); clip_grad_norm_ over all "
            "parameters at once is taken into account, other changes (clip_grad_value_, noise, "
            "parts scaled apart) are not: use trust=, or a learning rate for each group"
        )
    return (
        "its weight may be used outside of calls of this layer too (F.linear(x, layer.weight), a "
        "tied weight, a forward of its own), a penalty on weights may be part of the loss (use "
        "weight_decay=), another loss may not go through these outputs, or gradients may be left "
        "of another backward pass (zero_grad())"
    )


def check_row(
    layers: Mapping[str, Layer],
    rows: Mapping[str, Tensor],
    sample: int,
    true: Mapping[nn.Parameter, Tensor],
    skipped: Iterable[str],
) -> None:
    """Compare one sample's rows with the gradient of its loss alone.

    Args:
        layers: the layers by name.
        rows: by layer name, (N, groups, out, in).
        sample: which one.
        true: gradients of that sample's share of the loss by parameter.
        skipped: layers without rows.

    Raises:
        ValueError: they differ.
    """
    left = [name for name in rows if name not in skipped]
    for name in left:
        for p, row in layers[name].split(rows[name][sample]):
            if p not in true or p.grad is None:
                continue
            g = true[p].to(row.dtype)
            size, off = float(row.norm() + g.norm()), float((row - g).norm())
            if off > _ROW_TOLERANCE * size and math.isfinite(size):
                raise ValueError(
                    f"layer {name!r} does not keep the samples apart: what its calls give to "
                    f"sample {sample} (norm {float(row.norm()):.4g}) is not the gradient of that "
                    f"sample's loss (norm {float(g.norm()):.4g}). rule='gauss_newton' needs "
                    "samples first in inputs and outputs (curvature_pass(outputs, batch_dim=1) "
                    "where time comes first), samples that do not act on one another (no batch "
                    "normalization in training mode, use GroupNorm; no losses between samples), "
                    "and no loss beside the one of these outputs; or choose another rule, such as "
                    "rule='adam'"
                )
