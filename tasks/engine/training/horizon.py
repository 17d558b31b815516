"""The integration time of a run: whether it moves, and by which rule."""

from __future__ import annotations

import torch
from torch import nn

import snopt
from snopt.ode.block import blocks
from tasks.common.checks import ConfigError
from tasks.engine.config.settings import HorizonSettings
from tasks.engine.optimizers.build import call
from tasks.task import Task


def check_horizon(settings: HorizonSettings, task: Task) -> None:
    """Try the settings on something tiny, before any data are touched.

    Raises:
        ConfigError: the task has no terminal time, or a value is refused.
    """
    tiny = snopt.ODEBlock(nn.Bilinear(1, 1, 1), (0.0, 1.0))  # called as f(t, x)
    _watch(settings, tiny, torch.optim.SGD(tiny.parameters(), 0.0))
    if settings.asked_for and not task.terminal_time:
        raise ConfigError(
            f"horizon.rule={settings.rule}: task {task.name} reads the state at times that come "
            "with its data, so there is no terminal time to choose. Use horizon=fixed."
        )


def build_horizon(
    settings: HorizonSettings, model: nn.Module, optimizer: torch.optim.Optimizer
) -> snopt.Horizon | None:
    """Set the terminal time of the model's block, and trace or optimize it.

    Args:
        settings: the rule and its numbers.
        model: a model with one ODE block.
        optimizer: the optimizer of its parameters.

    Returns:
        What moves T, or, with ``rule="fixed"``, only traces its derivatives; ``None`` where
        nothing was asked for.

    Raises:
        ConfigError: the model has no ODE block, or several; a value is refused.
    """
    if not settings.asked_for:
        return None
    found = blocks(model)
    if len(found) != 1:
        raise ConfigError(
            f"horizon.rule={settings.rule}: the model has {len(found)} ODE blocks "
            f"({', '.join(found)}), and it takes one with a terminal time. Use horizon=fixed."
        )
    (block,) = found.values()
    return _watch(settings, block, optimizer)


def _watch(
    settings: HorizonSettings, block: snopt.ODEBlock, optimizer: torch.optim.Optimizer
) -> snopt.Horizon:
    if settings.T0 is not None:
        start, end = block.t_span
        block.t_span = (start, start + settings.T0 if end > start else start - settings.T0)
    keywords = {name: getattr(settings, name) for name in HorizonSettings.ARGUMENTS}
    horizon: snopt.Horizon = call("horizon", snopt.Horizon, block, optimizer, **keywords)
    return horizon
