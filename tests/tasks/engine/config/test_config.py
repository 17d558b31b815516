"""Every combination of choices composes, and every affordable one makes a step."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tasks.common.checks import ConfigError
from tasks.engine import experiment
from tasks.engine.config import composing
from tasks.engine.config.settings import Settings

GROUPS = ("task", "optim", "model", "solver")
CHOICES = {g: sorted(p.stem for p in (composing.CONF / g).glob("*.yaml")) for g in GROUPS}
CHOICES["optim"].remove("custom")  # cannot do without a class

#: What makes a step of each task cheap, on data that need no download.
TINY: dict[str, list[str]] = {
    "digits": ["task.hidden=4", "task.batch_size=8"],
    "japanese_vowels": ["task.hidden=4", "task.batch_size=8"],
    "basic_motions": ["task.hidden=4", "task.batch_size=4"],
    "checkerboard": ["task.hidden=8", "task.batch_size=16", "solver.rtol=1e-3"],
    "circle": ["task.hidden=8", "task.batch_size=16", "solver.rtol=1e-3", "solver.atol=1e-3"],
    "spiral": ["task.hidden=8", "task.points=12", "task.segment=5", "task.batch_size=4"],
}
ONE_STEP = [
    "train.max_steps=1",
    "train.eval_at_start=false",
    "train.eval_train_samples=8",
    "task.eval_batch_size=10000",
    "logger.progress=off",
]


@pytest.fixture(scope="module", autouse=True)
def _conf():
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        yield


def read(*overrides: str) -> Settings:
    return Settings.read(composing.plain(compose("config", overrides=list(overrides))))


def check_composition(task: str, optim: str, model: str, solver: str) -> None:
    settings = read(f"task={task}", f"optim={optim}", f"model={model}", f"solver={solver}")
    assert settings.names[:2] == (task, model)
    assert optim.startswith(settings.names[2])  # rules of one optimizer share its folder


@pytest.mark.parametrize("task", CHOICES["task"])
def test_every_task_composes_with_every_choice(task) -> None:
    """Other choices for each task, as their files know none, and all that are tuned for it."""
    start = 4 * CHOICES["task"].index(task)
    tuned = [path.stem for path in (composing.CONF / "tuned" / task).glob("*.yaml")]
    some = {
        group: [CHOICES[group][(start + i) % len(CHOICES[group])] for i in range(4)]
        for group in GROUPS[1:]
    }
    rest = [tuned + some["optim"], some["model"], some["solver"]]
    for index in range(max(map(len, rest))):
        check_composition(task, *(options[index % len(options)] for options in rest))


@pytest.mark.slow
@pytest.mark.parametrize("task", CHOICES["task"])
def test_every_combination_composes_and_validates(task) -> None:
    for combination in itertools.product(*(CHOICES[group] for group in GROUPS[1:])):
        check_composition(task, *combination)


@pytest.mark.parametrize("logger", ["local", "wandb", "tensorboard"])
def test_loggers_compose(logger) -> None:
    assert read(f"logger={logger}").config["logger"]["name"] == logger


@pytest.mark.parametrize("task", CHOICES["task"])
def test_every_task_is_built_without_data(task) -> None:
    built = experiment.build_task(read(f"task={task}", "optim=adam"))
    assert built.name == task
    assert built.batch_size > 0


ONE_GROUP = ("lbfgs", "adam_lbfgs", "sgd_field")
REFUSED = {
    (task, optim): "no likelihood to tell by"
    for task in ("checkerboard", "circle")
    for optim in ("snopt_gauss_newton", "gauss_newton")
}
REFUSED["nested_spheres", "snopt_gauss_newton"] = (
    "Use solver.gradient=checkpoint or direct, or optim=gauss_newton"
)


@pytest.mark.parametrize(("task", "optim"), REFUSED)
def test_gauss_newton_says_what_it_lacks(task, optim) -> None:
    with pytest.raises(ConfigError, match=REFUSED[task, optim]):
        experiment.build_task(read(f"task={task}", f"optim={optim}"))


def test_all_outputs_go_through_adjoint_solves(tmp_path) -> None:
    """A step by products in O(1) memory is that of the whole Jacobian by backpropagation."""

    def after_a_step(*overrides: str) -> float:
        chosen = ["task=nested_spheres", "optim=gauss_newton", f"results.root={tmp_path}"]
        settings = read(*chosen, *ONE_STEP, "train.eval_splits=[train,test]", *overrides)
        loss: float = experiment.train(settings)["final"]["train"]["loss"]
        return loss

    exact = after_a_step("solver.gradient=direct")
    for gradient in ("adjoint", "adjoint-seminorm"):
        found = after_a_step(f"solver.gradient={gradient}", "optim.memory=1")
        assert found == pytest.approx(exact, rel=1e-4), gradient


def test_jacobian_beyond_the_memory_is_refused_in_words(tmp_path) -> None:
    """How large it is shows with the first batch."""
    chosen = ["task=nested_spheres", "optim=gauss_newton", f"results.root={tmp_path}", *ONE_STEP]
    with pytest.raises(ConfigError, match=r"a larger memory=.* solver\.gradient.* optim\.memory"):
        experiment.train(read(*chosen, "solver.gradient=checkpoint", "optim.memory=1"))


#: One class of task with the data of two: optimizers take turns at them.
SERIES = ("japanese_vowels", "basic_motions")


@pytest.mark.parametrize(
    ("task", "optim"),
    [
        (task, optim)
        for task in TINY
        for place, optim in enumerate(CHOICES["optim"])
        if (task, optim) not in REFUSED and task != SERIES[place % 2]
    ],
)
def test_one_step(task, optim, tmp_path) -> None:
    overrides = [f"task={task}", f"optim={optim}", f"results.root={tmp_path}", *ONE_STEP]
    summary = experiment.train(read(*overrides, *TINY[task]))
    assert (summary["outcome"], summary["steps"]) == ("completed", 1)
    assert summary["nfe_forward"] > 0
    assert summary["final"]["test"]["loss"] is not None


@pytest.mark.parametrize("solver", CHOICES["solver"])
@pytest.mark.parametrize("gradient", ["adjoint", "adjoint-seminorm", "checkpoint", "direct"])
def test_one_step_of_every_gradient(solver, gradient, tmp_path) -> None:
    overrides = [f"solver={solver}", f"solver.gradient={gradient}", "optim=sgd", "task=digits"]
    settings = read(*overrides, f"results.root={tmp_path}", *ONE_STEP, *TINY["digits"])
    assert experiment.train(settings)["outcome"] == "completed"


@pytest.mark.parametrize("optim", [o for o in CHOICES["optim"] if o not in ONE_GROUP])
def test_field_has_a_learning_rate_of_its_own(optim, tmp_path) -> None:
    overrides = [f"optim={optim}", "optim.field_lr=1e-5", "task=digits", *TINY["digits"]]
    settings = read(*overrides, f"results.root={tmp_path}", *ONE_STEP)
    assert experiment.train(settings)["outcome"] == "completed"


def valid() -> dict[str, Any]:
    return dict(read("task=digits", "optim=sgd").config)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("train", "max_steps", -1, r"train\.max_steps=-1: must be at least 1"),
        ("train", "max_steps", 1.5, r"train\.max_steps=1\.5: expected int \| null"),
        ("train", "max_seconds", 0, r"train\.max_seconds=0: must be greater than 0"),
        ("train", "max_seconds", "soon", r"train\.max_seconds='soon': expected float"),
        ("train", "eval_at_start", 1, r"train\.eval_at_start=1: expected bool"),
        ("train", "maxsteps", 3, r"train\.maxsteps: no such key\. Did you mean train\.max_steps"),
        ("schedule", "name", "cosin", r"schedule\.name=cosin: .* Did you mean cosine"),
        ("schedule", "milestones", ["a"], r"schedule\.milestones=\['a'\]: expected tuple"),
        ("solver", "on_failure", "skip", r"on_failure=skip: .*Choices: partial, raise, skip_step"),
    ],
)
def test_bad_values_are_explained(part, key, value, message) -> None:
    config = valid()
    config[part] = {**config[part], key: value}
    with pytest.raises(ConfigError, match=message):
        Settings.read(config)


def test_a_run_must_end() -> None:
    config = valid()
    config["train"] = {**config["train"], "max_epochs": None}
    with pytest.raises(ConfigError, match=r"one of train\.max_epochs, train\.max_steps"):
        Settings.read(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", r"optim: SGD refuses its settings: Invalid learning rate: -1"),
        ("+optim.momentun=0.5", r"optim\.momentun: no such key\. Did you mean optim\.momentum"),
        ("optim.field_lr=x", r"optim\.field_lr='x': expected float \| null"),
        ("optim._target_=torch.optim.SGDD", r"optim\._target_=torch\.optim\.SGDD: cannot be imp"),
        ("solver.method=dopri6", r"solver: ODEBlock refuses .*dopri6"),
        ("solver.rtol=-1", r"solver\.rtol=-1: must be at least 0"),
        ("+task.width=3", r"task\.width: no such key"),
        ("task.batch_size=0", r"task: ImageClassification refuses .*batch_size"),
    ],
)
def test_bad_values_are_refused_before_data_are_read(override, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment.train(read("task=digits", "optim=sgd", override, f"results.root={tmp_path}"))
    assert list(Path(tmp_path).iterdir()) == []
