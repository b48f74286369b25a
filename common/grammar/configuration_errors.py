"""Translate the errors of jsonargparse into plain messages that name the file, the key and the expected value.

jsonargparse decides what is valid. Its own errors use the names of Python types, and omit the file and the position in
a list. After jsonargparse has refused a configuration, the functions here let it check smaller and smaller parts until
they find the wrong key.
"""

import copy
import json
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from upfield.common.addresses import format_address, is_remote
from upfield.common.grammar.key_help import either
from upfield.common.grammar.suggestions import list_known, nearest

REFUSALS = (ArgumentError, TypeError, ValueError, KeyError)
"""Errors by which jsonargparse and the dataclasses refuse a configuration."""
NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}
WITHOUT_VALUE = ("--help", "-h", "--print_config", "--debug")
# Keys by which a configuration file of a command can be told from those of the others.
OWN_KEYS = {
    "shard": ("cohorts", "geometry", "samples_per_shard"),
    "tune": ("space", "train", "trials"),
    "train": ("data", "optim", "loss"),
    "evaluate": ("models", "perturb"),
    "enhance": ("scans", "keep_ras"),
    "serve": ("port", "scans_at_once"),
}
MISSING_KEYS = re.compile(r"the following arguments are required: (.+)")
MISSING_VALUE = re.compile(r"argument (\S+): expected one argument")
REFUSED_KEY = re.compile(r'Parser key "([\w.]+)"')
UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)")


def explain(
    error: Exception,
    verb: str,
    schema: type,
    trees: Mapping[str, Any],
    flags: Mapping[str, Sequence[Any]] | None = None,
    positional: Sequence[str] = (),
) -> str:
    """Return one or two sentences that say why a configuration was refused.

    Args:
        error: one of `REFUSALS`.
        verb: the command, such as `train`; empty if there is none.
        schema: dataclass that the configuration should fit.
        trees: file name -> content, for each configuration file.
        flags: key -> the values that its text may stand for, for each key on the command line.
        positional: fields that may be given without their flag.
    """
    message = " ".join(str(error).split())
    if match := UNRECOGNIZED.search(message):
        return _explain_unrecognized(match[1].split(), verb, schema, positional)
    if match := MISSING_VALUE.search(message):
        return f"{match[1]}: the value is missing. Write {match[1]} VALUE."
    for name, tree in trees.items():
        if problem := file_problem(tree, verb, schema):
            return f"{name}: {problem}"
    for key, values in (flags or {}).items():
        kind = _kind_of(key.removesuffix("+"), schema)
        problems = [
            _problem_at([value] if key.endswith("+") else value, kind, verb, f"--{key}") for value in values if kind
        ]
        if problems and all(problems):
            return problems[0] or ""
    if match := MISSING_KEYS.search(message):
        names = [key.upper() if key in positional else f"--{key}" for key in match[1].split(", ")]
        it, them = ("are", "them") if len(names) > 1 else ("is", "it")
        shown = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
        return f"{shown} {it} missing. Give {them} on the command line or in the configuration file."
    if (match := REFUSED_KEY.search(message)) and (kind := _kind_of(match[1], schema)):
        given = (flags or {}).get(match[1])
        return f"--{match[1]}: expected {describe(kind)}{f', found {given[-1]}' if given else ''}."
    return message


def _explain_unrecognized(arguments: list[str], verb: str, schema: type, positional: Sequence[str]) -> str:
    flag = next((argument.partition("=")[0] for argument in arguments if argument.startswith("-")), None)
    if flag is None:
        takes = " ".join(name.upper() for name in positional) or "flags only"
        return f"too many arguments: {' '.join(arguments)}. The command takes {takes}; see `upfield {verb} --help`."
    known = sorted(name for name in known_flags(schema) if name.startswith("--"))
    return f"unknown flag {flag}{nearest(flag, known)}. {list_known('flags', known, verb)}"


def file_problem(tree: Any, verb: str, schema: type) -> str | None:
    """Return what is wrong with the content of a configuration file, or None.

    Args:
        tree: content of the file.
        verb: the command that reads it; empty if there is none.
        schema: configuration of this command.
    """
    if verb and isinstance(tree, dict):
        own = get_type_hints(schema)
        for other, keys in OWN_KEYS.items():
            if foreign := [key for key in keys if key in tree and key not in own]:
                return (
                    f"the key {foreign[0]} belongs to a configuration of `upfield {other}`, not of `upfield {verb}`. "
                    "Name another file with --config."
                )
    return problem_of(tree, schema, verb)


def known_flags(schema: type) -> set[str]:
    """Return all flags of a command with this schema."""
    keys = [key for key, _ in leaves(schema)]
    groups = {key.rsplit(".", 1)[0] for key in keys if "." in key}
    return {f"--{name}" for name in (*keys, *groups, "config")} | set(WITHOUT_VALUE)


def problem_of(tree: Any, schema: type, verb: str = "", prefix: str = "") -> str | None:
    """Find the first key of a tree that does not fit a dataclass.

    Args:
        tree: nested dictionaries, lists and plain values, as a YAML file holds them.
        schema: dataclass that the tree should fit. Keys without a default may be missing.
        verb: the command whose help lists all keys; empty if there is none.
        prefix: dotted key of the tree itself, with a dot at its end.

    Returns:
        A message that names the key and the problem, or None if every key fits.
    """
    if not isinstance(tree, dict):
        return f"{prefix.removesuffix('.') or 'top level'}: expected keys and values, found {_as_json(tree)}."
    kinds = get_type_hints(schema)
    for key, value in tree.items():
        if key not in kinds:
            hint = nearest(str(key), kinds) or nearest(str(key), [name for name, _ in leaves(schema)])
            return f"unknown key {prefix}{key}{hint}. {list_known('keys', kinds, verb)}"
        if problem := _problem_at(value, kinds[key], verb, f"{prefix}{key}"):
            return problem
    return None


