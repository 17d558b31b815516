"""What tasks that assign a class have in common: cross-entropy and accuracy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tasks.task import Batch, Task


class ClassificationTask(Task):
    """A task whose outputs are logits and whose batches end with the labels.

    Args:
        name: the task's name on the command line.
        hidden: width of the network.
        batch_size: samples of a training step.
        eval_batch_size: samples of an evaluation step.

    Raises:
        ValueError: a number below 1.
    """

    metric = "accuracy"
    higher_is_better = True
    likelihood = "categorical"

    def __init__(self, name: str, hidden: int, batch_size: int, eval_batch_size: int) -> None:
        require_positive(hidden=hidden, batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.name = name
        self.hidden = hidden
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(outputs, batch[-1])

    def measure(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy in nats, and 1 where the likeliest class is the right one."""
        return {
            "loss": functional.cross_entropy(outputs, batch[-1], reduction="none"),
            "accuracy": (outputs.argmax(dim=1) == batch[-1]).to(outputs.dtype),
        }


def require_positive(**numbers: int | None) -> None:
    """Raise a :class:`ValueError` for a number that is no integer of at least 1; None passes."""
    for name, value in numbers.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ValueError(f"{name}={value!r}: must be an integer, at least 1.")
