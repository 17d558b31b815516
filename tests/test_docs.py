"""The docs site knows the library's public names."""

import inspect
import json
import re
from pathlib import Path

import pytest

import snopt
from snopt.optim.rules import RULES
from tests.support import console

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_public_names_are_in_the_reference():
    api = (DOCS / "api.md").read_text()
    assert [name for name in snopt.__all__ if not re.search(rf":: (snopt\.)?{name}\b", api)] == []


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_settings_of_rules_are_in_the_reference(rule):
    api = (DOCS / "api.md").read_text()
    shown = [base for base in rule.__mro__ if f":: {base.__module__}.{base.__name__}\n" in api]
    shown += [base for base in rule.__mro__ if f":: snopt.optim.rules.{base.__name__}\n" in api]
    words = "\n".join(inspect.getdoc(base) for base in shown)
    assert [name for name in rule.settings() if not re.search(rf"\b{name}\b.*:", words)] == []


def test_pages_are_in_the_contents():
    index = (DOCS / "index.md").read_text()
    listed = re.findall(r"^([a-z_]+)$", index, re.MULTILINE)
    assert {page.stem for page in DOCS.glob("*.md")} - {*listed} == {"index"}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_pages_begin_with_one_title(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


def test_the_task_of_ones_own_trains(tmp_path, monkeypatch):
    own = DOCS / "own"
    monkeypatch.syspath_prepend(str(own))
    command = [
        "task=waves",
        f"--config-dir={own}",
        f"results.root={tmp_path}",
        "train.max_epochs=4",
    ]
    answer = console.run(*command, "optim=snopt")
    assert answer.code == 0, answer.text
    (run,) = tmp_path.rglob("run.json")
    assert json.loads(run.read_text())["final"]["test"]["accuracy"] > 0.8
    for mistake, message in {
        "model=hbnode": "no other model than model=node",
        "task.widht=3": "task.widht: no such key. Did you mean width?",
        "task=wave": "task=wave: no such choice. Did you mean waves?",
        "optim=adm": "optim=adm: no such choice. Did you mean adam?",
    }.items():
        refused = console.run(*command, mistake)
        assert refused.code == 2
        assert message in refused.text
        assert len(refused.text.splitlines()) <= 2


@pytest.mark.parametrize("name", ["index", "getting_started"])
def test_first_pages_run(name, capsys):
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    )
    exec(compile(code, name, "exec"), {"__name__": name})


def test_costs_of_rules_are_the_measured_ones():
    rows = [line.split("|") for line in (DOCS / "benchmarks.md").read_text().splitlines()]
    rule = re.compile(r" (?:the default|`(paper|kfac|gauss_newton)`) $")
    costs = {}
    for row in rows:
        if len(row) == 7 and (found := rule.match(row[2])):
            costs.setdefault(found[1] or "adam", []).append(round(float(row[5]), 1))
    (advice,) = re.findall(
        r"^## A rule$(.*?)^## ", (DOCS / "how_to_choose.md").read_text(), re.M | re.S
    )
    assert costs.keys() == {"adam", "paper", "kfac", "gauss_newton"}
    for name, measured in costs.items():
        (said,) = re.findall(rf'^\| `"{name}"`.*\| ([\d. to]+) \|$', advice, re.M)
        assert [*map(float, said.split(" to "))] == sorted({min(measured), max(measured)})
