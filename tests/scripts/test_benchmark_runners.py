"""The table of runners in docs/benchmark.md says what conf/optim and constraints.txt say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import nn

from scripts.benchmark import FIELD
from scripts.search import typed
from tasks.engine.config import composing
from tasks.engine.optimizers.build import build_optimizer

ROOT = composing.CONF.parent
TABLE = {
    row[0]: row
    for line in (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").splitlines()
    if len(row := [cell.strip() for cell in line.strip("|").split("|")]) == 5
}
#: Keys of a file that are told elsewhere in the table, or are no part of the default track.
APART = ("name", "_target_", "lr", "field_lr", "about")


def content(optim: str) -> Mapping[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(composing.CONF / "optim" / f"{optim}.yaml"))
    return found


def maker(config: Mapping[str, Any]) -> str:
    """The optimizer's class, its package and that package's version."""
    kind = type(build_optimizer(config, nn.Linear(2, 2)))
    package = kind.__module__.partition(".")[0]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = re.search(rf"^{package}==(\S+)$", pins, re.MULTILINE)
    return f"`{kind.__name__}`, {package} {version[1] if version else ''}".strip()


@pytest.mark.parametrize("optim", FIELD["default"])
def test_a_row_says_what_the_optimizer_s_file_says(optim: str) -> None:
    config = content(optim)
    rates = ", ".join(f"{rate:g}" for rate in config["about"]["rates"])
    settings = " ".join(f"`{k}={typed(v)}`" for k, v in config.items() if k not in APART)
    row = [f"`{optim}`", maker(config), rates, settings]
    advice = TABLE.get(row[0], ["", "", "", "", ""])[-1]
    assert f"| {' | '.join([*row, advice])} |" == f"| {' | '.join(TABLE.get(row[0], []))} |"
    assert advice.endswith(".")


def test_nobody_else_stands_in_the_table() -> None:
    names = {cell.strip("`") for cell in TABLE if cell.startswith("`")}
    assert names == {*FIELD["default"], *FIELD["tuned"]}
