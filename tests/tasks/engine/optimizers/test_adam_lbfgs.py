"""Adam's steps, then those of L-BFGS, each as torch makes them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tasks.engine.optimizers.adam_lbfgs import AdamLBFGS


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).unsqueeze(1)
    return model, x, torch.sin(2 * x)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> Tensor:
    _, x, y = problem()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(count):
        optimizer.step(closure)  # type: ignore[arg-type]  # a tensor, as L-BFGS wants it
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_steps_are_those_of_torch() -> None:
    mixed, _, _ = problem()
    after = steps(mixed, AdamLBFGS(mixed.parameters(), 0.05, adam_steps=7), 10)
    model, _, _ = problem()
    steps(model, torch.optim.Adam(model.parameters(), 0.05), 7)
    lbfgs = torch.optim.LBFGS(
        model.parameters(), 1.0, max_iter=5, history_size=10, line_search_fn="strong_wolfe"
    )
    torch.testing.assert_close(after, steps(model, lbfgs, 3), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("before", [3, 7, 9])
def test_it_resumes_in_either_part(before: int) -> None:
    whole, _, _ = problem()
    wanted = steps(whole, AdamLBFGS(whole.parameters(), 0.05, adam_steps=7), 12)
    model, _, _ = problem()
    optimizer = AdamLBFGS(model.parameters(), 0.05, adam_steps=7)
    steps(model, optimizer, before)
    state = copy.deepcopy(optimizer.state_dict())
    again = AdamLBFGS(model.parameters(), 0.3, adam_steps=1)
    again.load_state_dict(state)
    assert torch.equal(steps(model, again, 12 - before), wanted)


def test_steps_below_none_are_refused() -> None:
    with pytest.raises(ValueError, match="adam_steps=-1: must be at least 0"):
        AdamLBFGS(problem()[0].parameters(), adam_steps=-1)
