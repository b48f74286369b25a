"""The samples of a remote set, each downloaded by its range of bytes and checked by its CRC-32. Nothing is cached."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from tarfile import BLOCKSIZE
from typing import TypeVar

from upfield.common.errors import InputError
from upfield.common.stores.store_errors import RangesIgnoredError
from upfield.common.stores.transfer import TransferCancelledError
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.remote.remote_files import ChecksumError, RemoteFiles
from upfield.sharding.shardset.remote.sample_queue import QueuedSample, SampleQueue
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_files import Piece, SampleTable
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex
from upfield.sharding.shardset.split_index import IndexEntry, SplitIndex

T = TypeVar("T")


class RemoteSamples:
    """Access to a remote set by ranges of bytes. Only its indices are cached. Implements `ShardFiles`."""

    def __init__(self, files: RemoteFiles) -> None:
        """Store the files of the set. This downloads nothing."""
        self._files = files
        self._queue = SampleQueue(self._download)

    def where(self, entry: ShardEntry) -> str:
        """Return the address of a shard's tar, for error messages."""
        return self._files.where(entry)

    def split_index(self, entry: IndexEntry, split: str) -> SplitIndex:
        """Read the index of a split."""
        return self._files.split_index(entry, split)

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices."""
        return self._files.indices(entries)

    def reader(self, table: SampleTable) -> "SampleFetcher":
        """Return a reader of the samples of a split."""
        return SampleFetcher(self._queue, table)

    def stop(self) -> None:
        """Cancel all downloads. After this call, nothing can be downloaded."""
        self._files.stop()

    def _download(self, run: Sequence[QueuedSample]) -> list[memoryview]:
        """Download samples that are neighbours in a shard, and return the bytes of each."""
        first, last = run[0], run[-1]
        start = first.stretch.start

        def check(data: bytes) -> list[memoryview]:
            view = memoryview(data)
            parts = [view[queued.stretch.start - start : queued.stretch.end - start] for queued in run]
            for queued, part in zip(run, parts, strict=True):
                if (crc32 := zlib.crc32(part)) != queued.stretch.crc32:
                    raise ChecksumError(
                        f"sample {queued.key} has CRC-32 {crc32}, but the index has {queued.stretch.crc32}"
                    )
            return parts

        what = f"sample {first.key}" if first is last else f"{len(run)} samples from {first.key} to {last.key}"
        return fetch_range(self._files, first.entry, (start, last.stretch.end), what, check)


class SampleFetcher:
    """Reads samples of one split that are downloaded one by one. Implements `SampleReader`."""

    def __init__(self, queue: SampleQueue, table: SampleTable) -> None:
        """Store the arguments.

        Args:
            queue: samples of the set that are downloaded, for all readers of the process.
            table: samples of the split.
        """
        self._queue = queue
        self._table = table

    def request(self, samples: Sequence[int]) -> None:
        """Start to download samples. A number occurs once for each call of `read` that will read the sample."""
        self._queue.request(self._table, samples)

    def read(self, pieces: Iterable[Piece]) -> None:
        """Read pieces of samples into their targets. Samples that were not requested are downloaded all at once.

        Raises:
            FetchError: a sample could not be downloaded.
            InputError: the store denies access, or sends whole files.
        """
        pieces = list(pieces)
        samples = list(dict.fromkeys(piece.sample for piece in pieces))
        queue = dict(zip(samples, self._queue.take(self._table, samples), strict=True))
        for piece in pieces:
            queued = queue[piece.sample]
            data, position = queued.arrived.result(), piece.offset - queued.stretch.start
            for target in piece.targets:
                target.cast("B")[:] = data[position : position + target.nbytes]
                position += target.nbytes

    def close(self) -> None:
        """Do nothing, because no file is open."""


def open_samples(files: RemoteFiles, manifest: Manifest, flag: str) -> RemoteSamples:
    """Return access to the samples of a remote set, after a check that they can be fetched one by one.

    Args:
        files: files of the set.
        manifest: manifest of the set.
        flag: flag that chooses between shards and samples, for error messages.

    Raises:
        InputError: the set has no checksums of its samples, or the store sends whole files instead of ranges.
        FetchError: the store does not respond correctly.
    """
    filled = [split for split in SPLITS if manifest.shards(split)]
    if any(manifest.index(split) is None for split in filled):
        raise InputError(
            f"{files.folder.store.name}: an earlier version of upfield built this set without checksums of single "
            f"samples, so they cannot be checked when they arrive. Build the set again, or set {flag} shards."
        )
    for split in filled[:1]:
        entry = manifest.shards(split)[0]
        try:
            fetch_range(files, entry, (0, BLOCKSIZE), f"its first {BLOCKSIZE} bytes", len)
        except RangesIgnoredError as error:
            raise RangesIgnoredError(files.where(entry), f"Set {flag} shards.") from error
    return RemoteSamples(files)


def fetch_range(
    files: RemoteFiles, entry: ShardEntry, stretch: tuple[int, int], what: str, check: Callable[[bytes], T]
) -> T:
    """Download a range of a shard's bytes, with retries.

    Args:
        files: files of the set.
        entry: the shard.
        stretch: positions of the first byte and after the last byte.
        what: what the range holds, for error messages.
        check: function of the bytes whose result is returned. It raises an error if they are wrong.

    Raises:
        InputError: access is denied, or the store sends whole files instead of ranges.
        FetchError: no try succeeded.
        TransferCancelledError: the files were stopped.
    """
    name, stopped = f"{entry.name}.tar", files.stopped

    def fetch() -> T:
        if stopped.is_set():
            raise TransferCancelledError
        (data,) = files.folder.store.fetch_ranges(name, [stretch], stopped)
        return check(data)

    with files.share_failure():
        return files.folder.try_again(name, what, fetch, stopped)
