"""What is passed to a block and cannot be meant: said in one sentence, at the earliest moment."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snopt import ODEBlock, SolverError
from snopt.ode.gradients import GRADIENTS
from tests.support import problems

X = torch.randn(4, 2, dtype=torch.float64)


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize(
    "value",
    [None, "1e-3", "tight", True, [1e-3], (1e-3, 1e-3), torch.ones(2), 1j, -1.0, np.nan, np.inf],
    ids=repr,
)
def test_what_is_no_tolerance(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}=[^;]*; expected (one|a finite)"):
        ODEBlock(problems.field(), **{name: value})


@pytest.mark.parametrize("value", [1e-4, 0, np.float32(1e-4), torch.tensor(1e-4)], ids=repr)
def test_numbers_of_any_kind_are_tolerances(value: Any) -> None:
    assert type(ODEBlock(problems.field(), rtol=value).solver.rtol) is float


def test_no_error_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="rtol=0 and atol=0: no step is short enough"):
        ODEBlock(problems.field(), rtol=0, atol=0)
    ODEBlock(problems.field(), rtol=0, atol=0, method="rk4")
    block = ODEBlock(problems.field(), rtol=1e-200, atol=1e-200)
    with pytest.raises(SolverError, match=r"divided by atol=1e-200"):
        block(problems.data()[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("rtol", 1e-9), ("atol", 1e-9), ("steps", 50), ("max_steps", 9), ("method", "rk4")],
)
def test_settings_that_would_have_no_effect_any_more(name: str, value: Any) -> None:
    block = ODEBlock(problems.field())
    old, x = getattr(block.solver, name), problems.data()[0]
    with pytest.raises(AttributeError, match=rf"^block.{name} = .*replace\(block.solver, {name}="):
        setattr(block, name, value)
    assert getattr(block, name) == old
    block.solver = dataclasses.replace(block.solver, **{name: value})
    assert getattr(block, name) == value
    expected = block(x)
    assert torch.equal(copy.deepcopy(block)(x), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 3}, r"^steps is an option: write options=\{'steps': 3\}$"),
        ({"warm_start": True}, r"write options=\{'warm_start': True\}$"),
        ({"step_size": 0.1, "method": "rk4"}, r"write options=\{'step_size': 0.1\}$"),
        ({"rtoll": 1e-3}, r"^ODEBlock has no argument 'rtoll'; did you mean rtol\? Arguments: "),
        ({"step": 3}, r"no argument 'step'; did you mean steps\? .* has steps, max_steps, "),
        ({"solver": "rk4"}, r"no argument 'solver'\. Arguments: field, t_span, method, rtol"),
    ],
    ids=str,
)
def test_arguments_that_a_block_does_not_have(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ODEBlock(problems.field(), **given)


def test_all_arguments_are_listed() -> None:
    names = [*inspect.signature(ODEBlock).parameters][:-1]
    with pytest.raises(TypeError, match=f"Arguments: {', '.join(names)};"):
        ODEBlock(problems.field(), nothing=0)


@pytest.mark.parametrize(
    "options", [["steps"], "steps", 4, [("steps", 4)], {"steps"}, False, ()], ids=repr
)
def test_options_that_are_no_mapping(options: Any) -> None:
    with pytest.raises(TypeError, match=r"options=.*expected a dict of names.*'steps': 8"):
        ODEBlock(problems.field(), options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({3: 4}, "3: not known"),
        ({3: 4, "a": 1}, "3, a: not known"),
        ({"warm_start": "no"}, "'warm_start': 'no'.*True or False"),
        ({"compile": "no", "steps": 2}, "'compile': 'no'.*True or False"),
    ],
)
def test_options_of_the_wrong_kind(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ODEBlock(problems.field(), options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_size": 0}, "'step_size': 0.*number > 0"),
        ({"step_size": -0.1}, "'step_size': -0.1.*number > 0"),
        ({"step_size": "a"}, "'step_size': 'a'.*number > 0"),
        ({"step_size": True}, "'step_size': True.*number > 0"),
        ({"step_size": float("nan")}, "'step_size': nan.*number > 0"),
        ({"grid_constructor": 3}, "'grid_constructor': 3.*a function"),
        ({"grid_constructor": lambda f, y, t: t, "step_size": 0.1}, "both choose the steps"),
        ({"interp": "spline"}, "'interp': 'spline'.*linear or cubic"),
        ({"first_step": -1.0}, "'first_step': -1.0.*number > 0"),
        ({"max_step": 0.0}, "'max_step': 0.0.*number > 0"),
        ({"min_step": -1}, "'min_step': -1.*number >= 0"),
    ],
)
def test_values_of_torchdiffeqs_options(options: dict[str, Any], words: str) -> None:
    fixed = {"step_size", "grid_constructor", "interp"} & options.keys()
    with pytest.raises(ValueError, match=words):
        ODEBlock(problems.field(), method="rk4" if fixed else "dopri5", options=options)


@pytest.mark.parametrize("method", [None, 5, ["rk4"], "RK4"], ids=repr)
def test_what_is_no_method(method: Any) -> None:
    with pytest.raises(ValueError, match=r"choose one of.*dopri5"):
        ODEBlock(problems.field(), method=method)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ("01", r"'01' is a str; expected start and end time, e\.g\. \(0\.0, 1\.0\)"),
        (b"01", "is a bytes"),
        ({0.0, 1.0}, "is a set"),
        ({0.0: 1, 1.0: 2}, "is a dict"),
        (None, r"None; expected start and end time, e\.g\. \(0\.0, 1\.0\)"),
        (2.0, r"e\.g\. \(0\.0, 2\.0\)"),
        (torch.tensor(2.0), r"e\.g\. \(0\.0, 2\.0\)"),
        (("0", "1"), "expected two numbers"),
        ((False, True), "expected two numbers"),
        ((0.0, None), "expected two numbers"),
    ],
)
def test_what_is_no_span(span: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ODEBlock(problems.field(), span)


@pytest.mark.parametrize("t", ["01", ["0", "1"], [0.0, None], {"t": 1}], ids=repr)
def test_times_that_are_none(t: Any) -> None:
    with pytest.raises(TypeError, match=r"e\.g\. \[0\.0, 1\.0\], got a") as caught:
        ODEBlock(problems.field())(problems.data()[0], t)
    assert "new()" not in str(caught.value)


def no_plain_states() -> dict[str, tuple[Any, str]]:
    return {
        "sparse": (X.to_sparse(), r"layout torch\.sparse_coo.*x\.to_dense\(\)"),
        "part": ((X, X.to_sparse()), r"part 1 of the state is of layout.*to_dense"),
        "meta": (X.to("meta"), r"meta device, which holds no numbers"),
        "parts": ((X.to("meta"), X.to("meta")), r"part 0 of the state is on the meta device"),
        "ragged": (
            torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),
            r"nested tensor.*to_padded_tensor",
        ),
    }


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("state", ["sparse", "part", "meta", "parts", "ragged"])
def test_states_without_a_number_at_every_place(state: str, kind: str) -> None:
    given, words = no_plain_states()[state]
    block = ODEBlock(nn.Identity(), gradient=kind)
    with pytest.raises(TypeError, match=words):
        block(given)


def test_a_field_on_the_meta_device() -> None:
    field = problems.field().to("meta")
    with pytest.raises(ValueError, match=r"parameters on the meta device.*to_empty"):
        ODEBlock(field)(problems.data()[0])


# -- fields written for another call --------------------------------------------------------------


def field(forward: Callable[..., Any]) -> nn.Module:
    return type("Mine", (nn.Module,), {"forward": forward})()


NAMED: dict[str, Callable[..., Any]] = {
    "x": lambda self, x, t: torch.tanh(x) * t,
    "z0": lambda self, z0, t0: -z0,
    "state": lambda self, state, time: -state,
    "default": lambda self, h, t=None: -h,
}


@pytest.mark.parametrize("name", NAMED)
def test_arguments_named_the_other_way_round_are_refused_at_once(name: str) -> None:
    """tanh(x) * t has the state's shape either way: nothing else would show it."""
    with pytest.raises(TypeError, match=r"state first.*field\(t, x\), time first: write `def"):
        ODEBlock(field(NAMED[name]))


