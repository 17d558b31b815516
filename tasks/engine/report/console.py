"""The comparison as a table on the console; plain columns where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tasks.engine.records.runs import SkippedRun
from tasks.engine.report.columns import columns
from tasks.engine.report.formatting import spread
from tasks.engine.report.html import relative
from tasks.engine.report.summary import Table, TableRow

# Without a terminal there is no width to respect: a log is better searched with unbroken rows.
_PLAIN_WIDTH = 240


def console(*, stderr: bool = False) -> Console:
    """A console that does not break rows when its output goes to a file or a pipe."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(
        stderr=stderr, highlight=False, width=_PLAIN_WIDTH, color_system=None
    )  # fmt: skip


def show(tables: Iterable[Table], skipped: Sequence[SkippedRun], root: Path, out: Console) -> None:
    """Print a table a comparison, then what was left out."""
    for table in tables:
        comparison = table.comparison
        out.print(Text(f"\n{comparison.title}  (data: {comparison.provenance})", style="bold"))
        out.print(_rich_table(table, plain=not out.is_terminal))
        if (found := table.time_to_loss) is not None:
            target = f"target: final training loss of {found.baseline}, {spread(found.target)}"
            against = f"ratio: seconds to it over those of {found.baseline}, same seed"
            out.print(Text(f"{target}; {against}", style="dim"))
        for note in comparison.notes:
            out.print(Text(note, style="yellow"))
    for entry in skipped:
        out.print(Text(f"left out {relative(entry.path, root)}: {entry.reason}", style="yellow"))


def _rich_table(table: Table, *, plain: bool) -> RichTable:
    shown = columns(table, "console")
    grid = RichTable(box=None, pad_edge=False) if plain else RichTable()
    for index, column in enumerate(shown):
        heading = column.headings["console"]
        grid.add_column(heading, justify="left" if index == 0 else "right", no_wrap=plain)
    for row in table.rows:
        grid.add_row(*_cells(row, [column.text(row) for column in shown]))
    return grid


def _cells(row: TableRow, texts: Sequence[str]) -> list[Text]:
    tint = row.series.colour
    return [Text(text, style=f"bold {tint}" if i == 0 else "") for i, text in enumerate(texts)]
