"""The index of a split: where each sample is, what it is, and the checksum of its bytes, in one binary file.

The indices of single shards (`.idx`) are for NVIDIA DALI. For many shards they are slow to read, and they hold no
checksums. A sample's stretch of its tar runs from the first byte of its first header to the last byte of padding after
its last member. All numbers in the file are unsigned and little-endian:

    first line       `upfield-index VERSION BYTES`; BYTES is the position of the first array, a multiple of 64
    JSON object      padded with spaces up to the first array:
                         split        `train`, `val` or `test`
                         members      sizes in bytes of each sample's low.npy and high.npy, and of labels.npy if some
                                      samples have it
                         shards       number of samples of each shard, in the manifest's order
                         units        [cohort, subject, kind, variant] as in the samples' keys
                         labelled     places in `units` of the units whose samples have labels.npy; only in version 2
    four arrays      one number per sample, in stored order; each array is padded with zeros to a multiple of 64 bytes:
                         unit         32 bits, place in `units`
                         crc32        32 bits, CRC-32 of the sample's stretch
                         slice        16 bits
                         json bytes   16 bits, size of the json member

The stretches of a shard follow one another from its first byte, and each member takes a block of 512 bytes for its
header and then its data, padded to whole blocks. So all positions follow from the sizes. The arrays are mapped into
memory, and the processes of a node share their pages.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.sample_key import SPLITS, SampleKey
from upfield.sharding.shardset.shard_index import LABELS, MEMBERS, REMEDY, ShardEntry, ShardIndex

FORMAT, VERSION, LABELLED_VERSION = "upfield-index", 1, 2
SUFFIX = ".index"
INDEX_NAME = re.compile(rf"({'|'.join(SPLITS)})-[0-9a-f]{{12}}\{SUFFIX}")
ALIGNMENT = 64
FIRST_LINE_BYTES = 64
ARRAYS = {"unit": np.dtype("<u4"), "crc32": np.dtype("<u4"), "slice": np.dtype("<u2"), "json_bytes": np.dtype("<u2")}

UnitKey = tuple[str, str, str, int]
"""Cohort, subject, kind and variant, as in the keys of samples."""


@dataclass(frozen=True)
class IndexEntry:
    """The index of a split, as the manifest lists it."""

    name: str
    """Name of the file below the set's folder."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file's bytes."""


@dataclass(frozen=True)
class SplitIndex:
    """Places, names and checksums of a split's samples, in the order they are stored."""

    member_bytes: tuple[int, int]
    """Sizes of the low and the high member of every sample."""
    shard_sizes: NDArray[np.int64]
    """`(shards,)`, number of samples in each shard."""
    units: list[UnitKey]
    """The pairs of volumes that the samples are slices of."""
    unit_numbers: NDArray[np.uint32]
    """`(samples,)`, place of each sample's unit in `units`."""
    slices: NDArray[np.uint16]
    """`(samples,)`, number of the sagittal slice."""
    json_bytes: NDArray[np.uint16]
    """`(samples,)`, size of the json member."""
    checksums: NDArray[np.uint32] | None
    """`(samples,)`, CRC-32 of each sample's stretch; None if they are not known."""
    labels_bytes: int = 0
    """Size of the labels member of the samples that have one; 0 if none has."""
    labelled: frozenset[int] = frozenset()
    """Places in `units` of the units whose samples have a labels member, which is the last one."""

    @cached_property
    def _label_blocks(self) -> NDArray[np.uint32]:
        """`(units,)`, blocks of the labels member of each unit's samples."""
        blocks = np.zeros(len(self.units), dtype=np.uint32)
        blocks[sorted(self.labelled)] = 1 + _padded(self.labels_bytes) // BLOCKSIZE
        return blocks

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.slices)

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """`(shards + 1,)`, number of the first sample of each shard, and the number of all samples."""
        return np.concatenate([[0], np.cumsum(self.shard_sizes)])

    @cached_property
    def first_blocks(self) -> NDArray[np.uint32]:
        """`(samples,)`, block of the tar at which each sample's stretch starts."""
        first = np.zeros(self.num_samples, dtype=np.uint32)
        starts = self.shard_starts.tolist()
        for start, stop in pairwise(starts):
            np.cumsum(self.num_blocks(slice(start, max(start, stop - 1))), out=first[start + 1 : stop])
        return first

    @property
    def high_offset(self) -> int:
        """Position of the high member's data in a sample's stretch; the low member's data is after one header."""
        return 2 * BLOCKSIZE + _padded(self.member_bytes[0])

    @property
    def json_offset(self) -> int:
        """Position of the json member's data in a sample's stretch."""
        return self.high_offset + BLOCKSIZE + _padded(self.member_bytes[1])

    def num_blocks(self, samples: Any) -> NDArray[np.uint32]:
        """Return the number of blocks of some samples' stretches, `(N,)`; `samples` is an index of N of them."""
        json_blocks = (self.json_bytes[samples].astype(np.uint32) + (BLOCKSIZE - 1)) // BLOCKSIZE
        blocks = json_blocks + np.uint32(self.json_offset // BLOCKSIZE)
        return blocks + self._label_blocks[self.unit_numbers[samples]] if self.labelled else blocks

    def has_labels(self, sample: int) -> bool:
        """Return whether a sample has a labels member."""
        return int(self.unit_numbers[sample]) in self.labelled

    def labels_offset(self, sample: int) -> int:
        """Return the position of the labels member's data in the stretch of a sample that has one."""
        return self.json_offset + _padded(int(self.json_bytes[sample])) + BLOCKSIZE

    def key(self, sample: int) -> SampleKey:
        """Return the key of a sample."""
        cohort, subject, kind, variant = self.units[int(self.unit_numbers[sample])]
        return SampleKey(cohort, subject, kind, variant, int(self.slices[sample]))

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position `(N,)` in its tar at which each of the samples `(N,)` starts."""
        return self.first_blocks[samples].astype(np.int64) * BLOCKSIZE

    def ends(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position `(N,)` in its tar after the last byte of each of the samples `(N,)`."""
        return self.starts(samples) + self.num_blocks(samples).astype(np.int64) * BLOCKSIZE

    def shard(self, number: int) -> ShardIndex:
        """Return the index of one shard."""
        samples = np.arange(self.shard_starts[number], self.shard_starts[number + 1])
        keys = np.array([str(self.key(sample)) for sample in samples.tolist()], dtype=np.bytes_)
        starts = self.starts(samples)
        offsets, sizes = (np.zeros((len(samples), len(MEMBERS) + 1), dtype=np.int64) for _ in range(2))
        offsets[:, :3] = starts[:, None] + np.array([BLOCKSIZE, self.high_offset, self.json_offset])
        sizes[:, :2], sizes[:, 2] = self.member_bytes, self.json_bytes[samples]
        for row, sample in enumerate(samples.tolist() if self.labelled else ()):
            if self.has_labels(sample):
                offsets[row, 3], sizes[row, 3] = starts[row] + self.labels_offset(sample), self.labels_bytes
        return ShardIndex(keys, offsets, sizes)

    def shard_bytes(self) -> NDArray[np.int64]:
        """Return the bytes `(shards,)` that the samples of each shard take."""
        last = self.shard_starts[1:][self.shard_sizes > 0] - 1
        ends = np.zeros(len(self.shard_sizes), dtype=np.int64)
        ends[self.shard_sizes > 0] = self.ends(last)
        return ends


def index_shards(indices: Sequence[ShardIndex], checksums: NDArray[np.uint32] | None, where: str) -> SplitIndex:
    """Make the index of a split from the indices of its shards.

    Args:
        indices: the indices of the shards, each of which fits its tar.
        checksums: `(samples,)`, CRC-32 of each sample's stretch, or None if they are not known.
        where: the set, for error messages.

    Raises:
        ShardSetError: the samples are not those that `upfield shard` writes.
    """
    sizes = np.concatenate([np.empty((0, 4), dtype=np.int64), *(index.sizes for index in indices)])
    carrying = sizes[:, 3] > 0
    for name, column in zip((*MEMBERS[:2], LABELS), (sizes[:, 0], sizes[:, 1], sizes[carrying, 3]), strict=True):
        if (differ := column != column[:1]).any():
            raise ShardSetError(
                f"{where}: expected {name} members of {column[0]} bytes, as in the first sample, found one of "
                f"{column[differ.argmax()]} bytes. Run upfield verify."
            )
    if (sizes[:, 2] > np.iinfo(np.uint16).max).any():
        raise ShardSetError(f"{where}: a json member has {sizes[:, 2].max()} bytes, more than 65535. {REMEDY}")
    units: dict[UnitKey, int] = {}
    numbers, slices = np.empty(len(sizes), dtype=np.uint32), np.empty(len(sizes), dtype=np.uint16)
    for place, (unit, x) in enumerate(_units(indices, where)):
        numbers[place] = units.setdefault(unit, len(units))
        slices[place] = x
    low_bytes, high_bytes = sizes[0, :2].tolist() if len(sizes) else (0, 0)
    shard_sizes = np.array([len(index.keys) for index in indices], dtype=np.int64)
    json_bytes = sizes[:, 2].astype(np.uint16)
    labelled = frozenset(numbers[carrying].tolist())
    if labelled & set(numbers[~carrying].tolist()):
        raise ShardSetError(f"{where}: only some samples of a subject have {LABELS} members. Run upfield verify.")
    labels_bytes = int(sizes[:, 3].max(initial=0))
    return SplitIndex(
        (low_bytes, high_bytes),
        shard_sizes,
        list(units),
        numbers,
        slices,
        json_bytes,
        checksums,
        labels_bytes,
        labelled,
    )


def _units(indices: Sequence[ShardIndex], where: str) -> Iterator[tuple[UnitKey, int]]:
    """Yield the unit and the slice of each sample."""
    known: dict[str, UnitKey] = {}
    for key in (key for index in indices for key in index.keys.tolist()):
        unit, _, x = key.decode("ascii").rpartition("-x")
        # Only the first key of each unit is parsed as a whole, which takes most of the time.
        if unit not in known or not x.isdecimal() or len(x) != 3:
            try:
                parts = SampleKey.parse(key.decode("ascii"))
            except ShardSetError as error:
                raise ShardSetError(f"{where}: {error}") from error
            known[unit] = (parts.cohort, parts.subject, parts.kind, parts.variant)
        yield known[unit], int(x)


def join_indices(first: SplitIndex, second: SplitIndex) -> SplitIndex:
    """Return the index of a split whose first shards have one index and whose last shards have another."""
    if not first.num_samples or not second.num_samples:
        return second if second.num_samples else first
    assert first.member_bytes == second.member_bytes
    places = {unit: place for place, unit in enumerate(first.units)}
    moved = np.array([places.setdefault(unit, len(places)) for unit in second.units], dtype=np.uint32)
    checksums = None
    if first.checksums is not None and second.checksums is not None:
        checksums = np.concatenate([first.checksums, second.checksums])
    return SplitIndex(
        first.member_bytes,
        np.concatenate([first.shard_sizes, second.shard_sizes]),
        list(places),
        np.concatenate([first.unit_numbers, moved[second.unit_numbers]]),
        np.concatenate([first.slices, second.slices]),
        np.concatenate([first.json_bytes, second.json_bytes]),
        checksums,
        first.labels_bytes or second.labels_bytes,
        first.labelled | {int(moved[place]) for place in second.labelled},
    )


def encode_index(index: SplitIndex, split: str) -> bytes:
    """Return the bytes of the index file of a split, all of whose checksums are known."""
    assert index.checksums is not None
    tree: dict[str, Any] = {
        "split": split,
        "members": dict(zip(MEMBERS, index.member_bytes, strict=False)),
        "shards": index.shard_sizes.tolist(),
        "units": index.units,
    }
    if index.labelled:
        tree["members"] |= {LABELS: index.labels_bytes}
        tree["labelled"] = sorted(index.labelled)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    first_array = _aligned(FIRST_LINE_BYTES + len(text) + 1)
    line = f"{FORMAT} {LABELLED_VERSION if index.labelled else VERSION} {first_array}\n".encode()
    assert len(line) <= FIRST_LINE_BYTES
    parts = [line, text.ljust(first_array - len(line) - 1), b"\n"]
    for array, dtype in zip(_arrays(index), ARRAYS.values(), strict=True):
        data = np.ascontiguousarray(array, dtype=dtype).tobytes()
        parts += [data, bytes(_aligned(len(data)) - len(data))]
    return b"".join(parts)


def describe_index(data: bytes, split: str) -> IndexEntry:
    """Return the entry of an index file in the manifest.

    The name holds a part of the hash. So the index of an extended set never replaces that of the set before, which a
    reader of the earlier manifest may be about to open.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    return IndexEntry(f"{split}-{sha256[:12]}{SUFFIX}", len(data), sha256)


def read_split_index(path: Path, entry: IndexEntry, split: str) -> SplitIndex:
    """Read the index of a split from a file, whose pages are mapped into memory.

    Raises:
        ShardSetError: the file is missing, is not the one that the manifest lists, or has a newer layout.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ShardSetError(f"{path}: this index is missing, but the manifest lists it. {REMEDY}") from error
    try:
        data = map_index(descriptor, str(path), entry)
    finally:
        os.close(descriptor)
    if (sha256 := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise ShardSetError(f"{path}: expected sha256 {entry.sha256} as in the manifest, found {sha256}. {REMEDY}")
    return parse_split_index(data, str(path), split)


def map_index(descriptor: int, where: str, entry: IndexEntry) -> memoryview:
    """Map an index file into memory. The mapping has a descriptor of its own and lives as long as its arrays.

    Args:
        descriptor: the open file.
        where: path or address of the file, for error messages.
        entry: the file as the manifest lists it.

    Raises:
        ShardSetError: the file has another size.
    """
    if (num_bytes := os.fstat(descriptor).st_size) != entry.bytes:
        raise ShardSetError(f"{where}: expected {entry.bytes} bytes as in the manifest, found {num_bytes}. {REMEDY}")
    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if num_bytes else b"")


def parse_split_index(data: bytes | memoryview, where: str, split: str) -> SplitIndex:
    """Parse the bytes of the index of a split; the arrays stay where they are.

    Args:
        data: the whole file.
        where: path or address of the file, for error messages.
        split: the split that it should describe.

    Raises:
        ShardSetError: this is not the index of that split, or it has a newer layout.
    """
    line, _, _ = bytes(data[:FIRST_LINE_BYTES]).partition(b"\n")
    words = line.decode("ascii", errors="replace").split(" ")
    if len(words) != 3 or words[0] != FORMAT or not (words[1] + words[2]).isdecimal():
        raise ShardSetError(f"{where}: this file is not the index of a split. {REMEDY}")
    if int(words[1]) not in (VERSION, LABELLED_VERSION):
        raise ShardSetError(
            f"{where}: expected version {LABELLED_VERSION} of the index, found {words[1]}. Install a newer version of "
            "upfield."
        )
    try:
        position = int(words[2])
        tree = json.loads(bytes(data[len(line) : position]))
        found, shard_sizes = tree["split"], np.array(tree["shards"], dtype=np.int64)
        arrays: list[NDArray[Any]] = []
        for dtype in ARRAYS.values():
            arrays.append(np.frombuffer(data, dtype, int(shard_sizes.sum()), position))
            position += _aligned(arrays[-1].nbytes)
        low_bytes, high_bytes = (int(tree["members"][member]) for member in MEMBERS[:2])
        units = [
            (str(cohort), str(subject), str(kind), int(variant)) for cohort, subject, kind, variant in tree["units"]
        ]
        labels_bytes, labelled = int(tree["members"].get(LABELS, 0)), frozenset(map(int, tree.get("labelled", ())))
    except (ValueError, LookupError, TypeError) as error:
        raise ShardSetError(f"{where}: this index is damaged ({type(error).__name__}: {error}). {REMEDY}") from error
    known = all(0 <= place < len(units) for place in labelled)
    if found != split or position != len(data) or (arrays[0] >= len(units)).any() or not known:
        raise ShardSetError(f"{where}: this index is damaged or that of another split, {found}. {REMEDY}")
    numbers, checksums, slices, json_bytes = arrays
    return SplitIndex(
        (low_bytes, high_bytes), shard_sizes, units, numbers, slices, json_bytes, checksums, labels_bytes, labelled
    )


def refuse_other_shards(index: SplitIndex, entries: Sequence[ShardEntry], where: str) -> None:
    """Compare the index of a split with the shards that the manifest lists.

    Raises:
        ShardSetError: they have other numbers of samples, or are too short for them.
    """
    sizes = np.array([entry.samples for entry in entries], dtype=np.int64)
    num_bytes = np.array([entry.bytes for entry in entries], dtype=np.int64)
    if not np.array_equal(index.shard_sizes, sizes) or (index.shard_bytes() > num_bytes).any():
        raise ShardSetError(f"{where}: this index does not fit the shards that the manifest lists. {REMEDY}")


def _arrays(index: SplitIndex) -> tuple[NDArray[Any] | None, ...]:
    return index.unit_numbers, index.checksums, index.slices, index.json_bytes


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCKSIZE) * BLOCKSIZE


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
