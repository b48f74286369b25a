"""The command-line grammar that all commands share.

A frozen dataclass is the schema of a command. `--config FILE.yaml` and dotted flags set its fields, and jsonargparse
parses and checks the values. A positional argument is shorthand for the flag of the same name, so it is a YAML key too.
"""

import copy
import json
import re
import signal
import sys
import threading
import traceback
from argparse import SUPPRESS
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from upfield.common.environment.job_errors import print_error
from upfield.common.environment.settling import refuse_environment, settle_environment, use_utf8
from upfield.common.errors import InputError, RunError, explain_error
from upfield.common.grammar.configuration_errors import (
    REFUSALS,
    WITHOUT_VALUE,
    explain,
    known_flags,
    leaves,
    mapped_type,
    problem_of,
    values_that_do_not_fit,
)
from upfield.common.progress import open_streams

# Words that are the value of a boolean flag if they follow it.
BOOLEANS = ("true", "false", "yes", "no", "on", "off")
EXIT_INTERRUPTED = 130

C = TypeVar("C")


@dataclass(frozen=True)
class Command:
    """One verb, with the schema of its configuration and the function that runs it."""

    verb: str
    """The word after `upfield`, such as `train`."""
    schema: type
    """Frozen dataclass. Its field docs are the help texts, and fields without a default are required."""
    run: Callable[[Any], int | None]
    """Takes an instance of the schema and returns the exit code. It imports heavy modules itself."""
    positional: tuple[str, ...] = ()
    """Fields that may be given without their flag, in order. A list field must come last and takes the rest."""
    suffixes: dict[str, str] = field(default_factory=dict)
    """Maps positional fields to the suffix of file names, such as `.onnx`, without which an argument is not theirs."""
    folder_of: dict[str, str] = field(default_factory=dict)
    """Maps fields to keys. If such a field is not given, it is set to the folder of the configuration file that holds
    the key."""


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
    """
    parser = _build_parser(command)
    tokens = _name_values(argv, command)
    files = [Path(token.split("=", 1)[1]) for token in tokens if token.startswith("--config=")]
    # jsonargparse refuses a file without keys.
    empty = {f"--config={file}" for file in files if _has_no_keys(file)}
    tokens = [token for token in tokens if token not in empty]
    given = dict(token.removeprefix("--").split("=", 1) for token in tokens if "=" in token)

    def message_of(error: Exception) -> str:
        trees = {str(file): read_yaml(file) for file in files}
        flags = {key: (_read_flag(text), text) for key, text in given.items()}
        return explain(error, command.schema, trees, flags, command.positional)

    if "--print_config" in tokens:
        _expect_fitting(files, command.schema)
    config = _checked(lambda: parser.parse_args(tokens), parser, command.schema, message_of)
    for name, key in command.folder_of.items():
        if getattr(config, name) is None and key not in given and (file := _last_with(key, files)):
            config = replace(config, **{name: file.absolute().parent})
    return config


def _expect_fitting(files: list[Path], schema: type) -> None:
    """Raise InputError if a file does not fit the schema. jsonargparse prints a configuration without checking it."""
    for file in files:
        if problem := problem_of(read_yaml(file), schema):
            raise InputError(f"{file}: {problem}")


def _has_no_keys(file: Path) -> bool:
    if not file.is_file():
        return False
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return all(not line.strip() or line.lstrip().startswith("#") for line in lines)


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
        return explain(error, schema, {where: tree})

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


def load_yaml(text: str) -> Any:
    """Parse YAML with the booleans and floats of version 1.2: `no` is text, and `1e-3` is a number.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    import yaml

    return yaml.load(text, _yaml_loader())


@cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 with the booleans and floats of 1.2, and without dates."""

    changed = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag not in changed]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(changed[0], re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
    number = r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)"
    special = r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    Loader.add_implicit_resolver(changed[1], re.compile(rf"(?:{number}|{special})\Z"), list("-+.0123456789"))
    return Loader


def _read_flag(text: str) -> Any:
    import yaml

    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file. Return an empty dictionary if the file is empty.

    Raises:
        InputError: the file is missing, cannot be read, or is not YAML.
    """
    import yaml

    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}). Check --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this is not valid YAML: {error}. Correct the file.") from error
    return {} if tree is None else tree


def _build_parser(command: Command) -> Any:
    import yaml
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    set_loader("yaml", load_yaml, (yaml.YAMLError,))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"upfield {command.verb}",
        description=(command.schema.__doc__ or "").strip(),
        usage=f"upfield {command.verb} {_usage(command)}[--config FILE.yaml] [--KEY VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
    )
    words = "YAML file with any of the keys below. Later flags override it."
    parser.add_argument("--config", action="config", help=words)
    parser.add_class_arguments(command.schema, as_group=False)
    # --debug has no default, so --print_config omits it. It is not a key of a configuration file.
    parser.add_argument("--debug", action="store_true", default=SUPPRESS, help="Show the traceback of an error.")
    return parser


def _usage(command: Command) -> str:
    kinds = get_type_hints(command.schema)
    required = {f.name for f in fields(command.schema) if f.default is f.default_factory is MISSING}
    words: list[str] = []
    for name in command.positional:
        word = f"{name.upper()}{command.suffixes.get(name, '')}{'...' if get_origin(kinds[name]) is list else ''}"
        words.append(f"{word} " if name in required else f"[{word}] ")
    return "".join(words)


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
    return config


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
