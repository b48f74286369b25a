"""The parts of reference pages that come from the code, so that no fact is written twice.

A page asks for a part with a line `<!-- generated: NAME ARGUMENT... -->`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from importlib import import_module
from typing import Any

from schema_keys import Key, doc_of, groups_of, keys_of

from upfield.cli.main import VERBS
from upfield.common.command import Command


def command_of(verb: str) -> Command:
    """Return the command of a verb."""
    return import_module(VERBS[verb][0]).COMMAND


def commands() -> str:
    """Return a table of all commands."""
    rows = [f"| [`{verb}`]({verb}.md) | {_capitalised(what)} |" for verb, (_, what) in VERBS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def keys(verb: str) -> str:
    """Return all keys of a verb: those that are required, then the others in their groups."""
    command = command_of(verb)
    own = list(keys_of(command.schema))
    groups = [(name, kind, list(keys_of(kind, f"{name}."))) for name, kind in groups_of(command.schema)]
    everything = own + [key for _, _, inner in groups for key in inner]
    required = [key for key in everything if key.default is MISSING]
    lines = ["## Required keys", "", *_definitions(required, command.positional)] if required else []
    if optional := [key for key in own if key.default is not MISSING]:
        lines += ["## Other keys" if required else "## Keys", "", *_definitions(optional, command.positional)]
    for name, kind, inner in groups:
        lines += [f"## `{name}`", "", doc_of(kind), "", *_definitions([k for k in inner if k.default is not MISSING])]
    return "\n".join(lines)


def keys_in(module: str, schema: str, prefix: str = "") -> str:
    """Return the keys of one dataclass, with a prefix such as `synthetic.physics.`."""
    return "\n".join(_definitions(list(keys_of(getattr(import_module(f"upfield.{module}"), schema), prefix))))


def _definitions(keys: list[Key], positional: tuple[str, ...] = ()) -> Iterator[str]:
    for key in keys:
        default = "required" if key.default is MISSING else f"default: {_default(key.default)}"
        place = f"also without its flag, as {key.name.upper()} · " if key.name in positional else ""
        yield f'<code id="{key.name}">{key.name}</code> <span class="kind">{key.kind} · {place}{default}</span>'
        yield f":   {key.doc}"
        yield ""


def _default(value: Any) -> str:
    if value in (None, [], {}, ""):
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


PARTS: dict[str, Callable[..., str]] = {"commands": commands, "keys": keys, "keys_in": keys_in}
"""Name of each part, and the function that returns it as Markdown."""
