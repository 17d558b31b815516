"""How far parameters are from where a step began."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snopt.optim.update import norm


def length_since(before: Mapping[nn.Parameter, Tensor]) -> float:
    """How far parameters have come, as the Euclidean norm of all numbers together.

    Args:
        before: where they were.
    """
    return norm([p.detach() - old.to(p) for p, old in before.items()])


def written_since(before: Mapping[nn.Parameter, Tensor], length: float) -> bool:
    """Whether somebody has written to parameters after a step, with ``load_state_dict`` say.

    They are further from where it began than it led, and the loss there is no fault of the step.

    Args:
        before: the parameters before the step.
        length: of the step.
    """
    rounding = max(torch.finfo(p.dtype).eps for p in before) * norm([*before.values()])
    return length_since(before) > 1.01 * length + rounding
