"""Whether a value from a configuration file or a command line is of the kind that the schema asks for."""

import json
import math
import re
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}
# YAML 1.1 takes 1e-3 for text, and no for false.
BARE_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
SPELLINGS = {True: ("yes", "on", "true"), False: ("no", "off", "false")}


def misfit(value: Any, kind: Any) -> tuple[str, str] | None:
    """Say where and why a value, as YAML gives it, is not of a kind; None where it is.

    Args:
        value: plain, of numbers, text, lists and dictionaries.
        kind: a type as dataclasses' fields have it. What stands in dataclasses is not looked at.

    Returns:
        The key below the value's own, or "", and what was expected and found.
    """
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        return next(
            ((f".{key}", _expected(item, inner)) for key, item in value.items() if not _fits(item, inner)), None
        )
    return None if _fits(value, kind) else ("", _expected(value, kind))


def describe(kind: Any) -> str:
    """Name a kind in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        # Whole numbers are numbers too.
        return " or ".join(describe(one) for one in inner if not (one is int and float in inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is list:
        return f"a list of {describe(inner[0])}" if inner[0] is not Any else "a list"
    if origin is tuple:
        return f"{len(inner)} values in brackets, each {describe(inner[0])}"
    if origin is dict or is_dataclass(kind):
        return "keys and values"
    return NAMES.get(kind, str(kind))


def is_plain(kind: Any) -> bool:
    """Tell whether no text but that of a number, a truth or a name on a list is of this kind."""
    if get_origin(kind) in (Union, UnionType, tuple):
        return all(is_plain(one) or one is NoneType for one in get_args(kind))
    return kind in (int, float, bool) or get_origin(kind) is Literal


def _expected(value: Any, kind: Any) -> str:
    hint = "; put it in quotes" if kind is str and isinstance(value, int | float) else ""
    return f"expected {describe(kind)}, found {json.dumps(value, default=str)}{hint}"


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner or (isinstance(value, bool) and any(name in inner for name in SPELLINGS[value]))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is dict or is_dataclass(kind):
        return isinstance(value, dict)
    if isinstance(value, bool):
        return kind in (bool, Any)
    if kind is float:
        return _is_finite(value)
    plain = {Path: str, NoneType: NoneType, Any: object}.get(kind, kind)
    return isinstance(value, plain)


def _is_finite(value: Any) -> bool:
    if isinstance(value, str):
        return BARE_EXPONENT.fullmatch(value) is not None
    return isinstance(value, int | float) and math.isfinite(value)