def _problem_at(value: Any, kind: Any, verb: str, key: str) -> str | None:
    if is_dataclass(kind) and isinstance(kind, type):
        return problem_of(value, kind, verb, f"{key}.")
    if is_list_of_configs(kind) and isinstance(value, list):
        return _problem_of_items(value, get_args(kind)[0], verb, key)
    if is_list_of_configs(kind) and isinstance(value, dict):
        return f"{key}: expected a list, found the keys {', '.join(map(str, value))}. Begin each item with a dash."
    return _problem_of_value(value, kind, key)


def _kind_of(key: str, schema: type) -> Any:
    """Return the type of a dotted key of a dataclass, or None if the dataclass has no such key."""
    kind: Any = schema
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else mapped_type(kind)
    return kind


def mapped_type(kind: Any) -> Any:
    """Return the type of the values of a type that may be a dictionary, or None for other types."""
    return next((get_args(option)[1] for option in (kind, *get_args(kind)) if get_origin(option) is dict), None)


def _problem_of_items(items: list[Any], schema: type, verb: str, key: str) -> str | None:
    for number, item in enumerate(items):
        if problem := problem_of(item, schema, verb, f"{key}[{number}]."):
            return problem
        absent = [f.name for f in fields(schema) if f.default is f.default_factory is MISSING and f.name not in item]
        if absent:
            return f"{key}[{number}]: the key {absent[0]} is missing."
        try:
            accept(item, schema)
        except REFUSALS as error:
            return f"{key}[{number}]: {error}"
    return None


def _problem_of_value(value: Any, kind: Any, key: str) -> str | None:
    if (inner := mapped_type(kind)) and isinstance(value, dict):
        items = ((f"{key}.{name}", item) for name, item in value.items())
        return next((problem for name, item in items if (problem := _problem_of_value(item, inner, name))), None)
    try:
        accepted = accept(value, kind)
    except REFUSALS:
        pass
    else:
        problems = list(values_that_do_not_fit(accepted, kind, key))
        if not problems:
            return None
        if isinstance(accepted, Path):
            # An address may contain a password, so the value is not shown as it is.
            return f"{key}: {problems[0][1]}"
    quotes = " Put it in quotes." if kind is str and isinstance(value, int | float) else ""
    return f"{key}: expected {describe(kind)}, found {_as_json(value)}{_nearest_choice(value, kind)}.{quotes}"


def _nearest_choice(value: Any, kind: Any) -> str:
    literals = [option for option in (kind, *get_args(kind)) if get_origin(option) is Literal]
    choices = [str(choice) for literal in literals for choice in get_args(literal)]
    return nearest(value, choices) if isinstance(value, str) else ""


def accept(value: Any, kind: Any) -> Any:
    """Let jsonargparse convert a value of a tree to a type, and return the result.

    Raises:
        REFUSALS: the value does not fit.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    if is_dataclass(kind) and isinstance(kind, type):
        parser.add_class_arguments(kind, "value")
    else:
        parser.add_argument("--value", type=kind)
    return parser.instantiate(parser.parse_object({"value": copy.deepcopy(value)})).value


def values_that_do_not_fit(config: Any, kind: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find wrong values that jsonargparse accepts: null without need, numbers that are not finite, addresses as paths.

    Args:
        config: a dataclass instance, or a value.
        kind: type of the instance or value.
        key: dotted key of the instance or value.

    Yields:
        The dotted key of each wrong value, and the problem.
    """
    if is_dataclass(config) and not isinstance(config, type):
        for name, inner in get_type_hints(type(config)).items():
            yield from values_that_do_not_fit(getattr(config, name), inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(config, list | tuple):
        for number, item in enumerate(config):
            yield from values_that_do_not_fit(item, Any, f"{key}[{number}]")
    elif config is None and not _takes_null(kind):
        yield key, f"expected {describe(kind)}, found null."
    elif isinstance(config, float) and config - config != 0:
        yield key, f"expected a number, found {config}."
    elif isinstance(config, Path) and is_remote(str(config)):
        yield key, f"expected a path on this machine, found the address {format_address(str(config))}."


def _takes_null(kind: Any) -> bool:
    return kind in (Any, NoneType) or (get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind))


def describe(kind: Any) -> str:
    """Describe a type in words, for instance `a whole number or null`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        # `a whole number or a number` would be redundant.
        options = [option for option in inner if not (option is int and float in inner)]
        return either([word for option in options for word in _words_of(option)])
    if origin is Literal:
        return either([str(value) for value in inner])
    if origin is list:
        return f"a list of {describe(inner[0])}" if inner[0] is not Any else "a list"
    if origin is tuple:
        return f"{len(inner)} values in brackets, each {describe(inner[0])}"
    if origin is dict or is_dataclass(kind):
        return "keys and values"
    return NAMES.get(kind, str(kind))


def _words_of(option: Any) -> list[str]:
    return [str(value) for value in get_args(option)] if get_origin(option) is Literal else [describe(option)]


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the type of each value in a dataclass, including nested dataclasses."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def is_list_of_configs(kind: Any) -> bool:
    """Return whether a type is a list of dataclasses."""
    return get_origin(kind) is list and is_dataclass(get_args(kind)[0])


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)
