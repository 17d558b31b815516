"""Classification of images with convolutions around an ODE block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.classification import ClassificationTask, require_positive
from tasks.common.checks import choices
from tasks.data.images import READERS
from tasks.data.splits import hold_out
from tasks.models.convnet import ConvNet
from tasks.task import Batch, Splits

CLASSES = 10


@dataclass(frozen=True)
class _Shape:
    """What the network must know of the images, and how they are standardised."""

    channels: int
    strided: int
    pool: int
    mean: float = 0.1307
    deviation: float = 0.3081


# The paper standardises all three with MNIST's statistics. For the digits they are their own,
# of the training part.
_SHAPES = {
    "digits": _Shape(1, strided=1, pool=3, mean=0.305, deviation=0.376),
    "mnist": _Shape(1, strided=2, pool=6),
    "svhn": _Shape(3, strided=2, pool=6),
    "cifar10": _Shape(3, strided=2, pool=6),
}


class ImageClassification(ClassificationTask):
    """Images to classes.

    The images lie on the device as bytes and are scaled and standardised batch by batch. A batch is
    (pixels uint8 (B, C, H, W), labels (B,)).

    Args:
        dataset: ``digits``, ``mnist``, ``svhn`` or ``cifar10``.
        hidden: channels of every layer.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        valid_samples: training images held out for validation, every class in proportion; where
            there are fewer than ten times as many, a tenth of them.
        train_samples: use only the first so many training images, before any are held out.
        test_samples: use only the first so many test images.

    Attributes:
        datasets: the names that ``dataset`` may have.

    Raises:
        ValueError: an argument is outside its range.
    """

    datasets: tuple[str, ...] = tuple(READERS)

    def __init__(
        self,
        dataset: str,
        *,
        hidden: int,
        batch_size: int,
        eval_batch_size: int = 1000,
        valid_samples: int = 5000,
        train_samples: int | None = None,
        test_samples: int | None = None,
    ) -> None:
        if dataset not in self.datasets:
            raise ValueError(choices("dataset", dataset, self.datasets))
        require_positive(
            valid_samples=valid_samples, train_samples=train_samples, test_samples=test_samples
        )
        super().__init__(dataset, hidden, batch_size, eval_batch_size)
        self.valid_samples = valid_samples
        self.train_samples = train_samples
        self.test_samples = test_samples
        self._shape = _SHAPES[dataset]
        self._brightest = 255.0
        self._dtype = torch.float32

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Read and split the data; the split is the same for every seed."""
        images = READERS[self.name](root)
        self.provenance = images.provenance
        self._brightest, self._dtype = images.brightest, dtype
        available = len(images.train[1])
        used = min(self.train_samples or available, available)
        if used < available:
            self.provenance = f"{images.provenance}; only the first {used} training images"
        if self.test_samples is not None and self.test_samples < len(images.test[1]):
            self.provenance += f"; only the first {self.test_samples} test images"
        labels = images.train[1][:used]
        train, valid = hold_out(labels, min(self.valid_samples, max(used // 10, 1)), self.name)

        def part(source: tuple[Any, Any], indices: Any = slice(None)) -> Batch:
            return tuple(torch.as_tensor(a[indices], device=device) for a in source)

        test = part(images.test, slice(self.test_samples))
        return Splits(part(images.train, train), part(images.train, valid), test)

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The paper's network with any family; for 8x8 images a strided convolution less."""
        shape = self._shape
        return ConvNet(
            shape.channels,
            self.hidden,
            CLASSES,
            pool=shape.pool,
            strided=shape.strided,
            family=family,
            solver=solver,
        )

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Logits of shape (B, 10)."""
        logits: Tensor = model(self.standardize(batch[0]))
        return logits

    def standardize(self, pixels: Tensor) -> Tensor:
        """Pixels of shape (B, C, H, W) as floats of about mean 0 and variance 1."""
        scale = 1.0 / (self._brightest * self._shape.deviation)
        return pixels.to(self._dtype).mul_(scale).sub_(self._shape.mean / self._shape.deviation)
