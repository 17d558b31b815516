"""Hearing the loss' backward pass arrive at the model's outputs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snopt.curvature.likelihoods import SquaredErrors, sample_losses
from snopt.curvature.per_sample import PerSampleGradients
from snopt.curvature.samples import Samples
from snopt.layers.base import Layer
from snopt.ode.block import ODEBlock
from snopt.ode.passes import current_pass

logger = logging.getLogger(__name__)

ONE_PASS = (
    "rule='gauss_newton' takes one backward pass a step, through one outputs' graph; call "
    "optimizer.step() or zero_grad() before the next curvature_pass() or backward()"
)
"""What is said where a second pass comes before a step."""


class _Asked(NamedTuple):
    """What :meth:`~snopt.SNOpt.curvature_pass` was given, samples first."""

    outputs: Tensor
    likelihood: str
    targets: Tensor | None
    loss: float | None


class Hearing:
    """The samples' losses, and one sample's gradient alone, as a backward pass tells them.

    Args:
        rows: gathers the rows of that pass.
        layers: the layers by name.
        blocks: the model's ODE blocks by name.
        loss_scale: returns the factor on the loss while a backward pass runs (GradScaler).

    Attributes:
        roots: of twice the samples' losses, ``None`` until they are heard.
        alone: a sample and the gradients of its share of the loss, where they were taken.
    """

    def __init__(
        self,
        rows: PerSampleGradients,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, ODEBlock],
        loss_scale: Callable[[], float] | None,
    ) -> None:
        self.rows, self.layers, self.blocks, self.loss_scale = rows, layers, blocks, loss_scale
        self.roots: Tensor | None = None
        self.alone: tuple[int, dict[nn.Parameter, Tensor]] | None = None
        self._outputs: Tensor | None = None
        self._hook: RemovableHandle | None = None
        self._factors = SquaredErrors()

    def clear(self) -> None:
        """Forget what was heard, and listen no longer."""
        self.roots = self.alone = self._outputs = None
        if self._hook is not None:
            self._hook.remove()

    def listen(
        self,
        outputs: Tensor,
        likelihood: str,
        targets: Tensor | None,
        loss: Tensor | None,
        batch_dim: int,
    ) -> None:
        """Wait for the backward pass of the loss of these outputs.

        Args:
            outputs: the model's, with their graph.
            likelihood: one of :data:`snopt.curvature.likelihoods.LIKELIHOODS`.
            targets: what the loss compares the outputs with.
            loss: the loss of the batch.
            batch_dim: the outputs' dimension of samples.

        Raises:
            ValueError: the outputs have no such dimension.
        """
        if outputs.ndim == 0 or not -outputs.ndim <= batch_dim < outputs.ndim:
            raise ValueError(
                f"batch_dim={batch_dim}: outputs of shape {tuple(outputs.shape)} have no such "
                "dimension; pass outputs with one entry for each sample"
            )
        dim = batch_dim % outputs.ndim
        self.rows.expect(Samples(outputs.shape[dim], dim))
        if self._hook is not None:
            self._hook.remove()
        self._outputs = outputs
        asked = _Asked(
            outputs.detach().movedim(dim, 0),
            likelihood,
            _samples_first(targets, outputs, dim),
            None if loss is None else float(loss.detach()),
        )
        hearing = weakref.ref(self)

        def at_outputs(cotangent: Tensor) -> None:
            listening = hearing()
            if listening is not None and not listening.rows.ignoring:
                listening._hear(asked, cotangent.detach(), dim)

        self._hook = outputs.register_hook(at_outputs)

    def _hear(self, asked: _Asked, cotangent: Tensor, dim: int) -> None:
        """The loss' backward pass has come to the outputs."""
        if self.roots is not None:
            raise RuntimeError(ONE_PASS)
        if torch.is_grad_enabled():
            raise RuntimeError(
                "rule='gauss_newton' makes gradients without a graph: leave out create_graph=True, "
                "or choose another rule, such as rule='adam'"
            )
        scale = 1.0 if self.loss_scale is None else self.loss_scale()
        moved = cotangent.movedim(dim, 0)
        cotangents = moved * (len(moved) / scale)
        if asked.likelihood == "gaussian" and asked.targets is None:
            self._factors.check(asked.outputs, cotangents, asked.loss, self.rows.first_input)
        losses = sample_losses(
            asked.outputs, cotangents, asked.likelihood, asked.targets, asked.loss
        )
        self.roots = (2.0 * losses).sqrt()
        if self.rows.checks.first and bool(torch.isfinite(losses).all()):
            self._differentiate_alone(int(losses.argmax()), cotangent, dim)
        self._outputs = None
        self.rows.counting, self.rows.loss_pass = True, current_pass()
        torch.autograd.Variable._execution_engine.queue_callback(self.rows.finish)

    def _differentiate_alone(self, sample: int, cotangent: Tensor, dim: int) -> None:
        """The gradient of one sample's loss, by a backward pass that nobody else sees."""
        assert self._outputs is not None  # until the pass is heard
        wanted = [p for x in self.layers.values() for p in x.parameters if p.requires_grad]
        alone = torch.zeros_like(cotangent)
        alone.select(dim, sample).copy_(cotangent.select(dim, sample))
        self.rows.ignoring = True
        try:
            with ExitStack() as stack:
                for block in self.blocks.values():
                    stack.enter_context(block.measuring())
                found = torch.autograd.grad(
                    self._outputs, wanted, alone, retain_graph=True, allow_unused=True
                )
        except RuntimeError as error:  # a graph that goes only once, and only to all its leaves
            logger.info("one sample's gradient could not be taken alone: %s", error)
            return
        finally:
            self.rows.ignoring = False
        zeros = (
            torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)
        )
        self.alone = sample, dict(zip(wanted, zeros, strict=True))


def _samples_first(targets: Tensor | None, outputs: Tensor, dim: int) -> Tensor | None:
    if targets is None or targets.ndim <= dim or targets.ndim != outputs.ndim:
        return targets
    return targets.movedim(dim, 0)
