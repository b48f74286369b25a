"""Write one shard: a WebDataset tar and its index.

webdataset's `TarWriter` writes the tar, with one call per member. A single call for all members would sort them by
name, with `json` between `high.npy` and `low.npy`. In our order, the reader fetches low and high field in one read.
"""

import hashlib
import io
import json
import sys
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from upfield.common.files import atomic_path, hash_file, write_text
from upfield.sharding.shardset.shard_index import (
    INDEX_VERSION,
    LABELS,
    MEMBERS,
    ShardEntry,
    ShardIndex,
    read_index,
    refuse_unfitting,
    tar_room,
)

if TYPE_CHECKING:
    from webdataset.writer import TarWriter

NAME_BYTES = 100


@dataclass(frozen=True)
class Sample:
    """One pair of slices with its key and its record."""

    key: str
    """Name of the sample, without suffix."""
    low: NDArray[np.float16]
    """`(1 + 2*context, Y, Z)` in [0, 1]."""
    high: NDArray[np.float16]
    """`(1, Y, Z)` in [0, 1]."""
    record: dict[str, Any]
    """Cohort, subject, kind, variant, slice, parameters."""
    labels: NDArray[np.int16] | None = None
    """`(1, Y, Z)`, numbers of the structures; None if the sample carries no labels."""


@dataclass(frozen=True)
class WrittenShard:
    """A finished shard with the checksums of its samples."""

    entry: ShardEntry
    """The shard, as the manifest lists it."""
    checksums: NDArray[np.uint32]
    """`(samples,)`, CRC-32 of each sample's stretch of the tar."""


class HashedFile:
    """A file open for writing that computes the sha256 of what is written to it, and the CRC-32 of each stretch."""

    def __init__(self, file: BinaryIO) -> None:
        """Wrap a file that is open for writing and still empty."""
        self._file = file
        self._hash = hashlib.sha256()
        self._ends: deque[int] = deque()
        self._checksum = 0
        self.checksums: list[int] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write and hash some bytes."""
        self._file.write(data)
        self._hash.update(data)
        rest = memoryview(data)
        while self._ends and self._ends[0] <= self.size + len(rest):
            length = self._ends.popleft() - self.size
            self.checksums.append(zlib.crc32(rest[:length], self._checksum))
            self._checksum, self.size, rest = 0, self.size + length, rest[length:]
        self._checksum = zlib.crc32(rest, self._checksum)
        self.size += len(rest)

    def end_stretch(self, end: int) -> None:
        """End a stretch before byte `end`, which may not be written yet; the next stretch begins there."""
        self._ends.append(end)

    def hexdigest(self) -> str:
        """Return the sha256 of the bytes written so far, as hex digits."""
        return self._hash.hexdigest()


def write_shard(root: Path, name: str, samples: Iterable[Sample]) -> WrittenShard:
    """Write a tar and its index, each complete or not at all, the tar last: a tar that exists is finished.

    Equal samples make equal bytes: the tar holds no times and no owners.

    Args:
        root: folder of the set.
        name: path below it, without suffix.
        samples: samples to write, in order.
    """
    lines: list[str] = []
    with atomic_path(root / f"{name}.tar") as temporary:
        with temporary.open("wb") as file:
            hashed = HashedFile(file)
            stream = cast(BinaryIO, hashed)
            with _tar_writer_class()(stream, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
                _enlarge_buffers(tar.tarstream)
                for sample in samples:
                    lines.append(_write_sample(tar, sample))
                    hashed.end_stretch(tar.tarstream.offset)
        write_text(root / f"{name}.idx", "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines]) + "\n")
    entry = ShardEntry(name, len(lines), hashed.size, hashed.hexdigest())
    return WrittenShard(entry, np.array(hashed.checksums, dtype=np.uint32))


def inspect_shard(root: Path, name: str) -> WrittenShard:
    """Describe a finished shard from its files.

    Raises:
        ShardSetError: the index is damaged or does not fit the tar.
    """
    tar, path = root / f"{name}.tar", root / f"{name}.idx"
    index = read_index(path)
    entry = ShardEntry(name, len(index.keys), tar.stat().st_size, hash_file(tar))
    refuse_unfitting(index, str(path), entry)
    return WrittenShard(entry, read_checksums(tar, index))


def read_checksums(tar: Path, index: ShardIndex) -> NDArray[np.uint32]:
    """Compute the CRC-32 `(samples,)` of each sample's stretch of a tar.

    Args:
        tar: path of the tar.
        index: index of the shard, which fits the tar.
    """
    room = tar_room(index.sizes)
    with tar.open("rb") as file:
        checksums = [zlib.crc32(file.read(num_bytes)) for num_bytes in room.sum(axis=1).tolist()]
    return np.array(checksums, dtype=np.uint32)


def _enlarge_buffers(tarstream: Any) -> None:
    """Pass each array on whole and write 64 KiB at once instead of 10 KB: a shard takes a quarter less time."""
    tarstream.copybufsize = 1 << 20
    tarstream.fileobj.bufsize = 1 << 16


def _write_sample(tar: "TarWriter", sample: Sample) -> str:
    """Write a sample's members and return its line of the index."""
    record = json.dumps(sample.record, sort_keys=True, separators=(",", ":")).encode()
    words: list[str] = []
    members: dict[str, bytes] = dict(zip(MEMBERS, (_npy(sample.low), _npy(sample.high), record), strict=True))
    if sample.labels is not None:
        members[LABELS] = _npy(sample.labels)
    for suffix, payload in members.items():
        name = f"{sample.key}.{suffix}"
        assert len(name) <= NAME_BYTES, name
        words += [suffix, str(tar.tarstream.offset + BLOCKSIZE), str(len(payload)), name]
        tar.write({"__key__": sample.key, suffix: payload})
    return " ".join(words)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


@cache
def _tar_writer_class() -> "type[TarWriter]":
    """Import `TarWriter` without torch.

    `import webdataset` loads torch for its data loader if torch is installed, which would cost each build worker a
    second and 180 MB. webdataset also works without torch, so torch is hidden from this import. The imported modules
    are then removed from `sys.modules`, so that a later import in this process includes the loader.
    """
    if "torch" in sys.modules or "webdataset" in sys.modules:
        from webdataset.writer import TarWriter

        return TarWriter
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from webdataset.writer import TarWriter
    finally:
        del sys.modules["torch"]
        for module in [module for module in sys.modules if module.partition(".")[0] == "webdataset"]:
            del sys.modules[module]
    return TarWriter
