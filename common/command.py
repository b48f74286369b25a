"""The command-line grammar that all commands share.

A frozen dataclass is the schema of a command. `--config FILE.yaml` and dotted flags set its fields, and jsonargparse
parses and checks the values. A positional argument is shorthand for the flag of the same name, so it is a YAML key too.
"""

import copy
import json
import os
import signal
import sys
import threading
import traceback
from argparse import SUPPRESS
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from upfield.common.environment.job_errors import print_error
from upfield.common.environment.settling import explain_variable, refuse_environment, settle_environment, use_utf8
from upfield.common.errors import EXIT_INPUT, EXIT_INTERRUPTED, InputError, RunError, explain_error
from upfield.common.grammar.configuration_errors import (
    REFUSALS,
    WITHOUT_VALUE,
    explain,
    file_problem,
    known_flags,
    leaves,
    mapped_type,
    problem_of,
    values_that_do_not_fit,
)
from upfield.common.grammar.help_text import help_text
from upfield.common.grammar.misread_values import expand_home, misread_values
from upfield.common.grammar.verb_schema import Command
from upfield.common.grammar.yaml_files import has_no_keys, load_yaml, read_yaml
from upfield.common.progress import open_streams

# Words that are the value of a boolean flag if they follow it.
BOOLEANS = ("true", "false", "yes", "no", "on", "off")
HELP = {"-h", "--help"}

C = TypeVar("C")


def execute(command: Command, argv: list[str] | None = None) -> int:
    """Parse `argv`, run the command, and return the exit code.

    The exit code is 0 if the command succeeded, 2 if its input was wrong, 130 if it was interrupted, and 1 otherwise.

    Args:
        command: the verb.
        argv: arguments after the verb, or None for those of the process.
    """
    if argv is None:
        use_utf8()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    open_streams()
    try:
        # SIGTERM ends the command as Ctrl-C does: the command waits for its workers and keeps finished work.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        settle_environment(command.verb)
        config = parse(command, [token for token in argv if token != "--debug"])
        refuse_environment(command.verb)
        return command.run(config) or 0
    except SystemExit as leaving:  # after --help or --print_config
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return _fail(command, "interrupted", EXIT_INTERRUPTED, debug)
    except (InputError, RunError, OSError, MemoryError) as error:
        return _fail(command, *explain_error(error), debug, isinstance(error, RunError) and error.is_agreed)
    except Exception as error:
        if problem := explain_variable(error):
            return _fail(command, problem, EXIT_INPUT, debug)
        traceback.print_exc()
        message = "this is a bug in upfield, not in your input. Please report it with the traceback above."
        return _fail(command, message, explain_error(error)[1], debug=False)


def _fail(command: Command, message: str, code: int, debug: bool, is_agreed: bool = False) -> int:
    """Print an error and return the exit code.

    Args:
        command: the verb.
        message: the error.
        code: exit code.
        debug: whether to print the traceback too.
        is_agreed: whether the processes of a job have already agreed that this one prints the error.
    """
    if debug:
        traceback.print_exc()
    prefix, line = f"upfield {command.verb}: error: ", " ".join(message.split())
    if is_agreed or code == EXIT_INTERRUPTED:
        print(f"{prefix}{line}", file=sys.stderr, flush=True)
    else:
        print_error(prefix, line)
    return code


def parse(command: Command, argv: list[str]) -> Any:
    """Parse arguments into an instance of the command's schema.

    Raises:
        InputError: a flag or key is unknown, a value has the wrong type, or a required one is missing.
        SystemExit: the arguments ask for help or for the configuration, which is printed.
    """
    if HELP & set(argv):
        print(help_text(command))
        raise SystemExit(0)
    parser = _build_parser(command)
    tokens = [_with_home(token) for token in _name_values(argv, command)]
    files = [Path(token.split("=", 1)[1]) for token in tokens if token.startswith("--config=")]
    # jsonargparse refuses a file without keys.
    empty = {f"--config={file}" for file in files if has_no_keys(file)}
    tokens = [token for token in tokens if token not in empty]
    given = dict(token.removeprefix("--").split("=", 1) for token in tokens if "=" in token)

    def message_of(error: Exception) -> str:
        trees = {str(file): read_yaml(file) for file in files}
        flags = {key: (_read_flag(text), text) for key, text in given.items()}
        return explain(error, command.verb, command.schema, trees, flags, command.positional)

    _refuse_misread(files, given, command.schema)
    if "--print_config" in tokens:
        _expect_fitting(files, command)
    config = _checked(lambda: parser.parse_args(tokens), parser, command.schema, message_of)
    for name, key in command.folder_of.items():
        if getattr(config, name) is None and key not in given and (file := _last_with(key, files)):
            config = replace(config, **{name: file.absolute().parent})
    return config


def _with_home(token: str) -> str:
    flag, _, path = token.partition("=")
    return f"{flag}={os.path.expanduser(path)}" if flag == "--config" and path else token


