"""Who imports whom, read from the source without running it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Imports = dict[str, set[str]]
"""Modules, and those of their own tree that they import."""


def modules(*tops: str, root: Path = ROOT) -> dict[str, Path]:
    """Every module below the packages ``tops``, by its dotted name."""
    found = {}
    for top in tops:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(known: dict[str, Path]) -> Imports:
    """What each module imports of the others, wherever in the file it does."""
    return {name: _imported(path, known) - {name} for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in known else str(node.module))
    return found & known.keys()


def circle(graph: Imports) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def too_long(known: dict[str, Path], most: int = 400) -> dict[str, int]:
    """Modules of more lines than a reader holds in mind, and how many they have."""
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in known.items()}
    return {name: length for name, length in lengths.items() if length > most}
