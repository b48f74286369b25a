"""What a command consists of: its verb, its configuration, and the examples of its help."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_origin, get_type_hints


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
    examples: tuple[str, ...] = ()
    """Command lines for the help, each at most 76 characters long."""

    @property
    def usage(self) -> str:
        """The form of the command line, such as `upfield export RUN [--config FILE.yaml] [--KEY VALUE ...]`."""
        required = {f.name for f in fields(self.schema) if f.default is f.default_factory is MISSING}
        places = [self.place_of(name) for name in self.positional]
        words = [
            place if name in required else f"[{place}]" for name, place in zip(self.positional, places, strict=True)
        ]
        return " ".join(["upfield", self.verb, *words, "[--config FILE.yaml] [--KEY VALUE ...]"])

    def place_of(self, name: str) -> str:
        """Return how the usage names a field that may be given without its flag, such as `MODEL.onnx` or `SCANS...`."""
        is_list = get_origin(get_type_hints(self.schema)[name]) is list
        return f"{name.upper()}{self.suffixes.get(name, '')}{'...' if is_list else ''}"
