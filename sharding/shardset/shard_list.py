"""Lists of training shards, as the library webdataset takes them: `https://host/set/train/{000000..000157}.tar`."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from upfield.common.errors import InputError
from upfield.sharding.shardset.manifest import Manifest

# The items of a list are joined by `::`, and each item may have braces.
SEPARATOR = "::"
LIST = re.compile(r"\.tar}*$")
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
# The library that expands braces holds each range in memory.
MOST_SHARDS = 10**6
SHARD = re.compile(r"(?:(?P<root>.*)/)?(?P<name>train/[^/]+)\.tar")


def is_shard_list(place: str) -> bool:
    """Return whether `place` lists shards and is not the folder or address of a set."""
    return LIST.search(place) is not None


def make_absolute(place: str) -> Path | str:
    """Return the absolute path of a set's folder, or a list of shards in folders with absolute paths."""
    if is_shard_list(place):
        return SEPARATOR.join(str(Path(part).absolute()) for part in place.split(SEPARATOR))
    return Path(place).absolute()


def expand_shard_list(place: str) -> tuple[str, Iterator[str]]:
    """Return the folder or address of the set to which the listed shards belong, and the names of the shards.

    Args:
        place: paths or addresses of shards, with braces as in a shell.

    Raises:
        InputError: a shard is not a tar in a folder `train`, or the shards belong to several sets.
    """
    shards = _expand(place)
    first = next(shards)
    root = _parse(place, first)["root"]

    def names() -> Iterator[str]:
        for shard in chain([first], shards):
            parsed = _parse(place, shard)
            if parsed["root"] != root:
                raise InputError(
                    f"{place}: {first} and {shard} belong to different sets. List the shards of one set in data.shards."
                )
            yield parsed["name"]

    # A path may begin with a slash, and the set may be in the current folder.
    return "." if root is None else root or "/", names()


def select_shards(manifest: Manifest, names: Iterable[str], place: str) -> Manifest:
    """Return the manifest of a set whose training split has only the listed shards.

    Args:
        manifest: manifest of the whole set.
        names: names of shards in any order, such as `train/000000`.
        place: the list, for error messages.

    Raises:
        InputError: the set has no such shard, or the list names a shard twice.
    """
    known = {entry.name for entry in manifest.shards("train")}
    listed: set[str] = set()
    # A list of shards may be much longer than the set, so it is read only up to the first problem.
    for name in names:
        if name not in known:
            raise InputError(
                f"{place}: the set has no shard {name}.tar; it has {len(known)} training shards, {min(known)} to "
                f"{max(known)}. Correct the list, or name the folder or address of the set."
            )
        if name in listed:
            raise InputError(f"{place}: the shard {name}.tar is listed twice. List each shard once.")
        listed.add(name)
    return manifest.with_training_shards(listed)


def _expand(place: str) -> Iterator[str]:
    from braceexpand import braceexpand

    for first, last in RANGE.findall(place):
        if abs(int(last) - int(first)) > MOST_SHARDS:
            raise InputError(
                f"{place}: the range {first}..{last} has more than {MOST_SHARDS} shards. Correct the list, or name the "
                "folder or address of the set."
            )
    for part in place.split(SEPARATOR):
        try:
            yield from braceexpand(part)
        except ValueError as error:  # the class of the library's own errors
            raise InputError(f"{place}: the braces of this list do not match. Correct data.shards.") from error


def _parse(place: str, shard: str) -> re.Match[str]:
    if (parsed := SHARD.fullmatch(shard)) is None:
        raise InputError(
            f"{place}: expected training shards SET/train/NAME.tar, found {shard}. Name the shards below the folder "
            "train, because the manifest and the validation split are looked for beside it."
        )
    return parsed
