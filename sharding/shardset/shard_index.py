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
    """`(samples, 3)`: position of the first byte of the low, high and json member."""
    sizes: NDArray[np.int64]
    """`(samples, 3)`: sizes of these members in bytes."""


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
    if any(len(row) != 12 or tuple(row[0::4]) != MEMBERS for row in words):
        raise ShardSetError(f"{where}: some lines do not list the members {', '.join(MEMBERS)}. {REMEDY}")
    try:
        table = np.array([[row[i] for i in (1, 5, 9, 2, 6, 10)] for row in words], dtype=np.int64).reshape(-1, 6)
    except (ValueError, OverflowError) as error:
        raise ShardSetError(f"{where}: some offsets or sizes are not whole numbers: {error}. {REMEDY}") from error
    keys = np.array([row[3].removesuffix(f".{MEMBERS[0]}") for row in words], dtype=np.bytes_)
    return ShardIndex(keys, table[:, :3], table[:, 3:])


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
    sizes, offsets = index.sizes.ravel(), index.offsets.ravel()
    # Each member takes one block for its header, then its data, padded to whole blocks.
    room = BLOCKSIZE - (-sizes // BLOCKSIZE) * BLOCKSIZE
    expected = np.cumsum(room) - room + BLOCKSIZE
    if (offsets != expected).any() or room.sum() > entry.bytes:
        raise ShardSetError(f"{where}: the index does not fit its tar of {entry.bytes} bytes. {REMEDY}")
