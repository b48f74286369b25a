"""One grammar for every command: a frozen dataclass is the schema, `--config FILE.yaml` and dotted flags fill it.

Positional arguments are shorthand for the flags of the same name, so that each of them is a YAML key too.
"""

import difflib
import errno
import json
import signal
import sys
import threading
import traceback
from argparse import SUPPRESS, ArgumentError
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from upfield.common.errors import InputError, RunError
from upfield.common.value_types import describe, is_plain, misfit

EXIT_INPUT = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
WITHOUT_VALUE = ("--help", "-h", "--print_config")

C = TypeVar("C")


@dataclass(frozen=True)
class Command:
    """One verb: its schema and what it does."""

    verb: str
    """As in `upfield VERB`."""
    schema: type
    """Frozen dataclass; its field docs are the help."""
    run: Callable[[Any], int | None]
    """Takes the schema's instance, gives the exit code; imports what is heavy inside."""
    positional: tuple[str, ...] = ()
    """Fields that may be given without their flag, in order; a list field, which must be last, takes the rest."""
    required: tuple[str, ...] = ()
    """Fields that must be given, by flag or in the file."""
    folder_of: dict[str, str] = field(default_factory=dict)
    """Field -> key: where the field is not given, it is the folder of the configuration file that holds the key."""


def execute(command: Command, argv: list[str] | None = None) -> int:
    """Parse `argv`, run the command, and give the exit code: 0 done, 2 wrong input, 130 interrupted, 1 anything else.

    Args:
        command: the verb.
        argv: arguments after the verb; None takes the process's own.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        # To be told to end is no other than Ctrl-C: workers are waited for, and what is done is kept.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        config = parse(command, [token for token in argv if token != "--debug"])
        return command.run(config) or 0
    except SystemExit as leaving:  # --help and --print_config have printed
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return _fail(command, "interrupted", EXIT_INTERRUPTED, debug)
    except InputError as error:
        return _fail(command, str(error), EXIT_INPUT, debug)
    except RunError as error:
        return _fail(command, str(error), EXIT_FAILURE, debug)
    except OSError as error:
        return _fail(command, *_from_system(error), debug)
    except Exception:
        traceback.print_exc()
        return _fail(command, "this is a fault of the program, not of the input", EXIT_FAILURE, debug=False)


def _from_system(error: OSError) -> tuple[str, int]:
    """Give the message of an error of the file system, and whether the user's input or the machine is to blame."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FORBIDDEN:
        mend = "change the permissions, or choose another place"
        return f"{where}expected to be allowed to read or write there, found: {error.strerror}; {mend}", EXIT_INPUT
    misplaced = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | FileExistsError)
    return f"{where}{error.strerror or error}", EXIT_INPUT if misplaced else EXIT_FAILURE


