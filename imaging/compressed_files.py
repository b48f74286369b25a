"""What files hold behind their compression: whether they are whole, and which of them hold the same."""

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

# BadGzipFile is an OSError; ISA-L has errors of its own.
DAMAGED = (EOFError, zlib.error, cast(type[Exception], isal_zlib.error), OSError)
COMPRESSED = (".gz", ".mgz")
GZIP_MAGIC = b"\x1f\x8b"
TRAILER_BYTES = 8
CHUNK_BYTES = 1 << 20
# MGH keeps tags behind the voxels. A file cut off ends in four bytes that mean any length, so it passes once in 65536.
SLACK_BYTES = 1 << 16
NUM_SAMPLES, SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Trace:
    """What a file tells of its content without being read through."""

    num_bytes: int
    """Length of the content modulo 2**32: gzip keeps no more."""
    crc: int | None
    """CRC-32 of the content; None where only reading it through would tell."""


def is_compressed(path: Path) -> bool:
    """Tell by its name whether a file is compressed with gzip."""
    return path.suffix.lower() in COMPRESSED


def open_content(path: Path) -> BinaryIO:
    """Open a file for reading its content without the compression (by ISA-L, which takes half of zlib's time)."""
    if not is_compressed(path):
        return path.open("rb")
    with path.open("rb", buffering=0) as file:
        # ISA-L calls a short text cut off rather than no gzip.
        if start := file.read(2).removeprefix(GZIP_MAGIC):
            raise igzip.BadGzipFile(f"Not a gzipped file ({start!r})")
    return cast(BinaryIO, igzip.open(path))


def read_content(path: Path, num_bytes: int) -> bytes:
    """Read the first `num_bytes` of a file's content, fewer where it ends before, and check all of it against its CRC.

    Raises:
        DAMAGED: gzip finds the file cut off or its content changed. Readers that stop at the last voxel never look at
            the CRC behind it, and most flipped bits inflate to other voxels without any error.
    """
    with open_content(path) as file:
        content = file.read(num_bytes)
        if is_compressed(path):
            while file.read(CHUNK_BYTES):
                pass
    return content


def trace(path: Path) -> Trace:
    """Read what a file tells of its content: its size, or the last bytes of gzip (RFC 1952, CRC32 and ISIZE).

    Raises:
        DAMAGED: the file is too short to be gzip, or cannot be read.
    """
    if not is_compressed(path):
        return Trace(path.stat().st_size % 2**32, None)
    with path.open("rb", buffering=0) as file:
        start = file.read(18)
        if start[3:4] == b"\x04" and start[12:14] == b"BC":
            # Blocked gzip (SAM specification, 4.1) ends with an empty member, whose trailer is zero in every file.
            return Trace(*_measure(path))
        file.seek(-TRAILER_BYTES, os.SEEK_END)
        trailer = file.read(TRAILER_BYTES)
    return Trace(int.from_bytes(trailer[4:], "little"), int.from_bytes(trailer[:4], "little"))


def is_whole(path: Path, traced: Trace, num_bytes: int) -> bool:
    """Tell whether a file holds at least `num_bytes`.

    Args:
        path: the file.
        traced: what it tells of itself; where that is not about the length expected, which several members can cause
            too, a compressed file is read through.
        num_bytes: content that its header promises.
    """
    if not is_compressed(path):
        return path.stat().st_size >= num_bytes
    if (traced.num_bytes - num_bytes) % 2**32 <= SLACK_BYTES:
        return True
    try:
        with open_content(path) as file:
            return sum(map(len, _chunks(file))) >= num_bytes
    except DAMAGED:
        return False


