"""Regression on the rows of a table by an MLP: a task without an ODE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from tasks.classification import require_positive
from tasks.data.diabetes import FEATURES, read_diabetes
from tasks.dynamics import RegressionTask
from tasks.models.family_nets import Mlp
from tasks.task import Batch, Splits


class Diabetes(RegressionTask):
    """How far diabetes goes in a year, from ten measurements of a patient.

    A batch is (features (B, 10), targets (B, 1)), both standardised with training statistics.

    Args:
        hidden: width of the hidden layers.
        layers: hidden layers.
        batch_size: patients of a training step.
        eval_batch_size: patients of an evaluation step.

    Raises:
        ValueError: a number below 1.
    """

    metric = "mae"
    terminal_time = False  # there is no ODE

    def __init__(
        self, *, hidden: int, layers: int, batch_size: int, eval_batch_size: int = 1000
    ) -> None:
        require_positive(hidden=hidden, layers=layers)
        super().__init__("diabetes", batch_size, eval_batch_size)
        self.hidden, self.layers = hidden, layers
        self._unit = 1.0

    @override
    def load(self, root: Path, seed: int, device: torch.device, dtype: torch.dtype) -> Splits:
        """Read the table; the split is the same for every seed."""
        table = read_diabetes()
        self._unit = table.unit

        def part(arrays: tuple[Any, Any]) -> Batch:
            return tuple(torch.as_tensor(a, device=device, dtype=dtype) for a in arrays)

        return Splits(part(table.train), part(table.valid), part(table.test))

    @override
    def build_model(self, family: Mapping[str, Any], solver: Mapping[str, Any]) -> nn.Module:
        """The MLP.

        Raises:
            ValueError: a family of Neural ODEs.
        """
        if family.get("name") != "mlp":
            raise ValueError(
                f"name={family.get('name')}: task diabetes is trained with model=mlp only. It has "
                "no ODE."
            )
        return Mlp([FEATURES, *[self.hidden] * self.layers, 1], nn.Tanh)

    @override
    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared error, and the absolute error in units of the disease's score, 25 to 346."""
        error = (outputs - batch[-1]).squeeze(1)
        return {"loss": error.square(), "mae": self._unit * error.abs()}
