"""Open a finished shard set and read any sample by its offset, without scanning a tar."""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.manifest import Manifest, read_manifest
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex, read_index

MAX_OPEN_FILES = 64
# Members that follow each other are read in one call, with the tar header between them.
MAX_GAP_BYTES = 4096
LOW, HIGH, RECORD = range(3)


class ShardFiles(Protocol):
    """Where the files of a set are, for the reader that needs them."""

    @property
    def max_open_files(self) -> int:
        """Descriptors that a reader may keep."""
        ...

    def where(self, entry: ShardEntry) -> str:
        """Name a shard's place in errors."""
        ...

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices."""
        ...

    def open(self, entry: ShardEntry) -> int:
        """Give a descriptor to read a shard's tar from."""
        ...


class LocalFiles:
    """Files in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        """Take the folder of the set."""
        self.root = root

    @property
    def max_open_files(self) -> int:
        """Descriptors that a reader may keep."""
        return MAX_OPEN_FILES

    def where(self, entry: ShardEntry) -> str:
        """Name a shard's place in errors."""
        return str(self.root / f"{entry.name}.tar")

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices.

        Raises:
            ShardSetError: one is missing or no index.
        """
        return [read_index(self.root / f"{entry.name}.idx") for entry in entries]

    def open(self, entry: ShardEntry) -> int:
        """Give a descriptor to read a shard's tar from.

        Raises:
            ShardSetError: it is missing.
        """
        path = self.where(entry)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ShardSetError(f"{path}: expected a shard, found none; run upfield verify") from error


class ShardSplit:
    """One split of a shard set: samples numbered 0 .. num_samples-1 in the order they are stored.

    Holds arrays and file descriptors only, so that it is cheap to send to loader workers, which open their own files.
    """

    def __init__(
        self, root: Path | str, split: str, manifest: Manifest | None = None, source: ShardFiles | None = None
    ) -> None:
        """Read the manifest and the split's indices.

        Args:
            root: folder of the set, or with `source` what to call the set in errors.
            split: `train`, `val` or `test`.
            manifest: the set's manifest where it is already read.
            source: where the set's files are, if not in the folder.

        Raises:
            ShardSetError: no such set or split, an index is missing or disagrees with the manifest.
        """
        self.root = root
        self.split = split
        self.manifest = manifest or read_manifest(Path(root))
        self.source = source or LocalFiles(Path(root))
        self.entries = self.manifest.shards(split)
        indices = self.source.indices(self.entries)
        for entry, index in zip(self.entries, indices, strict=True):
            if len(index.keys) != entry.samples:
                raise ShardSetError(
                    f"{root}/{entry.name}.idx: expected {entry.samples} samples as the manifest says, "
                    f"found {len(index.keys)}; run upfield verify"
                )
        self.shard_sizes = np.array([entry.samples for entry in self.entries], dtype=np.int64)
        self.shard_starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.low_shape = self.manifest.sample_shape("low")
        self.high_shape = self.manifest.sample_shape("high")
        self._offsets = _joined([index.offsets for index in indices], (0, 3), np.int64)
        self._sizes = _joined([index.sizes for index in indices], (0, 3), np.int64)
        self._keys = _joined([index.keys for index in indices], (0,), np.bytes_)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._refuse_other_sizes()

    def _refuse_other_sizes(self) -> None:
        """Compare the members' sizes with the shapes that the manifest states, before anything is read by offset."""
        for member, shape in ((LOW, self.low_shape), (HIGH, self.high_shape)):
            header = self._sizes[:, member] - 2 * int(np.prod(shape))
            if (header <= 0).any() or (header % 64).any():
                raise ShardSetError(
                    f"{self.root}: expected {('low', 'high')[member]} members of shape {shape} float16 as the manifest "
                    f"says, found one of {int(self._sizes[header.argmin(), member])} bytes; run upfield verify"
                )

    @property
    def num_samples(self) -> int:
        """Number of samples in the split."""
        return len(self._keys)

    def key(self, sample: int) -> str:
        """Give a sample's key."""
        return self._keys[sample].decode("ascii")

    def record(self, sample: int) -> dict[str, Any]:
        """Read a sample's cohort, subject, kind, variant, slice and parameters."""
        shard = self._shard_of(sample)
        buffer = np.empty(int(self._sizes[sample, RECORD]), dtype=np.uint8)
        self._read(shard, int(self._offsets[sample, RECORD]), buffer.data)
        return json.loads(buffer.tobytes())

    def read_into(
        self, samples: Sequence[int] | NDArray[np.int64], low: NDArray[np.float16], high: NDArray[np.float16]
    ) -> None:
        """Read samples straight into a batch.

        Args:
            samples: N sample numbers.
            low: `(N, 1 + 2*context, Y, Z)` float16, contiguous; filled with values in [0, 1].
            high: `(N, 1, Y, Z)` float16, contiguous; filled with values in [0, 1].

        Raises:
            ShardSetError: a shard is missing or shorter than its index says.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        shards = self.shard_starts.searchsorted(numbers, side="right") - 1
        places = (shards.tolist(), self._offsets[numbers].tolist(), self._sizes[numbers].tolist())
        between = memoryview(bytearray(MAX_GAP_BYTES))
        for shard, offsets, sizes, low_slot, high_slot in zip(*places, low, high, strict=True):
            # The array's bytes end the member; what precedes them is the npy header.
            low_end = offsets[LOW] + sizes[LOW]
            high_start = offsets[HIGH] + sizes[HIGH] - high_slot.nbytes
            if 0 < (gap := high_start - low_end) <= MAX_GAP_BYTES:
                self._read(shard, low_end - low_slot.nbytes, low_slot.data, between[:gap], high_slot.data)
            else:
                self._read(shard, low_end - low_slot.nbytes, low_slot.data)
                self._read(shard, high_start, high_slot.data)

    def _shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self.shard_starts, sample, side="right")) - 1

    def _read(self, shard: int, offset: int, *targets: memoryview) -> None:
        """Fill memory with bytes that follow each other in a shard."""
        expected = sum([target.nbytes for target in targets])
        done = os.preadv(self._open(shard), targets, offset)
        while done < expected:
            count = os.preadv(self._open(shard), _after(targets, done), offset + done)
            if count == 0:
                raise ShardSetError(
                    f"{self._path(shard)}: expected {expected} bytes at offset {offset}, found {done}; "
                    "the shard is truncated, run upfield verify"
                )
            done += count

    def _path(self, shard: int) -> str:
        return self.source.where(self.entries[shard])

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        descriptor = self.source.open(self.entries[shard])
        self._files[shard] = descriptor
        if len(self._files) > self.source.max_open_files:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close all files; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        """Leave descriptors behind: they mean nothing in another process."""
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self) -> None:
        """Close what is open."""
        if hasattr(self, "_files"):
            self.close()


def _after(targets: Sequence[memoryview], done: int) -> list[memoryview]:
    """Give what is left of memory after its first `done` bytes."""
    left: list[memoryview] = []
    for target in targets:
        left.append(target.cast("B")[done:])
        done = max(0, done - target.nbytes)
    return left


def _joined(arrays: list[NDArray[Any]], empty_shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(empty_shape, dtype=dtype)
