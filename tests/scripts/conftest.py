"""A workload and an optimizer that the tests of the ranking run."""

import shutil
from pathlib import Path

import pytest

from scripts.ranking import workloads
from tasks.engine.config import composing
from tests.support.toy_workload import MINE, TOY


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A configuration folder with one workload, ``toy``, and nothing else to rank on."""
    conf = tmp_path / "conf"
    shutil.copytree(
        composing.CONF, conf, ignore=shutil.ignore_patterns("target", "tuned", "experiment")
    )
    for folder in ("tuned", "experiment", "target"):
        (conf / folder).mkdir()
        (conf / folder / "none.yaml").write_text("# @package _global_\n")
    (conf / "target" / "toy.yaml").write_text(TOY.lstrip())
    monkeypatch.setattr(composing, "CONF", conf)
    monkeypatch.setattr(workloads, "FOLDER", conf / "target")
    return tmp_path


@pytest.fixture
def mine(tmp_path, monkeypatch) -> None:
    (tmp_path / "signum_of_mine.py").write_text(MINE.lstrip())
    monkeypatch.syspath_prepend(tmp_path)
