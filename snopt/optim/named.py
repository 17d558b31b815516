"""Rules under the names that people look for."""

from __future__ import annotations

from typing import Any

from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.optimizer import Model, SNOpt


class GaussNewton(SNOpt):
    """Gauss-Newton for any ``nn.Module``: least-squares steps from the Jacobian of all outputs.

    Short for ``SNOpt(model, lr=1.0, rule="gauss_newton", rows="outputs", momentum=0.0,
    damping=LevenbergMarquardt(0.01, decay=0.3, every=1, floor=1e-12))``. A step is taken back if
    the loss on the same data has risen after it. With mini-batches this needs ``step(closure)``;
    without a closure, the damping stays as it is.

    Args:
        model: as for :class:`SNOpt`; no ODE is needed.
        lr: learning rate, >= 0; 1 is the whole Gauss-Newton step.
        **settings: of :class:`SNOpt` and of :class:`~snopt.optim.rules.GaussNewton`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import snopt
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-3, 3, 60).unsqueeze(1)
        >>> y = torch.sin(2 * x)
        >>> model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
        >>> optimizer = snopt.GaussNewton(model)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     outputs = model(x)
        ...     loss = nn.functional.mse_loss(outputs, y)
        ...     optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> loss.item() < 1e-4
        True
    """

    def __init__(self, model: Model, lr: float = 1.0, **settings: Any) -> None:
        own: dict[str, Any] = {"rule": "gauss_newton", "rows": "outputs", "momentum": 0.0}
        own["damping"] = LevenbergMarquardt(0.01, decay=0.3, every=1, floor=1e-12)
        super().__init__(model, lr, **{**own, **settings})


class KFAC(SNOpt):
    """K-FAC for any ``nn.Module``: short for ``SNOpt(model, rule="kfac")``.

    Linear layers and convolutions are preconditioned; other parameters get SGD with momentum.

    Args:
        model: as for :class:`SNOpt`; no ODE is needed.
        lr: learning rate, >= 0.
        **settings: of :class:`SNOpt` and of :class:`~snopt.optim.rules.Kfac`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import snopt
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(64, 5), torch.randint(3, (64,))
        >>> model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 3))
        >>> optimizer = snopt.KFAC(model, refresh_every=10)
        >>> first = nn.functional.cross_entropy(model(x), y).item()
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> loss.item() < first
        True
    """

    def __init__(self, model: Model, lr: float = 0.01, **settings: Any) -> None:
        super().__init__(model, lr, **{"rule": "kfac", **settings})