def test_a_hook_may_turn_arguments_round() -> None:
    turned = field(lambda self, x, t: -x * t)
    turned.register_forward_pre_hook(lambda module, args: args[::-1])
    straight = field(lambda self, t, x: -x * t)
    assert torch.equal(ODEBlock(turned)(X), ODEBlock(straight)(X))


UNNAMED: dict[str, tuple[Callable[..., Any], bool]] = {
    "a layer": (lambda self, a, b: nn.functional.linear(a, torch.eye(2).to(a)), False),
    "only the state": (lambda self, a, b: -a, False),
    "concatenated": (
        lambda self, a, b: torch.cat([a[:, :1], b.expand(len(a), 1)], 1),
        False,
    ),
    "parts": (lambda self, a, b: (a[1], -a[0]), True),
    "any number": (lambda self, *args: -args[0], False),
}


@pytest.mark.parametrize("solver", ["dopri5", "steps"])
@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("name", UNNAMED)
def test_swapped_arguments_are_seen_at_the_first_evaluation(
    name: str, kind: str, solver: str
) -> None:
    forward, parts = UNNAMED[name]
    how: dict[str, Any] = {} if solver == "dopri5" else {"method": "rk4", "options": {"steps": 2}}
    block = ODEBlock(field(forward), gradient=kind, **how)
    with pytest.raises(TypeError, match=r"Mine.*state first.*field\(t, x\), time first"):
        block((X, X) if parts else X)


def test_swapped_arguments_behind_a_wrapper() -> None:
    wrapped = nn.DataParallel(field(lambda self, a, b: -a))
    with pytest.raises(TypeError, match=r"DataParallel works as field\(x, t\), state first"):
        ODEBlock(wrapped)(X)


def test_errors_of_fields_in_the_right_order_stay_theirs() -> None:
    """Called the other way round this one would work."""
    wrong = field(lambda self, t, x: -t)
    with pytest.raises(ValueError, match=r"slope of shape \(\), expected \(4, 2\)"):
        ODEBlock(wrong)(X)

    def broken(self: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        ODEBlock(field(broken))(X)
    (note,) = caught.value.__notes__
    assert "first evaluation of field Mine, called as field(t, x)" in note
    assert "(4, 2) of torch.float64" in note


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x: -x, r"forward\(x\).*self\.net\(x\)"),
        (lambda self: 1, r"forward\(\)"),
        (lambda self, t, x, c: -x, r"forward\(t, x, c\).*self\.net\(\.\.\.\).*other arguments"),
        (lambda self, t, x, *, c: -x, r"forward\(t, x, \*, c\).*other arguments"),
        (lambda self, *, t, x: -x, r"forward\(\*, t, x\).*field\(t, x\)"),
    ],
)
def test_another_number_of_arguments(forward: Callable[..., Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ODEBlock(field(forward))(X)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_field_that_returns_nothing(kind: str) -> None:
    silent = ODEBlock(field(lambda self, t, x: None), gradient=kind)
    for state in (X, (X, X)):
        with pytest.raises(TypeError, match=r"Mine returned None.*end with a return"):
            silent(state)
