"""What a release says of itself in several places."""

import ast
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


def _files() -> list[Path]:
    folders = ("snopt", "tasks", "scripts", "docs", "examples")
    return [ROOT / "run.py", *(path for name in folders for path in (ROOT / name).rglob("*.py"))]


def _opens_text_without_encoding(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name == "open":
        words = [n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant)]
        binary = any("b" in str(word) for word in words)
        opens = not binary and owner not in ("gzip", "tarfile", "handle")
    else:
        opens = name in ("read_text", "write_text")
    return opens and not any(keyword.arg == "encoding" for keyword in call.keywords)


def test_text_files_do_not_depend_on_the_system() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _opens_text_without_encoding(node)
    ]
    assert found == []


def test_no_module_of_one_system_alone_is_imported() -> None:
    alone = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "msvcrt", "winreg"}
    for path in _files():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        assert not names & alone, path
