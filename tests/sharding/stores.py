"""Helpers for tests of remote stores: a server that can stop, hooks in the clients of the stores, and small sets."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from moto.server import ThreadedMotoServer

from upfield.sharding.shardset.manifest import FORMAT, MANIFEST, VERSION, hash_tree

NAMES = ("train/000000", "train/000001", "val/000000", "test/000000", "train/000002")
OLD = NAMES[:4]


class Server:
    """A moto server that can stop and start again at the same address with the same contents."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.address = self._moto.get_host_and_port()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def stop(self) -> None:
        self._moto.stop()

    def start(self) -> None:
        self._moto = ThreadedMotoServer(*self.address, verbose=False)
        self._moto.start()


def ignore(name: str) -> None:
    """Do nothing."""


HOOKS: dict[str, Callable[[str], None]] = {"before": ignore, "after": ignore}


@contextmanager
def watching(before: Callable[[str], None] = ignore, after: Callable[[str], None] = ignore) -> Iterator[None]:
    """Call `before` and `after` around each file sent to a store, with the file's name below the set's folder."""
    HOOKS.update(before=before, after=after)
    try:
        yield
    finally:
        HOOKS.update(before=ignore, after=ignore)


def failing_after(count: int, error: Exception) -> AbstractContextManager[None]:
    """Let a store accept `count` files, and raise `error` for every later one."""
    left = iter(range(count))

    def fail(name: str) -> None:
        if next(left, None) is None:
            raise error

    return watching(before=fail)


def write_set(folder: Path, names: tuple[str, ...], seed: int = 0, num_bytes: int = 4000) -> Path:
    """Write the files of a set that an upload needs. Shards of the same name and seed have the same bytes."""
    splits = {split: {"shards": []} for split in ("train", "val", "test")}
    for name in names:
        tar = np.random.default_rng([seed, zlib.crc32(name.encode())]).bytes(num_bytes)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.tar").write_bytes(tar)
        (folder / f"{name}.idx").write_text(f"index of {name} {seed}\n")
        entry = {"name": name, "samples": 1, "bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
        splits[name.split("/")[0]]["shards"].append(entry)
    tree = {"format": FORMAT, "version": VERSION, "data_sha256": hash_tree(splits), "splits": splits}
    (folder / MANIFEST).write_text(json.dumps(tree))
    return folder


def outside(url: str) -> tuple[Any, str]:
    """Return a file system that shares no cache with the one under test, and the path in it."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def held(url: str) -> dict[str, bytes]:
    fs, root = outside(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def put(url: str, data: bytes) -> None:
    fs, path = outside(url)
    fs.pipe_file(path, data)


def remove(url: str) -> None:
    fs, path = outside(url)
    fs.rm_file(path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
