"""List the keys of a dataclass with their types in words, their defaults and their docs."""

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object

from upfield.common.command import to_tree
from upfield.common.configuration_errors import describe, is_list_of_configs


@dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    """Dotted name, such as `run.epochs`."""
    kind: str
    """Type in words."""
    default: Any
    """Default as a plain value; `MISSING` if the key is required."""
    doc: str
    """What the key does."""


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass, without those of the dataclasses in it."""
    kinds, docs = get_type_hints(schema), docs_of(schema)
    for each in fields(schema):
        if not is_group(kinds[each.name]):
            yield Key(f"{prefix}{each.name}", describe(kinds[each.name]), _default_of(each), docs.get(each.name, ""))


def groups_of(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield the dotted name and the dataclass of each group of keys in a dataclass, in order and with inner groups."""
    for name, kind in get_type_hints(schema).items():
        if is_group(kind):
            yield f"{prefix}{name}", kind
            yield from groups_of(kind, f"{prefix}{name}.")


def is_group(kind: Any) -> bool:
    """Return whether a type is a dataclass, whose fields are keys of their own."""
    return is_dataclass(kind) and isinstance(kind, type)


def item_of(schema: type, name: str) -> type | None:
    """Return the dataclass of the items of a field, or None if its items are plain values."""
    kind = get_type_hints(schema)[name]
    return get_args(kind)[0] if is_list_of_configs(kind) else None


def docs_of(schema: type) -> dict[str, str]:
    """Return the doc of each field of a dataclass, including those that it inherits."""
    docs: dict[str, str] = {}
    for each in reversed([base for base in schema.__mro__ if is_dataclass(base)]):
        parsed = parse_from_object(each).params
        docs |= {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parsed}
    return docs


def doc_of(schema: type) -> str:
    """Return the docstring of a dataclass as one paragraph."""
    return " ".join((inspect.getdoc(schema) or "").split())


def _default_of(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return _plain(each.default_factory())
    return each.default if each.default is MISSING else _plain(each.default)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, list | dict | bool | int | float | str) or value is None:
        return value
    return to_tree(value) if is_dataclass(value) else str(value)
