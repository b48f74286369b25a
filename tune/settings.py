"""What a sweep was begun with: kept in its folder, and beside the trials' checkpoints where these lie in a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upfield.sharding.atomic import write_text
from upfield.sharding.command import to_tree, to_yaml
from upfield.sharding.errors import InputError, RunError
from upfield.tune.configuration import SweepConfig

SETTINGS, STATE = "sweep.yaml", "ray"
# What may differ when a sweep goes on: where it runs, not what it searches. Ray keeps the limits on trials.
FREE_KEYS = ("out", "address", "wait_for_nodes_s", "package", "resources")
NOT_OF_A_SWEEP = (".lock",)


def state_of(config: SweepConfig) -> tuple[str, str]:
    """Give where Ray keeps the state of a sweep: a folder or an address, and a name below it."""
    assert config.out is not None
    return (config.storage, config.out.name) if config.storage else (str(config.out.absolute()), STATE)


def address_of(config: SweepConfig) -> str:
    """Give the address of that state; options stay at its end: `s3://bucket/folder?region=eu-central-1`."""
    storage, name = state_of(config)
    address, *options = storage.split("?", 1)
    return "?".join([f"{address.rstrip('/')}/{name}", *options])


def refuse_other_sweep(config: SweepConfig) -> None:
    """Refuse a folder, or a place in a store, that holds another sweep.

    Raises:
        InputError: it was made with another configuration, or holds something else.
        RunError: the store does not answer.
    """
    import yaml

    assert config.out is not None
    out = config.out
    settings = out / SETTINGS
    if settings.is_file():
        _refuse_differing(config, yaml.safe_load(settings.read_text(encoding="utf-8")), str(settings), "--out")
    elif out.exists() and (not out.is_dir() or any(path.name not in NOT_OF_A_SWEEP for path in out.iterdir())):
        raise InputError(f"{out}: expected a new folder or an earlier sweep, found something else; choose --out")
    if config.storage:
        stored = _read_stored(config)
        if stored is not None:
            where = f"{_shown(address_of(config))}/{SETTINGS}"
            _refuse_differing(config, yaml.safe_load(stored), where, "--storage, or another name for --out")


def keep_settings(config: SweepConfig) -> None:
    """Write down what a sweep is begun with.

    Raises:
        RunError: the store cannot be written.
    """
    assert config.out is not None
    write_text(config.out / SETTINGS, to_yaml(config))
    if config.storage:
        _write_stored(config, to_yaml(config))


def _refuse_differing(config: SweepConfig, before: Any, where: str, other: str) -> None:
    now = to_tree(config)
    if not isinstance(before, Mapping):
        raise InputError(
            f"{where}: expected the configuration of a sweep, found something else; choose another {other}"
        )
    differing = [key for key in now if key not in FREE_KEYS and before.get(key) != now[key]]
    if differing:
        raise InputError(
            f"{where}: expected the configuration that this sweep was begun with, found another "
            f"{', '.join(differing)}; go on with the old one, or choose another {other}"
        )


def _shown(address: str) -> str:
    return address.split("?", 1)[0]


def _read_stored(config: SweepConfig) -> bytes | None:
    filesystem, path = _opened(config)
    try:
        with filesystem.open_input_file(path) as file:
            return file.readall()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unanswered(config, error) from error


def _write_stored(config: SweepConfig, text: str) -> None:
    filesystem, path = _opened(config)
    try:
        # In a store folders come with their files; on a disk they do not.
        filesystem.create_dir(str(Path(path).parent), recursive=True)
        with filesystem.open_output_stream(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise _unanswered(config, error) from error


def _opened(config: SweepConfig) -> tuple[Any, str]:
    """Open the store as Ray does, with Arrow."""
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(address_of(config))
    except (OSError, ValueError) as error:
        raise InputError(
            f"storage: expected an address such as s3://bucket/folder, found {config.storage}: {error}"
        ) from error
    return filesystem, f"{path}/{SETTINGS}"


def _unanswered(config: SweepConfig, error: OSError) -> RunError:
    return RunError(f"{_shown(address_of(config))}: expected a store that can be read and written, found: {error}")
