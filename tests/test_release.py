"""What a release says of itself in several places."""

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import yaml

import snopt

ROOT = Path(__file__).parents[1]
SETUP = ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def test_the_version_is_written_in_one_place_and_cited() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", snopt.__version__)
    assert SETUP["metadata"]["version"] == "attr: snopt.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == snopt.__version__
    assert SETUP["metadata"]["author"] == citation["authors"][0]["name"]


def test_the_changelog_tells_of_this_version() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert titles[:2] == ["Unreleased", f"{snopt.__version__} - {citation['date-released']}"]


def test_every_python_that_is_named_is_tested() -> None:
    named = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert SETUP["options"]["python_requires"] == f">={named[0]}"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["mypy"]["python_version"] == named[0]


def test_make_installs_every_extra() -> None:
    extras = set(SETUP["options.extras_require"])
    (line,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(line.split(",")) == extras
