"""What Gauss-Newton steps refuse, and in which words."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn import functional

from snopt import LevenbergMarquardt
from tests.support.classifiers import Classifier, backward, gauss_newton, series


def test_adjoint_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of checkpoint, direct"):
        gauss_newton(Classifier("adjoint", "dopri5"))


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="has none"):
        gauss_newton(nn.LayerNorm(3))


def test_settings_of_other_rules_are_refused() -> None:
    for settings in (
        {"basis": "gradient"},
        {"curvature": "ggn"},
        {"curvature_samples": 3},
        {"refresh_every": 5},
        {"stagger": True},
        {"damping": LevenbergMarquardt()},
    ):
        with pytest.raises(ValueError, match=rf"^{next(iter(settings))}\b.*rule"):
            gauss_newton(Classifier(), **settings)
    with pytest.raises(ValueError, match="trust=-1"):
        gauss_newton(Classifier(), trust=-1)


def test_a_loop_without_the_pass_is_told_so() -> None:
    model = Classifier()
    optimizer = gauss_newton(model)
    x, y = series()
    functional.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="curvature_pass"):
        optimizer.step()
    backward(model, optimizer, x, y)
    with pytest.raises(RuntimeError, match="one backward pass a step"):
        optimizer.curvature_pass(model(x))
