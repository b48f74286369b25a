"""Find volumes with equal content, and compute fingerprints that identify the content of a scan."""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from upfield.imaging.compressed_files import DAMAGED, Trace, chunks, measure_content, open_content, trace

NUM_SAMPLES, SAMPLE_BYTES = 64, 4096


def find_same_content(volumes: Sequence[Sequence[Path]], traces: Sequence[Sequence[Trace]]) -> list[list[int]]:
    """Find volumes whose files hold the same bytes, in the same order, once they are decompressed.

    Lengths and CRCs are compared first; compressed files store both, so only uncompressed files are read for this. If
    both are equal, the files are compared byte by byte. A file that cannot be read never equals another one.

    Args:
        volumes: the files of each volume.
        traces: one trace for each of these files.

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
            lambda: tuple(measure_content(path)[1] if traced.crc is None else traced.crc for path, traced in files)
        )

    groups: list[list[int]] = []
    for equal_lengths in _groups(range(len(volumes)), lengths):
        # Volumes from one scanner have equal lengths. A few samples show which uncompressed ones need not be read.
        plain = all(traced.crc is None for index in equal_lengths for traced in traces[index])
        for candidates in _groups(equal_lengths, samples) if plain else [equal_lengths]:
            for equal_crcs in _groups(candidates, crcs):
                groups += _confirmed(equal_crcs, volumes)
    return sorted(groups)


def fingerprint(paths: Sequence[Path], traces: Sequence[Trace] | None = None) -> str:
    """Compute a hash of a volume's content from a few reads per file.

    The hash covers the length and CRC-32 of the content. For large uncompressed files, the CRC-32 covers samples spread
    over the file instead. The same volume with and without compression can have two fingerprints.

    Args:
        paths: all files of the volume, in order.
        traces: one trace per file; by default, they are read from the files. If they are passed, compressed files are
            not opened.

    Returns:
        128 bits, hexadecimal.

    Raises:
        DAMAGED: a file cannot be read.
    """
    traces = [trace(path) for path in paths] if traces is None else traces
    parts = [
        [traced.num_bytes, _sample(path) if traced.crc is None else traced.crc]
        for path, traced in zip(paths, traces, strict=True)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def hash_voxels(voxels: NDArray[np.float32]) -> str:
    """Compute a hash of an image `(I, J, K)` that does not depend on the file it came from: 128 bits, hexadecimal."""
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
    """Split candidates into groups whose bytes are equal."""
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
        with open_content(first) as content, open_content(second) as other_content:
            return all(a == b for a, b in zip_longest(chunks(content), chunks(other_content)))
    except DAMAGED:
        return False


def _sample(path: Path) -> int:
    """Compute the CRC-32 of a small uncompressed file, or of samples spread over a large one."""
    crc, size = 0, path.stat().st_size
    if size <= NUM_SAMPLES * SAMPLE_BYTES:
        return zlib.crc32(path.read_bytes())
    with path.open("rb") as file:
        for number in range(NUM_SAMPLES):
            file.seek(max(size - SAMPLE_BYTES, 0) * number // (NUM_SAMPLES - 1))
            crc = zlib.crc32(file.read(SAMPLE_BYTES), crc)
    return crc
