"""Density estimation with continuous normalising flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasks.classification import require_positive
from tasks.common.checks import choices
from tasks.common.seeding import stream_seed
from tasks.data.tables import DIMENSIONS, READERS
from tasks.models.cnf import ACTIVATIONS, DIVERGENCES, ContinuousFlow
from tasks.task import Batch, Splits, Task, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DensityEstimation(Task):
    """A flow from data to a standard normal; the loss is the mean negative log-likelihood.

    A batch is (samples (B, D),).

    Args:
        dataset: ``checkerboard``, ``circle``, ``gas`` or ``miniboone``.
        hidden: width of the fields' hidden layers.
        layers: concat-squash layers of a field.
        activation: ``tanh`` or ``softplus``.
        blocks: fields, one after the other.
        divergence: ``rademacher``, ``gaussian`` (estimates, one draw for each solve) or ``exact``
            (one Jacobian column for each dimension).
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.
        train_fraction: use only the first such part of the training samples.

    Raises:
        ValueError: an argument is outside its range.
    """

    metric = "nll"
    higher_is_better = False
    allowed_gap = 0.05  # nats; a map of few steps is no density, however low its loss

    def __init__(
        self,
        dataset: str,
        *,
        hidden: int,
        layers: int,
        activation: str,
        batch_size: int,
        blocks: int = 1,
        divergence: str = "rademacher",
        eval_batch_size: int = 5000,
        train_fraction: float = 1.0,
    ) -> None:
        for name, value, valid in (
            ("dataset", dataset, READERS),
            ("activation", activation, ACTIVATIONS),
            ("divergence", divergence, DIVERGENCES),
        ):
            if value not in valid:
                raise ValueError(choices(name, value, valid))
        require_positive(hidden=hidden, layers=layers, blocks=blocks)
        require_positive(batch_size=batch_size, eval_batch_size=eval_batch_size)
        if not 0.0 < train_fraction <= 1.0:
            raise ValueError(f"train_fraction={train_fraction}: must be above 0 and at most 1.")
        self.name = dataset
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.train_fraction = train_fraction
        if DIMENSIONS[dataset] == 2:
            self.picture_name = "density"
            self.picture_caption = "Densities and samples at the end of training"
        self._network = {
            "dims": DIMENSIONS[dataset],
            "hidden": hidden,
            "layers": layers,
            "activation": activation,
            "blocks": blocks,
            "divergence": divergence,
        }

    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Read and split the data; what is generated depends on the seed."""
        table = READERS[self.name](root, stream_seed(seed, "data") % 2**32)
        self.provenance = table.provenance
        kept = max(1, round(self.train_fraction * len(table.train)))
        if kept < len(table.train):
            self.provenance = f"{table.provenance}; only the first {kept} training rows"

        def part(rows: Any) -> Batch:
            return (torch.as_tensor(rows, device=device, dtype=dtype),)

        return Splits(part(table.train[:kept]), part(table.valid), part(table.test))

    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The flow.

        Raises:
            ValueError: a family other than ``node``.
        """
        if family.get("name") != "node":
            raise ValueError(
                f"name={family.get('name')}: task {self.name} is trained with model=node only. A "
                "flow's state is the data and its log-density; the other families add to it."
            )
        return ContinuousFlow(**self._network, solver=solver)  # type: ignore[arg-type]  # mixed values

    def forward(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> Tensor:
        """Log-densities in nats, shape (B,)."""
        density: Tensor = model(batch[0], noise)
        return density

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean negative log-likelihood in nats."""
        return -outputs.mean()

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood in nats, under the headline metric's name too."""
        return {"loss": -outputs, "nll": -outputs}

    def picture(self, title: str, trained: Sequence[Trained]) -> Figure | None:
        """Densities and samples, in two dimensions."""
        from tasks.densities import density_figure  # training draws nothing

        return density_figure(title, trained)
