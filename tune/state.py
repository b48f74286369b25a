"""The state of a sweep that Ray saves: its place, and whether its files are complete."""

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
    """Return where Ray saves the state of a sweep: a folder or an address, and a name below it."""
    return (config.storage, config.out.name) if config.storage else (str(config.out.absolute()), FOLDER)


def address_of(config: SweepConfig) -> str:
    """Return the address of the state; options stay at its end: `s3://bucket/folder?region=eu-central-1`."""
    storage, name = state_of(config)
    address, *options = storage.split("?", 1)
    return "?".join([f"{address.rstrip('/')}/{name}", *options])


def shown_address_of(config: SweepConfig) -> str:
    """Return the address of the state without options, for messages."""
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
    """Rename the state if a killed driver left a damaged file in it, so that the trials continue from their runs.

    From damaged state, Ray would continue without any trials.

    Raises:
        InputError: the damaged state is in a store, where it also holds the checkpoints of the trials.
    """
    damaged = damaged_files(*opened(config))
    if not damaged:
        return
    place = shown_address_of(config)
    if config.storage:
        raise InputError(
            f"{place}: the state of the sweep has damaged files: {', '.join(damaged)}. Remove them, so that Ray uses "
            "earlier ones, or choose another name for --out."
        )
    numbers = (number for number in range(1, 10**6) if not Path(f"{place}.damaged-{number}").exists())
    aside = f"{place}.damaged-{next(numbers)}"
    os.rename(place, aside)
    say(f"{place}: damaged: {', '.join(damaged)}; renamed to {aside}, and the trials continue from their runs")


def damaged_files(filesystem: Any, folder: str) -> list[str]:
    """Return the names of the files that Ray would read and that are damaged."""
    from pyarrow.fs import FileSelector

    names = [info.base_name for info in filesystem.get_file_info(FileSelector(folder, allow_not_found=True))]
    damaged: list[str] = []
    for name in newest_of_each_kind(name for name in names if name.endswith((".json", ".pkl"))):
        with filesystem.open_input_file(f"{folder}/{name}") as file:
            if not is_whole(file.readall()):
                damaged.append(name)
    return damaged


def newest_of_each_kind(names: Iterable[str]) -> list[str]:
    """Return the newest of the names that differ only in their driver's start: `experiment_state-2026-01-31_...`."""
    return list({name.split("-20")[0]: name for name in sorted(names)}.values())


def is_whole(data: bytes) -> bool:
    """Return whether the content of one of Ray's files is complete; some files are pickles without saying so."""
    for load in (json.loads, pickle.loads):
        try:
            load(data)
        except Exception:  # A truncated pickle may raise any exception.
            continue
        return True
    return False
