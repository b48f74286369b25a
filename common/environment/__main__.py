"""`python -m upfield.common.environment` prints the table of variables, files and processes that libraries read."""

import sys

from upfield.common.environment.influences import TABLE
from upfield.common.tables import terminal_width, text_table

HEADER = ("name", "read by", "may change", "what upfield does", "commands", "instead, or note")

if __name__ == "__main__":
    rows = [
        (entry.names, entry.readers, entry.changes, entry.treatment, entry.verbs or "all", entry.instead)
        for entry in TABLE
    ]
    print(text_table(HEADER, rows, wrapped=HEADER, width=terminal_width(sys.stdout) or 200))
