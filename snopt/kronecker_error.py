"""How well the Kronecker factors describe a model's curvature, measured on a small batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snopt.copies import require_apart
from snopt.curvature.capture import Capture
from snopt.curvature.kronecker import dense
from snopt.curvature.loss_hessian import gather
from snopt.layers.base import Layer
from snopt.ode.block import blocks
from snopt.optim.selection import select_layers
from snopt.random_streams import random_streams_kept


@dataclass(frozen=True)
class LayerError:
    """One layer's approximation K = A (x) B, compared with its exact Gauss-Newton matrix G.

    Attributes:
        error: |K - G| / |G| in the Frobenius norm; 0 if the factors are exact.
        cosine: of the angle between K and G; 1 if they differ only in scale.
        scale: trace of K over trace of G.
    """

    error: float
    cosine: float
    scale: float


@dataclass(frozen=True)
class KroneckerErrors:
    """What :func:`kronecker_error` found, by layer name; ``print`` shows it as a table."""

    layers: dict[str, LayerError]

    def __str__(self) -> str:
        width = max([len("layer"), *(len(name) for name in self.layers)])
        lines = [f"{'layer':<{width}}  {'error':>9}  {'cosine':>7}  {'scale':>9}"]
        for name, x in self.layers.items():
            lines.append(f"{name:<{width}}  {x.error:9.2e}  {x.cosine:7.4f}  {x.scale:9.3g}")
        return "\n".join(lines)


def kronecker_error(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> KroneckerErrors:
    """Compare the factors of a model with its exact Gauss-Newton matrix, layer by layer.

    Needs one backward pass for every sample and output, so a few samples are enough. The model,
    its gradients, its counters and torch's random numbers stay as they are.

    Args:
        model: any model that maps inputs (N, ...) to outputs (N, ...).
        batch: inputs and targets.
        loss: ``loss(outputs, targets)``, the mean over samples, convex in the outputs.

    Returns:
        The errors of every layer that can be preconditioned and takes part in the forward pass.

    Raises:
        ValueError: the model has no layer that can be preconditioned, or a copy of it would go on
            using its parameters.

    Source: Martens and Grosse 2015, section 3 (what the factoring leaves out).
    """
    inputs, targets = batch
    twin = copy.deepcopy(model).train()
    named = {id(p): name for name, p in twin.named_parameters()}
    layers, reasons = select_layers(twin.named_modules(), named, lambda name, module: None)
    if not layers:
        raise ValueError(f"no layer to check: {reasons}")
    with random_streams_kept(model):
        capture = Capture(layers, blocks(twin), losses=False)
        capture.arm(layers)
        outputs = twin(inputs)
        require_apart([outputs], model)
        columns = _roots(outputs.detach(), lambda z: loss(z, targets))
        parameters = [p for p in twin.parameters() if p.requires_grad]
        gather(capture, blocks(twin), parameters, outputs, columns.unbind())
        captured = capture.collect()
        vectors: dict[str, list[Tensor]] = {name: [] for name in captured}
        for column in _one_sample_each(columns):
            grads = torch.autograd.grad(
                outputs, parameters, column, retain_graph=True, allow_unused=True
            )
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad
            for name, found in vectors.items():
                found.append(_flat(layers[name]))
    return KroneckerErrors(
        {
            name: _error(
                dense(factors.a).double(),
                dense(factors.b).double(),
                torch.stack(vectors[name]),
                len(inputs),
            )
            for name, factors in captured.items()
            if factors is not None
        }
    )


def _roots(outputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Columns (R, *outputs.shape) as :func:`loss_hessian_sqrt_columns` gives, for any loss."""
    count = len(outputs)
    hessian = torch.autograd.functional.hessian(loss, outputs)
    size = outputs[0].numel()
    blocks = hessian.reshape(count, size, count, size).diagonal(dim1=0, dim2=2)
    values, vectors = torch.linalg.eigh(blocks.permute(2, 0, 1) * count)
    roots = vectors * values.clamp_min(0).sqrt().unsqueeze(1) / count
    columns: Tensor = roots.permute(2, 0, 1).reshape(size, *outputs.shape)
    return columns


def _one_sample_each(columns: Tensor) -> Iterator[Tensor]:
    for column in columns:
        for n in range(len(column)):
            single = torch.zeros_like(column)
            single[n] = column[n]
            yield single


def _flat(layer: Layer) -> Tensor:
    gradient = layer.gradient()
    found = layer.weight.new_zeros(layer.shape) if gradient is None else gradient
    return found.detach().double()


def _error(a: Tensor, b: Tensor, vectors: Tensor, samples: int) -> LayerError:
    """From factors (groups, d, d) and gradients (R N, groups, out, in), without the large blocks.

    A gradient v is that of one sample's share of the mean, so G = N sum v v^T.
    """
    flat = vectors.flatten(2).transpose(0, 1)
    exact = float(samples * (flat @ flat.mT).norm())
    factored = float((a.square().sum((1, 2)) * b.square().sum((1, 2))).sum().sqrt())
    product = float(samples * (vectors * (b @ vectors @ a)).sum())
    traces = _trace(a) * _trace(b)
    # The three terms cancel where factoring is exact: below 1e-7 the error is rounding.
    error = max(0.0, factored**2 + exact**2 - 2 * product) ** 0.5
    tiny = torch.finfo(torch.float64).tiny
    return LayerError(
        error=error / max(exact, tiny),
        cosine=product / max(exact * factored, tiny),
        scale=float(traces.sum()) / max(float(samples * vectors.square().sum()), tiny),
    )


def _trace(matrix: Tensor) -> Tensor:
    traces: Tensor = matrix.diagonal(dim1=1, dim2=2).sum(1)
    return traces
