"""Where Ray keeps the state of a sweep, and whether it is whole."""

import json
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.common.stores import open_with_arrow
from upfield.tune.configuration import SweepConfig

FOLDER = "ray"


def state_of(config: SweepConfig) -> tuple[str, str]:
    """Give where Ray keeps the state of a sweep: a folder or an address, and a name below it."""
    return (config.storage, config.out.name) if config.storage else (str(config.out.absolute()), FOLDER)


def address_of(config: SweepConfig) -> str:
    """Give the address of that state; options stay at its end: `s3://bucket/folder?region=eu-central-1`."""
    storage, name = state_of(config)
    address, *options = storage.split("?", 1)
    return "?".join([f"{address.rstrip('/')}/{name}", *options])


def shown_address_of(config: SweepConfig) -> str:
    """Give that address for messages, without options."""
    return address_of(config).split("?", 1)[0]


def opened(config: SweepConfig) -> tuple[Any, str]:
    """Open the state's place as Ray does, with Arrow; give the filesystem, and the path in it.

    Raises:
        InputError: no such address.
    """
    try:
        return open_with_arrow(address_of(config))
    except InputError as error:
        raise InputError(f"storage: {error}") from error


def set_aside_damaged(config: SweepConfig) -> None:
    """Let a sweep begin anew, from its trials' runs, where a driver that was killed left half a file of its state.

    Ray would go on with no trials at all.

    Raises:
        InputError: it lies in a store, where the trials' checkpoints are part of it.
    """
    damaged = damaged_files(*opened(config))
    if not damaged:
        return
    place = shown_address_of(config)
    if config.storage:
        raise InputError(
            f"{place}: expected the state of a sweep, found a damaged {', '.join(damaged)}; remove it, so that an "
            "earlier one is taken, or choose another name for --out"
        )
    numbers = (number for number in range(1, 10**6) if not Path(f"{place}.damaged-{number}").exists())
    aside = f"{place}.damaged-{next(numbers)}"
    os.rename(place, aside)
    say(f"{place}: found a damaged {', '.join(damaged)}; put aside as {aside}, trials go on from their runs")


def damaged_files(filesystem: Any, folder: str) -> list[str]:
    """Give the names of files of Ray's state that it would read and cannot."""
    from pyarrow.fs import FileSelector

    names = [info.base_name for info in filesystem.get_file_info(FileSelector(folder, allow_not_found=True))]
    damaged: list[str] = []
    for name in newest_of_each_kind(name for name in names if name.endswith((".json", ".pkl"))):
        with filesystem.open_input_file(f"{folder}/{name}") as file:
            if not is_whole(file.readall()):
                damaged.append(name)
    return damaged


def newest_of_each_kind(names: Iterable[str]) -> list[str]:
    """Give the last of those that differ only in when their driver was started: `experiment_state-2026-01-31_...`."""
    return list({name.split("-20")[0]: name for name in sorted(names)}.values())


def is_whole(data: bytes) -> bool:
    """Tell whether a file of Ray's can be read; some are pickles under another name."""
    for load in (json.loads, pickle.loads):
        try:
            load(data)
        except Exception:  # A cut-off pickle may raise anything.
            continue
        return True
    return False
