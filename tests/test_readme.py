"""The README's example runs, and what it names exists."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
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


PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "results" / "reference").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_are_headings(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text())
    pages = {path: (page.parent / path).resolve() if path else page for path, _ in links}
    assert [f"{p}#{anchor}" for p, anchor in links if anchor not in anchors(pages[p])] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_wrapped_line_begins_a_list(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert re.findall(r"^(?![-#| ]).+\n[-+*] .*", text, re.MULTILINE) == []


def test_readme_is_short():
    assert len(README.split()) <= 900
    assert len(README.splitlines()) <= 130


def test_citation_is_readable():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["title"] == "Second-Order Neural ODE Optimizer"
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
