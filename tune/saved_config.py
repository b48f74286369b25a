"""The configuration that a sweep was started with, saved in its folder, and in its store if it uses one."""

from collections.abc import Mapping
from typing import Any

import yaml

from upfield.common.command import to_tree, to_yaml
from upfield.common.errors import InputError
from upfield.common.files import write_text
from upfield.common.locking import LOCK
from upfield.common.stores.arrow import read_with_arrow, write_with_arrow
from upfield.tune.configuration import SweepConfig
from upfield.tune.state import open_state, shown_address_of

SAVED_CONFIG = "sweep.yaml"
# These keys may change when a sweep continues, because they say where it runs, not what it searches. The limits on
# trials may not change, because Ray keeps their first values.
CHANGEABLE_KEYS = ("out", "address", "wait_for_nodes_s", "package", "resources")


def refuse_other_sweep(config: SweepConfig) -> None:
    """Check that the sweep's folder, and its folder in the store, are empty or hold this same sweep.

    Raises:
        InputError: one of them holds another sweep or other files, or access to the store is denied.
        RunError: the store cannot be read.
    """
    out = config.out
    path = out / SAVED_CONFIG
    if path.is_file():
        _refuse_differing(config, path.read_bytes(), str(path), "--out")
    elif out.exists() and (not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir())):
        raise InputError(f"{out} exists and is not the folder of a sweep. Choose another --out.")
    if config.storage:
        filesystem, folder = open_state(config)
        place = f"{shown_address_of(config)}/{SAVED_CONFIG}"
        stored = read_with_arrow(filesystem, f"{folder}/{SAVED_CONFIG}", place)
        if stored is not None:
            _refuse_differing(config, stored, place, "--storage, or another name for --out")


def save_config(config: SweepConfig) -> None:
    """Write the configuration of the sweep to its folder and its store.

    Raises:
        InputError: access to the store is denied, or there is no such bucket.
        RunError: the store cannot be written.
    """
    write_text(config.out / SAVED_CONFIG, to_yaml(config))
    if config.storage:
        filesystem, folder = open_state(config)
        place = f"{shown_address_of(config)}/{SAVED_CONFIG}"
        write_with_arrow(filesystem, f"{folder}/{SAVED_CONFIG}", place, to_yaml(config).encode())


def _refuse_differing(config: SweepConfig, stored: bytes, place: str, option: str) -> None:
    try:
        before = yaml.safe_load(stored)
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, Mapping):
        raise InputError(f"{place}: the saved configuration of the sweep is damaged. Choose another {option}.")
    differing = [key for key in differing_keys(before, to_tree(config)) if not _may_change(key)]
    if differing:
        raise InputError(
            f"{place}: this sweep was started with other values of {', '.join(differing)}. Continue with the old "
            f"values, or choose another {option}."
        )


def _may_change(key: str) -> bool:
    return any(key == changeable or key.startswith(f"{changeable}.") for changeable in CHANGEABLE_KEYS)


def differing_keys(before: Any, now: Any, parent: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two trees; a key in a tree may itself contain dots."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [] if before == now else [parent]
    keys = dict.fromkeys([*now, *before])
    below = {key: f"{parent}.{key}" if parent else str(key) for key in keys}
    return [dotted for key in keys for dotted in differing_keys(before.get(key), now.get(key), below[key])]
