"""Write one shard: a WebDataset tar and its index.

webdataset's `TarWriter` writes the tar, with one call per member. A single call for all members would sort them by
name, with `json` between `high.npy` and `low.npy`. In our order, the reader fetches low and high field in one read.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from upfield.common.files import atomic_path, write_text
from upfield.sharding.shardset.shard_index import INDEX_VERSION, MEMBERS, ShardEntry

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


class HashedFile:
    """A file open for writing that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        """Wrap a file that is open for writing and still empty."""
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write and hash some bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def hexdigest(self) -> str:
        """Return the sha256 of the bytes written so far, as hex digits."""
        return self._hash.hexdigest()


def write_shard(root: Path, name: str, samples: Iterable[Sample]) -> ShardEntry:
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
                lines.extend(_write_sample(tar, sample) for sample in samples)
        write_text(root / f"{name}.idx", "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines]) + "\n")
    return ShardEntry(name, len(lines), hashed.size, hashed.hexdigest())


def _enlarge_buffers(tarstream: Any) -> None:
    """Pass each array on whole and write 64 KiB at once instead of 10 KB: a shard takes a quarter less time."""
    tarstream.copybufsize = 1 << 20
    tarstream.fileobj.bufsize = 1 << 16


def _write_sample(tar: "TarWriter", sample: Sample) -> str:
    """Write a sample's members and return its line of the index."""
    record = json.dumps(sample.record, sort_keys=True, separators=(",", ":")).encode()
    words: list[str] = []
    for suffix, payload in zip(MEMBERS, (_npy(sample.low), _npy(sample.high), record), strict=True):
        name = f"{sample.key}.{suffix}"
        assert len(name) <= NAME_BYTES, name
        words += [suffix, str(tar.tarstream.offset + tarfile.BLOCKSIZE), str(len(payload)), name]
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
