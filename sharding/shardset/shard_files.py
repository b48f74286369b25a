"""Where a split reads its samples from: the interface, and its implementation for files that can be opened.

Local shards and shards in the node's cache are opened and read by offset (`OpenShards`). `remote/remote_samples.py`
downloads single samples instead.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex, read_index, refuse_unfitting
from upfield.sharding.shardset.split_index import IndexEntry, SplitIndex, read_split_index

MAX_OPEN_FILES = 64


class Piece(NamedTuple):
    """Consecutive bytes of a sample that are read in one call."""

    sample: int
    """Number of the sample in its split."""
    shard: int
    """Number of its shard in the split."""
    offset: int
    """Position of the first byte in the shard's tar."""
    targets: tuple[memoryview, ...]
    """Memory that the bytes fill, one target after the other."""


@dataclass(frozen=True)
class Stretch:
    """The bytes of one sample in its tar, from its first header to its last padding."""

    shard: int
    """Number of the shard in the split."""
    start: int
    """Position of the first byte."""
    end: int
    """Position after the last byte."""
    crc32: int | None
    """CRC-32 of the bytes; None in sets of earlier versions."""


class SampleTable(Protocol):
    """What a reader must know about the samples of a split. `ShardSplit` implements it."""

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def entries(self) -> Sequence[ShardEntry]:
        """Shards of the split."""
        ...

    def key(self, sample: int) -> str:
        """Return a sample's key."""
        ...

    def stretches(self, samples: Sequence[int]) -> list[Stretch]:
        """Return where the bytes of samples are, with their checksums."""
        ...


class SampleReader(Protocol):
    """Reads samples of one split. Each thread has its own reader."""

    def request(self, samples: Sequence[int]) -> None:
        """Start to download samples, if they are downloaded one by one.

        A number occurs once for each call of `read` that will read the sample.
        """
        ...

    def read(self, pieces: Iterable[Piece]) -> None:
        """Read pieces of samples into their targets."""
        ...

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        ...


class ShardFiles(Protocol):
    """The files of a shard set, wherever they are stored."""

    def where(self, entry: ShardEntry) -> str:
        """Return the path or address of a shard, for error messages."""
        ...

    def split_index(self, entry: IndexEntry, split: str) -> SplitIndex:
        """Read the index of a split."""
        ...

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices, in a set without indices of its splits."""
        ...

    def reader(self, table: SampleTable) -> SampleReader:
        """Return a reader of the samples of a split."""
        ...

    def stop(self) -> None:
        """Cancel all transfers that threads are waiting for. After this call, nothing can be downloaded."""
        ...


class TarFiles(Protocol):
    """Shards that can be opened as files."""

    def where(self, entry: ShardEntry) -> str:
        """Return the path or address of a shard, for error messages."""
        ...

    def open(self, entry: ShardEntry) -> int:
        """Open a shard's tar and return its descriptor."""
        ...


class OpenShards:
    """Reads samples from files by offset, and keeps the files open that it used last. Implements `SampleReader`."""

    def __init__(self, files: TarFiles, entries: Sequence[ShardEntry], max_open_files: int) -> None:
        """Store the arguments; nothing is opened yet.

        Args:
            files: files of the set.
            entries: shards of the split.
            max_open_files: number of files that may be open at once.
        """
        self._files = files
        self._entries = entries
        self._max_open_files = max_open_files
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def request(self, samples: Sequence[int]) -> None:
        """Do nothing, because files need no announcement."""

    def read(self, pieces: Iterable[Piece]) -> None:
        """Read pieces of samples into their targets.

        Raises:
            ShardSetError: a shard is missing or shorter than its index says.
            FetchError: a remote shard could not be fetched.
        """
        for _, shard, offset, targets in pieces:
            self._read(shard, offset, targets)

    def _read(self, shard: int, offset: int, targets: Sequence[memoryview]) -> None:
        expected = sum([target.nbytes for target in targets])
        done = os.preadv(self._open(shard), targets, offset)
        while done < expected:
            count = os.preadv(self._open(shard), _after(targets, done), offset + done)
            if count == 0:
                raise ShardSetError(
                    f"{self._files.where(self._entries[shard])}: expected {expected} bytes at offset {offset}, found "
                    f"{done}, so the shard is truncated. Run upfield verify."
                )
            done += count

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        descriptor = self._files.open(self._entries[shard])
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > self._max_open_files:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        """Close all files."""
        self.close()


class LocalFiles:
    """The files of a shard set in a folder on this machine. Implements `ShardFiles`."""

    def __init__(self, root: Path) -> None:
        """Remember the folder of the set."""
        self.root = root

    def where(self, entry: ShardEntry) -> str:
        """Return the path of a shard, for error messages."""
        return str(self.root / f"{entry.name}.tar")

    def split_index(self, entry: IndexEntry, split: str) -> SplitIndex:
        """Read the index of a split.

        Raises:
            ShardSetError: the index is missing or damaged, or has a newer layout.
        """
        return read_split_index(self.root / entry.name, entry, split)

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices.

        Raises:
            ShardSetError: an index is missing or damaged.
        """
        indices: list[ShardIndex] = []
        for entry in entries:
            path = self.root / f"{entry.name}.idx"
            indices.append(read_index(path))
            refuse_unfitting(indices[-1], str(path), entry)
        return indices

    def open(self, entry: ShardEntry) -> int:
        """Open a shard's tar and return its descriptor.

        Raises:
            ShardSetError: the tar is missing.
        """
        path = self.where(entry)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ShardSetError(f"{path}: this shard is missing. Run upfield verify.") from error

    def reader(self, table: SampleTable) -> OpenShards:
        """Return a reader that opens the shards of a split."""
        return OpenShards(self, table.entries, MAX_OPEN_FILES)

    def stop(self) -> None:
        """Do nothing, because nothing is transferred."""


def _after(targets: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return the parts of the targets that are still empty after `done` bytes were read."""
    left: list[memoryview] = []
    for target in targets:
        left.append(target.cast("B")[done:])
        done = max(0, done - target.nbytes)
    return left
