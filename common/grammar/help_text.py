"""The text of `upfield VERB --help`."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from upfield.common.grammar.key_help import KeyHelp, describe_keys, summary_of
from upfield.common.grammar.verb_schema import Command

MOST_COLUMNS, LEAST_COLUMNS = 80, 40
GENERAL = (
    ("--config FILE.yaml", "Read keys from a YAML file. Flags after it override them."),
    ("--print_config", "Print the configuration that results from all files and flags, and exit."),
    ("--debug", "Show the traceback of an error."),
    ("--help", "Show this help and exit."),
)


def help_text(command: Command) -> str:
    """Return the help of a command: required keys, the others group by group, and examples.

    Lines have at most 80 characters, or as many as a narrower terminal has.
    """
    width = max(LEAST_COLUMNS, min(MOST_COLUMNS, shutil.get_terminal_size((MOST_COLUMNS, 0)).columns))
    keys = describe_keys(command.schema)
    required = [each for each in keys if each.is_required and "[]" not in each.key]
    others = [each for each in keys if each not in required]
    lines = [*_wrap(f"usage: {command.usage}", width, "       "), "", *_wrap(summary_of(command.schema), width)]
    if required:
        lines += ["", "Required:", *_entries(required, command, width)]
    for group, members in groupby(others, key=lambda each: each.group):
        lines += ["", *_wrap(f"{group or 'Options'}:", width), *_entries(list(members), command, width)]
    lines += ["", "Flags of every command:"]
    for flag, doc in GENERAL:
        lines += [f"  {flag}", *_wrap(doc, width, "      ", "      ")]
    if command.examples:
        lines += ["", "Examples:" if len(command.examples) > 1 else "Example:"]
        lines += [f"  {example}" for example in command.examples]
    return "\n".join(lines)


def _entries(keys: Sequence[KeyHelp], command: Command, width: int) -> Iterator[str]:
    for each in keys:
        head = f"{_name_of(each.key, command)}  {each.kind}"
        if not each.is_required or "[]" in each.key:
            head += f" ({each.state})"
        yield from _wrap(head, width, "      ", "  ")
        yield from _wrap(each.doc, width, "      ", "      ")


def _name_of(key: str, command: Command) -> str:
    """Return how a key is given: as a flag, without its flag, or as a key in the items of a list in YAML."""
    if "[]" in key:
        return key.rpartition("[].")[2]
    return f"{command.place_of(key)} or --{key}" if key in command.positional else f"--{key}"


def _wrap(text: str, width: int, later: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
