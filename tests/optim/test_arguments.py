"""What is passed for a model, a group or a setting and is none; what coverage says; odd loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snopt import ODEBlock, SNOpt
from tests.support import problems
from tests.support.training import XS, YS, flat, train


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()


NO_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "parameters": (lambda: pair().parameters(), r"parameters \(model\.parameters\(\)\)"),
    "a list of parameters": (lambda: list(pair().parameters()), r"SNOpt\(model\)"),
    "named parameters": (lambda: pair().named_parameters(), r"named_parameters\(\)"),
    "modules": (lambda: [nn.Linear(2, 2), nn.Linear(2, 2)], r"\[\{'params': \[first, second\]"),
    "a dict of modules": (lambda: {"a": nn.Linear(2, 2)}, r"a mapping"),
    "a state_dict": (lambda: pair().state_dict(), "a state_dict"),
    "a group": (lambda: {"params": pair()}, "into a list"),
    "None": (lambda: None, "a NoneType"),
    "a number": (lambda: 0.1, "a float"),
    "a tensor": (lambda: torch.zeros(2), "a Tensor"),
    "a parameter": (lambda: nn.Parameter(torch.zeros(2)), "a Parameter"),
    "a class": (lambda: nn.Linear, "the class Linear"),
    "a function": (lambda: pair, "a function"),
    "a name": (lambda: "model", "a str"),
    "groups of parameters": (lambda: [{"params": list(pair().parameters())}], "holds a Parameter"),
    "a group of one parameter": (lambda: [{"params": torch.zeros(2)}], "holds a Tensor"),
    "a group of nothing": (lambda: [{"params": None}], "holds a NoneType"),
    "a group without modules": (lambda: [{"lr": 0.1}], "'params'"),
}


@pytest.mark.parametrize(("make", "words"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        SNOpt(make(), rule="paper")
    assert "params" in str(caught.value)


@pytest.mark.parametrize("empty", [nn.ReLU(), [], [{"params": []}], nn.Sequential()], ids=str)
def test_nothing_to_train(empty: Any) -> None:
    with pytest.raises(ValueError, match="no parameters"):
        SNOpt(empty, rule="paper")


def test_a_lazy_layer() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)).double()
    with pytest.raises(ValueError, match=r"'0\.weight'.*run one batch"):
        SNOpt(model, rule="paper")
    model(XS)
    train(model, SNOpt(model, rule="paper"), 1)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("learning_rate", "did you mean 'lr'"),
        ("moment", "did you mean 'momentum'"),
        ("weight_decy", "did you mean 'weight_decay'"),
        ("rule", "arguments of SNOpt"),
        ("refresh_every", "arguments of SNOpt"),
        ("xyz", "Settings of groups with this rule are lr, weight_decay"),
        (3, "Settings of groups with this rule are lr, weight_decay"),
    ],
)
def test_settings_that_groups_do_not_have(key: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SNOpt([{"params": pair(), key: 0.1}], rule="paper")


def test_what_schedulers_and_users_note_in_groups() -> None:
    optimizer = SNOpt([{"params": pair(), "name": "all", "initial_lr": 0.1}], rule="paper")
    torch.optim.lr_scheduler.StepLR(optimizer, 2, last_epoch=3)
    assert optimizer.param_groups[0]["name"] == "all"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"betas": ()}, r"betas=\(\); expected two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, r"betas=\(0\.9,\); expected two"),
        ({"betas": (0.9, 0.95, 0.99)}, "expected two"),
        ({"betas": 0.9}, r"betas=0\.9; expected two"),
        ({"betas": "0.9"}, r"betas='0\.9'; expected two"),
        ({"betas": ("a", "b")}, r"betas\[0\]='a'"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\]=1\.5"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\]=-0\.1"),
        ({"betas": (torch.tensor(2.0), 0.9)}, r"betas\[0\]"),
        ({"lr": "1e-3"}, r"lr='1e-3'; expected a number"),
        ({"lr": None}, "lr=None"),
        ({"lr": True}, "lr=True"),
        ({"lr": 1j}, "lr=1j"),
        ({"lr": torch.zeros(2)}, "lr=tensor"),
        ({"lr": torch.tensor(-1.0)}, "lr=tensor"),
        ({"lr": [0.1]}, "lr="),
        ({"damping": "x"}, "damping='x'"),
        ({"refresh_every": "x"}, "refresh_every='x'"),
        ({"refresh_every": float("inf")}, "refresh_every=inf"),
        ({"warmup_steps": float("nan")}, "warmup_steps=nan"),
        ({"rule": None}, "rule=None; choose one of paper"),
        ({"rule": ["adam"]}, "choose one of paper"),
        ({"normalize": "x", "rule": "adam"}, "normalize='x'"),
    ],
)
def test_settings_of_the_wrong_kind(settings: dict[str, Any], words: str) -> None:
    settings = {"rule": "adam", **settings} if "betas" in settings else settings
    with pytest.raises(ValueError, match=words):
        SNOpt(pair(), **{"rule": "paper", **settings})
    if {"betas", "lr", "damping"} & settings.keys():
        own = {k: x for k, x in settings.items() if k != "rule"}
        with pytest.raises(ValueError, match=words):
            SNOpt([{"params": pair(), **own}], rule=settings.get("rule", "paper"))


def test_settings_of_groups_that_the_rule_has_no_use_for() -> None:
    with pytest.raises(ValueError, match=r"'momentum' \(here 0\.9\).*betas"):
        SNOpt([{"params": pair(), "momentum": 0.9}], rule="adam")
    with pytest.raises(ValueError, match="no setting 'nesterov'"):
        SNOpt([{"params": pair(), "nesterov": True}], rule="paper")


def test_models_of_their_own_in_two_groups() -> None:
    """Their parameters would share names."""
    first, second = nn.Linear(5, 5).double(), nn.Linear(5, 2).double()
    optimizer = SNOpt([{"params": first}, {"params": second}], rule="paper")
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert len(set(names)) == 4
    assert len(set(optimizer.coverage().preconditioned)) == 4
    chain, plain = nn.Sequential(first, second), nn.Sequential(first, second)
    plain = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2)).double()
    plain.load_state_dict(chain.state_dict())
    assert torch.equal(train(chain, optimizer, 3), train(plain, SNOpt(plain, rule="paper"), 3))
    state = optimizer.state_dict()
    SNOpt([{"params": first}, {"params": second}], rule="paper").load_state_dict(state)


@pytest.mark.parametrize("rule", ["paper", "adam"])
def test_complex_parameters_are_as_in_torch(rule: str) -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            self.mix = nn.Linear(3, 3, dtype=torch.complex128)

        def forward(self) -> torch.Tensor:
            loss: torch.Tensor = (self.mix(self.w) - 1.0).abs().square().sum()
            return loss

    ours, theirs = Wave(), Wave()
    optimizer: Any = SNOpt(ours, 0.1, rule=rule, warmup_steps=0, **(
        {"momentum": 0.9} if rule == "paper" else {"cautious": False}
    ))  # fmt: skip
    other: Any = (
        torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
        if rule == "paper"
        else torch.optim.AdamW(theirs.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.1)
    )
    assert "complex" in optimizer.coverage().fallback["mix.weight"]
    for _ in range(4):
        for model, step in ((ours, optimizer), (theirs, other)):
            step.zero_grad()
            model().backward()
            step.step()
    torch.testing.assert_close(flat(ours), flat(theirs))


@pytest.mark.parametrize("settings", [{"rule": "paper"}, {"normalize": 0.5}])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    model = nn.ModuleDict({"table": kind(4, 3, sparse=True), "head": nn.Linear(3, 2)})
    optimizer = SNOpt(model, **settings)
    model["head"](model["table"](torch.tensor([[0, 1]]))).sum().backward()
    with pytest.raises(RuntimeError, match=r"'table\.weight' has a sparse gradient.*SparseAdam"):
        optimizer.step()
    without = SNOpt([{"params": model["head"]}], **settings)
    without.step()


# -- reasons --------------------------------------------------------------------------------------


def test_layers_whose_weight_is_made_anew_are_named() -> None:
    made: dict[str, tuple[nn.Module, str]] = {
        "spectral": (nn.utils.spectral_norm(nn.Linear(3, 2)), "spectral_norm"),
        "pruned": (prune.l1_unstructured(nn.Linear(3, 2), "weight", 0.5), "pruning"),
        "parametrized": (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), "_SpectralNorm"),
        "orthogonal": (nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)), "_Orthogonal"),
    }
    with pytest.warns(FutureWarning, match="weight_norm"):
        made["normed"] = (nn.utils.weight_norm(nn.Linear(3, 2)), "weight_g and weight_v")
    for name, (module, word) in made.items():
        model = nn.Sequential(nn.Linear(4, 3), module)
        optimizer = SNOpt(model, 0.1, rule="paper")
        coverage = optimizer.coverage()
        reasons = [why for key, why in coverage.fallback.items() if "bias" not in key]
        assert any(word in why for why in reasons), (name, coverage.fallback)
        assert not any("neither linear" in why for why in coverage.fallback.values()), name
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        for key in coverage.fallback:
            p = model.get_parameter(key)
            torch.testing.assert_close(p.detach(), before[key] - 0.1 * p.grad)


@pytest.mark.filterwarnings("ignore:rule=.* is told by ODE blocks")
def test_attention_uses_its_last_layer_without_calling_it() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.attention(x, x, x)[0])
            return out

    for basis, covered in (("curvature", False), ("gradient", True)):
        model = Attends()
        optimizer = SNOpt(model, 0.1, rule="paper", basis=basis)
        model(torch.randn(3, 5, 4)).square().mean().backward()
        optimizer.step()
        coverage = optimizer.coverage()
        assert ("attention.out_proj.weight" in coverage.preconditioned) == covered
        assert ("attention.out_proj" in optimizer.factors()) == covered
        if not covered:
            assert "without being called" in coverage.fallback["attention.out_proj.bias"]
        assert "MultiheadAttention" in coverage.fallback["attention.in_proj_weight"]


def test_parameters_without_layers_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))
            self.more = nn.ParameterList([torch.ones(2)])
            self.cell, self.norm = nn.GRU(3, 3), nn.LayerNorm(3)

    plain = SNOpt(Odd(), rule="paper").coverage().fallback
    kinds = {"gain": "Odd", "more.0": "ParameterList", "norm.bias": "LayerNorm"}
    for name, kind in {**kinds, "cell.weight_ih_l0": "GRU"}.items():
        assert plain[name] == f"{kind} is neither linear nor a convolution"


# -- loops ----------------------------------------------------------------------------------------


def blocks() -> nn.Module:
    return problems.model(
        ODEBlock(problems.field(), method="rk4", gradient="direct", options={"steps": 2})
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "paper", "momentum": 0.9, "weight_decay": 0.1},
        {"rule": "adam", "warmup_steps": 5, "basis": "gradient"},
        {"rule": "kfac", "damping": lambda step: 1.0 / (1 + step), "curvature": "fisher"},
        {"rule": "gauss_newton"},
    ],
    ids=lambda settings: settings["rule"],
)
def test_a_step_without_gradients_is_none(settings: dict[str, Any]) -> None:
    models, ends = (blocks(), blocks()), []
    for model, idle in zip(models, (False, True), strict=True):
        every = {} if settings["rule"] == "gauss_newton" else {"refresh_every": 2}
        optimizer = SNOpt(model, 0.02, **every, **{"rule": "paper", **settings})
        for _ in range(3):
            if idle:
                before = flat(model)
                optimizer.zero_grad()
                optimizer.step()
                assert optimizer.step(lambda: 3.0) == 3.0
                assert torch.equal(flat(model), before)
            optimizer.zero_grad()
            outputs = model(XS)
            optimizer.curvature_pass(outputs, "gaussian")
            ((outputs - YS).square().sum(1).mean() / 2).backward()
            optimizer.step()
            if idle and settings["rule"] != "gauss_newton":
                assert optimizer.method.steps <= 3
        ends.append(optimizer.state_dict()["preconditioner"]["steps"])
    assert torch.equal(flat(models[0]), flat(models[1]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rule", ["paper", "adam", "kfac"])
def test_a_step_twice_takes_the_same_gradients_again(rule: str) -> None:
    """As torch's optimizers: parameters without a layer move as theirs do."""
    ours, theirs = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
    settings: dict[str, Any] = {"kfac": {"kl_clip": 1e9}, "adam": {"cautious": False}}.get(rule, {})
    optimizer = SNOpt(ours, 0.1, rule=rule, warmup_steps=0, **settings)
    other: Any = torch.optim.AdamW(theirs.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.1)
    if rule != "adam":
        other = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9 if rule == "kfac" else 0)
    x = torch.randn(6, 4, dtype=torch.float64)
    for model, step in ((ours, optimizer), (theirs, other)):
        model(x).sin().sum().backward()
        step.step()
        step.step()
    torch.testing.assert_close(flat(ours), flat(theirs))
    model = blocks()
    twice = SNOpt(model, 0.02, rule=rule, refresh_every=1)
    train(model, twice, 1)
    twice.step()
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("basis", ["curvature", "gradient", "both"])
@pytest.mark.parametrize("rule", ["paper", "adam", "kfac"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_do_not_poison_the_basis(
    bad: float, rule: str, basis: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights are lost, as in torch; once they are put back the layers recover by refreshing."""
    model = blocks()
    optimizer = SNOpt(model, 0.02, rule=rule, basis=basis, refresh_every=2, carry_over=True)
    train(model, optimizer, 2)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.zero_grad()
    (problems.squares(YS)(model(XS)) * bad).backward()
    optimizer.step()
    assert not flat(model).isfinite().all()
    for _ in range(4):
        model.load_state_dict(kept)
        train(model, optimizer, 1)
    model.load_state_dict(kept)
    optimizer.state.clear()
    train(model, optimizer, 2)
    assert flat(model).isfinite().all()
    assert all(f.isfinite().all() for pair in optimizer.factors().values() for f in pair)
