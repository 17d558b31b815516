"""The families' networks: published sizes, what a prediction may see, growth at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from snopt import SNOpt
from snopt.dynamics import GHBNODE, AdamNODE, LearnedScalar
from tasks.family_images import FamilyImageClassification
from tasks.images import ImageClassification
from tasks.models.families import FAMILIES, build_system
from tasks.models.family_nets import IMAGES, FamilyConvNet, PointNet
from tasks.models.forced import ForcedLinear, ForcedNet
from tasks.models.sequences import VibrationNet, WalkerNet

#: Parameters as published or printed by the released code. No AdamNODE for points and sequences.
PUBLISHED = {
    "points": {"node": 525, "anode": 567, "sonode": 528, "hbnode": 568, "ghbnode": 568},
    "mnist": {
        "node": 85_316,
        "anode": 85_462,
        "sonode": 86_179,
        "hbnode": 85_931,
        "ghbnode": 85_235,
        "adamnode": 85_832,
    },
    "cifar10": {
        "node": 173_611,
        "anode": 172_452,
        "sonode": 171_635,
        "hbnode": 172_916,
        "ghbnode": 172_916,
        "adamnode": 173_070,
    },
    "vibration": {
        "node": 15_986,
        "anode": 16_730,
        "sonode": 16_649,
        "hbnode": 16_127,
        "ghbnode": 16_127,
    },
    "walker": {
        "node": 8_729,
        "anode": 8_819,
        "sonode": 8_757,
        "hbnode": 8_899,
        "ghbnode": 8_899,
    },
}
#: Scalars that the released code registers and counts, and that move nothing there.
UNUSED = {
    ("points", "sonode"): 1,  # gamma
    ("mnist", "hbnode"): 1,  # frozen residual
    ("mnist", "adamnode"): 3,  # gamma and two frozen residuals
    ("cifar10", "adamnode"): 1,  # gamma
    ("vibration", "hbnode"): 1,  # residual: not part of HBNODE
    ("walker", "hbnode"): 1,
}


def build(kind: str, name: str, **solver) -> nn.Module:
    family = {"name": name}
    if kind == "points":
        return PointNet(family, solver)
    if kind == "vibration":
        return VibrationNet(family, solver=solver)
    if kind == "walker":
        return WalkerNet(family, solver=solver)
    return FamilyConvNet(kind, family, solver)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, names in PUBLISHED.items() for n in names]
)
def test_parameter_counts_are_the_published_ones(kind: str, name: str) -> None:
    unused = UNUSED.get((kind, name), 0)
    assert count(build(kind, name)) == PUBLISHED[kind][name] - unused


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["points", "vibration", "walker"])
def test_every_parameter_of_every_family_learns(kind: str, name: str) -> None:
    torch.manual_seed(0)
    model = build(kind, name, method="rk4", options={"steps": 2}, gradient="direct")
    batch = {
        "points": (torch.randn(4, 2),),
        "vibration": (torch.randn(4, 64, 5), torch.ones(4, 64)),
        "walker": (torch.randn(4, 6, 17), torch.full((4, 6), 0.5)),
    }[kind]
    out = model(*batch)
    (out * torch.randn(out.shape)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("dataset", IMAGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_convolutional_networks_run(dataset: str, name: str) -> None:
    channels, side = IMAGES[dataset]
    model = FamilyConvNet(dataset, {"name": name}, {"method": "euler", "options": {"steps": 1}})
    images = torch.rand(2, channels, side, side)
    assert model(images).shape == (2, 10)
    if name == "adamnode":
        aligned = FamilyConvNet(dataset, {"name": name, "aligned": True}, {})
        _, m, v = aligned[0](images)
        assert torch.equal(v, m.square())


def test_published_scalars_and_overrides() -> None:
    def scalars(kind: str, name: str) -> dict[str, float]:
        system = next(
            m for m in build(kind, name).modules() if isinstance(m, FAMILIES[name].system)
        )
        return system.traces()

    def near(value: float) -> object:
        return pytest.approx(value, abs=5e-5)

    assert scalars("mnist", "ghbnode") == {
        "gamma": near(0.0474),
        "xi": near(2.1269),
    }
    assert scalars("cifar10", "ghbnode")["xi"] == near(1.5)
    assert scalars("points", "ghbnode")["xi"] == near(2.0)
    assert scalars("vibration", "ghbnode")["xi"] == near(0.6931)
    assert scalars("walker", "ghbnode")["xi"] == near(1.3133)
    assert scalars("cifar10", "adamnode") == {"beta1": near(0.95257), "beta2": near(0.95257)}

    family = {"name": "ghbnode", "gamma": 0.3, "xi": None, "activation": "hardtanh"}
    system = build_system(family, nn.Identity(), "cifar10")
    assert isinstance(system, GHBNODE)
    assert system.traces() == {"gamma": near(0.3), "xi": near(1.5)}
    assert system.activation(torch.tensor(9.0)) == 5.0
    assert "xi.raw" not in dict(system.named_parameters())
    adam = build_system({"name": "adamnode", "phi": "sigmoid"}, nn.Identity())
    assert isinstance(adam, AdamNODE)
    assert adam.phi is torch.sigmoid


@pytest.mark.parametrize("dataset", IMAGES)
def test_image_tasks_take_the_families_networks(dataset: str) -> None:
    task = FamilyImageClassification(dataset, hidden=64, batch_size=4)
    model = task.build_model({"name": "hbnode"}, {"method": "euler", "options": {"steps": 1}})
    assert count(model) == PUBLISHED[dataset]["hbnode"] - UNUSED.get((dataset, "hbnode"), 0)
    channels, side = IMAGES[dataset]
    pixels = torch.randint(0, 256, (3, channels, side, side), dtype=torch.uint8)
    scaled = task.standardize(pixels)
    torch.testing.assert_close(scaled, pixels / 255.0)
    assert task.forward(model, (pixels, torch.zeros(3)), torch.Generator()).shape == (3, 10)
    with pytest.raises(ValueError, match="dataset=digits"):
        FamilyImageClassification("digits", hidden=64, batch_size=4)


def test_fewer_test_images_are_the_first_and_called_a_subset() -> None:
    whole = ImageClassification("digits", hidden=8, batch_size=4)
    part = ImageClassification("digits", hidden=8, batch_size=4, test_samples=7)
    a, b = (t.load(Path(), 0, torch.device("cpu"), torch.float32) for t in (whole, part))
    assert torch.equal(b.test[0], a.test[0][:7])
    assert torch.equal(b.test[1], a.test[1][:7])
    assert torch.equal(b.train[0], a.train[0])
    assert part.provenance == f"{whole.provenance}; only the first 7 test images"
    with pytest.raises(ValueError, match="test_samples"):
        ImageClassification("digits", hidden=8, batch_size=4, test_samples=0)


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"Did you mean hbnode\?"):
        PointNet({"name": "hbnod"}, {})
    with pytest.raises(ValueError, match="activation=relu"):
        build_system({"name": "ghbnode", "activation": "relu"}, nn.Identity())
    with pytest.raises(ValueError, match="dataset=svhn"):
        FamilyConvNet("svhn", {"name": "node"}, {})
    with pytest.raises(ValueError, match="NesterovNODE has no sizes for the network 'forced'"):
        ForcedNet({"name": "nesterovnode"}, solver={})
    with pytest.raises(ValueError, match="forcing=linear"):
        ForcedLinear(1, 1, "linear")
    with pytest.raises(ValueError, match="shrink=0"):
        VibrationNet({"name": "node"}, solver={}, shrink=0.0)


# --- A8: equal information ------------------------------------------------------------------------


def seen_frames(name: str, as_published: bool) -> list[list[int]]:
    """For each prediction the frames that it depends on."""
    torch.manual_seed(0)
    model = WalkerNet(
        {"name": name},
        solver={"method": "rk4", "options": {"steps": 1}, "gradient": "direct"},
        as_published=as_published,
    ).double()
    frames = torch.randn(1, 5, 17, dtype=torch.float64, requires_grad=True)
    out = model(frames, torch.full((1, 5), 0.5, dtype=torch.float64))
    found = []
    for i in range(5):
        (grad,) = torch.autograd.grad(out[0, i].sum(), frames, retain_graph=True, allow_unused=True)
        touched = torch.zeros(5) if grad is None else grad[0].abs().sum(1)
        found.append(touched.nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_walker_predictions_see_frames_up_to_their_own(name: str) -> None:
    assert seen_frames(name, as_published=False) == [list(range(i + 1)) for i in range(5)]


@pytest.mark.parametrize("name", FAMILIES)
def test_as_published_first_order_families_see_one_frame_less(name: str) -> None:
    seen = seen_frames(name, as_published=True)
    late = name in ("node", "anode")
    expected = [list(range(i + (0 if late else 1))) for i in range(5)]
    if name == "anode":  # its initial state is made of the first frame
        expected[0] = [0]
    assert seen == expected


def test_walker_gaps_lie_on_the_right_side_of_a_frame() -> None:
    """By default gap i acts before frame i is taken in, as published after it."""
    for as_published in (False, True):
        torch.manual_seed(0)
        solver = {"method": "rk4", "options": {"steps": 4}, "gradient": "direct"}
        model = WalkerNet({"name": "hbnode"}, solver=solver, as_published=as_published).double()
        frames = torch.randn(1, 1, 17, dtype=torch.float64)
        out = [model(frames, torch.full((1, 1), gap, dtype=torch.float64)) for gap in (0.1, 3.0)]
        # One frame: by default nothing came before it, so the gap has nothing to act on.
        assert torch.equal(*out) is not as_published


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("net", [WalkerNet, VibrationNet])
def test_only_the_published_sonode_ignores_how_much_time_passes(net: type, name: str) -> None:
    """Fault D2 of the released code: it takes every gap for one unit."""
    solver = {"method": "rk4", "options": {"steps": 2}, "gradient": "direct"}
    channels, sizes = (17, {}) if net is WalkerNet else (5, {"window": 8, "horizon": 4})
    seen = torch.randn(1, 8, channels, generator=torch.Generator().manual_seed(0))

    def outputs(as_published: bool, gap: float) -> Tensor:
        torch.manual_seed(0)
        model = net({"name": name}, solver=solver, as_published=as_published, **sizes)
        for parameter in model.parameters():  # as after some training: time matters
            parameter.data.mul_(1.0 if net is WalkerNet else 20.0)
        out: Tensor = model(seen, torch.full((1, 8), gap))
        return out

    assert not torch.equal(outputs(False, 0.5), outputs(False, 1.0))
    same = torch.equal(outputs(True, 0.5), outputs(True, 1.0))
    assert same is (name == "sonode")
    if name == "sonode":
        one_unit, by_default = outputs(True, 0.5), outputs(False, 1.0)
        if net is VibrationNet:  # Walker2d's order of moving and taking in differs as well
            torch.testing.assert_close(one_unit, by_default)


@pytest.mark.parametrize("net", [WalkerNet, VibrationNet])
def test_the_first_dimension_of_every_layer_is_the_sample(net: type, caplog) -> None:
    """SNOpt says so where one's is another."""
    solver = {"method": "rk4", "options": {"steps": 1}, "gradient": "direct"}
    channels, sizes = (17, {}) if net is WalkerNet else (5, {"window": 8, "horizon": 4})
    model = net({"name": "ghbnode"}, solver=solver, **sizes)
    optimizer = SNOpt(model, rule="paper")
    out = model(torch.randn(3, 8, channels), torch.full((3, 8), 0.5))
    out.square().sum().backward()
    optimizer.step()
    assert "numbers of samples" not in caplog.text


