"""
Regression: Gauss-Newton beside Adam and L-BFGS
===============================================

There is no ODE here. A small network is fitted to 400 exact values of a smooth function. The three
optimizers start from the same weights and get the same processor time.
"""

import time

import matplotlib.pyplot as plt
import torch
from torch import nn

import snopt

torch.set_default_dtype(torch.float64)
draw = torch.Generator().manual_seed(0)
x = 4 * torch.rand(600, 3, generator=draw) - 2
y = torch.sin(x[:, :1]) * torch.cos(x[:, 1:2]) + 0.3 * x[:, 2:] ** 2
(x, new_x), (y, new_y) = x.split([400, 200]), y.split([400, 200])
SECONDS = 2.5


def make():
    """The same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
    )


def run(step, model):
    """Steps for equal seconds: (seconds, error on new points)."""
    rows, spent, due = [], 0.0, 0.0
    while spent < SECONDS:
        start = time.process_time()
        step()
        spent += time.process_time() - start
        if spent >= due:
            due = 1.05 * spent
            with torch.no_grad():
                rows.append((spent, float((model(new_x) - new_y).square().mean())))
    return rows


def gauss_newton():
    """The whole data set in every step."""
    model = make()
    optimizer = snopt.GaussNewton(model)

    def step():
        optimizer.zero_grad()
        outputs = model(x)
        loss = nn.functional.mse_loss(outputs, y)
        optimizer.curvature_pass(outputs, "gaussian", targets=y, loss=loss)
        loss.backward()
        optimizer.step()

    return run(step, model)


def torch_optimizer(make_optimizer):
    """With a closure, which L-BFGS needs."""
    model = make()
    optimizer = make_optimizer(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return run(lambda: optimizer.step(closure), model)


curves = {
    "Gauss-Newton": gauss_newton(),
    "L-BFGS, strong Wolfe": torch_optimizer(
        lambda p: torch.optim.LBFGS(p, max_iter=10, line_search_fn="strong_wolfe")
    ),
    "Adam, lr 0.01": torch_optimizer(lambda p: torch.optim.Adam(p, lr=0.01)),
    "Adam, lr 0.003": torch_optimizer(lambda p: torch.optim.Adam(p, lr=0.003)),
}

# %%
# This is one seed, with two constant rates for Adam. With noise or a larger network, the ranking
# can differ (:doc:`when not to use Gauss-Newton </without_an_ode>`).

for name, rows in curves.items():
    print(f"{name:22} {rows[-1][1]:.1e} on new points")
    plt.loglog(*zip(*rows, strict=True), label=name)
plt.xlabel("processor seconds")
plt.ylabel("mean squared error, new points")
plt.legend()
plt.tight_layout()
