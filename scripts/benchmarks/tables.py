"""Tables of a benchmark: printed, and written as CSV where a folder is given."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.engine.records.results import write_file
from tasks.engine.report.formatting import number

Cell = str | float | int | None


def present(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    out: Console,
    folder: Path | None = None,
    name: str = "",
) -> None:
    """Print a table, and write it to ``folder/name.csv``."""
    plain = not out.is_terminal
    out.print(f"\n{title}", markup=False, style="bold")
    grid = Table(box=None, pad_edge=False) if plain else Table()
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if index == 0 else "right", no_wrap=plain)
    for row in rows:
        grid.add_row(*(_text(cell) for cell in row))
    out.print(grid)
    if folder is None:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{name}.csv", buffer.getvalue().encode())


def range_text(ratio: tuple[float, float, float]) -> str:
    """A median ratio with its quartiles."""
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return str(cell) if isinstance(cell, int) else number(cell)
