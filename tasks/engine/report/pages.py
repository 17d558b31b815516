"""How every page is made: a template, tables that sort, pictures inside, curves to point at."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Item:
    """A cell of a table.

    Attributes:
        text: what it says.
        key: what it is sorted by, ``None`` for its text; infinities and NaN come last.
        note: shown when the pointer rests on it.
        colour: of a dot before the text.
        prose: whether it is text to read, not a number.
    """

    text: str
    key: float | None = None
    note: str = ""
    colour: str = ""
    prose: bool = False

    @property
    def sort_key(self) -> str | None:
        """The key as JavaScript reads it."""
        if self.key is None or math.isfinite(self.key):
            return None if self.key is None else f"{self.key:.6g}"
        return "Infinity" if self.key > 0 else "-Infinity" if self.key < 0 else "NaN"


@dataclass(frozen=True)
class Grid:
    """A table of a page.

    Attributes:
        heads: above its columns.
        rows: its cells.
        marked: index of a row that stands out.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Item]]
    marked: int | None = None


def render_page(template: Path, **values: Any) -> str:
    """Fill a template that extends ``page.html``.

    Args:
        template: its file; all text in it is escaped but what it calls safe.
        values: what it names.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment.get_template(template.name).render(values)
