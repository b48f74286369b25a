"""Text tables for terminals and logs."""

import io
import shutil
from collections.abc import Collection, Sequence
from typing import TextIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# The table has only one rule, a line of dashes below the header. rich requires eight lines of four characters.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
# A width that no table reaches. By default, rich would fit the table into 80 characters.
UNLIMITED = 2**20
# A longer list of problems is cut off after this many rows, and a file has all of them.
MOST_ROWS = 20
# Characters per line if the output is not a terminal.
PLAIN_WIDTH = 100


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: bool = False,
    wrapped: Collection[str] = (),
    width: int | None = None,
) -> str:
    """Format a table as plain text, without markup or colours. No cell is cut off.

    Args:
        header: name of each column.
        rows: cells of each row.
        numeric: whether to align all columns except the first to the right.
        wrapped: names of the columns whose cells may be broken into several lines.
        width: characters per line that the table may have before columns are wrapped; None wraps nothing.
    """
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        right = numeric and number > 0
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=name not in wrapped)
    for row in rows:
        table.add_row(*map(Text, row))
    lines = io.StringIO()
    console = Console(file=lines, width=UNLIMITED, color_system=None, force_terminal=False, legacy_windows=False)
    # rich would cut off cells if the table were narrower than this.
    least = console.measure(table).minimum
    console.print(table, width=None if width is None else max(width, least), soft_wrap=False)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 problem` or `2 problems`.

    Args:
        count: the number.
        noun: the noun in the singular. Its plural ends in `s`.
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def terminal_width(stream: TextIO) -> int | None:
    """Return the characters per line if `stream` is a terminal, or None if it is not."""
    return shutil.get_terminal_size().columns if stream.isatty() else None