def test_vibration_groups_are_what_they_are_called() -> None:
    torch.manual_seed(0)
    solver = {"method": "rk4", "options": {"steps": 4}, "gradient": "direct"}
    net = VibrationNet({"name": "hbnode"}, solver=solver, shrink=0.3, window=3, horizon=4)
    points, gaps = torch.randn(2, 3, 5), torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    out = net(points, gaps)
    assert out.shape == (2, 3 + 3 + 4, 5)
    # The forecast begins at the last state that the window leaves behind.
    torch.testing.assert_close(out[:, 6], out[:, 5])
    later = net(points, gaps + torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(out[:, :3], later[:, :3])  # the last gap comes after the last point
    assert not torch.allclose(out[:, 5], later[:, 5])
    torch.testing.assert_close(out[:, 7], later[:, 5], rtol=1e-3, atol=1e-4)  # one unit further


def test_shrinking_leaves_learned_scalars_alone() -> None:
    torch.manual_seed(0)
    whole = VibrationNet({"name": "ghbnode"}, solver={}, shrink=1.0)
    torch.manual_seed(0)
    small = VibrationNet({"name": "ghbnode"}, solver={}, shrink=0.01)
    for (name, a), b in zip(whole.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(b, a if name.endswith("raw") else 0.01 * a)
    assert sum(isinstance(m, LearnedScalar) for m in small.modules()) == 2


# --- A5: Silverbox --------------------------------------------------------------------------------


def test_forcing_is_interpolated_or_the_published_ramp() -> None:
    samples = torch.tensor([[1.0, 3.0, 2.0, 7.0, -1.0]])
    times = {0.0: 1.0, 0.5: 2.0, 1.5: 2.5, 2.0: 2.0, 3.25: 5.0, 4.0: -1.0}
    right, ramp = ForcedLinear(1, 1), ForcedLinear(1, 1, "ramp_as_published")
    right.samples = ramp.samples = samples
    for t, value in times.items():
        assert right.input_at(torch.tensor(t)).item() == pytest.approx(value)
        line = value if t <= 2.0 else 3.0 - (t - 1.0)
        assert ramp.input_at(torch.tensor(t)).item() == pytest.approx(line)
    with pytest.raises(RuntimeError, match="set samples"):
        ForcedLinear(1, 1).input_at(torch.tensor(0.0))


def growth(name: str, forcing: Tensor, first: Tensor, draws: int, mode: str) -> float:
    """log10 of the mean over initialisations of the state's norm at the end."""
    solver = {"rtol": 1e-3, "atol": 1e-3, "gradient": "direct"}
    norms = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model = ForcedNet({"name": name}, forcing=mode, solver=solver).double()
        with torch.no_grad():
            norms.append(model(forcing, first)[0, -1, 1])
    return float(torch.stack(norms).mean().log10())


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "interpolated") for name, family in FAMILIES.items() if "forced" in family.sizes]
    + [(name, "ramp_as_published") for name in ("hbnode", "ghbnode")],
)
def test_only_bounded_families_stay_bounded_on_a_long_interval(name: str, mode: str) -> None:
    torch.manual_seed(1)
    forcing = 2.0 * torch.randn(
        1, 64, dtype=torch.float64
    )  # the measured voltage's size, times 100
    first = torch.tensor([0.9], dtype=torch.float64)
    reached = growth(name, forcing, first, 3, mode)
    if name in ("ghbnode", "adamnode"):
        assert reached < 3.0
    else:
        assert reached > 6.0
