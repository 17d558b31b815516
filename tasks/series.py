"""Classification of time series with an ODE-RNN: the UEA tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.classification import ClassificationTask, require_positive
from tasks.common.checks import choices
from tasks.data.spline import fill
from tasks.data.splits import Indices, stratified_part, stratified_thirds
from tasks.data.uea import FACTS, TimeSeries, read_uea
from tasks.models.families import find_family
from tasks.models.family_rnn import FamilyRNN
from tasks.models.ode_rnn import ODERNN
from tasks.task import Batch, Splits

#: Names on the command line, and the archive's.
DATASETS = {
    "articulary_word_recognition": "ArticularyWordRecognition",
    "basic_motions": "BasicMotions",
    "character_trajectories": "CharacterTrajectories",
    "japanese_vowels": "JapaneseVowels",
    "spoken_arabic_digits": "SpokenArabicDigits",
}


class SeriesClassification(ClassificationTask):
    """Series to classes.

    The official parts are joined and split 70/15/15 by class. Channels are standardised with
    statistics of the training part's observations. What the network sees at a grid point is the
    time since the last observation, which channels were observed, and their values, missing ones
    interpolated. A batch is (inputs (B, T, 1 + 2C), observed (B, T), last index (B,), labels (B,)).

    Args:
        dataset: one of :data:`DATASETS`.
        hidden: width of the ODE-RNN's state.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        stride: take every so many grid points of each series, the first among them; 1: all.
        train_samples: train on only so many series, every class in proportion; None: all.

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
        stride: int = 1,
        train_samples: int | None = None,
    ) -> None:
        if dataset not in DATASETS:
            raise ValueError(choices("dataset", dataset, DATASETS))
        super().__init__(dataset, hidden, batch_size, eval_batch_size)
        require_positive(stride=stride, train_samples=train_samples)
        self.stride, self.train_samples = stride, train_samples
        facts = FACTS[DATASETS[dataset]]
        self.inputs = 1 + 2 * facts.channels
        self.classes = facts.classes

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Read and prepare the data; the split is the same for every seed."""
        series = thinned(read_uea(DATASETS[self.name], root), self.stride)
        everything, valid, test = stratified_thirds(series.labels, self.name)
        train = stratified_part(everything, series.labels, self.train_samples, self.name)
        self.provenance = series.provenance
        if len(train) < len(everything):
            self.provenance += f"; only {len(train)} of {len(everything)} training series"
        inputs, observed = network_inputs(series, train)

        def part(indices: Indices) -> Batch:
            return (
                torch.as_tensor(inputs[indices], device=device, dtype=dtype),
                torch.as_tensor(observed[indices], device=device),
                torch.as_tensor(series.lengths[indices] - 1, device=device),
                torch.as_tensor(series.labels[indices], device=device),
            )

        return Splits(part(train), part(valid), part(test))

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The ODE-RNN, with any family between the observations."""
        record = find_family(family)
        if record.adds_nothing and not record.extra:
            return ODERNN(self.inputs, self.hidden, self.classes, solver=solver)
        return FamilyRNN(family, self.inputs, self.hidden, self.classes, solver=solver)

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Logits of shape (B, classes)."""
        logits: Tensor = model(*batch[:-1])
        return logits


def thinned(series: TimeSeries, stride: int) -> TimeSeries:
    """Every so many grid points of each series, which the provenance says.

    Args:
        series: the data as read.
        stride: 1 leaves them as they are.
    """
    if stride == 1:
        return series
    return replace(
        series,
        values=series.values[:, ::stride],
        lengths=-(-series.lengths // stride),
        provenance=f"{series.provenance}; one grid point of {stride}",
    )


def network_inputs(
    series: TimeSeries, train: Indices
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """What the network sees of every series, and where anything was observed.

    Args:
        series: the data as read.
        train: samples whose statistics standardise all others.

    Returns:
        Inputs of shape (N, T, 1 + 2C), float64: time since the last observation in grid points (0
        at the first), a flag for each channel that was observed, and the channels. And a mask of
        shape (N, T).
    """
    flags = ~np.isnan(series.values)
    mean = np.nanmean(series.values[train], axis=(0, 1))
    deviation = np.nanstd(series.values[train], axis=(0, 1))
    values = fill((series.values - mean) / (deviation + 1e-5))
    observed = np.asarray(flags.any(axis=2))
    grid = np.arange(observed.shape[1])
    # Index of the last observation before each grid point; the first point has none.
    latest = np.maximum.accumulate(np.where(observed, grid, 0), axis=1)
    before = np.concatenate([np.zeros_like(latest[:, :1]), latest[:, :-1]], axis=1)
    since = (grid - before)[..., None].astype(np.float64)
    return np.concatenate([since, flags.astype(np.float64), values], axis=2), observed
