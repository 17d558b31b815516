"""The paper's experiments compose, and say what the paper says."""

import pytest

from scripts.jobs import experiments
from tasks.engine.config.settings import Settings
from tests.support.planned import planned

INTEGRATION_TIME = experiments().get("paper/integration_time", [])
CHOICES = [c for c in experiments().get("paper", []) if c not in INTEGRATION_TIME]


@pytest.mark.parametrize("choice", CHOICES)
def test_composes_to_what_its_name_says(choice):
    task, optim = choice.rpartition("/")[2].rsplit("-", 1)
    (job,) = planned(choice)
    assert job.config["task"]["name"] == task
    assert job.config["optim"]["name"] == optim
    assert job.config["solver"]["method"] == "dopri5"
    assert job.config["solver"]["gradient"].startswith("adjoint")
    assert job.config["train"]["max_epochs"] >= 5
    if optim == "snopt":
        assert job.config["optim"]["rule"] == "paper"
        assert job.config["optim"]["basis"] == "curvature"


def test_tolerances_are_the_tasks_own():
    jobs = [*planned("paper/images/mnist-sgd"), *planned("paper/flows/gas-sgd")]
    assert [(j.config["solver"]["rtol"], j.config["solver"]["atol"]) for j in jobs] == [
        (1e-3, 1e-3),
        (1e-6, 1e-8),
    ]


@pytest.mark.parametrize(
    ("task", "field", "rest"),
    [
        ("character_trajectories", 1e-3, 1e-3),
        ("articulary_word_recognition", 3e-3, 1e-3),
        ("spoken_arabic_digits", 0.01, 3e-3),
    ],
)
def test_sgd_trains_only_the_field_of_series(task, field, rest):
    (job,) = planned(f"paper/series/{task}-sgd")
    optim = job.config["optim"]
    assert (optim["field"]["_target_"], optim["field"]["lr"]) == ("torch.optim.SGD", field)
    assert (optim["rest"]["_target_"], optim["rest"]["lr"]) == ("torch.optim.Adam", rest)


def test_seminorm_where_the_paper_has_it():
    for choice in CHOICES:
        (job,) = planned(choice)
        series_or_gas = "/series/" in choice or "/gas-" in choice
        expected = "adjoint-seminorm" if series_or_gas else "adjoint"
        assert job.config["solver"]["gradient"] == expected, choice


def test_integration_time_has_two_starts_and_three_rules():
    jobs = [job for choice in INTEGRATION_TIME for job in planned(choice)]
    found = {}
    for job in jobs:
        config = job.config
        assert (config["task"]["name"], config["optim"]["name"]) == ("cifar10", "adam")
        assert config["optim"]["lr"] == 1e-3
        assert config["solver"]["gradient"] == "adjoint"
        horizon = Settings.read(config).horizon
        assert (horizon.every, horizon.lr) == (50, 0.1)
        found[horizon.T0, horizon.rule] = horizon.penalty
    penalties = {1.0: 6e-4, 0.05: 4e-4}
    rules = ("feedback", "first_order", "fixed")
    assert found == {(start, rule): c for start, c in penalties.items() for rule in rules}
    assert len({job.folder for job in jobs}) == 6
