"""One shard: a plain WebDataset tar, and beside it the index of NVIDIA DALI's WebDataset reader.

The index has a line per sample, `EXTENSION OFFSET SIZE NAME` for each member in turn, after a first line with its
version and the number of samples (DALI, tools/wds2idx.py); OFFSET is where the member's bytes start.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.common.files import atomic_path, write_text

INDEX_VERSION = "v1.2"
SUFFIXES = (".tar", ".idx")
MEMBERS = ("low.npy", "high.npy", "json")
BLOCK_BYTES = tarfile.BLOCKSIZE
NAME_BYTES = 100


@dataclass(frozen=True)
class Sample:
    """What is stored of one slice pair."""

    key: str
    """Name of the sample, without suffix."""
    low: NDArray[np.float16]
    """`(1 + 2*context, Y, Z)` in [0, 1]."""
    high: NDArray[np.float16]
    """`(1, Y, Z)` in [0, 1]."""
    record: dict[str, Any]
    """Cohort, subject, kind, variant, slice, parameters."""


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard, as the manifest lists it."""

    name: str
    """Path below the set's folder, without suffix."""
    samples: int
    """Number of samples."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar's bytes."""


def write_shard(root: Path, name: str, samples: Iterable[Sample]) -> ShardEntry:
    """Write the tar and its index, each complete or not at all, the tar last: where it is, the shard is finished.

    Args:
        root: folder of the set.
        name: path below it, without suffix.
        samples: what to pack, in order.
    """
    index: list[str] = []
    tar_path = root / f"{name}.tar"
    with atomic_path(tar_path) as temporary:
        with temporary.open("wb") as file:
            out = _Hashing(file)
            for sample in samples:
                index.append(_write_sample(out, sample))
            # Two blocks of zeros end a tar; the rest fills the record that tar programs read at once.
            end = 2 * BLOCK_BYTES
            out.write(bytes(end + -(out.position + end) % tarfile.RECORDSIZE))
        write_text(root / f"{name}.idx", "\n".join([f"{INDEX_VERSION} {len(index)}", *index]) + "\n")
    return ShardEntry(name, len(index), out.position, out.hexdigest())


def _write_sample(out: "_Hashing", sample: Sample) -> str:
    record = json.dumps(sample.record, sort_keys=True, separators=(",", ":")).encode()
    line: list[str] = []
    for suffix, payload in zip(MEMBERS, (_npy(sample.low), _npy(sample.high), record), strict=True):
        name = f"{sample.key}.{suffix}"
        assert len(name) <= NAME_BYTES, name
        out.write(_header(name, len(payload)))
        line.append(f"{suffix} {out.position} {len(payload)} {name}")
        out.write(payload)
        out.write(bytes(-len(payload) % BLOCK_BYTES))
    return " ".join(line)


def _header(name: str, size: int) -> bytes:
    """Give a tar header without owner or time, so that equal samples are equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


class _Hashing:
    """A file that knows its position and the hash of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.position += len(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class ShardIndex:
    """Where a shard's samples lie: arrays of one entry per sample."""

    keys: NDArray[np.bytes_]
    """Sample keys."""
    offsets: NDArray[np.int64]
    """`(samples, 3)`: first byte of the low, high and json member."""
    sizes: NDArray[np.int64]
    """`(samples, 3)`: their bytes."""


def read_index(path: Path) -> ShardIndex:
    """Read a shard's index.

    Raises:
        ShardSetError: missing, or not an index of our samples.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardSetError(f"{path}: expected a shard index, found none that can be read; rebuild the set") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, where: str) -> ShardIndex:
    """Make an index of a file's bytes.

    Args:
        data: the whole file.
        where: what to call it in errors, a path or an address.

    Raises:
        ShardSetError: not an index of our samples.
    """
    try:
        head, *lines = data.decode("ascii").splitlines()
    except (UnicodeDecodeError, ValueError) as error:
        raise ShardSetError(f"{where}: expected a shard index, found none that can be read; rebuild the set") from error
    if head != f"{INDEX_VERSION} {len(lines)}":
        raise ShardSetError(f"{where}: expected '{INDEX_VERSION} {len(lines)}' as its first line, found {head!r}")
    words = [line.split(" ") for line in lines]
    if any(len(row) != 12 or tuple(row[0::4]) != MEMBERS for row in words):
        raise ShardSetError(f"{where}: expected members {', '.join(MEMBERS)} in every line, found others")
    try:
        table = np.array([[row[i] for i in (1, 5, 9, 2, 6, 10)] for row in words], dtype=np.int64).reshape(-1, 6)
    except (ValueError, OverflowError) as error:
        raise ShardSetError(f"{where}: expected whole numbers as offsets and sizes, found others: {error}") from error
    keys = np.array([row[3].removesuffix(f".{MEMBERS[0]}") for row in words], dtype=np.bytes_)
    return ShardIndex(keys, table[:, :3], table[:, 3:])
