"""Muon for whole models: matrices are orthogonalised, everything else goes to its AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tasks.common.checks import ConfigError


def muon(
    model: nn.Module | Sequence[Mapping[str, Any]],
    lr: float = 0.02,
    *,
    adamw_lr: float = 3e-3,
    **keywords: Any,
) -> torch.optim.Optimizer:
    """pytorch-optimizer's Muon with the parameters of a model sorted for it.

    Args:
        model: the model, or groups of named modules with an ``lr`` each; a parameter of an earlier
            group is skipped in later ones.
        lr: learning rate of parameters with two dimensions or more, convolutions as matrices.
        adamw_lr: learning rate of all others; in a group with its own ``lr`` the smaller of both.
        **keywords: further arguments of ``pytorch_optimizer.Muon``.

    Raises:
        ConfigError: there is no parameter to train.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    from pytorch_optimizer import Muon

    given: Sequence[Mapping[str, Any]] = (
        [{"params": model}] if isinstance(model, nn.Module) else model
    )
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for group in given:
        part: Any = group["params"]
        modules = [part] if isinstance(part, nn.Module) else list(part.values())
        own = float(group.get("lr", lr))
        rates = {True: own, False: min(own, adamw_lr) if "lr" in group else adamw_lr}
        parameters = []
        for parameter in (p for module in modules for p in module.parameters()):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                parameters.append(parameter)
        for matrices, rate in rates.items():
            chosen = [p for p in parameters if (p.ndim >= 2) is matrices]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "use_muon": matrices})
    if not groups:
        raise ConfigError("optim=muon: the model has no parameter to train.")
    optimizer: torch.optim.Optimizer = Muon(groups, lr=lr, adamw_lr=adamw_lr, **keywords)
    return optimizer
