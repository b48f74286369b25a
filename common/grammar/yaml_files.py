"""Read YAML with the booleans and floats of version 1.2, and refuse keys that are given twice."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError


def load_yaml(text: str) -> Any:
    """Parse YAML with the booleans and floats of version 1.2: `no` is text, and `1e-3` is a number.

    Raises:
        yaml.YAMLError: the text is not YAML, or gives a key twice.
    """
    import yaml

    return yaml.load(text, _yaml_loader())


def read_yaml(path: Path) -> Any:
    """Read a YAML file. Return an empty dictionary if the file is empty.

    Raises:
        InputError: the file is missing, cannot be read, is not YAML, or gives a key twice.
    """
    import yaml

    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}). Check --config.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: this is not a text file in UTF-8. Name a YAML file with --config.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {_explain(error)}") from error
    return {} if tree is None else tree


def has_no_keys(file: Path) -> bool:
    """Return whether a file exists and holds nothing but comments."""
    if not file.is_file():
        return False
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return all(not line.strip() or line.lstrip().startswith("#") for line in lines)


def _explain(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
    problem = " ".join(problem.split())
    if problem.startswith("the key "):
        return f"{problem} Remove one of them."
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}this is not valid YAML ({problem}). Correct the file."


@cache
def _yaml_loader() -> Any:
    import yaml
    from yaml.constructor import ConstructorError

    class Loader(yaml.SafeLoader):
        """YAML 1.1 with the booleans and floats of 1.2, without dates, and without keys that are given twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and key.tag != "tag:yaml.org,2002:merge":
                    problem = f"the key {name} is given twice, in lines {lines[name]} and {line}."
                    raise ConstructorError(None, None, problem, key.start_mark)
                lines[name] = line
            return super().construct_mapping(node, deep)

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