def same_content(volumes: Sequence[Sequence[Path]], traces: Sequence[Sequence[Trace]]) -> list[list[int]]:
    """Find volumes whose files, in order, hold the same bytes behind their compression.

    What differs in length or CRC is told apart by that; only what does not is compared byte by byte. Files that cannot
    be read equal none.

    Args:
        volumes: the files of each volume.
        traces: what those files tell.

    Returns:
        Groups of two or more indices into `volumes`, each in ascending order.
    """

    def lengths(index: int) -> Hashable:
        return tuple(traced.num_bytes for traced in traces[index])

    def samples(index: int) -> Hashable:
        return _or_unique(lambda: tuple(map(_sample, volumes[index])))

    def crcs(index: int) -> Hashable:
        files = zip(volumes[index], traces[index], strict=True)
        return _or_unique(
            lambda: tuple(_measure(path)[1] if traced.crc is None else traced.crc for path, traced in files)
        )

    found: list[list[int]] = []
    for equal_lengths in _groups(range(len(volumes)), lengths):
        # Volumes of one scanner are equally long: a few chunks spare reading every uncompressed one of them through.
        plain = all(traced.crc is None for index in equal_lengths for traced in traces[index])
        for candidates in _groups(equal_lengths, samples) if plain else [equal_lengths]:
            for equal_crcs in _groups(candidates, crcs):
                found += _confirmed(equal_crcs, volumes)
    return sorted(found)


def fingerprint(paths: Sequence[Path]) -> str:
    """Give what tells a volume's content from other scans', at the price of a few reads per file.

    Of compressed files length and CRC-32 of the content; of others length and CRC-32 of it, or, where they are large,
    of chunks spread over it. The same volume with and without compression can have two fingerprints.

    Args:
        paths: all its files, in order.

    Returns:
        128 bits, hexadecimal.

    Raises:
        DAMAGED: a file cannot be read.
    """
    traces = [(path, trace(path)) for path in paths]
    parts = [[traced.num_bytes, _sample(path) if traced.crc is None else traced.crc] for path, traced in traces]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def hash_voxels(voxels: NDArray[np.float32]) -> str:
    """Give what tells an image `(I, J, K)` from any other, whatever file it came in: 128 bits, hexadecimal."""
    planes = [isal_zlib.crc32(np.ascontiguousarray(plane)) for plane in voxels]
    return hashlib.sha256(json.dumps([voxels.shape, planes]).encode()).hexdigest()[:32]


def _groups(indices: Iterable[int], key: Callable[[int], Hashable]) -> Iterator[list[int]]:
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        by_key[key(index)].append(index)
    yield from (group for group in by_key.values() if len(group) > 1)


def _or_unique(key: Callable[[], Hashable]) -> Hashable:
    try:
        return key()
    except DAMAGED:
        return object()


def _confirmed(candidates: list[int], volumes: Sequence[Sequence[Path]]) -> list[list[int]]:
    """Split candidates into groups of really equal ones."""
    groups: list[list[int]] = []
    for index in candidates:
        for group in groups:
            if all(map(_equal, volumes[group[0]], volumes[index])):
                group.append(index)
                break
        else:
            groups.append([index])
    return [group for group in groups if len(group) > 1]


def _equal(first: Path, second: Path) -> bool:
    try:
        if first.samefile(second):
            return True
        with open_content(first) as one, open_content(second) as other:
            return all(a == b for a, b in zip_longest(_chunks(one), _chunks(other)))
    except DAMAGED:
        return False


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _measure(path: Path) -> tuple[int, int]:
    """Read a file's content through: its length modulo 2**32 and its CRC-32."""
    length = crc = 0
    with open_content(path) as file:
        for chunk in _chunks(file):
            length, crc = length + len(chunk), zlib.crc32(chunk, crc)
    return length % 2**32, crc


def _sample(path: Path) -> int:
    """Give the CRC-32 of an uncompressed file, or of chunks spread over a large one."""
    crc, size = 0, path.stat().st_size
    if size <= NUM_SAMPLES * SAMPLE_BYTES:
        return zlib.crc32(path.read_bytes())
    with path.open("rb") as file:
        for number in range(NUM_SAMPLES):
            file.seek(max(size - SAMPLE_BYTES, 0) * number // (NUM_SAMPLES - 1))
            crc = zlib.crc32(file.read(SAMPLE_BYTES), crc)
    return crc