def _refuse_misread(files: list[Path], given: dict[str, str], schema: type) -> None:
    """Raise InputError if jsonargparse would accept a value in another meaning than the user's."""
    for file in files:
        for key, problem in misread_values(read_yaml(file), schema):
            raise InputError(f"{file}: {key}: {problem}")
    for flag, text in given.items():
        value: Any = _read_flag(text) if text else ""
        for name in reversed(flag.removesuffix("+").split(".")):
            value = {name: value}
        for key, problem in misread_values(value, schema):
            raise InputError(f"--{key}: {problem}")


def _expect_fitting(files: list[Path], command: Command) -> None:
    """Raise InputError if a file does not fit the schema. jsonargparse prints a configuration without checking it."""
    for file in files:
        if problem := file_problem(read_yaml(file), command.verb, command.schema):
            raise InputError(f"{file}: {problem}")


def _last_with(key: str, files: list[Path]) -> Path | None:
    if len(files) < 2:
        return files[0] if files else None
    return next((file for file in reversed(files) if key in read_yaml(file)), None)


def from_tree(schema: type[C], tree: dict[str, Any], where: str) -> C:
    """Build an instance of `schema` from nested dictionaries, such as those of a resolved configuration file.

    Args:
        schema: frozen dataclass.
        tree: values of the fields.
        where: name of the tree in errors, for instance its path.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type.
    """
    parser = _build_parser(Command("", schema, lambda _: 0))
    if not isinstance(tree, dict):
        raise InputError(f"{where}: {problem_of(tree, schema)}")

    def message_of(error: Exception) -> str:
        return explain(error, "", schema, {where: tree})

    for key, problem in misread_values(tree, schema):
        raise InputError(f"{where}: {key}: {problem}")
    own = copy.deepcopy(tree)  # jsonargparse modifies the dictionaries that it parses.
    try:
        return _checked(lambda: parser.parse_object(own), parser, schema, message_of)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(f"{where}: ") else f"{where}: {message}") from error


def to_tree(config: Any) -> dict[str, Any]:
    """Convert a configuration to nested plain values that YAML and JSON can hold."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that `--config` can read back."""
    import yaml

    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read_flag(text: str) -> Any:
    import yaml

    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _build_parser(command: Command) -> Any:
    import yaml
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    set_loader("yaml", load_yaml, (yaml.YAMLError,))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"upfield {command.verb}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(command.schema, as_group=False)
    # --debug has no default, so --print_config omits it. It is not a key of a configuration file.
    parser.add_argument("--debug", action="store_true", default=SUPPRESS)
    return parser


def _checked(
    parse_values: Callable[[], Any],
    parser: Any,
    schema: type[C],
    message_of: Callable[[Exception], str],
) -> C:
    """Parse the values, build the dataclass and check it.

    If one of the first two steps fails, `message_of` returns the error message.
    """
    try:
        values = parser.instantiate(parse_values())
        config = schema(**{f.name: getattr(values, f.name) for f in fields(schema)})  # pyright: ignore[reportArgumentType]
    except REFUSALS as error:
        raise InputError(message_of(error)) from error
    for key, problem in values_that_do_not_fit(config, schema):
        raise InputError(f"{key}: {problem}")
    return expand_home(config)


def _name_values(argv: list[str], command: Command) -> list[str]:
    """Rewrite arguments as `--name=value`, including positional arguments and boolean flags without a value.

    argparse itself would read `-1e-3` as a flag, and cannot mix positional arguments with flags. Wrong arguments stay
    as they are: jsonargparse refuses them.
    """
    kinds = dict(leaves(command.schema))
    known = known_flags(command.schema)

    def is_flag(flag: str) -> bool:
        # A key of a dictionary may have a flag of its own, such as --data.mix.kind.real.
        return flag in known or mapped_type(kinds.get(flag.removeprefix("--").rpartition(".")[0])) is not None

    options: list[str] = []
    loose: list[str] = []
    rest = deque(argv)
    while rest:
        token = rest.popleft()
        name = token.removeprefix("--")
        if not token.startswith("-") or token == "-":
            loose.append(token)
        elif not is_flag(token) or token in WITHOUT_VALUE:
            options.append(token)
        elif kinds.get(name) is bool and (not rest or rest[0].lower() not in BOOLEANS):
            options.append(f"{token}=true")
        elif not rest or is_flag(rest[0].partition("=")[0]):
            options.append(token)
        else:
            options.append(f"{token}={rest.popleft()}")
    given = {option.split("=", 1)[0].removeprefix("--") for option in options}
    return options + list(_name_positionals(loose, command, given))


def _name_positionals(loose: list[str], command: Command, given: set[str]) -> Iterator[str]:
    kinds = get_type_hints(command.schema)
    for name in (name for name in command.positional if name not in given):
        if loose and get_origin(kinds[name]) is list:
            yield f"--{name}={json.dumps(loose)}"
            return
        if loose and loose[0].lower().endswith(command.suffixes.get(name, "")):
            yield f"--{name}={loose.pop(0)}"
    yield from loose
