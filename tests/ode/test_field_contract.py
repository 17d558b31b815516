"""What a field must return and a state must be: refused by name, whichever evaluation it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock
from tests.support import problems
from tests.support.problems import GRADIENTS


class Ragged(nn.Module):
    """A field from a function, with one parameter."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, t: Tensor, x: Any) -> Any:
        return self.function(self.w, x)


SOLVERS: dict[str, dict[str, Any]] = {
    "dopri5": {},
    "rk4": {"method": "rk4", "options": {"step_size": 0.25}},
    "steps": {"method": "rk4", "options": {"steps": 2}},
}

WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "a dimension less": (lambda w, x: w * x[:, 0], r"shape \(4,\), expected \(4, 1\)"),
    "one row": (lambda w, x: w * x[:1], r"shape \(1, 1\), expected \(4, 1\)"),
    "transposed": (lambda w, x: w * x.mT, r"shape \(1, 4\), expected \(4, 1\)"),
    "a number": (lambda w, x: (w * x).sum(), r"shape \(\), expected \(4, 1\)"),
    "double": (lambda w, x: (w * x).double(), r"float64, expected torch.float32"),
    "half": (lambda w, x: (w * x).half(), r"float16, expected torch.float32"),
    "int": (lambda w, x: (w * x).int(), r"int32, expected torch.float32"),
    "None": (lambda w, x: None, r"None \(does its forward end with a return\?\)"),
    "float": (lambda w, x: 1.0, r"returned a float, expected a tensor of shape \(4, 1\)"),
    "tuple": (lambda w, x: (w * x,), r"a tuple of 1, expected a tensor"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_slopes_are_named(wrong: str, solver: str, training: bool) -> None:
    function, message = WRONG[wrong]
    for kind in GRADIENTS:
        block = ODEBlock(Ragged(function), gradient=kind, **SOLVERS[solver])
        with (
            torch.set_grad_enabled(training),
            pytest.raises((TypeError, ValueError), match=f"field Ragged.*{message}"),
        ):
            block(torch.randn(4, 1))


WRONG_PARTS: dict[str, tuple[Callable[..., Any], str]] = {
    "swapped": (lambda w, x: (w * x[1], x[0]), r"\(4, 3\) for part 0, expected \(4, 2\)"),
    "transposed": (lambda w, x: (w * x[0].mT, x[1]), r"\(2, 4\) for part 0"),
    "one too few": (lambda w, x: (w * x[0],), r"1 parts for a state of 2"),
    "one too many": (lambda w, x: (w * x[0], x[1], x[1]), r"3 parts for a state of 2"),
    "a tensor": (lambda w, x: w * x[0], r"one tensor of shape \(4, 2\), expected a tuple of 2"),
    "flat": (lambda w, x: w * torch.cat(x, 1), r"one tensor of shape \(4, 5\)"),
    "None within": (lambda w, x: (w * x[0], None), r"None.*expected a tensor of .* for part 1"),
    "dict": (lambda w, x: {"a": x[0], "b": x[1]}, r"a dict, expected a tuple of 2"),
    "double": (lambda w, x: (w * x[0], x[1].double()), r"float64 for part 1"),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("wrong", WRONG_PARTS)
def test_wrong_slopes_of_several_parts_are_named(wrong: str, solver: str) -> None:
    function, message = WRONG_PARTS[wrong]
    for kind in GRADIENTS:
        block = ODEBlock(Ragged(function), gradient=kind, **SOLVERS[solver])
        with pytest.raises((TypeError, ValueError), match=f"field Ragged.*{message}"):
            block((torch.randn(4, 2), torch.randn(4, 3)))


IN_PLACE: dict[str, Callable[..., Any]] = {
    "a layer": lambda w, x: w * nn.functional.relu(x, inplace=True),
    "a column": lambda w, x: x[:, :1].zero_() + w * x,
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("wrong", IN_PLACE)
@pytest.mark.parametrize("training", [True, False])
def test_a_state_that_the_field_changes_in_place_is_told(
    wrong: str, solver: str, training: bool
) -> None:
    """It is the solver's, and at the first evaluation the caller's own tensor."""
    change, x = IN_PLACE[wrong], torch.randn(4, 2)
    for kind in GRADIENTS:
        block = ODEBlock(Ragged(change), gradient=kind, **SOLVERS[solver])
        pair = ODEBlock(
            Ragged(lambda w, x: (change(w, x[0]), x[1])), gradient=kind, **SOLVERS[solver]
        )
        with torch.set_grad_enabled(training):
            for call in (lambda block=block: block(x), lambda pair=pair: pair((x, x))):
                with pytest.raises(ValueError, match="field Ragged changed its state in place"):
                    call()
    for kind in GRADIENTS:
        copied = Ragged(lambda w, x: change(w, x.clone()))
        ODEBlock(copied, gradient=kind, **SOLVERS[solver])(x).sum().backward()
    with torch.inference_mode():
        ODEBlock(Ragged(lambda w, x: w * x), **SOLVERS[solver])(torch.randn(4, 2))


def test_slopes_on_the_way_back_are_those_of_the_call() -> None:
    for kind in GRADIENTS[:3]:
        field, x = Ragged(lambda w, x: w * x), torch.ones(4, 1)
        end = ODEBlock(field, gradient=kind, rtol=1e-5, atol=1e-5)(x)
        field.function = lambda w, x: w * x[:1]
        end.sum().backward()
        (w,) = field.parameters()
        torch.testing.assert_close(w.grad, 4 * w.detach().exp(), rtol=1e-3, atol=1e-4)


class Drawn(nn.Module):
    """A field whose weights are drawn for every solve, and known to a function alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.eye(2))
        self.spread = nn.Parameter(torch.full((2, 2), -2.0))

    def draw(self) -> None:
        w = self.mean + self.spread.exp() * torch.tensor([[1.0, -1.0], [0.5, 2.0]])
        self.slope = lambda x: torch.tanh(x @ w)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        slope: Tensor = self.slope(x)
        return slope


@pytest.mark.parametrize("kind", GRADIENTS)
def test_weights_that_a_closure_draws_are_told(kind: str) -> None:
    """Their graph goes back to parameters of the field, so that no tensor is a stranger."""
    grads = []
    for gradient in (kind, "direct"):
        field = Drawn()
        field.draw()
        block = ODEBlock(field, method="rk4", options={"steps": 40}, gradient=gradient)
        loss = block(torch.ones(3, 2)).square().sum()
        if gradient in ("adjoint", "checkpoint"):
            with pytest.raises(RuntimeError, match="set these tensors on the field"):
                loss.backward()
            return
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_compiled_steps_name_wrong_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    options = {"steps": 2, "compile": True}
    block = ODEBlock(Ragged(lambda w, x: w * x[:, 0]), options=options, gradient="direct")
    with pytest.raises(ValueError, match="field Ragged"):
        block(torch.randn(4, 1))


def test_lists_are_tuples() -> None:
    """Of slopes and of states."""
    pair = torch.randn(4, 2), torch.randn(4, 3)
    listing = ODEBlock(Ragged(lambda w, x: [w * x[0], x[1]]))
    plain = ODEBlock(Ragged(lambda w, x: (w * x[0], x[1])))
    for got, want in zip(listing(list(pair)), plain(pair), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_autocast_casts_slopes_back(kind: str, dtype: torch.dtype) -> None:
    """A state of half precision, from a layer in front, is solved in float32."""
    net = nn.Linear(3, 3)
    field = Ragged(lambda w, x: torch.tanh(net(x)))
    field.net = net
    x = torch.randn(4, 3)
    exact = problems.flow(field, x, (0.0, 1.0)).detach()
    for options in ({}, {"steps": 20}):
        block = ODEBlock(field, gradient=kind, options=options, rtol=1e-2, atol=1e-2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(x.to(dtype))
            pair = ODEBlock(
                Ragged(lambda w, x: (net(x[0]), x[1] + w)), gradient=kind, options=options
            )((x.to(dtype), torch.zeros(4)))
        y.sum().backward()
        assert y.dtype == pair[0].dtype == torch.float32
        torch.testing.assert_close(y, exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("dtype", "steps"), [(torch.bfloat16, 32), (torch.float16, 100)])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_half_precision_without_autocast(kind: str, dtype: torch.dtype, steps: int) -> None:
    """As exact as the field where steps are few, otherwise refused."""
    x = torch.ones(2, 1, dtype=dtype)
    field = Ragged(lambda w, x: -w * x).to(dtype)
    for options in ({}, {"steps": 10 * steps}):
        with pytest.raises(TypeError, match=r"solve in float32, block\(x\.float\(\)\)"):
            ODEBlock(field, gradient=kind, options=options)(x)
    block = ODEBlock(field, method="rk4", gradient=kind, options={"steps": steps})
    y = block(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), torch.full((2, 1), 0.3679), rtol=0.01, atol=0)
    y.float().sum().backward()
    got, want = field.w.grad.float(), torch.tensor(-2 * 0.3679)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0)


X = torch.randn(4, 2)
STATES: dict[str, tuple[Any, str]] = {
    "int": (X.long(), r"the state must be floating point, got torch.int64: pass x.float\(\)"),
    "complex": (X.to(torch.complex64), r"view_as_real"),
    "dict": ({"x": X}, r"the state is a dict.*values"),
    "number": (1.0, r"must be a tensor or a tuple of tensors, got float"),
    "None": (None, r"got NoneType"),
    "empty": ((), r"got tuple"),
    "nested": ((X, (X, X)), r"part 1 of the state is a tuple.*flat tuple"),
    "part of integers": ((X, X.long()), r"part 1 of the state must be floating"),
    "dtypes": ((X, X.double()), r"different dtypes, torch.float32, torch.float64"),
    "devices": ((X, X.to("meta")), r"part 1 of the state is on the meta device"),
    "samples": ((X, torch.zeros(3, 2)), r"first dimensions \[4, 3\].*sample"),
}


@pytest.mark.parametrize("wrong", STATES)
def test_wrong_states_are_refused(wrong: str) -> None:
    state, message = STATES[wrong]
    for options in ({}, {"steps": 2}):
        with pytest.raises((TypeError, ValueError), match=message):
            ODEBlock(Ragged(lambda w, x: x), options=options)(state)


class Later(Ragged):
    """As its function says from t = 0.4 on, and the state itself before."""

    def forward(self, t: Tensor, x: Any) -> Any:
        return x if float(t) < 0.4 else self.function(self.w, x)


LATER: dict[str, tuple[Any, Callable[..., Any], str]] = {
    "rows": (X, lambda w, x: w * x[:1], r"shape \(1, 2\), expected \(4, 2\)"),
    "half": (X, lambda w, x: (w * x).half(), r"torch.float16, expected torch.float32"),
    "nothing": (X, lambda w, x: None, r"returned None"),
    "swapped parts": ((X, torch.ones(4, 1)), lambda w, x: (x[1], x[0]), r"for part 0"),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("wrong", LATER)
def test_slopes_that_become_wrong_later_are_refused(wrong: str, solver: str) -> None:
    """They were broadcast, or cut into other parts."""
    state, function, message = LATER[wrong]
    with pytest.raises((TypeError, ValueError), match=message):
        ODEBlock(Later(function), **SOLVERS[solver])(state)


def test_a_row_that_all_samples_share_is_allowed() -> None:
    field = Ragged(lambda w, x: (x[0] + x[1], torch.zeros_like(x[1]), torch.ones_like(x[2])))
    a, _, c = ODEBlock(field)((X, torch.ones(1, 2), torch.zeros(())))
    torch.testing.assert_close(a, X * torch.e + torch.e - 1, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(c, torch.ones(()))


def test_fields_of_one_argument_are_told_to_be_wrapped() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    for net in (Net(), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))):
        block = ODEBlock(net)
        with pytest.raises(TypeError, match=rf"{type(net).__name__}.*def forward\(self, t, x\)"):
            block(X)


def test_type_errors_of_the_field_itself_pass_through() -> None:
    def wrong(w: Tensor, x: Tensor) -> Tensor:
        raise TypeError("the user's own")

    with pytest.raises(TypeError, match="the user's own"):
        ODEBlock(Ragged(wrong))(X)
