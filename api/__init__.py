"""The Python interface of upfield: `import upfield`.

Each name is imported when it is first used, so `import upfield` itself loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upfield.common.errors import InputError as InputError
    from upfield.common.errors import RunError as RunError
    from upfield.sharding.configuration import CohortConfig as CohortConfig
    from upfield.sharding.configuration import GeometryConfig as GeometryConfig
    from upfield.sharding.configuration import ShardConfig as ShardConfig

    __version__: str

# Where each name is defined.
_MODULES = {
    "CohortConfig": "upfield.sharding.configuration",
    "GeometryConfig": "upfield.sharding.configuration",
    "InputError": "upfield.common.errors",
    "RunError": "upfield.common.errors",
    "ShardConfig": "upfield.sharding.configuration",
}

__all__ = ["CohortConfig", "GeometryConfig", "InputError", "RunError", "ShardConfig", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("upfield")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'upfield' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
