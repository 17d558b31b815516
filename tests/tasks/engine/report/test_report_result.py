"""What runs of one configuration end with."""

from __future__ import annotations

import math

import pytest

from tasks.engine.records.runs import read_runs
from tasks.engine.report.result import result
from tests.support.imports import imports, modules
from tests.support.made_up_runs import made_up_run


@pytest.mark.parametrize("outcome", ["diverged", "completed"])
def test_a_run_without_an_end_counts_as_the_worst(tmp_path, outcome) -> None:
    for seed, losses in enumerate(([3.0, 1.0], [3.0, 2.0])):
        made_up_run(tmp_path, seed=seed, losses=losses, steps=20)
    assert result(read_runs(tmp_path)[0], ("train", "loss")) == "1.5 [1, 2]"
    last = 0.1 if outcome == "diverged" else math.nan
    made_up_run(tmp_path, seed=2, losses=[3.0, last], steps=20, outcome=outcome)
    assert result(read_runs(tmp_path)[0], ("train", "loss")) == "2 [1, diverged]"


def test_studies_share_it_without_importing_one_another() -> None:
    graph = imports(modules("scripts"))
    assert "scripts.family_study" not in graph["scripts.horizon_study"]
