"""What stands around a block: layers in place, gradients that overflow, a default device."""

import pytest
import torch
from torch import nn

from snopt import ODEBlock
from snopt.ode.gradients import GRADIENTS


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, t, x):
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_layer_in_place_right_behind_a_block(gradient):
    torch.manual_seed(0)
    block = ODEBlock(Field().double(), gradient=gradient)
    x = torch.randn(4, 3, dtype=torch.float64)
    found = []
    for inplace in (False, True):
        block.zero_grad()
        nn.functional.relu(block(x), inplace=inplace).square().sum().backward()
        found.append(block.field.linear.weight.grad.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_overflow_above_the_block_is_not_a_failed_solve(gradient):
    """GradScaler looks for such gradients and leaves the step out; it must get to see them."""
    block = ODEBlock(Field(), gradient=gradient)
    x = torch.randn(4, 3, requires_grad=True)
    (block(x).sum() * torch.inf).backward()
    assert not block.field.linear.weight.grad.isfinite().all()
    assert not x.grad.isfinite().all()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_times_do_not_follow_the_default_device(gradient, method):
    """It may be one without float64, as Apple's GPUs, or here without numbers."""
    options = {"steps": 2} if method == "rk4" else {"step_t": [0.25]}
    block = ODEBlock(Field(), method=method, gradient=gradient, options=options)
    x = torch.randn(4, 3)
    found = []
    for device in ("cpu", "meta"):
        block.zero_grad()
        with torch.device(device):
            (block(x).sum() + block(x, [0.0, 0.5, 1.0]).sum()).backward()
        found.append(block.field.linear.weight.grad.clone())
    assert torch.equal(*found)
