"""`python -m upfield.common.environment` prints the table of variables, files and processes that libraries read."""

import sys
from textwrap import wrap

from upfield.common.environment.influences import TABLE
from upfield.common.tables import terminal_width, text_table

HEADER = ("name", "read by", "may change", "what upfield does", "commands", "instead, or note")

if __name__ == "__main__":
    rows = [
        (
            "\n".join(entry.names.split() if entry.is_variable else wrap(entry.names, 40)),
            entry.readers,
            entry.changes,
            entry.treatment,
            entry.verbs or "all",
            entry.instead,
        )
        for entry in TABLE
    ]
    print(text_table(HEADER, rows, wrapped=HEADER[1:], width=terminal_width(sys.stdout) or 220))
