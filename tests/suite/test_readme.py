"""The README's example runs, and what it names exists."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_first_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert README.index(code) < 500
    space = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), space)
    assert all(p.grad is not None for p in space["model"].parameters())


@pytest.mark.parametrize("target", ["run", "test"])
def test_quick_start_is_two_targets_of_the_makefile(target):
    assert f"\nmake {target} " in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_citation_is_readable():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["title"] == "Second-Order Neural ODE Optimizer"
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
