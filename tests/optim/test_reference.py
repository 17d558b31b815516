"""The reference optimizer is itself checked, against autograd and torch's Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.reference import ReferenceOptimizer, factors, layers, nodes


class Constant(nn.Module):
    """One Linear layer whose input and output cotangent do not change in time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("z", torch.tensor([[0.3, -1.2]]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(self.z.expand(len(x), -1))


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (0.5, 2.5), (1.0, -0.5)])
def test_block_is_exact_where_kronecker_factoring_is(t_span: tuple[float, float]) -> None:
    torch.manual_seed(0)
    field = Constant().double()
    x0 = torch.zeros(1, 3, dtype=torch.float64)

    def loss(x1: Tensor) -> Tensor:
        return (x1 * torch.tensor([1.0, -2.0, 0.5])).sum(1).mean()

    ((a, b),) = factors(field, x0, t_span, loss, steps=4).values()
    loss(nodes(field, x0, t_span, 4)[-1]).backward()
    gradient = torch.cat([field.layer.weight.grad, field.layer.bias.grad[:, None]], 1)
    # One sample, R = 1: the curvature block is the outer product of its gradient.
    block = torch.outer(gradient.reshape(-1), gradient.reshape(-1))
    torch.testing.assert_close(torch.kron(b, a), block, rtol=1e-10, atol=1e-12)


def test_factors_converge_and_do_not_depend_on_batch_repeats() -> None:
    torch.manual_seed(1)
    field = _Mlp()
    x0 = torch.randn(4, 3, dtype=torch.float64)

    def loss(x1: Tensor) -> Tensor:
        return x1.square().sum(1).mean()

    fine = factors(field, x0, (0.2, 1.4), loss, steps=80)
    coarse = factors(field, x0, (0.2, 1.4), loss, steps=40)
    twice = factors(field, torch.cat([x0, x0]), (0.2, 1.4), loss, steps=80)
    assert fine.keys() == {"first", "last"}
    for name, pair in fine.items():
        torch.testing.assert_close(coarse[name], pair, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(twice[name], pair, rtol=1e-10, atol=1e-12)
    assert fine["first"][0].shape == (4, 4)  # bias row last: E[1 · 1] = 1
    assert fine["last"][0].shape == (5, 5)  # no bias
    assert fine["first"][0][-1, -1] == pytest.approx(1.0)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.last = nn.Linear(5, 3, bias=False)
        self.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))) * (1 + t)


def _train(layer: nn.Linear, step, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    for i in range(count):
        for p in layer.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        step(i)
    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)


def test_adam_rule_in_the_standard_basis_is_adam() -> None:
    torch.manual_seed(3)
    ours, theirs = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    theirs.load_state_dict(ours.state_dict())
    optimizer = ReferenceOptimizer({"": ours}, 0.1, rule="adam")
    adam = torch.optim.Adam(theirs.parameters(), 0.1, betas=(0.9, 0.95), eps=1e-8)
    diagonal = (torch.arange(1.0, 5.0).diag().double(), torch.arange(1.0, 3.0).diag().double())
    got = _train(ours, lambda i: optimizer.step(8, {"": diagonal}), 7)
    want = _train(theirs, lambda i: adam.step(), 7)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_the_order_of_eigenvalues_does_not_matter() -> None:
    torch.manual_seed(4)
    start = nn.Linear(3, 2).double()
    ends = []
    for flip in (1.0, -1.0):  # -B has B's eigenvectors in reverse order; +c keeps it positive
        layer = nn.Linear(3, 2).double()
        layer.load_state_dict(start.state_dict())
        optimizer = ReferenceOptimizer({"": layer}, 0.1, momentum=0.9, weight_decay=0.1)
        # Eigenvalues enter M, so only the step after forgetting them agrees.
        optimizer.alpha = 0.0
        b = torch.tensor([[2.0, 0.4], [0.4, 1.0]]).double()
        b = b if flip > 0 else 4 * torch.eye(2).double() - b
        pairs = [(torch.eye(4).double(), b), (2 * torch.eye(4).double(), b)]
        ends.append(_train(layer, lambda i: optimizer.step(8, {"": pairs[i % 2]}), 5))  # noqa: B023
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_paper_rule_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    layer.weight.data.fill_(3.0)
    optimizer = ReferenceOptimizer(
        {"": layer}, 0.1, momentum=0.5, weight_decay=0.01, damping=0.2, alpha=0.75
    )
    pair = (torch.tensor([[2.0]]).double(), torch.tensor([[5.0]]).double())
    layer.weight.grad = torch.tensor([[0.4]], dtype=torch.float64)
    optimizer.step(10, {"": pair})
    second = 0.75 * 10 + 0.25 * 10 * 0.16
    buffer = 0.4 / (second + 0.2)
    weight = 3.0 - 0.1 * (buffer + 0.01 * 3.0)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-12)
    layer.weight.grad = torch.tensor([[-0.2]], dtype=torch.float64)
    optimizer.step(10)
    second = 0.75 * second + 0.25 * 10 * 0.04
    buffer = 0.5 * buffer - 0.2 / (second + 0.2)
    weight -= 0.1 * (buffer + 0.01 * weight)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-12)


def test_layers_are_named_by_module() -> None:
    assert list(layers(nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)))) == ["0", "2"]
