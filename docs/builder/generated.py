"""The parts of reference pages that come from the code, so that no fact is written twice.

A page asks for a part with a line `<!-- generated: NAME ARGUMENT... -->`.
"""

import html
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import groupby

from upfield.cli.main import VERBS
from upfield.common.command import Command
from upfield.common.grammar.key_help import KeyHelp, describe_keys


def command_of(verb: str) -> Command:
    """Return the command of a verb."""
    return import_module(VERBS[verb][0]).COMMAND


def commands() -> str:
    """Return a table of all commands."""
    rows = [f"| [`{verb}`]({verb}.md) | {what[0].upper()}{what[1:]} |" for verb, (_, what) in VERBS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def keys(verb: str, *left_out: str) -> str:
    """Return the keys of a verb: those that are required, then the others in their groups.

    Args:
        verb: the verb.
        left_out: beginnings of keys that another page has, such as `cohorts[].`.
    """
    command = command_of(verb)
    everything = [key for key in describe_keys(command.schema) if not key.key.startswith(left_out)]
    required = [key for key in everything if key.is_required and "[]" not in key.key]
    lines = ["## Required keys", "", *_definitions(required, command.positional)] if required else []
    others = [key for key in everything if key not in required]
    return "\n".join([*lines, *_groups(others, "Other keys" if required else "Keys", command.positional)])


def keys_below(verb: str, *beginnings: str) -> str:
    """Return the keys of a verb that begin in one of these ways, such as `synthetic.physics.`, in their order."""
    chosen = [key for key in describe_keys(command_of(verb).schema) if key.key.startswith(beginnings)]
    assert chosen, beginnings
    return "\n".join(_definitions(chosen))


def _groups(keys: Iterable[KeyHelp], first: str, positional: tuple[str, ...]) -> Iterator[str]:
    named: set[str] = set()
    for group, inner in groupby(keys, lambda key: (key.group, key.key.rpartition(".")[0])):
        title, prefix = group
        # The name of a part stays the same if its title changes.
        name = f" {{ #{prefix.replace('[]', '')} }}" if prefix and prefix not in named else ""
        named.add(prefix)
        yield f"## {title.replace('`', '') or first}{f' (`{prefix}`)' if prefix else ''}{name}"
        yield ""
        yield from _definitions(inner, positional)


def _definitions(keys: Iterable[KeyHelp], positional: tuple[str, ...] = ()) -> Iterator[str]:
    for key in keys:
        place = " · also without its flag" if key.key in positional else ""
        state = f"default `{key.default}`" if key.default is not None else key.state
        name = f'<code id="{key.key.replace("[]", "")}">{key.key}</code>'
        yield f'{name} <span class="kind">{key.kind} · {state}{place}</span>'
        yield f":   {html.escape(key.doc, quote=False)}"
        yield ""


PARTS: dict[str, Callable[..., str]] = {"commands": commands, "keys": keys, "keys_below": keys_below}
"""Name of each part, and the function that returns it as Markdown."""
