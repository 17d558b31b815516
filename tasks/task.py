"""What the runner needs to know of a task, and nothing more.

A task owns its data set, the model trained on it, the loss and the metrics. The runner owns time,
files and the training loop. A new task is one subclass and one file in ``conf/task``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, ...]
"""Tensors that share their first dimension, the sample."""

Likelihood = Literal["categorical", "gaussian", "binary"]


@dataclass(frozen=True)
class Splits:
    """Train, validation and test data as whole tensors on the training device.

    Attributes:
        train: tensors of shape (N_train, ...), sample first.
        valid: tensors of shape (N_valid, ...); the only split that may select anything.
        test: tensors of shape (N_test, ...); measured, never selected on.
    """

    train: Batch
    valid: Batch
    test: Batch


@dataclass(frozen=True)
class Trained:
    """A trained model, for a picture.

    Attributes:
        label: of what trained it.
        colour: of that.
        seed: of the run.
        model: with the run's last weights, on the CPU.
        splits: the run's data.
        score: the task's metric on the test split at the end of training, as the run noted it;
            ``None`` where it was not measured.
    """

    label: str
    colour: str
    seed: int
    model: nn.Module
    splits: Splits
    score: float | None = None

    def caption(self, metric: str) -> str:
        """Whose model it is, and below it the score, by the metric's name."""
        scored = "" if self.score is None else f"\ntest {metric} {self.score:.4g}"
        return f"{self.label}, seed {self.seed}{scored}"


class Task(ABC):
    """A data set, the model trained on it, its loss and its metrics.

    Attributes:
        name: the task's name on the command line and in the results folder.
        metric: the headline metric, a key of :meth:`measure` besides ``"loss"`` (or ``"loss"``).
        higher_is_better: direction of ``metric``.
        likelihood: predictive distribution behind the loss, for sampled-Fisher and Gauss-Newton
            curvature; ``None`` where there is none.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        allowed_gap: largest difference of the loss between the solvers of training and evaluation
            that goes without a warning.
        terminal_time: whether the model reads its ODE block at the end of an interval that may be
            chosen, rather than at times that come with the data.
        provenance: one sentence on the data ("complete", "synthetic", "first 5000 images"), which
            the report prints beside every number.
        picture_name: of the file of :meth:`picture`; empty where there is no picture.
        picture_caption: what stands above it in the report.
    """

    name: str
    metric: str
    higher_is_better: bool
    likelihood: Likelihood | None = None
    batch_size: int
    eval_batch_size: int
    allowed_gap: float = math.inf
    terminal_time: bool = True
    provenance: str = "complete"
    picture_name: str = ""
    picture_caption: str = ""

    @abstractmethod
    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Read, split and standardise the data.

        Raises:
            DataError: a file is missing, truncated or not what it should be.
        """

    @abstractmethod
    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """Build the network; called after :meth:`load`, inside the ``init`` random stream.

        Args:
            family: the ``model`` configuration (``family["name"]`` is ``node``, ``anode``, ...).
            solver: keyword arguments of :class:`snopt.ODEBlock`.
        """

    def training_batch(self, batch: Batch, done: float) -> Batch:
        """What a training step sees of a batch; all of it by default.

        Args:
            batch: samples of the training split.
            done: share of training that lies behind, from 0 to 1.
        """
        return batch

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """The model's outputs on a batch, sample first (logits, predictions or log-densities)."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean training loss over the batch, a scalar."""

    @abstractmethod
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Per-sample values of shape (N,) of every metric, ``"loss"`` among them."""

    def picture(self, title: str, trained: Sequence[Trained]) -> Figure | None:
        """A picture of trained models beside the data, which the report shows; none by default.

        Args:
            title: to put above it.
            trained: models, one for each optimizer.
        """
        return None
