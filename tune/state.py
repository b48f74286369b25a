"""The state that Ray saves of a sweep: its location, and a check for damaged files."""

import json
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.common.stores.arrow import open_with_arrow
from upfield.tune.configuration import SweepConfig

FOLDER = "ray"


def state_of(config: SweepConfig) -> tuple[str, str]:
    """Return the location of the state that Ray saves of a sweep: a folder or address, and a name below it."""
    return (config.storage, config.out.name) if config.storage else (str(config.out.absolute()), FOLDER)


def address_of(config: SweepConfig) -> str:
    """Return the state's address, with any options at its end: `s3://bucket/folder?region=eu-central-1`."""
    storage, name = state_of(config)
    address, *options = storage.split("?", 1)
    return "?".join([f"{address.rstrip('/')}/{name}", *options])


def shown_address_of(config: SweepConfig) -> str:
    """Return the address of the state without options, for messages."""
    return address_of(config).split("?", 1)[0]


def open_state(config: SweepConfig) -> tuple[Any, str]:
    """Open the location of the state with Arrow, as Ray does; return the file system and the path in it.

    Raises:
        InputError: Arrow cannot open the address of the store.
    """
    try:
        return open_with_arrow(address_of(config))
    except InputError as error:
        raise InputError(f"storage: {error}") from error


def set_aside_damaged(config: SweepConfig) -> None:
    """Rename the folder of the state if a killed driver left a damaged file in it.

    If Ray restored a damaged state, it would continue without any trials. If it finds no state, it starts every trial
    again, and each trial continues from the last checkpoint in its run.

    Raises:
        InputError: the damaged state is in a store, where it also holds the checkpoints of the trials.
    """
    damaged = damaged_files(*open_state(config))
    if not damaged:
        return
    place = shown_address_of(config)
    if config.storage:
        raise InputError(
            f"{place}: the state of the sweep has damaged files: {', '.join(damaged)}. Remove them, so that Ray uses "
            "earlier ones, or choose another name for --out."
        )
    numbers = (number for number in range(1, 10**6) if not Path(f"{place}.damaged-{number}").exists())
    new_place = f"{place}.damaged-{next(numbers)}"
    os.rename(place, new_place)
    say(
        f"{place} was renamed to {new_place}, because it has damaged files: {', '.join(damaged)}. The trials continue "
        "from their last checkpoints."
    )


def damaged_files(filesystem: Any, folder: str) -> list[str]:
    """Return the names of the damaged files among those that Ray would read."""
    names = [info.base_name for info in filesystem.get_file_info(FileSelector(folder, allow_not_found=True))]
    damaged: list[str] = []
    for name in newest_of_each_kind(name for name in names if name.endswith((".json", ".pkl"))):
        with filesystem.open_input_file(f"{folder}/{name}") as file:
            if not is_complete(file.readall()):
                damaged.append(name)
    return damaged


def newest_of_each_kind(names: Iterable[str]) -> list[str]:
    """Return the newest of the names that differ only in the date: `experiment_state-2026-01-31_...`.

    Each driver writes the date of its start into the names of its files.
    """
    return list({name.split("-20")[0]: name for name in sorted(names)}.values())


def is_complete(data: bytes) -> bool:
    """Return whether the content of one of Ray's files is complete JSON or a complete pickle, whatever its suffix."""
    for load in (json.loads, pickle.loads):
        try:
            load(data)
        except Exception:  # A truncated pickle may raise any exception.
            continue
        return True
    return False
