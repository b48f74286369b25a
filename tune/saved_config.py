"""What a sweep was begun with: kept in its folder, and beside the trials' checkpoints where these lie in a store."""

from collections.abc import Mapping
from typing import Any

from upfield.common.command import to_tree, to_yaml
from upfield.common.errors import InputError, RunError
from upfield.common.files import write_text
from upfield.common.locking import LOCK
from upfield.tune.configuration import SweepConfig
from upfield.tune.state import opened, shown_address_of

SETTINGS = "sweep.yaml"
# What may differ when a sweep goes on: where it runs, not what it searches. Ray keeps the limits on trials.
FREE_KEYS = ("out", "address", "wait_for_nodes_s", "package", "resources", "train.run.out")


def refuse_other_sweep(config: SweepConfig) -> None:
    """Refuse a folder, or a place in a store, that holds another sweep.

    Raises:
        InputError: it was made with another configuration, or holds something else.
        RunError: the store does not answer.
    """
    out = config.out
    settings = out / SETTINGS
    if settings.is_file():
        _refuse_differing(config, settings.read_bytes(), str(settings), "--out")
    elif out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise InputError(f"{out}: expected a new folder or an earlier sweep, found something else; choose --out")
    if config.storage:
        stored = _read_stored(config)
        if stored is not None:
            where = f"{shown_address_of(config)}/{SETTINGS}"
            _refuse_differing(config, stored, where, "--storage, or another name for --out")


def keep_settings(config: SweepConfig) -> None:
    """Write down what a sweep is begun with.

    Raises:
        RunError: the store cannot be written.
    """
    write_text(config.out / SETTINGS, to_yaml(config))
    if config.storage:
        _write_stored(config, to_yaml(config))


def _refuse_differing(config: SweepConfig, stored: bytes, where: str, other: str) -> None:
    import yaml

    try:
        before = yaml.safe_load(stored)
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, Mapping):
        raise InputError(
            f"{where}: expected the configuration of a sweep, found a damaged file; choose another {other}"
        )
    differing = [key for key in differing_keys(before, to_tree(config)) if not _is_free(key)]
    if differing:
        raise InputError(
            f"{where}: expected the configuration that this sweep was begun with, found another "
            f"{', '.join(differing)}; go on with the old one, or choose another {other}"
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def differing_keys(before: Any, now: Any, parent: str = "") -> list[str]:
    """Give the dotted keys in which two trees differ; those of a space hold dots themselves."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [] if before == now else [parent]
    keys = dict.fromkeys([*now, *before])
    below = {key: f"{parent}.{key}" if parent else str(key) for key in keys}
    return [found for key in keys for found in differing_keys(before.get(key), now.get(key), below[key])]


def _read_stored(config: SweepConfig) -> bytes | None:
    filesystem, folder = opened(config)
    try:
        with filesystem.open_input_file(f"{folder}/{SETTINGS}") as file:
            return file.readall()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unanswered(config, error) from error


def _write_stored(config: SweepConfig, text: str) -> None:
    filesystem, folder = opened(config)
    try:
        # In a store folders come with their files; on a disk they do not.
        filesystem.create_dir(folder, recursive=True)
        with filesystem.open_output_stream(f"{folder}/{SETTINGS}") as file:
            file.write(text.encode())
    except OSError as error:
        raise _unanswered(config, error) from error


def _unanswered(config: SweepConfig, error: OSError) -> RunError:
    return RunError(f"{shown_address_of(config)}: expected a store that can be read and written, found: {error}")