def _fail(command: Command, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"upfield {command.verb}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def parse(command: Command, argv: list[str]) -> Any:
    """Turn arguments into an instance of the command's schema.

    Raises:
        InputError: unknown flag or key, a value of the wrong type, a required one missing.
    """
    parser = _parser(command)
    tokens = _normalise(argv, command, parser)
    files = [Path(token.split("=", 1)[1]) for token in tokens if token.startswith("--config=")]
    trees = {file: _read_yaml(file) for file in files}
    for file, tree in trees.items():
        _refuse_misfits(tree, command.schema, str(file))
    # An empty file says nothing, which jsonargparse takes for an error of its own.
    empty = {f"--config={file}" for file, tree in trees.items() if not tree}
    tokens = [token for token in tokens if token not in empty]
    config = _instantiate(parser, command.schema, lambda: parser.parse_args(tokens))
    config = _fill_folders(config, command, trees)
    for name in command.required:
        if getattr(config, name) in (None, []):
            shown = name.upper() if name in command.positional else f"--{name}"
            raise InputError(f"expected {shown}, found none; give it, or `{name}:` in the configuration")
    return config


def from_tree(schema: type[C], tree: dict[str, Any], where: str) -> C:
    """Make an instance of `schema` from nested dictionaries, as a resolved configuration file holds them.

    Args:
        schema: frozen dataclass.
        tree: its values.
        where: what to call it in errors, a path for instance.

    Raises:
        InputError: unknown key or a value of the wrong type.
    """
    _refuse_misfits(tree, schema, where)
    parser = _parser(Command("", schema, lambda _: 0))
    try:
        return _instantiate(parser, schema, lambda: parser.parse_object(tree))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def to_tree(config: Any) -> dict[str, Any]:
    """Give a configuration as nested plain values, fit for YAML and JSON."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def to_yaml(config: Any) -> str:
    """Give a configuration as YAML that `--config` reads back."""
    import yaml

    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parser(command: Command) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"upfield {command.verb}",
        description=(command.schema.__doc__ or "").strip(),
        usage=f"upfield {command.verb} {_usage(command)}[--config FILE.yaml] [--KEY VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below; later flags override.")
    parser.add_class_arguments(command.schema, as_group=False)
    # Without a default it stays out of what --print_config prints, which must read back.
    parser.add_argument("--debug", action="store_true", default=SUPPRESS, help="Show the traceback of an error.")
    return parser


def _usage(command: Command) -> str:
    lists = {name for name, kind in get_type_hints(command.schema).items() if get_origin(kind) is list}
    return "".join(f"{name.upper()}{'...' if name in lists else ''} " for name in command.positional)


def _instantiate(parser: Any, schema: type[C], parse_values: Callable[[], Any]) -> C:
    try:
        values = parser.instantiate(parse_values())
        return schema(**{f.name: getattr(values, f.name) for f in fields(schema)})  # pyright: ignore[reportArgumentType]
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error


def _fill_folders(config: C, command: Command, trees: dict[Path, dict[str, Any]]) -> C:
    for name, key in command.folder_of.items():
        holders = [file for file, tree in trees.items() if key in tree]
        if getattr(config, name) is None and holders:
            config = replace(config, **{name: holders[-1].absolute().parent})  # pyright: ignore[reportArgumentType]
    return config


def _normalise(argv: list[str], command: Command, parser: Any) -> list[str]:
    """Give every argument the shape `--name=value`: positionals named, bare switches true, unknown flags refused."""
    known = set(parser._option_string_actions)
    kinds = dict(_leaves(command.schema))
    options: list[str] = []
    loose: list[str] = []
    rest = deque(argv)
    while rest:
        token = rest.popleft()
        if not token.startswith("-") or token == "-":
            loose.append(token)
            continue
        name, equals, value = token.partition("=")
        if name not in known:
            raise InputError(_unknown_flag(name, known))
        if name in WITHOUT_VALUE or name.endswith(".help"):
            options.append(token)
            continue
        kind = kinds.get(name.removeprefix("--"))
        if not equals and kind is bool and (not rest or rest[0].lower() not in ("true", "false")):
            value = "true"
        elif not equals:
            if not rest or rest[0].partition("=")[0] in known:
                raise InputError(f"{name}: expected a value, found {rest[0] if rest else 'none'}")
            value = rest.popleft()
        if kind is not None and is_plain(kind) and misfit(value, kind) and misfit(_read_scalar(value), kind):
            raise InputError(f"{name}: expected {describe(kind)}, found {value}")
        options.append(f"{name}={value}")
    given = {option.split("=", 1)[0].removeprefix("--") for option in options}
    return options + list(_name_positionals(loose, command, given))


def _read_scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _name_positionals(loose: list[str], command: Command, given: set[str]) -> Iterator[str]:
    kinds = get_type_hints(command.schema)
    for name in (name for name in command.positional if name not in given):
        if loose and get_origin(kinds[name]) is list:
            yield f"--{name}={json.dumps(loose)}"
            return
        if loose:
            yield f"--{name}={loose.pop(0)}"
    if loose:
        expected = " ".join(name.upper() for name in command.positional) or "flags only"
        raise InputError(f"expected {expected}, found besides: {' '.join(loose)}; see upfield {command.verb} --help")


def _unknown_flag(name: str, known: set[str]) -> str:
    shown = sorted(flag for flag in known if flag.startswith("--") and not flag.endswith(("+", ".help")))
    return f"unknown flag {name}{_nearest(name, shown)}; known: {' '.join(shown)}"


def _refuse_misfits(tree: Any, schema: type, where: str, prefix: str = "") -> None:
    """Walk a configuration tree along the schema and refuse the first key or value that does not fit it."""
    if not isinstance(tree, dict):
        raise InputError(f"{where}: {prefix or 'top level'}: expected keys and values, found {type(tree).__name__}")
    kinds = get_type_hints(schema)
    for key, value in tree.items():
        if key not in kinds:
            known = sorted(kinds)
            hint = _nearest(str(key), known)
            raise InputError(f"{where}: unknown key {prefix}{key}{hint}; known: {', '.join(known)}")
        kind = kinds[key]
        if is_dataclass(kind) and isinstance(kind, type):
            _refuse_misfits(value, kind, where, f"{prefix}{key}.")
        elif wrong := misfit(value, kind):
            raise InputError(f"{where}: {prefix}{key}{wrong[0]}: {wrong[1]}")
        elif get_origin(kind) is list and is_dataclass(element := get_args(kind)[0]):
            for number, item in enumerate(value):
                _refuse_misfits(item, element, where, f"{prefix}{key}[{number}].")  # pyright: ignore[reportArgumentType]


def _leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a YAML configuration file, found none; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected YAML, found something else: {error}") from error
    return {} if tree is None else tree
