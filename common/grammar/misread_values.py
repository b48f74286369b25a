"""Find values that jsonargparse would accept in another meaning than the user's, and expand `~` in paths.

jsonargparse reads an empty path as the current folder, and the key 1.5 of a dictionary with whole numbers as 1.
"""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

# Metadata of fields whose text is a path.
PATH_KINDS = ("pattern", "path or address")

C = TypeVar("C")


def misread_values(value: Any, kind: Any, key: str = "", default: Any = None) -> Iterator[tuple[str, str]]:
    """Find empty values and keys that are fractions.

    Args:
        value: value as a YAML file or a flag holds it. It need not fit the type.
        kind: type of the value.
        key: dotted key of the value.
        default: default of the key. An empty text is a value only if it is the default.

    Yields:
        The dotted key of each such value, and the problem.
    """
    if value == "" and default != "" and (kind is not Any):
        yield key, "the value is empty. Give a value, or leave out the key."
    elif is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        kinds, defaults = get_type_hints(kind), {each.name: each.default for each in fields(kind)}
        for name, item in value.items():
            if name in kinds:
                yield from misread_values(item, kinds[name], f"{key}.{name}".removeprefix("."), defaults[name])
    elif isinstance(value, list):
        inner = next((get_args(option)[0] for option in _options(kind) if get_origin(option) is list), Any)
        for number, item in enumerate(value):
            yield from misread_values(item, inner, f"{key}[{number}]")
    elif isinstance(value, dict) and _takes_whole_numbers(kind):
        for name in value:
            if not str(name).lstrip("-").isdecimal():
                yield key, f"expected whole numbers as keys, found {name!r}. Write NUMBER: MEANING."


def _takes_whole_numbers(kind: Any) -> bool:
    return any(get_origin(option) is dict and get_args(option)[0] is int for option in _options(kind))


def _options(kind: Any) -> tuple[Any, ...]:
    """Return a type and, if it is a union, its members."""
    return (kind, *(option for option in get_args(kind) if option is not NoneType))


def expand_home(config: C) -> C:
    """Return a configuration in which `~` at the start of a path or path pattern is replaced by the home folder.

    A shell expands it in `--out ~/x`, but neither in `--out=~/x` nor in a file.
    """
    if not is_dataclass(config) or isinstance(config, type):
        return config
    changes: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        kinds = _options(get_type_hints(type(config))[each.name])
        is_path_text = each.metadata.get("kind") in PATH_KINDS or {str, Path} <= set(kinds)
        expanded = _expanded(value, is_path_text)
        if expanded != value:
            changes[each.name] = expanded
    return replace(config, **changes) if changes else config


def _expanded(value: Any, is_path_text: bool) -> Any:
    if isinstance(value, list):
        return [_expanded(item, is_path_text) for item in value]
    if isinstance(value, Path) and str(value).startswith("~"):
        return Path(os.path.expanduser(value))
    if isinstance(value, str) and is_path_text:
        return os.path.expanduser(value)
    return expand_home(value)
