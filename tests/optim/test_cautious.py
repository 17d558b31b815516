"""Cautious steps: what would go against the step's own gradient does not move."""

import torch
from torch import nn

from snopt import SNOpt
from snopt.optim.rules.adam import cautious
from tests.support.training import flat


def grad_along(layer: nn.Linear, values: list[float]) -> None:
    """Diagonal gradients, whose eigenbasis is the unit vectors."""
    layer.weight.grad = torch.diag(torch.tensor(values, dtype=torch.float64))


def stepped(cautious: bool, layer: nn.Linear, history: list[list[float]]) -> torch.Tensor:
    """The last step of a history of gradients."""
    optimizer = SNOpt(
        layer, 0.1, warmup_steps=0, refresh_every=1, eps=1e-30, cautious=cautious, weight_decay=0
    )
    for values in history:
        before = layer.weight.detach().clone()
        grad_along(layer, values)
        optimizer.step()
    return before - layer.weight.detach()


def test_entries_that_would_go_against_the_gradient_rest_and_the_others_move_further() -> None:
    history = [
        [1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0],
        [1.0, -0.2, 3.0],
    ]  # the second's mean stays positive
    layers = [nn.Linear(3, 3, bias=False).double() for _ in range(2)]
    plain, careful = (stepped(c, x, history) for c, x in zip((False, True), layers, strict=True))
    assert plain[1, 1] > 0.01
    kept = 2 / 3  # those off the diagonal have no gradient, and do not count
    expected = torch.diag(torch.tensor([plain[0, 0], 0.0, plain[2, 2]])) / kept
    torch.testing.assert_close(careful, expected, rtol=1e-9, atol=1e-9)


def test_where_nothing_disagrees_nothing_changes() -> None:
    direction = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(cautious(direction, direction.sign() * 0.1), direction)
    assert not cautious(direction, -direction).any()


def test_what_is_kept_is_multiplied_as_precisely_as_it_is_given() -> None:
    direction = torch.ones(12, dtype=torch.float64)
    direction[7:] = -1.0
    found = cautious(direction, torch.ones_like(direction))
    expected = torch.full((7,), 12 / 7, dtype=torch.float64)
    torch.testing.assert_close(found[:7], expected, rtol=1e-15, atol=0.0)
    many = torch.ones(70_000, dtype=torch.float16)  # more than the largest number of this precision
    assert torch.equal(cautious(many, many), many)


def test_entries_without_a_gradient_do_not_lengthen_the_step_of_the_others() -> None:
    """A batch uses a few rows of an embedding; they move as far as without caution."""
    moved = []
    for careful in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(500, 4)
        optimizer = SNOpt(table, 0.1, warmup_steps=0, cautious=careful, weight_decay=0)
        before = table.weight.detach().clone()
        table(torch.tensor([3, 7])).sum().backward()
        optimizer.step()
        moved.append(before - table.weight.detach())
    assert moved[0].abs().max() > 0.09
    torch.testing.assert_close(moved[1], moved[0])


def test_signs_of_what_is_zero_up_to_rounding_do_not_count() -> None:
    grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    noise = 1e-9 * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    grad[2:] = 0.0
    direction = torch.where(grad == 0, 1.0, grad)
    found = [cautious(direction, grad + sign * noise) for sign in (0.0, 1.0, -1.0)]
    assert torch.equal(found[0][:2], direction[:2])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not cautious(torch.zeros(0, 3), torch.zeros(0, 3)).numel()


def test_parameters_without_a_layer_are_cautious_too() -> None:
    bare = nn.LayerNorm(3, bias=False).double()
    optimizer = SNOpt(bare, 0.1, warmup_steps=0)
    for values in ([1.0, 2.0, 3.0], [1.0, -0.2, 3.0]):
        before = flat(bare)
        bare.weight.grad = torch.tensor(values, dtype=torch.float64)
        optimizer.step()
    assert (before - flat(bare))[1] == 0
    assert (before - flat(bare))[[0, 2]].gt(0.1).all()


def test_a_step_never_climbs_to_first_order() -> None:
    """In any basis the move has a product with the gradient that is not negative."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    gradients = [torch.randn_like(p) for p in net.parameters()]
    for careful in (False, True):
        optimizer = SNOpt(net, 0.05, cautious=careful, warmup_steps=0)
        products = []
        for k in range(12):
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                p.grad = gradient * (-0.1 if k % 3 == 2 else 1.0)
            along, before = torch.cat([p.grad.flatten() for p in net.parameters()]), flat(net)
            optimizer.step()
            products.append(float(along @ (before - flat(net))))
        assert (min(products) > -1e-12) is careful


def test_the_fallback_of_other_rules_is_plain_adam() -> None:
    ours, theirs = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    optimizer = SNOpt(ours, 0.1, rule="paper", fallback="adam", betas=(0.9, 0.95), warmup_steps=0)
    other = torch.optim.Adam(theirs.parameters(), 0.1, betas=(0.9, 0.95))
    for _ in range(8):
        for model, step in ((ours, optimizer), (theirs, other)):
            step.zero_grad()
            model(x).sin().sum().backward()
            step.step()
    torch.testing.assert_close(flat(ours), flat(theirs))
