"""List the keys of a configuration with their types in words, their defaults and their docs.

`--help` and the reference pages are made from this list. jsonargparse's own help shows the types of Python, and cannot
show required keys first.
"""

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    Any: "any value",
}
PLURALS = {"text": "words", "true or false": "true or false"}
COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class KeyHelp:
    """What `--help` and the reference say about one key."""

    key: str
    """Dotted key, such as `optim.lr`. `cohorts[].name` is a key of each item of the list `cohorts`."""
    kind: str
    """Type in words, such as `number`, `list of paths`, or `train, val or test`."""
    is_required: bool
    """Whether the key must be given."""
    default: str | None
    """Default as YAML writes it; None if the key is required or has no value by default."""
    doc: str
    """Help text, as one paragraph."""
    group: str
    """Title of the group of the key, in words and without a full stop. It is empty for the keys of the command itself.
    All keys of a group follow one another."""

    @property
    def state(self) -> str:
        """`required`, `optional`, or `default VALUE`."""
        if self.is_required:
            return "required"
        return "optional" if self.default is None else f"default {self.default}"


def describe_keys(schema: type) -> list[KeyHelp]:
    """List the keys of a configuration, in the order of the help: keys of the command itself, then group by group.

    Args:
        schema: frozen dataclass. The doc below a field is its help text. A field whose type is a dataclass is a group,
            and its doc is the title. If a base class has an attribute `title`, its fields are a group with this title.
            The metadata `kind` of a field replaces the words for its type.
    """
    return list(_keys_of(schema, "", "", MISSING))


def summary_of(schema: type) -> str:
    """Return the docstring of a configuration as one paragraph, without its examples for Python."""
    return " ".join((schema.__doc__ or "").partition("Examples:")[0].split())


def _keys_of(schema: type, prefix: str, group: str, defaults: Any) -> Iterator[KeyHelp]:
    """Yield the keys of a dataclass.

    Args:
        schema: the dataclass.
        prefix: dotted key of the dataclass, with a dot at its end.
        group: title of its keys.
        defaults: instance that holds the defaults, or MISSING if these are the dataclass's own.
    """
    kinds, docs, titles = get_type_hints(schema), field_docs(schema), _titles(schema)
    inner: list[Iterator[KeyHelp]] = []
    titled: list[KeyHelp] = []
    for each in fields(schema):
        kind, key, doc = kinds[each.name], prefix + each.name, docs.get(each.name, "")
        default = _default_of(each) if defaults is MISSING else getattr(defaults, each.name)
        if is_dataclass(kind) and isinstance(kind, type):
            inner.append(_keys_of(kind, f"{key}.", _title(doc), default))
            continue
        title = titles.get(each.name, group)
        words = each.metadata.get("kind") or kind_words(kind)
        entry = KeyHelp(key, words, default is MISSING, _as_yaml(default), doc, title)
        if title == group:
            yield entry
        else:
            titled.append(entry)
        if get_origin(kind) is list and is_dataclass(item := get_args(kind)[0]) and isinstance(item, type):
            inner.append(_keys_of(item, f"{key}[].", f"Each item of `{key}`", MISSING))
    for keys in inner:
        yield from keys
    yield from titled


def _default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _titles(schema: type) -> dict[str, str]:
    """Return the title of each field that a base class with a title defines."""
    return {
        name: base.__dict__["title"]
        for base in schema.__mro__
        if "title" in base.__dict__
        for name in inspect.get_annotations(base)
    }


def _title(doc: str) -> str:
    """Return the first sentence of a doc, without its full stop."""
    return doc.split(". ", 1)[0].removesuffix(".")


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Return the doc below each field of a dataclass and of its bases, as one paragraph."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(body, ast.ClassDef)
            docs |= _docs_below_fields(body.body)
    return docs


def _docs_below_fields(statements: list[ast.stmt]) -> dict[str, str]:
    return {
        target.id: " ".join(text.split())
        for statement, following in itertools.pairwise(statements)
        if isinstance(statement, ast.AnnAssign) and isinstance(target := statement.target, ast.Name)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(text := following.value.value, str)
    }


def kind_words(kind: Any) -> str:
    """Describe a type in words, without an article: `number`, `list of paths`, `train, val or test`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union_words([option for option in inner if option is not NoneType])
    if origin is Literal:
        return either([str(value) for value in inner])
    if origin is list:
        return "list" if is_dataclass(inner[0]) or inner[0] is Any else f"list of {_plural(kind_words(inner[0]))}"
    if origin is tuple:
        return f"{COUNTS.get(len(inner), len(inner))} {_plural(kind_words(inner[0]))}"
    if origin is dict or is_dataclass(kind):
        return "keys and values"
    return WORDS.get(kind, str(kind))


def _union_words(options: list[Any]) -> str:
    if set(options) == {str, Path}:
        return "path or address"
    # A number may be whole.
    words = [kind_words(option) for option in options if not (option is int and float in options)]
    return either(words)


def either(words: list[str]) -> str:
    """Join words with commas and a last `or`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _plural(words: str) -> str:
    return PLURALS.get(words) or (f"({words})" if " or " in words else f"{words}s")


def _as_yaml(value: Any) -> str | None:
    """Return a default as YAML writes it on one line, or None if there is none."""
    if value is MISSING or value is None:
        return None
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_yaml(item) or 'null' for item in value)}]"
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "''"
