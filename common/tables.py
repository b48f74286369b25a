"""Text tables for terminals and logs."""

import io
import shutil
from collections.abc import Collection, Sequence
from typing import TextIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A line of dashes below the header and a space between columns; every line of a rich box has four characters.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
# Wider than any table: rich would otherwise fit a table into 80 characters.
UNLIMITED = 2**20


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: bool = False,
    wrapped: Collection[str] = (),
    width: int | None = None,
) -> str:
    """Return a table as plain text, with every cell in full: no markup, no colours, nothing cut off.

    Args:
        header: name of each column.
        rows: cells of each row.
        numeric: align all columns but the first to the right.
        wrapped: names of columns whose cells may take several lines.
        width: characters per line that wrapped columns are fitted into; None wraps nothing.
    """
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        right = numeric and number > 0
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=name not in wrapped)
    for row in rows:
        table.add_row(*map(Text, row))
    lines = io.StringIO()
    console = Console(file=lines, width=UNLIMITED, color_system=None, force_terminal=False, legacy_windows=False)
    # A table that is narrower than its columns would cut their cells off.
    least = console.measure(table).minimum
    console.print(table, width=None if width is None else max(width, least), soft_wrap=False)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def terminal_width(stream: TextIO) -> int | None:
    """Return the characters per line of the terminal that `stream` writes to; None if it writes elsewhere."""
    return shutil.get_terminal_size().columns if stream.isatty() else None
