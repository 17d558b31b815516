"""
Theorem 1 on one sample
=======================

The paper's Theorem 1 says that the first and second derivatives of the loss obey ODEs, which run
backwards together with the state. ``snopt.exact`` solves these ODEs in full, for small models. Here
the results are compared with those of autograd through an accurate solve.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torchdiffeq import odeint

from snopt.exact import low_rank, second_order

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


class Field(nn.Module):
    """A layer and a tanh: 12 parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, x):
        """The slope at x."""
        return torch.tanh(self.layer(x))


field = Field()
x0, target = torch.randn(3), torch.randn(3)
times = torch.tensor([0.0, 1.0])
names = [name for name, _ in field.named_parameters()]
theta = torch.cat([p.detach().flatten() for p in field.parameters()])


def end(theta):
    """x(1) as a function of the parameters."""
    parts = theta.split([p.numel() for p in field.parameters()])
    shaped = [v.view_as(p) for v, p in zip(parts, field.parameters(), strict=True)]
    weights = dict(zip(names, shaped, strict=True))
    solve = odeint(
        lambda t, x: functional_call(field, weights, (t, x)),
        x0, times, method="rk4", options={"step_size": 0.01},
    )  # fmt: skip
    return solve[-1]


def loss(theta):
    """Half the squared distance."""
    return 0.5 * (end(theta) - target).square().sum()


# %%
# Without the curvature of the dynamics, the theorem gives the Gauss-Newton matrix Jᵀ Φ_xx J. With
# it (``hessian=True``), it gives the Hessian.

x1 = end(theta).detach()
phi_x, phi_xx = x1 - target, torch.eye(3)
found = second_order(field, x1, (0.0, 1.0), phi_x, phi_xx)
full = second_order(field, x1, (0.0, 1.0), phi_x, phi_xx, hessian=True)
J = jacrev(end)(theta)


def distance(a, b):
    """Relative, in the Frobenius norm."""
    return f"{float((a - b).norm() / b.norm()):.1e}"


print("gradient:    ", distance(found.q_theta, jacrev(loss)(theta)))
print("Gauss-Newton:", distance(found.q_theta_theta, J.T @ phi_xx @ J))
print("Hessian:     ", distance(full.q_theta_theta, hessian(loss)(theta)))

# %%
# Proposition 2 gives the same matrix as a sum of outer products, with one adjoint solve for each.

q, p = low_rank(field, x1, (0.0, 1.0), torch.eye(3))
print("low rank:    ", distance(p.T @ p, found.q_theta_theta))

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for axis, matrix, title in zip(
    axes, (found.q_theta_theta, full.q_theta_theta), ("Gauss-Newton", "Hessian"), strict=True
):
    size = float(matrix.abs().max())
    axis.imshow(matrix, cmap="RdBu", vmin=-size, vmax=size)
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(visible=False)
figure.tight_layout()
