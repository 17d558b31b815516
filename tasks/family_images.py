"""Classification of images with the families' own convolutional networks: ``arch=hbnode``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tasks.images import ImageClassification
from tasks.models.families import CONV_SIZES, FamilyConvNet
from tasks.settings import choices


class FamilyImageClassification(ImageClassification):
    """MNIST or CIFAR-10 to classes, with any family.

    Data and splits are those of :class:`tasks.images.ImageClassification`; pixels are scaled to
    [0, 1] and not standardised, and the number of channels is the family's own, both as published.

    Args:
        dataset: ``mnist`` or ``cifar10``.
        hidden: of the paper's network; not used here.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        valid_samples: training images held out for validation.
        train_samples: use only the first so many training images.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        dataset: str,
        *,
        hidden: int,
        batch_size: int,
        eval_batch_size: int = 1000,
        valid_samples: int = 5000,
        train_samples: int | None = None,
    ) -> None:
        if dataset not in CONV_SIZES:
            raise ValueError(choices("dataset", dataset, CONV_SIZES))
        super().__init__(
            dataset,
            hidden=hidden,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            valid_samples=valid_samples,
            train_samples=train_samples,
        )

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The family's network with its published sizes."""
        return FamilyConvNet(self.name, family, solver)

    def standardise(self, pixels: Tensor) -> Tensor:
        """Pixels of shape (B, C, H, W) as numbers in [0, 1]."""
        return pixels.to(self._dtype).mul_(1.0 / self._brightest)
