"""The index beside each shard, in the format of NVIDIA DALI's WebDataset reader (version 1.2).

The first line holds the version and the number of samples. Each further line lists the members of one sample, each as
`EXTENSION OFFSET SIZE NAME`, with OFFSET the position of the member's first byte in the tar (DALI, tools/wds2idx.py).
"""

from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError

INDEX_VERSION = "v1.2"
SUFFIXES = (".tar", ".idx")
MEMBERS = ("low.npy", "high.npy", "json")
# The last member of samples that carry labels. Other samples do not have it.
LABELS = "labels.npy"
REMEDY = "Copy or build the set again."


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
    """Hash of the tar's bytes."""


@dataclass(frozen=True)
class ShardIndex:
    """Positions of a shard's samples: arrays with one entry per sample."""

    keys: NDArray[np.bytes_]
    """Sample keys."""
    offsets: NDArray[np.int64]
    """`(samples, 4)`: position of the first byte of the low, high, json and labels member."""
    sizes: NDArray[np.int64]
    """`(samples, 4)`: sizes of these members in bytes. The size and the position of missing labels are 0."""


def read_index(path: Path) -> ShardIndex:
    """Read a shard's index.

    Raises:
        ShardSetError: the file is missing, or is not an index of our samples.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardSetError(f"{path}: this shard index is missing. {REMEDY}") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, where: str) -> ShardIndex:
    """Parse the bytes of an index file.

    Args:
        data: the whole file.
        where: path or address of the file, for error messages.

    Raises:
        ShardSetError: the bytes are not an index of our samples.
    """
    try:
        head, *lines = data.decode("ascii").splitlines()
    except (UnicodeDecodeError, ValueError) as error:
        raise ShardSetError(f"{where}: this file is not a shard index. {REMEDY}") from error
    if head != f"{INDEX_VERSION} {len(lines)}":
        raise ShardSetError(
            f"{where}: expected '{INDEX_VERSION} {len(lines)}' as the first line, found {head!r}. {REMEDY}"
        )
    words = [line.split(" ") for line in lines]
    if any(tuple(row[0::4]) not in (MEMBERS, (*MEMBERS, LABELS)) or len(row) % 4 for row in words):
        raise ShardSetError(f"{where}: some lines do not list the members {', '.join(MEMBERS)}. {REMEDY}")
    try:
        absent = ["", "0", "0", ""]
        rows = [row + absent if len(row) == 12 else row for row in words]
        table = np.array([[*row[1::4], *row[2::4]] for row in rows], dtype=np.int64).reshape(-1, 8)
    except (ValueError, OverflowError) as error:
        raise ShardSetError(f"{where}: some offsets or sizes are not whole numbers: {error}. {REMEDY}") from error
    keys = np.array([row[3].removesuffix(f".{MEMBERS[0]}") for row in words], dtype=np.bytes_)
    return ShardIndex(keys, table[:, :4], table[:, 4:])


def parse_fitting_index(data: bytes, where: str, entry: ShardEntry) -> ShardIndex:
    """Parse the bytes of an index, and check that it fits its shard, because the manifest has no hash of the index.

    Args:
        data: content of the index file.
        where: path or address of the index file, for error messages.
        entry: shard to which the index belongs.

    Raises:
        ShardSetError: the members do not follow one another through the whole shard, as they do in a tar.
    """
    index = parse_index(data, where)
    refuse_unfitting(index, where, entry)
    return index


def tar_room(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes `(samples, 4)` that the members of `ShardIndex.sizes` take in a tar.

    Each member takes one block for its header, then its data, padded to whole blocks. Missing labels take nothing.
    """
    room = BLOCKSIZE - (-sizes // BLOCKSIZE) * BLOCKSIZE
    room[:, 3] *= sizes[:, 3] > 0
    return room


def refuse_unfitting(index: ShardIndex, where: str, entry: ShardEntry) -> None:
    """Check that the members of a shard follow one another through the whole tar.

    Args:
        index: index of the shard.
        where: path or address of the index file, for error messages.
        entry: the shard.

    Raises:
        ShardSetError: the index has another number of samples, gaps, or members beyond the end of the tar.
    """
    if len(index.keys) != entry.samples:
        raise ShardSetError(
            f"{where}: expected {entry.samples} samples as in the manifest, found {len(index.keys)}. {REMEDY}"
        )
    room, offsets = tar_room(index.sizes).ravel(), index.offsets.ravel()
    # Missing labels take no room and have no position.
    expected = np.where(room > 0, np.cumsum(room) - room + BLOCKSIZE, 0)
    if (offsets != expected).any() or room.sum() > entry.bytes:
        raise ShardSetError(f"{where}: the index does not fit its tar of {entry.bytes} bytes. {REMEDY}")
