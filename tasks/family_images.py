"""Classification of images with the families' own convolutional networks: ``arch=hbnode``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tasks.images import ImageClassification
from tasks.models.family_nets import IMAGES, FamilyConvNet


class FamilyImageClassification(ImageClassification):
    """MNIST or CIFAR-10 to classes, with any family.

    Arguments, data and splits are those of :class:`tasks.images.ImageClassification`; ``hidden`` is
    not used. Pixels are scaled to [0, 1] and not standardised, and the number of channels is the
    family's own, both as published.
    """

    datasets = tuple(IMAGES)

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The family's network with its published sizes."""
        return FamilyConvNet(self.name, family, solver)

    def standardize(self, pixels: Tensor) -> Tensor:
        """Pixels of shape (B, C, H, W) as floats in [0, 1]."""
        return pixels.to(self._dtype).mul_(1.0 / self._brightest)
